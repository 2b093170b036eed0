"""Perturb context windows during training: noise in time and in frequency, drawn afresh for every item.

Only the sensor values given as input change; targets and time covariates never do, and missing values (NaN) stay so.
l time, d sensor columns.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset

from .windows import SimulationTorchDataset, Window


def add_gaussian_noise(
    data: Tensor, mean: float = 0.0, noise_level: float = 0.1, *, generator: Generator | None = None
) -> Tensor:
    """Add N(mean, noise_level * std) to each entry, with std the standard deviation of its column.

    Args:
        data: (l, d), missing entries NaN.
        mean: mean of the noise in multiples of std.
        noise_level: standard deviation of the noise in multiples of std, >= 0 (0.1 is ten per cent).
        generator: source of randomness; None uses torch's own.
    """
    _check_level("noise_level", noise_level)
    _, deviation = _fill_with_mean(data)
    std = deviation.square().sum(dim=0).div(_count(data)).sqrt()
    return data + std * (mean + noise_level * torch.randn(data.shape, generator=generator, dtype=data.dtype))


def frequency_domain_augmentation(
    data: Tensor, noise_level: float = 0.05, *, generator: Generator | None = None
) -> Tensor:
    """Perturb amplitude and phase of each column's Fourier coefficients and keep its mean.

    X_k -> X_k * (1 + s a_k) * exp(i s b_k) for k > 0, with a_k, b_k ~ N(0, 1) and s = noise_level.

    Args:
        data: (l, d), missing entries NaN; the column mean stands in for them in the transform.
        noise_level: s, >= 0.
        generator: source of randomness; None uses torch's own.
    """
    _check_level("noise_level", noise_level)
    mean, deviation = _fill_with_mean(data)
    spectrum = torch.fft.rfft(deviation, dim=0)
    amplitude = 1 + noise_level * torch.randn(spectrum.shape, generator=generator, dtype=data.dtype)
    phase = noise_level * torch.randn(spectrum.shape, generator=generator, dtype=data.dtype)
    perturbed = torch.fft.irfft(spectrum * torch.polar(amplitude, phase), n=len(data), dim=0)
    return torch.where(data.isnan(), data, mean + perturbed)


@dataclass(frozen=True)
class InputAugmentation:
    """Apply frequency noise, then Gaussian noise, to a context; a level of 0 switches either off.

    Args:
        gaussian_noise_level: see add_gaussian_noise, >= 0.
        frequency_noise_level: see frequency_domain_augmentation, >= 0.
    """

    gaussian_noise_level: float = 0.0
    frequency_noise_level: float = 0.0

    def __post_init__(self):
        _check_level("gaussian_noise_level", self.gaussian_noise_level)
        _check_level("frequency_noise_level", self.frequency_noise_level)

    def __call__(self, context_y: Tensor, generator: Generator | None = None) -> Tensor:
        if self.frequency_noise_level > 0:
            context_y = frequency_domain_augmentation(context_y, self.frequency_noise_level, generator=generator)
        if self.gaussian_noise_level > 0:
            context_y = add_gaussian_noise(context_y, noise_level=self.gaussian_noise_level, generator=generator)
        return context_y


class AugmentedWindows(Dataset[Window]):
    """Wrap training windows so that each visit draws a perturbation of the context's sensor values.

    Visit number v is to window v % count, where count is the number of windows; its perturbation follows from the seed
    and v alone, whichever process loads it and whenever.

    Args:
        windows: the windows.
        augmentation: what to apply; None leaves the windows as they are.
        seed: seed of the perturbations.
    """

    def __init__(self, windows: SimulationTorchDataset, augmentation: InputAugmentation | None, seed: int = 0):
        self.windows = windows
        self.augmentation = augmentation
        self.seed = seed

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, visit: int) -> Window:
        context_x, context_y, target_x, target_y = self.windows[visit % len(self.windows)]
        if self.augmentation is not None:
            generator = Generator().manual_seed((self.seed * 1_000_003 + visit) % 2**63)
            context_y = self.augmentation(context_y, generator)
        return context_x, context_y, target_x, target_y


def _count(data: Tensor) -> Tensor:
    return data.isfinite().sum(dim=0).clamp(min=1)


def _fill_with_mean(data: Tensor) -> tuple[Tensor, Tensor]:
    observed = data.isfinite()
    mean = torch.where(observed, data, 0.0).sum(dim=0) / _count(data)
    return mean, torch.where(observed, data - mean, 0.0)


def _check_level(name: str, level: float) -> None:
    if not 0 <= level < float("inf"):
        raise ValueError(f"{name} must be a finite number >= 0, got {level}")
