import numpy as np
import pytest

from favorcast.forecasting.data.time_features import (
    calendar_features,
    check_calendar,
    generate_spectral_welch,
    refine_frequencies,
    spectral_features,
)


def tone(frequency, rows=1024, phase=0.0):
    return np.sin(2 * np.pi * frequency * np.arange(rows) + phase)


def test_a_tone_is_the_dominant_frequency():
    frequencies, density = generate_spectral_welch(tone(0.125)[:, None], 1.0, 256, 1)
    assert frequencies == pytest.approx([0.125])
    assert density.shape == (1,)


def test_frequencies_scale_with_the_sampling_frequency():
    frequencies, _ = generate_spectral_welch(tone(0.125), 1000.0, 256, 1)
    assert frequencies == pytest.approx([125.0])


def test_sensors_in_opposite_phase_do_not_cancel():
    data = np.stack([tone(0.125), -tone(0.125)], axis=1) + 1e-3 * tone(0.25)[:, None]
    frequencies, _ = generate_spectral_welch(data, 1.0, 256, 1)
    assert frequencies == pytest.approx([0.125])


def test_zero_frequency_is_never_dominant():
    drifting = 100.0 + np.linspace(0, 50, 1024)
    frequencies, _ = generate_spectral_welch(drifting, 1.0, 256, 128)
    assert frequencies.min() > 0


def test_bins_beside_a_peak_rank_behind_other_peaks():
    data = 10 * tone(0.125 + 1 / 1024) + tone(0.25)  # the strong tone lies between bins and smears over its neighbours
    frequencies, _ = generate_spectral_welch(data, 1.0, 256, 2)
    assert frequencies == pytest.approx([0.125, 0.25], abs=1 / 256)


def test_frequencies_are_ascending_and_carry_their_own_density():
    frequencies, density = generate_spectral_welch(3 * tone(0.25) + tone(0.125), 1.0, 256, 2)
    assert frequencies == pytest.approx([0.125, 0.25])
    assert density[1] > density[0]


def test_missing_values_do_not_move_the_dominant_frequency():
    data = np.stack([tone(0.125), np.full(1024, np.nan)], axis=1)
    data[100:110, 0] = np.nan
    data[::17, 0] = np.nan
    frequencies, density = generate_spectral_welch(data, 1.0, 256, 1)
    assert frequencies == pytest.approx([0.125])
    assert np.isfinite(density).all()


@pytest.mark.parametrize("count", [0, -1, 129])
def test_frequency_count_outside_the_spectrum_is_refused(count):
    with pytest.raises(ValueError, match=f"between 1 and 128, .* got {count}; raise nperseg"):
        generate_spectral_welch(tone(0.125), 1.0, 256, count)


def test_every_nonzero_frequency_is_available():
    frequencies, _ = generate_spectral_welch(tone(0.125), 1.0, 256, 128)
    np.testing.assert_allclose(frequencies, np.arange(1, 129) / 256)


def test_a_short_record_is_one_segment():
    frequencies, _ = generate_spectral_welch(tone(0.125, rows=64), 1.0, 1024, 1)
    assert frequencies == pytest.approx([0.125])


def test_spectral_features_are_sine_and_cosine_pairs():
    features, names = spectral_features(np.array([0.25, 0.5]), np.array([0.0, 1.0]))
    assert names == ["Sin_Time_1", "Cos_Time_1", "Sin_Time_2", "Cos_Time_2"]
    np.testing.assert_allclose(features, [[0, 1, 0, 1], [1, 0, 0, -1]], atol=1e-12)


def test_calendar_phases_follow_the_clock():
    stamps = np.array(["2024-01-01T00:00", "2024-01-01T06:00", "2024-01-08T12:00"], "datetime64[ns]")  # Mondays
    features, names = calendar_features(stamps, ["day", "week", "year"])
    assert names == ["Sin_Day", "Cos_Day", "Sin_Week", "Cos_Week", "Sin_Year", "Cos_Year"]
    np.testing.assert_allclose(features[0], [0, 1, 0, 1, 0, 1], atol=1e-9)
    np.testing.assert_allclose(features[1, :2], [1, 0], atol=1e-9)
    np.testing.assert_allclose(features[2, 2], np.sin(2 * np.pi * 0.5 / 7), atol=1e-9)


def test_calendar_needs_known_cycles_and_dates():
    with pytest.raises(ValueError, match=r"among \['day', 'week', 'year'\], got \['month'\]"):
        check_calendar(np.array(["2024-01-01"], "datetime64[ns]"), ["month"])
    for timestamps in (None, np.arange(3.0)):
        with pytest.raises(ValueError, match="calendar features need dates"):
            check_calendar(timestamps, ["day"])


@pytest.mark.parametrize("period", [24, 22.37, 7.5, 150.3])
@pytest.mark.parametrize("noise", [0.1, 1.0])
def test_a_refined_frequency_keeps_its_phase_over_the_whole_record(period, noise):
    rows = 9000
    generator = np.random.default_rng(0)
    data = np.stack([tone(1 / period, rows, phase) for phase in (0.0, 1.0, 2.0)], axis=1)
    data += noise * generator.normal(size=data.shape) + 100.0
    data[4000:4050] = np.nan
    coarse, _ = generate_spectral_welch(data, 1.0, 1024, 1)
    (refined,) = refine_frequencies(data, 1.0, coarse, 1 / 1024)
    assert abs(refined - 1 / period) * rows * 360 < 10  # degrees after all rows
    assert refine_frequencies(data, 100.0, 100 * coarse, 100 / 1024) == pytest.approx([100 * refined])


def test_a_refined_frequency_stays_beside_the_coarse_one():
    data = tone(0.05, 2000) + 10 * tone(0.2, 2000)
    (refined,) = refine_frequencies(data, 1.0, np.array([0.0502]), 1 / 256)
    assert refined == pytest.approx(0.05, abs=1e-5)
