"""A mixture of linear forecasts in closed form, weighted at each step on held-out windows.

b windows, l context_len, n target_len, c d_y_context columns of which the first d are forecast; p parts
"""

from collections.abc import Iterable
from typing import Literal, get_args

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor, nn

from .closed_form_linear import ClosedFormLinear
from .linear_rows import LinearKind, WindowBlocks, roll_on
from .missing_values import carry_forward, fill_missing
from .ridge import Shrinkage

StackKind = Literal["stacked", "stacked_own"]
SHORTER = 4  # own values are read from the whole window, and from its latest quarter
MOST_VECTOR_INPUTS = 1024  # of a matrix from all columns: its normal equations are solved in seconds


class StackedLinear(nn.Module):
    """Forecast by several ClosedFormLinear at once, each with its share of every target step.

        y_t = sum_p share[p, t] y_t^(p),        share >= 0,  sum_p share[p, t] = 1

    Stacked regressions (Breiman 1996, Machine Learning 24, eq. (4)), with one set of shares for each step: what is best
    at the first step, a sensor's own values, is seldom best at the last. `fit` solves the parts on training windows and
    then for the shares with the least squared error on held-out windows. As they sum to one, they take no level of the
    held-out rows for granted.

        stacked_own     per_sensor and shared, each of the whole window and of its latest quarter
        stacked         these, and vector: of the last row, of as many rows as 1024 inputs are, and between

    A horizon beyond the fitted one is rolled on from the mixture, as a ClosedFormLinear is from its forecast.

    Args:
        kind: "stacked" or "stacked_own".
        linear_window: rows read at most, >= 1.
        d_y_context: columns of a context.
        d_y_target: columns forecast, the first ones.
        is_trained: whether gradients go on from the solutions of the parts; shares stay.

    Raises:
        ValueError: for an unknown kind or a linear_window below 1.
    """

    share: Tensor  # (p, n), (p, 0) until there is a solution

    def __init__(
        self, kind: StackKind, linear_window: int, d_y_context: int, d_y_target: int, *, is_trained: bool = False
    ) -> None:
        super().__init__()
        if kind not in get_args(StackKind):
            raise ValueError(f"the kind of stack must be one of {', '.join(get_args(StackKind))}: got {kind!r}")
        self.kind: StackKind = kind
        self.linear_window = linear_window
        self.d_y_target = d_y_target
        self.parts = nn.ModuleList(
            ClosedFormLinear(each, rows, d_y_context, d_y_target, is_trained=is_trained)
            for each, rows in parts_of(kind, linear_window, d_y_context)
        )
        self.register_buffer("share", torch.empty(len(self.parts), 0))

    @property
    def is_fitted(self) -> bool:
        """Whether there is a solution."""
        return self.share.numel() > 0

    @property
    def keeps_scale(self) -> bool:
        """Whether forecasts follow a context through any change of a sensor's level and unit."""
        return self.kind == "stacked_own"

    def forward(self, context: Tensor, target_len: int) -> Tensor:
        """Return the forecast (b, n, d) from a context (b, l, c), NaN where missing.

        Raises:
            ValueError: before `fit`, or when the context is shorter than the window.
        """
        fitted_len = max(1, self.share.shape[1])

        def mixture(values: Tensor) -> Tensor:
            share = self.share.to(values.dtype)
            forecasts = (part(values, fitted_len) for part in self.parts)
            return sum(each * own[:, None] for each, own in zip(forecasts, share, strict=True))  # pyright: ignore[reportReturnType]

        return roll_on(mixture, carry_forward(context), target_len, self.d_y_target)

    @torch.no_grad()
    def fit(
        self, train: WindowBlocks, held_out: WindowBlocks, *, scale: Tensor | None = None, noise: float = 0.0
    ) -> list[Shrinkage]:
        """Solve for weights and shares; return for each target step what was chosen in the part with the largest share.

        Args:
            train: yields (context (b, l, c), target (b, n, d)), NaN where missing, anew at each call.
            held_out: yields the windows that penalties and shares are chosen on.
            scale: (c,) what counts as one in each column; None: 1.
            noise: standard deviation, in those units, of what training will add to contexts.

        Raises:
            ValueError: no training window.
        """
        chosen = [part.fit(train, held_out, scale=scale, noise=noise) for part in self.parts]  # pyright: ignore[reportCallIssue]
        share = best_shares(self._error_products(held_out(), len(chosen[0]), scale))
        self.share = share.to(self.share)
        return [chosen[largest][step] for step, largest in enumerate(share.argmax(dim=0).tolist())]

    def _error_products(self, windows: Iterable[tuple[Tensor, Tensor]], steps: int, scale: Tensor | None) -> Tensor:
        """Sum the products of the errors of each two parts at each step, (n, p, p)."""
        total = torch.zeros(steps, len(self.parts), len(self.parts), dtype=torch.float64)
        for context, target in windows:
            unit = 1.0 if scale is None else scale[: self.d_y_target].to(context)
            errors = [fill_missing((part(context, steps) - target) / unit) for part in self.parts]
            each = torch.stack(errors).to("cpu", torch.float64)  # (p, b, n, d)
            total += torch.einsum("pbnd,qbnd->npq", each, each)
        return total

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        saved = state_dict.get(f"{prefix}share")
        if saved is not None:  # the solution of a checkpoint has the horizon of its data
            self.share = self.share.new_empty(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)


def parts_of(kind: StackKind, linear_window: int, d_y_context: int) -> list[tuple[LinearKind, int]]:
    """List the kind and the window of each part.

    Example:
        >>> parts_of("stacked", 12, 207)[-3:]
        [('vector', 1), ('vector', 2), ('vector', 4)]
    """
    own: list[LinearKind] = ["per_sensor", "shared"] if d_y_context > 1 else ["shared"]
    windows = sorted({linear_window, -(-linear_window // SHORTER)})
    parts: list[tuple[LinearKind, int]] = [(each, rows) for each in own for rows in windows]
    if kind == "stacked":
        longest = max(1, min(linear_window, MOST_VECTOR_INPUTS // d_y_context))
        parts.extend(("vector", rows) for rows in sorted({1, round(longest**0.5), longest}))
    return parts


def best_shares(products: Tensor) -> Tensor:
    """Return the shares w >= 0 with sum one that minimise w^T P w at each step, (p, n) float64.

    The least squares of [A; 1 ... 1] w = [0; 1] over w >= 0, with P = A^T A, are a multiple of them: of all vectors in
    a direction v with sum one, s v leaves s^2 v^T P v + (s - 1)^2, at best v^T P v / (1 + v^T P v).

    Args:
        products: P, (n, p, p), of the parts' errors; where it is zero nothing was held out, and shares are equal.
    """
    shares = []
    for each in products:
        size = each.diagonal().mean()
        if size <= 0:
            shares.append(each.new_full((len(each),), 1 / len(each)))
            continue
        spectrum, basis = torch.linalg.eigh(each / size)
        rows = (basis * spectrum.clamp(min=0).sqrt()).T
        matrix = np.vstack((rows.numpy(), np.ones(len(each))))
        found = torch.from_numpy(nnls(matrix, np.append(np.zeros(len(each)), 1.0))[0])
        shares.append(found / found.sum())
    return torch.stack(shares, dim=1)
