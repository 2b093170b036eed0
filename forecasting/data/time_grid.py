"""See whether rows follow one another by equal steps, and put them on a regular grid where that is asked for."""
# pandas annotates most results as a union of a column and a scalar
# pyright: reportAttributeAccessIssue=false, reportIndexIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportReturnType=false, reportOperatorIssue=false, reportGeneralTypeIssues=false

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd

from .record import SensorRecord

Gaps = Literal["split", "resample", "refuse", "ignore"]
TOLERANCE = 0.05  # of a step: written times are rounded, and clocks jitter
DAY = 86_400e9  # in nanoseconds
FILL_STEPS = 1.5  # of a step: between rows that are farther apart nothing is interpolated


@dataclass(frozen=True)
class TimeGrid:
    """How the rows of a record lie in time.

    Attributes:
        step: time between rows, in nanoseconds for dates, else in the unit of the timestamps.
        months: whole months from row to row where a calendar counts, else None (steps are then equal).
        breaks: rows that do not follow the row before by one step, ascending.
        duplicates: how many rows have the time of the row before.
        gaps: how many steps are longer than one step.
        shorter: how many steps are shorter, but not zero.
        longest: the longest step, in steps.
    """

    step: float
    months: int | None
    breaks: np.ndarray
    duplicates: int = 0
    gaps: int = 0
    shorter: int = 0
    longest: float = 1.0

    @property
    def is_regular(self) -> bool:
        """Whether each row follows the one before by one step."""
        return len(self.breaks) == 0

    @property
    def irregularities(self) -> list[str]:
        """What is irregular, each kind with how often it occurs."""
        longest = f"{self.longest:.4g} steps"
        kinds = (
            (self.gaps, f"gap (of {longest})", f"gaps (the longest of {longest})"),
            (self.duplicates, "duplicate time", "duplicate times"),
            (self.shorter, "step shorter than the usual one", "steps shorter than the usual one"),
        )
        return [f"{count} {one if count == 1 else many}" for count, one, many in kinds if count]

    def describe(self, row_time: np.ndarray) -> str:
        """Say what is irregular, and where the first break is."""
        first = self.breaks[0]
        at = pd.Timestamp(row_time[first]) if row_time.dtype.kind == "M" else row_time[first]
        return f"{', '.join(self.irregularities)}; the first at row {first} ({at})"


def time_grid(timestamps: np.ndarray, step: float | None = None, *, zone: str | None = None) -> TimeGrid:
    """Compare the steps between timestamps with the usual one, or with `step`, in seconds for dates.

    Rows of the same day of the month, or of its last day, in the time zone, count in months.
    """
    numbers = timestamps.astype(np.int64) if timestamps.dtype.kind == "M" else timestamps
    scale = 1e9 if timestamps.dtype.kind == "M" else 1.0
    steps = np.diff(numbers).astype(np.float64)
    positive = steps[steps > 0]
    usual = step * scale if step is not None else float(np.median(positive)) if len(positive) else scale
    months = _months(timestamps, zone) if step is None else None
    if months is not None:
        steps, usual_steps = np.diff(months).astype(np.float64), float(np.median(np.diff(months)))
    else:
        usual_steps = usual
    relative = steps / usual_steps
    off = np.abs(relative - 1) > TOLERANCE
    is_daily = zone is not None and usual % DAY == 0  # days of a zone have 23 to 25 hours
    if step is None and len(steps) and not off.any() and months is None and not is_daily:
        usual = float(numbers[-1] - numbers[0]) / len(steps)  # the median of written times is that of their rounding
    return TimeGrid(
        step=usual,
        months=None if months is None else int(usual_steps),
        breaks=np.flatnonzero(off) + 1,
        duplicates=int((steps == 0).sum()),
        gaps=int((off & (relative > 1)).sum()),
        shorter=int((off & (relative < 1) & (steps > 0)).sum()),
        longest=float(relative.max()) if len(relative) else 1.0,
    )


def continue_times(
    timestamps: np.ndarray, count: int, step: float, *, months: int | None, zone: str | None
) -> np.ndarray:
    """Return the `count` times that follow the last one, by whole months or by equal steps.

    Args:
        timestamps: (rows,) datetime64[ns] or float64.
        count: how many.
        step: in nanoseconds for dates, else in the unit of the timestamps.
        months: months from row to row where a calendar counts.
        zone: time zone whose calendar counts; None takes the timestamps as they are.
    """
    if timestamps.dtype.kind != "M":
        return timestamps[-1] + step * np.arange(1, count + 1)
    if months is None and zone is not None and step % DAY == 0:
        last = local_index(timestamps[-1:], zone).tz_localize(None)[0]
        index = pd.DatetimeIndex([last + pd.Timedelta(round(step * i), "ns") for i in range(1, count + 1)])
        index = index.tz_localize(zone, ambiguous="NaT", nonexistent="shift_forward")
        index = index.tz_convert("UTC").tz_localize(None)
        return index.to_numpy().astype("datetime64[ns]")
    if months is None:
        return timestamps[-1] + (np.rint(step * np.arange(1, count + 1))).astype("timedelta64[ns]")
    last = local_index(timestamps[-1:], zone)[0]
    offset = pd.offsets.MonthEnd if last.is_month_end else pd.DateOffset
    later = [
        last + (offset(months * i) if last.is_month_end else pd.DateOffset(months=months * i))
        for i in range(1, count + 1)
    ]
    index = pd.DatetimeIndex(later)
    index = index.tz_convert("UTC").tz_localize(None) if index.tz is not None else index
    return index.to_numpy().astype("datetime64[ns]")


def local_index(timestamps: np.ndarray, zone: str | None) -> pd.DatetimeIndex:
    """Return dates in their time zone; without one they stay as they are."""
    index = pd.DatetimeIndex(timestamps)
    return index if zone is None else index.tz_localize("UTC").tz_convert(zone)


def on_grid(record: SensorRecord, gaps: Gaps, step: float | None) -> tuple[SensorRecord, TimeGrid | None]:
    """Report what is irregular about the times of a record, and refuse, resample or keep it.

    Rows that repeat the row before in time and values are left out unless `gaps` is "refuse". "resample" interpolates
    each column linearly between rows at most 1.5 steps apart, on the grid that starts at the first row; elsewhere
    values are missing. Rows that share a time are averaged first.

    Args:
        record: with times, or without (then nothing is done).
        gaps: what to do.
        step: time between rows in the unit of sampling_time; None takes the usual one.

    Raises:
        ValueError: with "refuse", for times that are not regular.
    """
    times = record.timestamps
    if times is None or len(times) < 2:
        return record, None
    grid = time_grid(times, step, zone=record.time_zone)
    if grid.is_regular:
        return _stepped(record, grid), grid
    notes = [f"irregular times: {grid.describe(times)}"]
    if gaps == "refuse":
        raise ValueError(f"{notes[0]}; mend the file, or set gaps to 'split' or 'resample'")
    if gaps == "ignore":
        notes.append("each row counts as one step, as asked")
        return _stepped(record._replace(notes=(*record.notes, *notes)), grid), grid
    repeated = np.r_[False, times[1:] == times[:-1]]
    repeated[1:] &= ((record.values[1:] == record.values[:-1]) | np.isnan(record.values[1:])).all(axis=1)
    if repeated.any():
        count = int(repeated.sum())
        notes.append(f"left out {count} row{'s that repeat' if count > 1 else ' that repeats'} the row before")
        record = record._replace(values=record.values[~repeated], timestamps=times[~repeated])
        grid = time_grid(times[~repeated], step, zone=record.time_zone)
    if not grid.is_regular and gaps == "resample":
        record = _resampled(record, grid)
        notes.append(f"resampled to {len(record.values)} rows with equal steps")
        grid = replace(grid, breaks=grid.breaks[:0])
    elif not grid.is_regular:
        advice = (
            "; if these are local clock times, state table.time_zone"
            if grid.duplicates and times.dtype.kind == "M"
            else ""
        )
        notes.append(f"no window reaches across; gaps='resample' puts the rows on a regular grid{advice}")
    return _stepped(record._replace(notes=(*record.notes, *notes)), grid), grid


def _stepped(record: SensorRecord, grid: TimeGrid) -> SensorRecord:
    assert record.timestamps is not None
    return record._replace(sampling_time=grid.step * 1e-9 if record.timestamps.dtype.kind == "M" else grid.step)


def _resampled(record: SensorRecord, grid: TimeGrid) -> SensorRecord:
    assert record.timestamps is not None
    if grid.months is not None:
        raise ValueError("calendar months cannot be resampled: they are unequal; add the missing rows to the file")
    is_date = record.timestamps.dtype.kind == "M"
    numbers = record.timestamps.astype(np.int64 if is_date else np.float64)
    table = pd.DataFrame(record.values.astype(np.float64)).groupby(numbers).mean()
    known = table.index.to_numpy()
    index = (known - known[0]) / grid.step  # in steps
    count = int(np.floor(index[-1] + TOLERANCE)) + 1
    wanted = np.arange(count, dtype=np.float64)
    nearest = np.rint(index)
    index = np.where(np.abs(index - nearest) <= TOLERANCE, nearest, index)  # jitter is no reason to interpolate
    after = np.searchsorted(index, wanted).clip(0, len(index) - 1)
    before = np.where(index[after] == wanted, after, (after - 1).clip(0))
    near = index[after] - index[before] <= FILL_STEPS
    weight = np.where(
        after == before, 0.0, (wanted - index[before]) / np.where(after == before, 1.0, index[after] - index[before])
    )
    values = table.to_numpy()
    filled = np.where(
        weight[:, None] == 0, values[before], values[before] + weight[:, None] * (values[after] - values[before])
    )
    filled[~near] = np.nan
    offsets = np.rint(grid.step * wanted).astype("timedelta64[ns]") if is_date else grid.step * wanted
    return record._replace(values=filled.astype(record.values.dtype), timestamps=record.timestamps[0] + offsets)


def _months(timestamps: np.ndarray, zone: str | None) -> np.ndarray | None:
    """Number the months of monthly rows (the same day of the month, or always its last one); None for other rows."""
    if timestamps.dtype.kind != "M" or len(timestamps) < 3:
        return None
    index = local_index(timestamps, zone)
    months = (index.year * 12 + index.month).to_numpy()
    same_day = (index.day == index[0].day).all() or index.is_month_end.all()
    grows = np.median(np.diff(months)) >= 1
    clock = (index.hour * 3600 + index.minute * 60 + index.second).to_numpy()
    return months if same_day and grows and (clock == clock[0]).all() else None
