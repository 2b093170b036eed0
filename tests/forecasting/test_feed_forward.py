import pytest
import torch
import torch.nn.functional as F

from favorcast.forecasting.st_transformer import FeedForward


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
def test_each_activation_is_the_one_named(activation):
    module = FeedForward(8, 16, activation=activation)
    tokens = torch.randn(2, 3, 8)
    first, last = module.layers[0], module.layers[3]
    torch.testing.assert_close(module(tokens), last(getattr(F, activation)(first(tokens))))


def test_unknown_activation_lists_the_valid_ones():
    with pytest.raises(ValueError, match="'relu', 'gelu', 'silu', got 'tanh'"):
        FeedForward(8, 16, activation="tanh")  # pyright: ignore[reportArgumentType]


def test_dropout_acts_only_in_training():
    module = FeedForward(8, 16, dropout=0.5)
    tokens = torch.randn(50, 8)
    assert (module(tokens) == 0).float().mean() > 0.3
    module.eval()
    assert torch.equal(module(tokens), module(tokens))
