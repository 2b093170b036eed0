"""Who chooses the implementation: a call, a layer, or the process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from kernel_runs import RUNS_KERNELS

from favorcast.kernels import (
    FavorAttention,
    MovingAverage,
    SeriesDecomposition,
    draw_features,
    favor_attention,
    moving_average,
    set_impl,
)
from favorcast.kernels.dispatch.implementation import resolve_impl

LAYERS = {
    "attention": lambda impl: FavorAttention(8, 2, batch_first=True, impl=impl),
    "average": lambda impl: MovingAverage(3, impl=impl),
    "decomposition": lambda impl: SeriesDecomposition(3, impl=impl),
}


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    yield
    set_impl("auto")


def called(layer: Any, x: torch.Tensor) -> Any:
    return layer(x, x, x)[0] if isinstance(layer, FavorAttention) else layer(x)


@pytest.mark.parametrize("name", LAYERS)
def test_layers_pass_their_impl_on(name):
    x = torch.randn(2, 5, 8, dtype=torch.float64)  # which the kernels do not take
    with pytest.raises(ValueError, match="impl='triton' cannot be honoured"):
        called(LAYERS[name]("triton").double(), x)
    called(LAYERS[name]("reference").double(), x)
    with pytest.raises(ValueError, match="unknown impl: expected one of auto"):
        LAYERS[name]("cuda")


def test_states_of_a_layer_pass_it_on_too():
    x, layer = torch.randn(2, 5, 8, dtype=torch.float64), FavorAttention(8, 2, batch_first=True, impl="triton").double()
    state = FavorAttention(8, 2, batch_first=True).double().summarize(x, x)
    for call in (lambda: layer.summarize(x, x), lambda: layer.attend(x, state), lambda: layer.stream(x, x, x)):
        with pytest.raises(ValueError, match="impl='triton' cannot be honoured"):
            call()


def test_the_process_chooses_where_a_call_does_not():
    x, q = torch.randn(2, 5, 8, dtype=torch.float64), torch.randn(1, 2, 5, 4, dtype=torch.float64)
    assert set_impl("triton") == "auto"
    for call in (lambda: moving_average(x, 3), lambda: favor_attention(q, q, q, draw_features(8, 4))):
        with pytest.raises(ValueError, match="impl='triton' cannot be honoured"):
            call()
    moving_average(x, 3, impl="reference")
    called(LAYERS["attention"]("reference").double(), x)
    assert set_impl("reference") == "triton"
    assert resolve_impl("auto", x) == "reference"
    with pytest.raises(ValueError, match="unknown impl"):
        set_impl("cuda")  # pyright: ignore[reportArgumentType]


@RUNS_KERNELS
def test_a_process_that_insists_on_kernels_runs_them():
    x = torch.randn(2, 5, 8)
    set_impl("triton")
    assert resolve_impl("auto", x) == "triton"
    torch.testing.assert_close(called(LAYERS["average"]("auto"), x), called(LAYERS["average"]("reference"), x))


def test_modules_take_weights_of_kernel_sizes():
    x, weights = torch.randn(2, 9, 3), torch.randn(2, 9, 1, 2).softmax(-1)
    expected = moving_average(x, [3, 5], weights=weights)
    torch.testing.assert_close(MovingAverage([3, 5])(x, weights=weights), expected)
    torch.testing.assert_close(SeriesDecomposition([3, 5])(x, None, weights)[1], expected)
