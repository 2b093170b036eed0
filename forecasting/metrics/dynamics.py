"""Whether a forecast has the dynamics of the truth: its spectrum, its dominant frequency, and how long it holds.

b batch, n target_len, d d_y_target, f frequencies
"""

import torch
from torch import Tensor
from torchmetrics import Metric

VALID_ERROR = 0.4  # in units of scale


class DynamicsErrors(Metric):
    """Accumulate what a mean squared error does not show, over all windows of a split.

    spectral_error     sum_f |P(f) - P_true(f)| / sum_f P_true(f), averaged over sensors, with P the power spectrum over
                       the horizon (mean removed, Hann window), averaged over windows; 0 is perfect, 1 no power at all
    frequency_error    |f_peak - f_peak_true| / f_peak_true, averaged over sensors: the error of the Strouhal number.
                       Peaks of the averaged spectra, refined by a parabola through the logarithms of three points
    valid_steps        number of steps before the root mean square error over sensors, in units of `scale`, first
                       exceeds `threshold`, averaged over windows (Pathak et al. 2018: valid time, with 0.4); at most n

    Spectra leave out a sensor in windows where one of its targets is missing; the valid time leaves out the missing
    values. What cannot be computed (no complete window, n < 4) is NaN.

    Args:
        threshold: error that ends the valid time, > 0.

    Raises:
        ValueError: for a threshold that is not positive.
    """

    is_differentiable = False
    full_state_update = False

    forecast_power: Tensor
    true_power: Tensor
    valid_steps: Tensor
    windows: Tensor

    def __init__(self, threshold: float = VALID_ERROR) -> None:
        super().__init__()
        if not threshold > 0:
            raise ValueError(f"threshold must be positive: got {threshold}")
        self.threshold = threshold
        # a 0-d zero takes the shape (f, d) of the first batch by broadcasting
        for state in ("forecast_power", "true_power", "valid_steps", "windows"):
            self.add_state(state, default=torch.zeros(()), dist_reduce_fx="sum")

    def update(self, forecast: Tensor, target: Tensor, scale: Tensor | float = 1.0) -> None:
        """Add one batch.

        Args:
            forecast: (b, n, d), original units.
            target: (b, n, d), original units, NaN where missing.
            scale: (d,) or a number; the unit of errors in the valid time, such as the training standard deviation.
        """
        forecast = forecast.detach()
        observed = ~target.isnan()
        complete = observed.all(dim=1)
        truth = torch.where(observed, target, 0.0)
        self.forecast_power = self.forecast_power + power(forecast, complete)
        self.true_power = self.true_power + power(truth, complete)
        error = torch.where(observed, (forecast - truth) / scale, 0.0)
        square = error.square().sum(dim=2) / observed.sum(dim=2).clamp(min=1)
        self.valid_steps = self.valid_steps + (square <= self.threshold**2).cumprod(dim=1).sum()
        self.windows = self.windows + len(target)

    def compute(self) -> dict[str, Tensor]:
        """Return {"spectral_error", "frequency_error", "valid_steps"}, each 0-d.

        Raises:
            ValueError: before the first update.
        """
        if self.true_power.ndim == 0:
            raise ValueError(
                "DynamicsErrors has no data: expected at least one update before reading a result, got none"
            )
        difference = (self.forecast_power - self.true_power).abs().sum(dim=0)
        peak, true_peak = peak_frequency(self.forecast_power), peak_frequency(self.true_power)
        return {
            "spectral_error": (difference / self.true_power.sum(dim=0)).nanmean(),
            "frequency_error": ((peak - true_peak).abs() / true_peak).nanmean(),
            "valid_steps": self.valid_steps / self.windows,
        }


def power(y: Tensor, complete: Tensor) -> Tensor:
    """Sum the power spectra of the complete windows, (n // 2 + 1, d).

    Args:
        y: (b, n, d), finite.
        complete: (b, d) bool; spectra of other windows are left out.
    """
    y = y.to(torch.float32 if y.device.type == "mps" else torch.float64)
    window = torch.hann_window(y.shape[1], device=y.device, dtype=y.dtype).view(1, -1, 1)
    spectrum = torch.fft.rfft((y - y.mean(dim=1, keepdim=True)) * window, dim=1)
    return torch.where(complete.unsqueeze(1), spectrum.abs().square(), 0.0).sum(dim=0)


def peak_frequency(spectra: Tensor) -> Tensor:
    """Return the frequency of highest power of each column, (d,), in bins; NaN for a column without power.

    Args:
        spectra: (f, d) >= 0; the bin of the mean is not looked at.
    """
    last = len(spectra) - 1
    if last < 2:
        return torch.full_like(spectra[0], torch.nan)
    highest = spectra[1:].argmax(dim=0) + 1
    logs = spectra.clamp(min=torch.finfo(spectra.dtype).tiny).log()
    before, at, after = (logs.gather(0, (highest + i).clamp(1, last).unsqueeze(0))[0] for i in (-1, 0, 1))
    curvature = before - 2 * at + after
    has_neighbours = (highest > 1) & (highest < last) & (curvature < 0)
    shift = torch.where(has_neighbours, 0.5 * (before - after) / torch.where(has_neighbours, curvature, 1.0), 0.0)
    return torch.where(spectra[1:].sum(dim=0) > 0, highest + shift, torch.nan)
