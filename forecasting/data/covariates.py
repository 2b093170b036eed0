"""The covariates of a series as a function of time, fixed by training and kept in checkpoints."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .time_features import CALENDAR_SECONDS, calendar_features, phasors, spectral_features
from .time_grid import local_index

ROWS_PER_CYCLE, CYCLES_SEEN = 4, 2  # what a calendar cycle needs to be a covariate by itself


@dataclass(frozen=True, kw_only=True)
class CovariateConfig:
    """Which covariates a series has, beside its known columns.

    Args:
        time_step_feature: time between rows in the unit of the frequencies; None: the record's sampling time, else
            time_step_df.
        num_dominant_frequencies: frequencies, each of which gives two covariates, sine and cosine.
        use_cycles: True: the frequencies; False: one covariate Time_Index (0 to 1 over the training rows); None: where
            there are dates and no calendar is given, the calendar cycles that training rows resolve and hold twice,
            else the frequencies.
        nperseg: rows of a Welch segment; its peaks are refined on all training rows (see refine_frequencies).
        calendar: cycles "day", "week", "year" of the local clock to add as covariates; needs dates.
    """

    time_step_feature: float | None = None
    num_dominant_frequencies: int = 1
    use_cycles: bool | None = None
    nperseg: int = 1024
    calendar: list[str] | None = None


@dataclass(frozen=True)
class TimeCovariates:
    """Map times to covariates, the same way for training and for whatever comes later.

    With time t counted in rows from the origin, s = (t - origin) / step:

        Time_Index            (s - index_start) / index_span
        Sin_Time_i, Cos_...   sin and cos of 2 pi frequencies_i feature_step s
        Sin_Day, ...          sin and cos of the phase in the day, week or year of the local clock
        known columns         (value - mean) / std

    Args:
        origin: time of row 0, in nanoseconds since 1970 for dates.
        step: time between rows, in nanoseconds for dates.
        feature_step: time between rows in the unit of the frequencies.
        frequencies: in 1 / unit of feature_step.
        index_start, index_span: row and rows of the training split for Time_Index; a span of 0 leaves it out.
        calendar: cycles among "day", "week" and "year".
        zone: time zone whose clock the calendar follows.
        known: names of columns that are known ahead, with the mean and std of their training values.
        has_dates: whether times are dates.
        amplitudes: of each frequency and context column in the training rows, real and imaginary parts (see phasors):
            what tells the phase of rows without times.
    """

    origin: float
    step: float
    feature_step: float
    frequencies: tuple[float, ...] = ()
    index_start: int = 0
    index_span: int = 0
    calendar: tuple[str, ...] = ()
    zone: str | None = None
    known: tuple[str, ...] = ()
    known_mean: tuple[float, ...] = ()
    known_std: tuple[float, ...] = ()
    has_dates: bool = False
    amplitudes: tuple[float, ...] = ()

    @classmethod
    def of_dict(cls, content: dict[str, Any]) -> "TimeCovariates":
        """Restore what `to_dict` gave."""
        values: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in content.items()}
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, which checkpoints hold."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @property
    def needs_clock(self) -> bool:
        """Whether covariates depend on when a row was."""
        return bool(self.frequencies or self.index_span or self.calendar)

    def compute(
        self, times: np.ndarray, known: np.ndarray, start: np.ndarray | float = 0.0
    ) -> tuple[np.ndarray, list[str]]:
        """Return the covariates (rows, d_x) float32, and their names.

        Args:
            times: (rows,) datetime64[ns] or numbers, as has_dates says.
            known: (rows, known columns), NaN where missing.
            start: phase of each frequency at the origin, (frequencies,).
        """
        rows = self.row_numbers(times)
        blocks, names = [np.empty((len(times), 0))], []
        if self.index_span:
            blocks.append(((rows - self.index_start) / self.index_span)[:, None])
            names.append("Time_Index")
        if self.frequencies:
            features, more = spectral_features(np.array(self.frequencies), rows * self.feature_step, start)
            blocks.append(features)
            names.extend(more)
        if self.calendar:
            features, more = calendar_features(local_clock(times, self.zone), self.calendar)
            blocks.append(features)
            names.extend(more)
        if self.known:
            blocks.append((known - np.array(self.known_mean)) / np.array(self.known_std))
            names.extend(self.known)
        return np.concatenate(blocks, axis=1).astype(np.float32), names

    def row_numbers(self, times: np.ndarray) -> np.ndarray:
        """Count rows from the origin to each time."""
        numbers = times.astype(np.int64) - np.int64(self.origin) if self.has_dates else times - self.origin
        return numbers.astype(np.float64) / self.step

    def start_of(self, values: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Return the phase at the origin of each frequency that puts rows of unknown time in phase with training.

        With X and A the phasors of the rows and of training, it is arg sum_sensors X conj(A).

        Args:
            values: (rows, context columns), NaN where missing.
            times: (rows,) counted as if the first row were the origin.
        """
        frequencies = np.array(self.frequencies)
        real, imaginary = np.array(self.amplitudes).reshape(2, len(frequencies), -1)
        found = phasors(values, frequencies, self.row_numbers(times) * self.feature_step)
        return np.angle((found * (real - 1j * imaginary)).sum(axis=1))


def local_clock(times: np.ndarray, zone: str | None) -> np.ndarray:
    """Return dates as the clock of a time zone shows them."""
    if zone is None or times.dtype.kind != "M":
        return times
    return local_index(times, zone).tz_localize(None).to_numpy().astype("datetime64[ns]")


def fitting_cycles(times: np.ndarray, step_seconds: float) -> list[str]:
    """Return the calendar cycles that training rows resolve (four rows a cycle) and hold twice.

    Args:
        times: (rows,) datetime64[ns] of the training rows.
        step_seconds: time between rows.
    """
    span = (times[-1] - times[0]) / np.timedelta64(1, "s") + step_seconds
    return [
        name
        for name, cycle in CALENDAR_SECONDS.items()
        if ROWS_PER_CYCLE * step_seconds <= cycle and CYCLES_SEEN * cycle <= span
    ]
