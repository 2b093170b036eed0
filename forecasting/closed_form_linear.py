"""Linear forecasts in closed form: the linear part of a forecaster, and the ridge yardsticks.

b windows, l context_len, n target_len, w linear_window, c d_y_context columns of which the first d are forecast;
g matrices (1, or d when each target column has its own), f inputs of one.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from einops import rearrange
from torch import Tensor, nn

from .missing_values import carry_forward, fill_missing

LinearKind = Literal["per_sensor", "shared", "vector"]
WindowBlocks = Callable[[], Iterable[tuple[Tensor, Tensor]]]

PENALTIES = (1.0, 10.0, 100.0, 1000.0, 10000.0)
MISSING_PASSES = 8  # a fraction p of missing targets leaves an error of about p^8 of what they would add


class Pairs(NamedTuple):
    """What one matrix maps to what: inputs (g, rows, f) and, less what is added back, outputs (g, rows, k)."""

    inputs: Tensor
    outputs: Tensor | None


class ClosedFormLinear(nn.Module):
    """Map the last `linear_window` rows of a context to all target rows at once.

        per_sensor    y_t[j] = x_w[j] + sum_i W[j, i, t] (x_i[j] - x_w[j])        for each target column j
        shared        the same with one W for all columns: NLinear (Zeng et al. 2023, section 3)
        vector        y_t[j] = sum_ik W[i, k, t, j] x_i[k] + b[t, j]              from all columns k to each j

    `fit` solves for W the ridge regression over all windows,

        min  sum (y - forecast)^2 + penalty |W|^2        in units of `scale`, over observed y, b free

    by its normal equations in float64, summed block by block, and takes the penalty that forecasts held-out windows
    best. Missing inputs are carried (`carry_forward`), in fitting as in forecasting; missing targets do not count. A
    horizon beyond the fitted one is rolled on from the forecasts, with columns that are not forecast kept at their last
    value. Until `fit`, or a checkpoint, the weight is empty.

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
        values = self._last_rows(context)
        blocks = [self._map(values)]
        fitted_len = blocks[0].shape[1]
        for _ in range((target_len - 1) // fitted_len):
            kept = values[:, -1:, self.d_y_target :].expand(-1, fitted_len, -1)
            values = torch.cat((values, torch.cat((blocks[-1], kept), dim=2)), dim=1)[:, -self.linear_window :]
            blocks.append(self._map(values))
        return torch.cat(blocks, dim=1)[:, :target_len]

    @torch.no_grad()
    def fit(
        self,
        train: WindowBlocks,
        held_out: WindowBlocks,
        *,
        penalties: Sequence[float] = PENALTIES,
        scale: Tensor | None = None,
    ) -> float:
        """Solve for the weights and return the penalty chosen.

        Args:
            train: yields (context (b, l, c), target (b, n, d)), NaN where missing, anew at each call.
            held_out: yields the windows that the penalty is chosen on; not read when there is one penalty.
            penalties: to choose from, all > 0, in units of `scale`.
            scale: (c,) what counts as one in each column; None: 1.
        """
        unit = torch.ones(self.d_y_context) if scale is None else scale
        unit = unit.detach().to("cpu", torch.float64)
        gram, cross, target_len, has_missing = self._normal_equations(train, unit)
        candidates = [self._solution(gram, cross, penalty, target_len, unit) for penalty in penalties]
        chosen = 0
        if len(candidates) > 1:
            errors = self._held_out_errors(candidates, held_out, unit[: self.d_y_target])
            chosen = int(errors.argmin())
        self._take(candidates[chosen])
        for _ in range(MISSING_PASSES if has_missing else 0):
            cross = self._normal_equations(train, unit, has_gram=False)[1]
            self._take(self._solution(gram, cross, penalties[chosen], target_len, unit))
        return penalties[chosen]

    def _normal_equations(
        self, train: WindowBlocks, unit: Tensor, *, has_gram: bool = True
    ) -> tuple[Tensor, Tensor, int, bool]:
        """Sum inputs^T inputs and inputs^T outputs; a missing output is what the present weights forecast, or 0.

        Filled in so, again and again, missing outputs add nothing to the residual: the fit is to the observed ones
        (expectation maximisation for least squares), and the matrix to factorise stays the same for all outputs.
        """
        gram, cross, target_len, has_missing = torch.zeros(()), torch.zeros(()), 0, False
        for context, target in train():
            context, target = context.to("cpu", torch.float64), target.to("cpu", torch.float64)
            target_len = target.shape[1]
            inputs, outputs = self._pairs(self._last_rows(context) / unit, target / unit[: self.d_y_target])
            assert outputs is not None
            missing = outputs.isnan()
            if missing.any():
                has_missing = True
                filled = inputs @ self._in_units(unit) if self.is_fitted and not has_gram else 0.0
                outputs = torch.where(missing, filled, outputs)
            if has_gram:
                gram = gram + inputs.mT @ inputs
            cross = cross + inputs.mT @ outputs
        if target_len == 0:
            raise ValueError("a linear fit needs at least one training window, got none")
        return gram, cross, target_len, has_missing

    def _solution(self, gram: Tensor, cross: Tensor, penalty: float, target_len: int, unit: Tensor) -> Tensor:
        if not 0 < penalty < float("inf"):
            raise ValueError(f"penalty must be positive and finite, got {penalty}")
        diagonal = torch.full((gram.shape[-1],), penalty, dtype=torch.float64)
        if self.kind == "vector":
            diagonal[-1] = 0.0  # the constant
        weight = torch.cholesky_solve(cross, torch.linalg.cholesky(gram + torch.diag(diagonal)))
        if self.kind == "vector":
            weight = weight.unflatten(2, (target_len, self.d_y_target)) / self._input_unit(unit)
            return weight * unit[: self.d_y_target]
        return weight.unsqueeze(3)

    def _in_units(self, unit: Tensor) -> Tensor:
        """Undo what `_solution` does to the weight."""
        if self.kind == "vector":
            weight = self.weight.double() * self._input_unit(unit) / unit[: self.d_y_target]
            return weight.flatten(2)
        return self.weight.double().squeeze(3)

    def _input_unit(self, unit: Tensor) -> Tensor:
        return torch.cat((unit.repeat(self.linear_window), unit.new_ones(1))).view(1, -1, 1, 1)

    @torch.no_grad()
    def squared_error(self, windows: Iterable[tuple[Tensor, Tensor]], scale: Tensor) -> float:
        """Return the sum of squared errors over observed targets of windows, in units of `scale` (c,)."""
        unit = scale.detach().to("cpu", torch.float64)[: self.d_y_target]
        return float(self._held_out_errors([self.weight.double()], lambda: windows, unit))

    def _held_out_errors(self, candidates: list[Tensor], held_out: WindowBlocks, unit: Tensor) -> Tensor:
        errors = torch.zeros(len(candidates), dtype=torch.float64)
        for context, target in held_out():
            values = self._last_rows(context.to("cpu", torch.float64))
            target = target.to("cpu", torch.float64)
            for i, weight in enumerate(candidates):
                error = (self._map(values, weight) - target) / unit
                errors[i] += fill_missing(error).square().sum()
        return errors

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

    def _pairs(self, values: Tensor, target: Tensor | None = None) -> Pairs:
        """Lay values (b, w, c) and target (b, n, d) out as rows of inputs and outputs."""
        if self.kind == "vector":
            inputs = torch.cat((values.flatten(1), values.new_ones(len(values), 1)), dim=1)
            return Pairs(inputs.unsqueeze(0), None if target is None else target.flatten(1).unsqueeze(0))
        own = rearrange(values[..., : self.d_y_target], "b w d -> d b w")
        last = own[..., -1:]
        inputs, outputs = own - last, None if target is None else rearrange(target, "b n d -> d b n") - last
        if self.kind == "shared":
            inputs = rearrange(inputs, "d b w -> 1 (d b) w")
            outputs = None if outputs is None else rearrange(outputs, "d b n -> 1 (d b) n")
        return Pairs(inputs, outputs)

    def _map(self, values: Tensor, weight: Tensor | None = None) -> Tensor:
        """Forecast (b, n_fitted, d) from complete rows (b, w, c)."""
        weight = self.weight if weight is None else weight
        forecast = self._pairs(values).inputs @ weight.flatten(2)  # (g, rows, k)
        if self.kind == "vector":
            return forecast[0].unflatten(1, weight.shape[2:])
        # one group g for each sensor, or one for all
        change = rearrange(forecast, "g (d b) n -> b n (g d)", d=self.d_y_target // len(forecast))
        return values[:, -1:, : self.d_y_target] + change

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        saved = state_dict.get(f"{prefix}weight")
        if saved is not None:  # the solution of a checkpoint has the shape of its data
            self.weight.data = self.weight.data.new_empty(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)
