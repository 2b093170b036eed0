"""Forecast without gradient descent: the yardsticks that a learned model has to beat.

b batch, l context_len, n target_len, c d_y_context columns of which the first d_y_target are forecast.
"""

import torch
from torch import Tensor

from ..closed_form_linear import ClosedFormLinear
from .baseline import Baseline, HeldOutChoice


def default_baselines(period: int | None = None) -> list[Baseline]:
    """List the baselines of a report, each with settings chosen on training rows where it has any.

    Args:
        period: rows of a season for SeasonalNaive; None leaves it out.
    """
    lags_and_penalties = [VectorRidge(lags, penalty) for lags in (1, 3, 10) for penalty in (1.0, 100.0, 1000.0)]
    delays_and_energies = [
        DynamicModeDecomposition(delays, energy) for delays in (1, 5) for energy in (0.95, 0.99, 0.9999, 0.999999)
    ]
    lags_and_neighbours = [Analogs(lags, neighbours) for lags in (1, 5) for neighbours in (4, 16)]
    return [
        Persistence(),
        *([] if period is None else [SeasonalNaive(period)]),
        RidgeRegression(),
        HeldOutChoice(VectorRidge.name, lags_and_penalties),
        HeldOutChoice(DynamicModeDecomposition.name, delays_and_energies),
        HeldOutChoice(Analogs.name, lags_and_neighbours),
    ]


class Persistence(Baseline):
    """Repeat the last value."""

    name = "persistence"

    def _fit(self, scaled: Tensor) -> None:
        pass

    def _predict(self, scaled: Tensor) -> Tensor:
        return scaled[:, -1:, : self._d_y_target].expand(-1, self._target_len, -1)


class SeasonalNaive(Baseline):
    """Repeat the last period.

    Args:
        period: rows of a period, 1 to context_len.
    """

    name = "seasonal naive"

    def __init__(self, period: int):
        if period < 1:
            raise ValueError(f"period must be at least 1, got {period}")
        self.period = period

    def _fit(self, scaled: Tensor) -> None:
        if self.period > self._context_len:
            raise ValueError(
                f"a context must hold one period: got period={self.period} and context_len={self._context_len}"
            )

    def _predict(self, scaled: Tensor) -> Tensor:
        steps = torch.arange(self._target_len) % self.period
        return scaled[:, -self.period :, : self._d_y_target][:, steps]


class RidgeRegression(Baseline):
    """Map context to target by one matrix that all target columns share, after subtracting the last value.

    y_hat = y_l + W (x - x_l),  W = argmin sum |(y - x_l) - W (x - x_l)|^2 + penalty |W|^2

    over all training windows and target columns: NLinear (Zeng et al. 2023, section 3) in closed form.

    Args:
        penalty: > 0, in units of z-scored columns.
    """

    name = "ridge"

    def __init__(self, penalty: float = 1.0):
        self.penalty = _positive("penalty", penalty)

    def _fit(self, scaled: Tensor) -> None:
        self._model = ClosedFormLinear("shared", self._context_len, scaled.shape[1], self._d_y_target).double()
        self._model.fit(lambda: self._windows(scaled), tuple, penalties=(self.penalty,))

    def _predict(self, scaled: Tensor) -> Tensor:
        return self._model(scaled, self._target_len)


class VectorRidge(Baseline):
    """Map the last `lags` rows of all columns to all target rows at once: a ridge vector autoregression.

    Args:
        lags: rows of context that are used; at most context_len of them.
        penalty: > 0, in units of z-scored columns.
    """

    name = "vector ridge"

    def __init__(self, lags: int = 10, penalty: float = 1.0):
        if lags < 1:
            raise ValueError(f"lags must be at least 1, got {lags}")
        self.lags = lags
        self.penalty = _positive("penalty", penalty)

    def _fit(self, scaled: Tensor) -> None:
        lags = min(self.lags, self._context_len)
        self._model = ClosedFormLinear("vector", lags, scaled.shape[1], self._d_y_target).double()
        self._model.fit(lambda: self._windows(scaled, lags), tuple, penalties=(self.penalty,))

    def _predict(self, scaled: Tensor) -> Tensor:
        return self._model(scaled, self._target_len)


class Analogs(Baseline):
    """Forecast what followed the most similar training windows (Lorenz 1969, Atmospheric predictability).

        y = sum_k a_k (future of neighbour k),   a_k proportional to 1 / |x - x_k|^2

    over the `neighbours` training windows whose last `lags` rows of all columns are nearest.

    Args:
        lags: rows of context that are compared; at most context_len of them.
        neighbours: windows averaged; at most those there are.
    """

    name = "analogs"

    def __init__(self, lags: int = 5, neighbours: int = 16):
        if min(lags, neighbours) < 1:
            raise ValueError(f"lags and neighbours must be at least 1, got {lags} and {neighbours}")
        self.lags = lags
        self.neighbours = neighbours

    def _fit(self, scaled: Tensor) -> None:
        lags = min(self.lags, self._context_len)
        windows = list(self._windows(scaled, lags))
        self._past = torch.cat([past.flatten(1) for past, _ in windows])
        self._futures = torch.cat([future for _, future in windows])
        self._square = self._past.square().sum(dim=1)

    def _predict(self, scaled: Tensor) -> Tensor:
        present = scaled[:, -self.lags :].flatten(1)
        distance = (self._square - 2 * present @ self._past.T) + present.square().sum(dim=1, keepdim=True)
        nearest = distance.topk(min(self.neighbours, len(self._past)), largest=False)
        # below the rounding of the squares, one neighbour is as near as another
        nearness = 1 / nearest.values.clamp(min=1e-9 * present.shape[1])
        weight = nearness / nearness.sum(dim=1, keepdim=True)
        return torch.einsum("bk,bknd->bnd", weight, self._futures[nearest.indices])


class DynamicModeDecomposition(Baseline):
    """Advance the sensors by one linear operator, fitted on delay-embedded rows and reduced to its leading modes.

    With h_t the last `delays` rows of all columns stacked, A = argmin sum |h_{t+1} - A h_t|^2 restricted to the leading
    principal directions U of h: A_r = U^T A U (Schmid 2010, section 2.2, on the Hankel matrix of Arbabi & Mezic 2017).
    Modes that would grow (|eigenvalue| > 1) are kept at constant amplitude.

    Args:
        delays: rows in h; at most context_len of them.
        energy: fraction of the variance of h that the kept directions hold, in (0, 1].
        max_modes: how many directions are kept at most.
    """

    name = "dmd"

    def __init__(self, delays: int = 5, energy: float = 0.9999, max_modes: int = 300):
        if min(delays, max_modes) < 1:
            raise ValueError(f"delays and max_modes must be at least 1, got {delays} and {max_modes}")
        if not 0 < energy <= 1:
            raise ValueError(f"energy must lie in (0, 1], got {energy}")
        self.delays = delays
        self.energy = energy
        self.max_modes = max_modes

    def _fit(self, scaled: Tensor) -> None:
        delays, columns = min(self.delays, self._context_len), scaled.shape[1]
        gram = torch.zeros(delays * columns, delays * columns, dtype=torch.float64)
        cross = torch.zeros_like(gram)
        for chunk in self._chunks(scaled, delays + 1):
            now, later = chunk[:, :-1].flatten(1), chunk[:, 1:].flatten(1)
            gram.addmm_(now.T, now)
            cross.addmm_(later.T, now)
        variance, directions = (part.flip(-1) for part in torch.linalg.eigh(gram))
        fraction = variance.cumsum(0) / variance.sum()
        # directions below the rounding of the Gram matrix are noise and would be divided by next to nothing
        useful = int((variance > 1e-12 * variance[0]).sum())
        rank = min(int((fraction < self.energy).sum()) + 1, useful, self.max_modes)
        self._basis = directions[:, :rank]
        self._operator = _stabilize(self._basis.T @ cross @ self._basis / variance[:rank])
        self._readout = self._basis[-columns:][: self._d_y_target]  # the last row in h is the present one

    def _predict(self, scaled: Tensor) -> Tensor:
        state = scaled[:, -self.delays :].flatten(1) @ self._basis  # (b, rank)
        forecast = []
        for _ in range(self._target_len):
            state = state @ self._operator.T
            forecast.append(state @ self._readout.T)
        return torch.stack(forecast, dim=1)


def _stabilize(operator: Tensor) -> Tensor:
    """Move eigenvalues outside the unit circle onto it; an operator without any is returned as it is."""
    eigenvalues, modes = torch.linalg.eig(operator)
    excess = eigenvalues.abs().clamp(min=1)
    if not (excess > 1).any():
        return operator
    # pinv: a defective operator has modes that are not independent
    return (modes * (eigenvalues / excess) @ torch.linalg.pinv(modes)).real


def _positive(name: str, value: float) -> float:
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be positive and finite, got {value}")
    return value
