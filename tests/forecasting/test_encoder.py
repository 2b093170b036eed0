import pytest
import torch
from torch import nn

from favorcast.forecasting.st_transformer import DownsampleConv, Encoder, EncoderLayer, LayerConfig, TimeWindows

CONFIG = LayerConfig(d_model=16, n_heads=2, dropout_ff=0.0)
CHANGE = torch.linspace(-1.0, 1.0, 16)  # a constant would vanish in the layer norm


def tokens(steps=8, sensors=3):
    return torch.randn(2, steps, sensors, 16, generator=torch.Generator().manual_seed(0))


def moved_steps(layer, step):
    """Return which time steps of the output move when one sensor's token at `step` does."""
    x = tokens()
    before = layer(x)
    x[:, step, 0] += CHANGE
    return (layer(x) - before).abs().amax(dim=(0, 2, 3)) > 1e-6


def test_layer_connects_all_steps_and_sensors():
    layer = EncoderLayer(CONFIG, [0, 1])
    x = tokens()
    before = layer(x)
    x[:, 5, 2] += CHANGE
    assert ((layer(x) - before).abs().amax(dim=-1) > 1e-6).all()


def test_layer_is_residual():
    layer = EncoderLayer(CONFIG, [0, 1])
    nn.init.zeros_(layer.feed_forward.layers[3].weight)
    nn.init.zeros_(layer.feed_forward.layers[3].bias)
    for attention in (layer.local_attention, layer.global_attention):
        for parameter in attention.attention.out_proj.parameters():
            nn.init.zeros_(parameter)
    assert torch.equal(layer(tokens()), tokens())


@pytest.mark.parametrize(("is_shifted", "reached"), [(False, [4, 5, 6, 7]), (True, [2, 3, 4, 5])])
def test_windows_bound_the_global_attention(is_shifted, reached):
    layer = EncoderLayer(CONFIG, [0, 1], windows=TimeWindows(2, is_shifted))
    # Local attention crosses windows; with its output at zero only the windowed attention is left.
    for parameter in layer.local_attention.attention.out_proj.parameters():
        nn.init.zeros_(parameter)
    assert moved_steps(layer, step=4).nonzero().flatten().tolist() == reached


@pytest.mark.parametrize("count", [1, 2])
def test_padded_tokens_reach_no_other_token(count):
    layer = EncoderLayer(CONFIG, [0, 1], windows=TimeWindows(count))
    padding = torch.zeros(2, 8, 3, dtype=torch.bool)
    padding[0, 6:] = True
    padding[1, :, 2] = True
    x = tokens()
    before = layer(x, padding)
    x[padding] += CHANGE
    assert torch.equal(layer(x, padding)[~padding], before[~padding])


def test_convolutions_follow_their_layers():
    layers = [EncoderLayer(CONFIG, [2 * i, 2 * i + 1]) for i in range(2)]
    encoder = Encoder(layers, [DownsampleConv(16), nn.Identity()], nn.LayerNorm(16))
    assert encoder(tokens()).shape == (2, 4, 3, 16)


@pytest.mark.parametrize("rate", ["dropout_attn", "dropout_qkv", "dropout_ff"])
def test_each_dropout_acts_in_training_and_not_in_eval(rate):
    rates = {"dropout_attn": 0.0, "dropout_qkv": 0.0, "dropout_ff": 0.0, rate: 0.5}
    layer = EncoderLayer(LayerConfig(d_model=16, n_heads=2, **rates), [0, 1])
    assert not torch.equal(layer(tokens()), layer(tokens()))
    layer.eval()
    assert torch.equal(layer(tokens()), layer(tokens()))
