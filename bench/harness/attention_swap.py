"""Run layers and models with another implementation of attention than the one they choose themselves.

A bench that compares a whole layer or model on the same weights puts another function in the place of `favor_attention`
while the model runs forward; backward follows what forward recorded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from harness.cases import Impl
from torch import Tensor

from favorcast.kernels import RandomFeatures, favor_attention, set_impl
from favorcast.kernels.layers import multihead

Attention = Callable[..., Tensor]


@contextlib.contextmanager
def attention(function: Attention) -> Iterator[None]:
    """Let every FavorAttention call `function` in the place of `favor_attention`."""
    kept = multihead.favor_attention
    multihead.favor_attention = function
    try:
        yield
    finally:
        multihead.favor_attention = kept


def with_impl(impl: Impl) -> Attention:
    """Return `favor_attention` with a fixed implementation."""

    def call(*tensors: Any, **options: Any) -> Tensor:
        return favor_attention(*tensors, **options | {"impl": impl})

    return call


@contextlib.contextmanager
def implementation(impl: Impl) -> Iterator[None]:
    """Let every FavorAttention that chooses its implementation run on this one, its states too."""
    kept = set_impl(impl)
    try:
        yield
    finally:
        set_impl(kept)


def performer_attention() -> Attention:
    """Return performer-pytorch's attention in the shape of `favor_attention`; full attention without masks only."""
    from performer_pytorch import FastAttention  # pyright: ignore[reportMissingImports]

    made: dict[tuple, torch.nn.Module] = {}

    def call(query: Tensor, key: Tensor, value: Tensor, features: RandomFeatures, **options: Any) -> Tensor:
        if options.get("is_causal") or options.get("key_padding_mask") is not None:
            raise ValueError("performer-pytorch's attention is compared without masks only")
        place = (features.projection.data_ptr(), query.device)
        if place not in made:
            layer = FastAttention(query.shape[-1], nb_features=features.projection.shape[0]).to(query.device)
            layer.projection_matrix.copy_(features.projection)
            made[place] = layer
        return made[place](query, key, value)

    return call
