import pytest
import torch

from favorcast.forecasting.data import (
    InputAugmentation,
    SimulationTimeSeries,
    SimulationTorchDataset,
    add_gaussian_noise,
    frequency_domain_augmentation,
)
from favorcast.forecasting.data.augmentation import AugmentedWindows


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def waves(rows=4096, columns=2):
    steps = torch.arange(rows)[:, None] / 20
    return torch.sin(steps + torch.arange(columns)) * (1 + 9 * torch.arange(columns)) + 50


def test_gaussian_noise_is_a_share_of_each_columns_deviation():
    data = waves()
    noise = add_gaussian_noise(data, noise_level=0.1, generator=generator()) - data
    torch.testing.assert_close(noise.std(dim=0), 0.1 * data.std(dim=0), rtol=0.05, atol=0)
    assert (noise.mean(dim=0).abs() < 0.01 * data.std(dim=0)).all()


def test_gaussian_noise_mean_is_in_the_same_unit():
    data = waves()
    shifted = add_gaussian_noise(data, mean=0.5, noise_level=0.0)
    torch.testing.assert_close(
        shifted - data, (0.5 * data.std(dim=0, correction=0)).expand_as(data), rtol=1e-3, atol=1e-4
    )


def test_frequency_noise_moves_a_signal_by_about_its_level_and_keeps_its_mean():
    data = waves()
    change = frequency_domain_augmentation(data, 0.05, generator=generator()) - data
    share = change.square().mean(dim=0).sqrt() / data.std(dim=0)
    assert ((share > 0.01) & (share < 0.2)).all()
    torch.testing.assert_close(change.mean(dim=0), torch.zeros(2), atol=1e-4, rtol=0)


@pytest.mark.parametrize("rows", [1, 2, 7, 8])
def test_zero_frequency_noise_returns_the_signal(rows):
    data = waves(rows)
    torch.testing.assert_close(frequency_domain_augmentation(data, 0.0), data, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("augment", [add_gaussian_noise, frequency_domain_augmentation])
def test_missing_values_stay_missing_and_spread_nowhere(augment):
    data = waves(64)
    data[10:20, 0] = float("nan")
    data[:, 1] = float("nan")
    result = augment(data, generator=generator())
    assert torch.equal(result.isnan(), data.isnan())


@pytest.mark.parametrize("level", [-0.1, float("inf"), float("nan")])
def test_levels_must_be_finite_and_not_negative(level):
    with pytest.raises(ValueError, match="noise_level must be a finite number >= 0"):
        add_gaussian_noise(waves(8), noise_level=level)
    with pytest.raises(ValueError, match="frequency_noise_level must be a finite number >= 0"):
        InputAugmentation(frequency_noise_level=level)


def test_only_the_context_values_change_and_anew_at_each_visit():
    windows = SimulationTorchDataset(SimulationTimeSeries(data=waves(300)), "train", 20, 5)
    augmented = AugmentedWindows(windows, InputAugmentation(0.1, 0.05), seed=3)
    original, first, second = windows[4], augmented[4], augmented[4 + len(windows)]
    assert len(augmented) == len(windows)
    for part in (0, 2, 3):
        assert torch.equal(first[part], original[part])
        assert torch.equal(second[part], original[part])
    assert not torch.equal(first[1], original[1])
    assert not torch.equal(first[1], second[1])
    assert torch.equal(original[1], windows[4][1])


def test_a_perturbation_follows_from_seed_and_visit_alone():
    windows = SimulationTorchDataset(SimulationTimeSeries(data=waves(300)), "train", 20, 5)
    augmented, again, other = (AugmentedWindows(windows, InputAugmentation(0.1), seed) for seed in (3, 3, 4))
    visits = [augmented[visit][1] for visit in range(5)]
    for visit in reversed(range(5)):
        assert torch.equal(again[visit][1], visits[visit])
        assert not torch.equal(other[visit][1], visits[visit])
    noise = [visit - windows[i][1] for i, visit in enumerate(visits)]
    assert not any(torch.allclose(noise[0], each, atol=1e-3) for each in noise[1:])
