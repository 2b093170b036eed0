"""A module with random features of its own: drawn from a seed, redrawn by optimiser steps, never in half precision.

Dimension key: m features, d head dim.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ..dispatch.tracing import is_readable, is_traced
from ..random_features import FeatureKind, RandomFeatures, draw_features, is_paired


class FeatureModule(nn.Module):
    """Base of a layer that attends with random features: holds, draws, moves and loads them.

    Attributes:
        projection: (m, d), a persistent buffer, or a parameter if it is learnable. Another one is loaded or assigned,
            not written into it.
        log_weight: (m,), a persistent buffer, or None where the kind of feature has none.
        log_temperature: (h,), a parameter, or None without qk_norm.
    """

    softmax_names: ClassVar[set[str]]
    """Names in a state dict that tell that of a softmax layer."""

    projection: Tensor
    log_weight: Tensor | None
    log_temperature: Tensor | None
    _pairing: tuple[Tensor, bool]
    """A projection that was looked at, and whether its second half is the first one negated."""

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
        self._pairing = self.projection, drawn.paired and not self.learnable_projection
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

    def reset_parameters(self) -> None:
        """Initialise what this module itself holds, as initialisation after the meta device expects of each module."""
        self.reset_own_parameters()

    @torch.no_grad()
    def reset_own_parameters(self) -> None:
        """Initialise what softmax attention does not have."""
        for name, value in self._initial().items():
            getattr(self, name).copy_(value)
        self.redraw(0)

    def _initial(self) -> dict[str, Tensor]:
        """Return where what softmax attention does not have begins, features aside, by its name in a state dict."""
        if self.log_temperature is None:
            return {}
        return {"log_temperature": torch.zeros(self.log_temperature.shape, device="cpu")}

    @property
    def _drawn(self) -> RandomFeatures:
        """The features; which halves are each other's negative is found out anew for another tensor in their place."""
        if self._pairing[0] is not self.projection and not is_traced():
            if not is_readable(self.projection):
                return RandomFeatures(self.projection, self.log_weight, False)
            self._look_at_pairing()
        return RandomFeatures(self.projection, self.log_weight, self._pairing[1])

    def _look_at_pairing(self) -> None:
        self._pairing = self.projection, not self.learnable_projection and is_paired(self.projection)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; once transformers says that a module is initialised, initialise what it left as it was.

        It makes models on the meta device and fills what a checkpoint lacks with memory as it finds it, for
        `_init_weights` to initialise, which knows nothing of this class. What was loaded bears the same mark.
        """
        super().__setattr__(name, value)
        if name == "_is_hf_initialized" and value:
            loaded = [x for x in (*self.parameters(), *self.buffers()) if getattr(x, name, False)]
            values = [x.detach().clone() for x in loaded]
            self.reset_parameters()
            with torch.no_grad():
                for x, kept in zip(loaded, values, strict=True):
                    x.copy_(kept)
            self._look_at_pairing()

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
        self._pairing = self.projection, self._pairing[1]
        if before["projection"].is_meta and not self.projection.is_meta:  # to_empty: memory as it was found
            self.reset_own_parameters()
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Keep what softmax attention does not have, as it stands, when the state dict is that of a softmax layer."""
        given = {name.removeprefix(prefix): x for name, x in state_dict.items() if name.startswith(prefix)}
        # a softmax layer never has a log_temperature
        if not self.softmax_names.isdisjoint(given) and not {"projection", "log_temperature"} & given.keys():
            others = self._initial()
            begun = {**self._draw(0)._asdict(), **others} if self.projection.is_meta else {}
            device = next(iter(given.values())).device
            for name in (*dict(self._feature_tensors()), *others):
                own = getattr(self, name).detach()
                state_dict[prefix + name] = begun[name].to(device, own.dtype) if own.is_meta else own
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._look_at_pairing()

    def _feature_tensors(self) -> list[tuple[str, Tensor]]:
        named = (("projection", self.projection), ("log_weight", self.log_weight))
        return [(name, x) for name, x in named if x is not None]
