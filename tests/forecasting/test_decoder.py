import pytest
import torch
from torch import nn

from favorcast.forecasting.st_transformer import Decoder, DecoderLayer, LayerConfig, build_memory

CONFIG = LayerConfig(d_model=16, n_heads=2, dropout_ff=0.0)
CHANGE = torch.linspace(-1.0, 1.0, 16)  # a constant would vanish in the layer norm
SEEDS = [0, 1, 2, 3]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build(is_causal=False, layers=2):
    layer_list = [DecoderLayer(CONFIG, SEEDS, num_sensors=3, is_causal=is_causal) for _ in range(layers)]
    return Decoder(layer_list, nn.LayerNorm(16))


def memory(tokens):
    return build_memory(tokens, num_sensors=3)


def test_every_token_reads_every_memory_token():
    decoder = build(layers=1)
    memory_tokens = random(2, 4, 5, 16, seed=1)
    before = decoder(random(2, 6, 3, 16), memory(memory_tokens))
    memory_tokens[:, 1, 4] += CHANGE
    moved = (decoder(random(2, 6, 3, 16), memory(memory_tokens)) - before).abs().amax(dim=-1) > 1e-7
    assert moved.all()


@pytest.mark.parametrize("step", [1, 3, 5])
def test_causal_decoder_leaves_earlier_steps_bit_identical(step):
    decoder = build(is_causal=True)
    x = random(2, 6, 3, 16)
    before = decoder(x, memory(random(2, 4, 5, 16, seed=1)))
    x[:, step:] = 10.0 * random(2, 6 - step, 3, 16, seed=2)
    after = decoder(x, memory(random(2, 4, 5, 16, seed=1)))
    assert torch.equal(after[:, :step], before[:, :step])
    assert ((after - before)[:, step:].abs().amax(dim=-1) > 0).all()


def test_causal_decoder_shows_earlier_steps_to_later_ones():
    decoder = build(is_causal=True, layers=1)
    x = random(2, 6, 3, 16)
    before = decoder(x, memory(random(2, 4, 5, 16, seed=1)))
    x[:, 0, 0] += CHANGE
    moved = (decoder(x, memory(random(2, 4, 5, 16, seed=1))) - before).abs().amax(dim=-1) > 1e-7
    assert moved.all()


def test_decoder_that_is_not_causal_sees_later_steps():
    decoder = build(layers=1)
    x = random(2, 6, 3, 16)
    before = decoder(x, memory(random(2, 4, 5, 16, seed=1)))
    x[:, 5, 0] += CHANGE
    moved = (decoder(x, memory(random(2, 4, 5, 16, seed=1))) - before).abs().amax(dim=-1) > 1e-7
    assert moved.all()
