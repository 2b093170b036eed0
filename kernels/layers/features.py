"""A module with random features of its own: drawn from a seed, redrawn by optimiser steps, never in half precision.

Dimension key: m features, d head dim.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..random_features import FeatureKind, RandomFeatures, draw_features, is_paired


class FeatureModule(nn.Module):
    """Base of a layer that attends with random features; it holds them and nothing else.

    Attributes:
        projection: (m, d), a persistent buffer, or a parameter if it is learnable.
        log_weight: (m,), a persistent buffer, or None where the kind of feature has none.
    """

    projection: Tensor
    log_weight: Tensor | None

    def __init__(
        self,
        num_features: int,
        head_dim: int,
        features: FeatureKind,
        *,
        seed: int,
        redraw_interval: int | None,
        learnable_projection: bool,
    ) -> None:
        super().__init__()
        if learnable_projection and redraw_interval is not None:
            raise ValueError(
                f"a learnable projection cannot be redrawn: got redraw_interval={redraw_interval}; leave it at None, "
                "or pass learnable_projection=False"
            )
        self.num_features, self.head_dim = num_features, head_dim
        self.features: FeatureKind = features
        self.redraw_interval, self.seed = redraw_interval, seed
        self.learnable_projection = learnable_projection

    @torch.no_grad()
    def redraw(self, index: int) -> None:
        """Replace the projection by number `index` of this layer's seed, in place; 0 is the first one."""
        drawn = self._draw(index)
        self.projection.copy_(drawn.projection)
        self._paired = drawn.paired and not self.learnable_projection
        if self.log_weight is not None and drawn.log_weight is not None:
            self.log_weight.copy_(drawn.log_weight)

    def redraw_if_due(self, optimizer_step: int) -> bool:
        """Redraw after every `redraw_interval` optimiser steps; call it after each, outside forward and backward.

        Which projection is drawn follows from (seed, optimizer_step // redraw_interval) alone: ranks agree without
        communication, and a resumed run goes on as an uninterrupted one.

        Returns:
            Whether the projection was redrawn.
        """
        if self.redraw_interval is None or optimizer_step < 1 or optimizer_step % self.redraw_interval:
            return False
        self.redraw(optimizer_step // self.redraw_interval)
        return True

    def _register_features(self, device: torch.device | str | None, precision: torch.dtype) -> None:
        """Hold the first draw, on a device, in float32 or float64."""
        drawn = self._draw(0)
        projection = drawn.projection.to(device, precision)
        if self.learnable_projection:
            self.projection = nn.Parameter(projection)
        else:
            self.register_buffer("projection", projection)
        log_weight = None if drawn.log_weight is None else drawn.log_weight.to(device, precision)
        self.register_buffer("log_weight", log_weight)

    def _draw(self, index: int) -> RandomFeatures:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + index) % 2**63)
        with torch.device("cpu"):
            return draw_features(
                self.num_features, self.head_dim, kind=self.features, generator=generator, dtype=torch.float32
            )

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        """Move and cast as any module, but keep the projection out of half precision: it stands in exponents."""
        before = {name: x.detach() for name, x in self._feature_tensors()}
        super()._apply(fn, recurse)
        for name, after in self._feature_tensors():
            if after.dtype in (torch.float16, torch.bfloat16):
                gradient, after.grad = after.grad, None
                after.data = before[name].to(after.device)
                after.grad = None if gradient is None else gradient.to(after.dtype)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Find out whether the loaded features are paired."""
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._paired = not self.learnable_projection and is_paired(self.projection)

    def _feature_tensors(self) -> list[tuple[str, Tensor]]:
        named = (("projection", self.projection), ("log_weight", self.log_weight))
        return [(name, x) for name, x in named if x is not None]
