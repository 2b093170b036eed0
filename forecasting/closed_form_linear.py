"""Linear forecasts in closed form: the linear part of a forecaster, and the ridge yardsticks.

b windows, l context_len, n target_len, w linear_window, c d_y_context columns of which the first d are forecast;
g matrices (1, or d when each target column has its own), f inputs of one.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import get_args

import torch
from torch import Tensor, nn

from .linear_rows import LinearKind, LinearRows, WindowBlocks, lay_out, roll_on, take_back
from .missing_values import carry_forward, fill_missing
from .ridge import RidgeSolutions, Shrinkage, solve_ridge


class ClosedFormLinear(nn.Module):
    """Map the last `linear_window` rows of a context to all target rows at once.

        per_sensor    y_t[j] = x_w[j] + sum_i W[j, i, t] (x_i[j] - x_w[j])        for each target column j
        shared        the same with one W for all columns: NLinear (Zeng et al. 2023, section 3)
        vector        y_t[j] = sum_ik W[i, k, t, j] x_i[k] + b[t, j]              from all columns k to each j

    `fit` solves for W the ridge regression over all windows,

        min  sum (y - forecast)^2 + penalty |W|^2        in units of `scale`, over observed y, b free

    for all penalties by one eigendecomposition in float64 (`solve_ridge`), and takes at each target step the one that
    forecasts held-out windows best. For "vector" W may be that of the change from the last value, y_t - x_w, so
    that all three kinds reach persistence as the penalty grows. Missing inputs are carried (`carry_forward`), in
    fitting as in forecasting; missing targets do not count. A horizon beyond the fitted one is rolled on from the
    forecasts, with columns that are not forecast kept at their last value. Until `fit`, or a checkpoint, the weight is
    empty.

    Args:
        kind: "per_sensor", "shared" or "vector".
        linear_window: rows read, >= 1.
        d_y_context: columns of a context.
        d_y_target: columns forecast, the first ones.
        is_trained: whether gradients go on from the solution; otherwise it stays.

    Raises:
        ValueError: for an unknown kind or a linear_window below 1.
    """

    weight: nn.Parameter  # (g, f, n, d) for vector, (g, f, n, 1) otherwise

    def __init__(
        self, kind: LinearKind, linear_window: int, d_y_context: int, d_y_target: int, *, is_trained: bool = False
    ) -> None:
        super().__init__()
        if kind not in get_args(LinearKind):
            raise ValueError(f"the linear kind must be one of {', '.join(get_args(LinearKind))}: got {kind!r}")
        if linear_window < 1:
            raise ValueError(f"linear_window must be at least 1: got {linear_window}")
        self.kind: LinearKind = kind
        self.linear_window = linear_window
        self.d_y_context = d_y_context
        self.d_y_target = d_y_target
        self.weight = nn.Parameter(torch.empty(0), requires_grad=is_trained)

    @property
    def is_fitted(self) -> bool:
        """Whether there is a solution."""
        return self.weight.numel() > 0

    @property
    def keeps_scale(self) -> bool:
        """Whether forecasts follow a context through any change of a sensor's level and unit."""
        return self.kind != "vector"

    def forward(self, context: Tensor, target_len: int) -> Tensor:
        """Return the forecast (b, n, d) from a context (b, l, c), NaN where missing.

        Raises:
            ValueError: before `fit`, or when the context is shorter than the window.
        """
        if not self.is_fitted:
            raise ValueError(
                "the closed-form linear part has no weights yet: fit with a datamodule that offers "
                "window_blocks(split), call fit_linear_part(train, held_out), or load a trained checkpoint"
            )
        return roll_on(self._map, self._last_rows(context), target_len, self.d_y_target)

    @torch.no_grad()
    def fit(
        self,
        train: WindowBlocks,
        held_out: WindowBlocks,
        *,
        penalties: Sequence[float] | None = None,
        scale: Tensor | None = None,
        noise: float = 0.0,
    ) -> list[Shrinkage]:
        """Solve for the weights and return what was chosen for each target step.

        Args:
            train: yields (context (b, l, c), target (b, n, d)), NaN where missing, anew at each call.
            held_out: yields the windows that penalties are chosen on; not read when there is one penalty.
            penalties: to choose from, all > 0 and finite, in units of `scale`; None: what follows from the data, up to
                persistence.
            scale: (c,) what counts as one in each column; None: 1.
            noise: standard deviation, in those units, of what training will add to contexts.

        Raises:
            ValueError: no training window, or a penalty that is not positive and finite.
        """
        unit = torch.ones(self.d_y_context) if scale is None else scale
        unit = unit.detach().to("cpu", torch.float64)
        solutions, chosen = solve_ridge(
            lambda: self._rows(train(), unit),
            lambda: self._rows(held_out(), unit),
            has_constant=self.kind == "vector",
            penalties=penalties,
            noise=noise,
        )
        self._take(self._weight(solutions, chosen, unit))
        return chosen

    def _rows(self, windows: Iterable[tuple[Tensor, Tensor]], unit: Tensor) -> Iterator[LinearRows]:
        for context, target in windows:
            values = self._last_rows(context).to("cpu", torch.float64) / unit
            yield lay_out(self.kind, values, self.d_y_target, target.to("cpu", torch.float64) / unit[: self.d_y_target])

    def _weight(self, solutions: RidgeSolutions, chosen: Sequence[Shrinkage], unit: Tensor) -> Tensor:
        """Return what `_map` multiplies inputs by, the constant and the last value of "vector" among it."""
        coefficients = solutions.coefficients(chosen)
        weight = (solutions.directions.basis @ coefficients.flatten(2)).unflatten(2, coefficients.shape[2:])
        if self.kind != "vector":
            return weight
        constant = solutions.intercept(chosen)
        constant = constant - (solutions.directions.mean @ weight.flatten(2)).unflatten(2, weight.shape[2:])
        from_last = weight.new_tensor([each.from_last for each in chosen])
        last = torch.arange(self.d_y_target) + self.d_y_context * (self.linear_window - 1)
        weight[0, last, :, torch.arange(self.d_y_target)] += from_last
        weight = weight / unit.repeat(self.linear_window).view(1, -1, 1, 1)
        return torch.cat((weight, constant), dim=1) * unit[: self.d_y_target]

    @torch.no_grad()
    def squared_error(self, windows: Iterable[tuple[Tensor, Tensor]], scale: Tensor) -> float:
        """Return the sum of squared errors over observed targets of windows, in units of `scale` (c,)."""
        unit = scale.detach().to("cpu", torch.float64)[: self.d_y_target]
        total, weight = 0.0, self.weight.double()
        for context, target in windows:
            values = self._last_rows(context).to("cpu", torch.float64)
            error = (self._map(values, weight) - target.to("cpu", torch.float64)) / unit
            total += fill_missing(error).square().sum().item()
        return total

    def _take(self, weight: Tensor) -> None:
        # float64 stays float64: yardsticks compute in it
        self.weight.data = weight.to(self.weight.device, self.weight.dtype).contiguous()

    def _last_rows(self, context: Tensor) -> Tensor:
        if context.shape[1] < self.linear_window:
            raise ValueError(
                f"the context must hold linear_window time steps: expected at least {self.linear_window}, "
                f"got {context.shape[1]}; lengthen context_len or shorten linear_window"
            )
        return carry_forward(context)[:, -self.linear_window :]

    def _map(self, values: Tensor, weight: Tensor | None = None) -> Tensor:
        """Forecast (b, n_fitted, d) from complete rows (b, w, c)."""
        weight = self.weight if weight is None else weight
        inputs, last, _ = lay_out(self.kind, values, self.d_y_target)
        if self.kind == "vector":
            constant = weight[:, -1:]
            forecast = (inputs @ weight[:, :-1].flatten(2)).unflatten(2, weight.shape[2:]) + constant
        else:
            forecast = (inputs @ weight.flatten(2)).unflatten(2, weight.shape[2:]) + last
        return take_back(self.kind, forecast, self.d_y_target)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        saved = state_dict.get(f"{prefix}weight")
        if saved is not None:  # the solution of a checkpoint has the shape of its data
            self.weight.data = self.weight.data.new_empty(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)
