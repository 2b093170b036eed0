import pytest
import torch

from favorcast.forecasting.st_transformer import Time2Vec


def test_first_component_of_each_input_is_linear_and_the_others_are_sines():
    module = Time2Vec(input_dim=2, embed_dim=6)
    x = torch.rand(3, 5, 2)
    out = module(x).unflatten(-1, (2, 3))
    angle = x.unsqueeze(-1) * module.weight + module.bias
    torch.testing.assert_close(out[..., 0], angle[..., 0])
    torch.testing.assert_close(out[..., 1:], angle[..., 1:].sin())


def test_activation_replaces_the_sine():
    module = Time2Vec(input_dim=1, embed_dim=4, activation=torch.cos)
    x = torch.rand(7, 1)
    torch.testing.assert_close(module(x)[:, 1:], (x * module.weight + module.bias)[:, 1:].cos())


@pytest.mark.parametrize(("input_dim", "embed_dim"), [(3, 8), (2, 0), (0, 4), (4, 2)])
def test_width_that_is_no_multiple_of_the_inputs_is_refused(input_dim, embed_dim):
    with pytest.raises(ValueError, match="multiple of input_dim"):
        Time2Vec(input_dim, embed_dim)


def test_gradients_match_finite_differences():
    module = Time2Vec(2, 6).double()
    assert torch.autograd.gradcheck(module, torch.rand(3, 2, dtype=torch.float64, requires_grad=True))
