"""The covariates of a series as a function of time, fixed by training and kept in checkpoints."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .time_features import CALENDAR_SECONDS, calendar_features, spectral_features
from .time_grid import local_index

ROWS_PER_CYCLE, CYCLES_SEEN = 4, 2  # what a calendar cycle needs to be a covariate by itself


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

    def compute(self, times: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, list[str]]:
        """Return the covariates (rows, d_x) float32, and their names.

        Args:
            times: (rows,) datetime64[ns] or numbers, as has_dates says.
            known: (rows, known columns), NaN where missing.
        """
        numbers = times.astype(np.int64) - np.int64(self.origin) if self.has_dates else times - self.origin
        rows = numbers.astype(np.float64) / self.step
        blocks, names = [np.empty((len(times), 0))], []
        if self.index_span:
            blocks.append(((rows - self.index_start) / self.index_span)[:, None])
            names.append("Time_Index")
        if self.frequencies:
            features, more = spectral_features(np.array(self.frequencies), rows * self.feature_step)
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
