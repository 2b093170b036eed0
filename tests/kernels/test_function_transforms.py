"""torch.func over the operators: gradients, per sample too, Jacobians and second derivatives as autograd has them."""

from __future__ import annotations

import pytest
import torch
from favor_textbook import qkv
from torch import Tensor
from torch.func import functional_call, grad, jacrev, vjp, vmap

from favorcast.kernels import (
    FavorAttention,
    attend,
    draw_features,
    favor_attention,
    merge,
    series_decomposition,
    stream_attention,
    summarize,
)

FEATURES = draw_features(12, 4, kind="favor++", dtype=torch.float64)
CALLS = {
    "full": lambda q, k, v: favor_attention(q, k, v, FEATURES),
    "causal": lambda q, k, v: favor_attention(q, k, v, FEATURES, is_causal=True),
    "stream": lambda q, k, v: stream_attention(q, k, v, stream_attention(k, q, v, None, FEATURES).state, FEATURES)[0],
    "states": lambda q, k, v: attend(q, merge(summarize(k, v, FEATURES), summarize(v, k, FEATURES)), FEATURES),
    "decomposition": lambda q, k, v: series_decomposition(q[0], 3)[0] * series_decomposition(k[0], [2, 5])[1] + v[0],
}


@pytest.mark.parametrize("name", CALLS)
def test_gradients_jacobians_and_second_derivatives_are_those_of_autograd(name):
    inputs = qkv(1, 2, 4)

    def loss(*x: Tensor) -> Tensor:
        return CALLS[name](*x).pow(3).sum()

    leaves = [x.clone().requires_grad_() for x in inputs]
    first = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
    torch.testing.assert_close(grad(loss, (0, 1, 2))(*inputs), tuple(x.detach() for x in first))
    second = torch.autograd.grad(sum(x.square().sum() for x in first), leaves)

    def of_gradients(*x: Tensor) -> Tensor:
        return sum(x.square().sum() for x in grad(loss, (0, 1, 2))(*x))

    torch.testing.assert_close(grad(of_gradients, (0, 1, 2))(*inputs), second)
    jacobian = torch.autograd.functional.jacobian(CALLS[name], inputs)
    torch.testing.assert_close(jacrev(CALLS[name], (0, 1, 2))(*inputs), jacobian)
    output, pull = vjp(CALLS[name], *inputs)
    expected = torch.autograd.grad(CALLS[name](*leaves), leaves, torch.ones_like(output))
    torch.testing.assert_close(pull(torch.ones_like(output)), expected)


@pytest.mark.parametrize("options", [{}, {"is_causal": True}], ids=["full", "causal"])
@pytest.mark.parametrize("made", [{}, {"learnable_projection": True}, {"add_bias_kv": True}], ids=str)
def test_per_sample_gradients_of_the_layer(made, options):
    layer = FavorAttention(8, 2, batch_first=True, dtype=torch.float64, **made)
    x, parameters = torch.randn(3, 5, 8, dtype=torch.float64), dict(layer.named_parameters())

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(layer, parameters, (x, x, x), options)[0].square().sum()

    found = vmap(lambda p, x: grad(loss)(p, x[None]), in_dims=(None, 0))(parameters, x)
    for i in range(3):
        one = torch.autograd.grad(loss(parameters, x[i : i + 1]), list(parameters.values()))
        torch.testing.assert_close({name: y[i] for name, y in found.items()}, dict(zip(parameters, one, strict=True)))
