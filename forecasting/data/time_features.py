"""Find dominant frequencies, and compute them and calendar cycles as sines and cosines.

Whatever is estimated from data is given by the caller from training rows only.
"""

from collections.abc import Sequence

import numpy as np
from einops import rearrange
from scipy.signal import welch, zoom_fft

from .column_statistics import statistics

DAY_SECONDS = 86_400.0
CALENDAR_SECONDS = {"day": DAY_SECONDS, "week": 7 * DAY_SECONDS, "year": 365.2425 * DAY_SECONDS}
MONDAY = np.datetime64("1970-01-05", "ns")  # weeks start here, so that the phase of a week is 0 on Monday 00:00


def generate_spectral_welch(
    data: np.ndarray, sampling_frequency: float, nperseg: int, num_dominant_frequencies: int
) -> tuple[np.ndarray, np.ndarray]:
    """Find the dominant frequencies of a set of sensors.

    The power spectral density is Welch's estimate of each sensor, averaged over the sensors: averaging the sensors
    first would cancel whatever they see in opposite phase. Local maxima rank before their neighbours, so that the bins
    which the window function smears around one peak do not count as further frequencies. Zero frequency never counts.

    Args:
        data: (rows,) or (rows, sensors); missing values (NaN) are interpolated in time, empty sensors left out.
        sampling_frequency: rows per unit of time, > 0.
        nperseg: length of a Welch segment in rows; a record shorter than that is one segment.
        num_dominant_frequencies: how many to return, at least 1.

    Returns:
        The frequencies, ascending, and the mean power spectral density at each.

    Raises:
        ValueError: the count is not between 1 and the number of non-zero frequency bins.
    """
    columns = np.asarray(data, dtype=np.float64)
    columns = columns[:, None] if columns.ndim == 1 else columns
    columns = columns[:, np.isfinite(columns).any(axis=0)]
    segment = min(nperseg, len(columns))
    available = segment // 2
    if not 1 <= num_dominant_frequencies <= available:
        raise ValueError(
            f"num_dominant_frequencies must be between 1 and {available}, the non-zero frequencies of a segment of "
            f"{segment} rows, got {num_dominant_frequencies}; raise nperseg, or switch off use_cycles for no frequency"
        )
    if columns.shape[1] == 0:
        raise ValueError("the spectrum needs at least one sensor with observed values, got none")
    frequencies, density = welch(_interpolate_missing(columns), fs=sampling_frequency, nperseg=segment, axis=0)
    frequencies, density = frequencies[1:], density.mean(axis=1)[1:]
    neighbours = np.pad(density, 1, constant_values=-np.inf)
    is_peak = (density >= neighbours[:-2]) & (density > neighbours[2:])
    ranked = np.lexsort((-density, ~is_peak))
    chosen = np.sort(ranked[:num_dominant_frequencies])
    return frequencies[chosen], density[chosen]


def refine_frequencies(
    data: np.ndarray, sampling_frequency: float, frequencies: np.ndarray, width: float
) -> np.ndarray:
    """Move each frequency to the peak of the whole record's spectrum that lies within `width` of it.

    A bin of Welch's estimate is as wide as one over a segment; a sine of that frequency loses its phase over a record
    of many segments. Here the spectrum of the whole record (Hann window, power summed over sensors) is evaluated at 8
    points for each of its own bins, then at 64 around the largest, whose logarithm a parabola through three points
    interpolates.

    Args:
        data: (rows,) or (rows, sensors); missing values (NaN) are interpolated in time, empty sensors left out.
        sampling_frequency: rows per unit of time, > 0.
        frequencies: to refine, each > 0.
        width: half of the range searched around each, such as the width of a Welch bin.
    """
    columns = np.asarray(data, dtype=np.float64)
    columns = columns[:, None] if columns.ndim == 1 else columns
    columns = _interpolate_missing(columns[:, np.isfinite(columns).any(axis=0)])
    rows = len(columns)
    tapered = (columns - columns.mean(axis=0)) * np.hanning(rows + 2)[1:-1, None]
    resolution = sampling_frequency / rows
    refined = []
    for frequency in frequencies:
        at, half = float(frequency), width
        for points_per_bin in (8, 64):
            lowest, highest = max(at - half, 0.25 * float(frequency)), min(at + half, sampling_frequency / 2)
            count = max(3, int(np.ceil((highest - lowest) / resolution * points_per_bin)) + 1)
            spectrum = zoom_fft(
                tapered, [lowest / sampling_frequency, highest / sampling_frequency], count, fs=1, endpoint=True, axis=0
            )
            power = np.square(np.abs(spectrum)).sum(axis=1)
            at = lowest + _peak(power) * (highest - lowest) / (count - 1)
            half = resolution / 2
        refined.append(at)
    return np.array(refined)


def _peak(power: np.ndarray) -> float:
    """Return the position of the largest value, between samples where it has two neighbours."""
    i = int(power.argmax())
    if not 0 < i < len(power) - 1 or power[i - 1 : i + 2].min() <= 0:
        return float(i)
    before, here, after = np.log(power[i - 1 : i + 2])
    curvature = before - 2 * here + after
    return i + (0.5 * (before - after) / curvature if curvature < 0 else 0.0)


def phasors(data: np.ndarray, frequencies: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Project each sensor, z-scored, on exp(2 pi i f t): (frequencies, sensors) complex.

    Args:
        data: (rows, sensors); missing values (NaN) count as the mean.
        frequencies: f.
        times: (rows,) t, in 1 / unit of f.
    """
    mean, std = statistics(data)
    waves = np.exp(-2j * np.pi * np.outer(frequencies, times))
    return waves @ np.nan_to_num((data - mean) / std) / len(data)


def spectral_features(
    frequencies: np.ndarray, times: np.ndarray, start: np.ndarray | float = 0.0
) -> tuple[np.ndarray, list[str]]:
    """Compute sin(2 pi f t + start) and cos of it for each frequency: (rows, 2 * frequencies), and the column names."""
    phase = 2 * np.pi * np.outer(times, frequencies) + start
    names = [f"{wave}_Time_{i}" for i in range(1, len(frequencies) + 1) for wave in ("Sin", "Cos")]
    return _interleave(np.sin(phase), np.cos(phase)), names


def check_calendar(timestamps: np.ndarray | None, cycles: Sequence[str]) -> None:
    """Raise ValueError for an unknown cycle, or where there are no dates to compute one from."""
    unknown = [cycle for cycle in cycles if cycle not in CALENDAR_SECONDS]
    if unknown:
        raise ValueError(f"calendar must name cycles among {list(CALENDAR_SECONDS)}, got {unknown}")
    if timestamps is None or timestamps.dtype.kind != "M":
        raise ValueError("calendar features need dates, and this series has none; give a file with a date column")


def calendar_features(timestamps: np.ndarray, cycles: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Compute the phase of each time in the day, week or year as sine and cosine: (rows, 2 * cycles), and the names.

    Args:
        timestamps: (rows,) datetime64.
        cycles: any of "day", "week" (from Monday), "year" (of 365.2425 days).
    """
    seconds = (timestamps - MONDAY).astype("timedelta64[ns]").astype(np.float64) * 1e-9
    since_new_year = (timestamps - timestamps.astype("datetime64[Y]")).astype("timedelta64[ns]").astype(
        np.float64
    ) * 1e-9
    phase = np.stack(
        [2 * np.pi * (since_new_year if cycle == "year" else seconds) / CALENDAR_SECONDS[cycle] for cycle in cycles],
        axis=1,
    )
    names = [f"{wave}_{cycle.capitalize()}" for cycle in cycles for wave in ("Sin", "Cos")]
    return _interleave(np.sin(phase), np.cos(phase)), names


def _interleave(sines: np.ndarray, cosines: np.ndarray) -> np.ndarray:
    return rearrange([sines, cosines], "wave rows k -> rows (k wave)")


def _interpolate_missing(columns: np.ndarray) -> np.ndarray:
    filled = columns.copy()
    rows = np.arange(len(columns))
    for column in filled.T:
        observed = np.isfinite(column)
        if not observed.all():
            column[~observed] = np.interp(rows[~observed], rows[observed], column[observed])
    return filled
