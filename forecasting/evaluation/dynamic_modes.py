"""Dynamic mode decomposition as a yardstick.

b batch, n target_len, c d_y_context columns of which the first d are forecast; r directions kept
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..principal_directions import PrincipalDirections, principal_directions
from .baseline import Baseline, Cost, best_by_step, forecast_by_step
from .training_rows import TrainingRows

ENERGIES = (0.95, 0.99, 0.9999, 0.999999, 1.0)  # chosen from
NOISE = 1e-12  # of the largest variance: smaller ones are rounding and would be divided by


class Truncation(NamedTuple):
    """How many directions are kept, and whether what they lose of the last row is added to every forecast."""

    rank: int
    from_last: bool


class DynamicModeDecomposition(Baseline):
    """Advance the sensors by one linear operator, fitted on delay-embedded rows and reduced to its leading modes.

    With h_t the last `delays` rows of all columns stacked, A = argmin sum |h_{t+1} - A h_t|^2 restricted to the leading
    principal directions U of h: A_r = U^T A U (Schmid 2010, section 2.2, on the Hankel matrix of Arbabi & Mezic 2017).
    Modes that would grow (|eigenvalue| > 1) are kept at constant amplitude.

    Args:
        delays: rows in h; at most context_len of them.
        energy: fraction of the variance of h that the kept directions hold, in (0, 1]; None chooses it for each step on
            validation rows, and whether forecasts start from the last row itself instead of its projection.
        max_modes: how many directions are kept at most.
    """

    name = "dmd"

    def __init__(self, delays: int = 5, energy: float | None = 0.9999, max_modes: int = 300):
        if min(delays, max_modes) < 1:
            raise ValueError(f"delays and max_modes must be at least 1, got {delays} and {max_modes}")
        if energy is not None and not 0 < energy <= 1:
            raise ValueError(f"energy must lie in (0, 1], got {energy}")
        self.delays = delays
        self.energy = energy
        self.max_modes = max_modes

    def _cost(self, rows: TrainingRows) -> Cost:
        delays = min(self.delays, rows.context_len)
        inputs = delays * rows.columns
        rank = min(inputs, rows.count(delays + 1))
        return Cost(rank, 8 * rank * (2 * rank + inputs))

    def _fit(self, rows: TrainingRows) -> None:
        choosing = rows if self.energy is not None else rows.choosing(self.name)
        self._decompose(choosing)
        energies = ENERGIES if self.energy is None else (self.energy,)
        candidates = [
            Truncation(rank, from_last)
            for rank in sorted({self._rank(energy) for energy in energies})
            for from_last in ((False,) if self.energy is not None else (False, True))
        ]
        self._chosen = [candidates[0]] * self._target_len
        if len(candidates) > 1:
            self._chosen = best_by_step(candidates, choosing, lambda each, context: self._advance(context, each))
        if choosing.is_borrowed:
            self._decompose(choosing.whole())

    def _decompose(self, rows: TrainingRows) -> None:
        """Find the directions U, and the sum of U^T h_{t+1} h_t^T U."""
        delays = min(self.delays, self._context_len)
        chunks = (chunk[:, :-1].flatten(1).unsqueeze(0) for chunk in rows.chunks(delays + 1))
        directions = principal_directions(chunks, is_centred=False, most=self.max_modes)
        assert directions is not None
        self._directions: PrincipalDirections = directions
        self._total = float(sum(chunk[:, :-1].square().sum() for chunk in rows.chunks(delays + 1)))
        basis = directions.basis[0]
        self._moments = torch.zeros(basis.shape[1], basis.shape[1], dtype=torch.float64)
        for chunk in rows.chunks(delays + 1):
            now, later = (part.flatten(1) @ basis for part in (chunk[:, :-1], chunk[:, 1:]))
            self._moments.addmm_(later.T, now)
        self._operators: dict[int, Tensor] = {}
        self._readout = basis[-rows.columns :][: self._d_y_target]  # the last row in h is the present one

    def _rank(self, energy: float) -> int:
        fraction = self._directions.spectrum[0].cumsum(0) / self._total
        spectrum = self._directions.spectrum[0]
        useful = int((spectrum > NOISE * spectrum[0]).sum())
        return min(int((fraction < energy).sum()) + 1, useful)

    def _operator(self, rank: int) -> Tensor:
        rank = min(rank, len(self._moments))
        if rank not in self._operators:
            variance = self._directions.spectrum[0, :rank]
            self._operators[rank] = _stabilize(self._moments[:rank, :rank] / variance)
        return self._operators[rank]

    def _predict(self, scaled: Tensor) -> Tensor:
        return forecast_by_step(self._chosen, lambda each: self._advance(scaled, each))

    def _advance(self, scaled: Tensor, truncation: Truncation) -> Tensor:
        operator = self._operator(truncation.rank)
        rank = len(operator)
        readout = self._readout[:, :rank]
        state = scaled[:, -self.delays :].flatten(1) @ self._directions.basis[0, :, :rank]  # (b, r)
        lost = scaled[:, -1, : self._d_y_target] - state @ readout.T if truncation.from_last else 0.0
        forecast = []
        for _ in range(self._target_len):
            state = state @ operator.T
            forecast.append(state @ readout.T + lost)
        return torch.stack(forecast, dim=1)


def _stabilize(operator: Tensor) -> Tensor:
    """Move eigenvalues outside the unit circle onto it; an operator without any is returned as it is."""
    eigenvalues, modes = torch.linalg.eig(operator)
    excess = eigenvalues.abs().clamp(min=1)
    if not (excess > 1).any():
        return operator
    # pinv: a defective operator has modes that are not independent
    return (modes * (eigenvalues / excess) @ torch.linalg.pinv(modes)).real
