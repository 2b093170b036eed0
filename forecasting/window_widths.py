"""The shapes of a window's four parts.

b batch, l context_len, n target_len; d_x covariates, d_y_context and d_y_target sensors
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class WindowWidths:
    """Numbers of columns; the targets are the first d_y_target context columns.

    Args:
        d_x: time covariates.
        d_y_context: context columns.
        d_y_target: target columns.

    Raises:
        ValueError: unless d_x >= 0 and 1 <= d_y_target <= d_y_context.
    """

    d_x: int
    d_y_context: int
    d_y_target: int

    def __post_init__(self) -> None:
        if self.d_x < 0 or not 1 <= self.d_y_target <= self.d_y_context:
            raise ValueError(
                "expected d_x >= 0 and 1 <= d_y_target <= d_y_context (targets are the first context columns): "
                f"got d_x={self.d_x}, d_y_target={self.d_y_target}, d_y_context={self.d_y_context}"
            )

    def check(self, context_x: Tensor, context_y: Tensor, target_x: Tensor, target_y: Tensor | None = None) -> None:
        """Raise ValueError unless the shapes are (b,l,d_x), (b,l,d_y_context), (b,n,d_x) and (b,n,d_y_target)."""
        parts = [
            ("context_x", context_x, "d_x", self.d_x),
            ("context_y", context_y, "d_y_context", self.d_y_context),
            ("target_x", target_x, "d_x", self.d_x),
        ]
        if target_y is not None:
            parts.append(("target_y", target_y, "d_y_target", self.d_y_target))
        for name, value, width_name, width in parts:
            if value.ndim != 3:
                raise ValueError(
                    f"{name} must be (batch, time, {width_name}={width}): got {tuple(value.shape)}; "
                    f"use {name}[None] for a single window, {name}[..., None] for a single column"
                )
            if value.shape[-1] != width:
                raise ValueError(
                    f"{name} must have {width_name}={width} columns: got {tuple(value.shape)}; "
                    f"select the columns that the model was built for, or build it with {width_name}={value.shape[-1]}"
                )
        if len({len(value) for _, value, _, _ in parts}) > 1:
            sizes = ", ".join(f"{name} {len(value)}" for name, value, _, _ in parts)
            raise ValueError(f"all parts of a window must have the same batch size: got {sizes}")
        _check_times("context_x and context_y", context_x, context_y)
        _check_times("target_x and target_y", target_x, target_x if target_y is None else target_y)


def _check_times(names: str, x: Tensor, y: Tensor) -> None:
    if x.shape[1] != y.shape[1] or x.shape[1] < 1:
        raise ValueError(
            f"{names} must cover the same time steps, at least one: got {x.shape[1]} and {y.shape[1]}; "
            "covariates are needed for every step of context and horizon"
        )
