"""Follow a running solver: a forecast from each row of probes that it writes, appended to a CSV as it comes."""

import os
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from ..continuation import Continuation, can_continue
from ..data import DataWarning
from ..data.data_card import DataCard
from ..data.field_choice import FieldChoice
from ..data.growing_probes import GrowingProbes, NewRows
from ..data.probe_folders import holds_probes
from ..data.record import SensorRecord
from ..data.sources import record_of
from ..data.time_grid import on_grid
from ..data.time_labels import time_texts
from ..forecaster import Forecaster
from ..future import forecast as forecast_future
from ..labelled_forecast import Forecast
from .flags import with_flags

PATIENCE = 10  # looks without a whole row, after which fields that others wait for are named
KEPT_ROWS = 10_000  # beyond a context: how far back a restart may begin without waiting for a new context


@dataclass(frozen=True)
class Following:
    """How a case is followed.

    Args:
        horizon: rows to forecast; None is the horizon of training.
        poll_seconds: from one look at the files to the next.
        limit_seconds: when to end; None goes on until it is interrupted.

    Raises:
        ValueError: a time that is not positive.
    """

    horizon: int | None = None
    poll_seconds: float = 1.0
    limit_seconds: float | None = None

    def __post_init__(self) -> None:
        for flag, value in (("--poll", self.poll_seconds), ("--follow_for", self.limit_seconds)):
            if value is not None and not (np.isfinite(value) and value > 0):
                raise ValueError(f"{flag} must be a positive number of seconds, got {value}")


class LatestRows:
    """The latest rows of a case, as many as a context takes and some more, for restarts.

    Args:
        card: of the forecaster.
    """

    def __init__(self, card: DataCard) -> None:
        self.card = card
        self.span = card.time_resolution * (card.context_len - 1) + 1
        self.times = np.empty(0)
        self.values = np.empty((0, len(card.context_columns)))

    def add(self, rows: NewRows) -> None:
        """Append rows; those of a restart take the place of all from their first time on."""
        kept = self.times < rows.times[0]
        self.times = np.append(self.times[kept], rows.times)
        self.values = np.append(self.values[kept], rows.values, axis=0)
        if len(self.times) > 2 * (self.span + KEPT_ROWS):
            self.times, self.values = self.times[-self.span - KEPT_ROWS :], self.values[-self.span - KEPT_ROWS :]

    def context(self, last: int) -> SensorRecord | None:
        """Return the latest context that ends with row `last`, None where there are too few rows."""
        card, first = self.card, last + 1 - self.span
        if card.gaps == "resample" and card.has_times:  # steps of any length: as many as reach back far enough
            begin = self.times[last] - card.step * (self.span + 1)
            first = min(first, int(np.searchsorted(self.times, begin)))
        if first < 0:
            return None
        rows = slice(first, last + 1)
        record = SensorRecord(self.values[rows], card.context_columns, self.times[rows], time_unit="s")
        if card.gaps == "resample" and card.has_times:
            record, _ = on_grid(record, "resample", card.step)
        return record if len(record.values) >= self.span else None


def follow(forecaster: Forecaster, case: str, output: Path, following: Following, choice: FieldChoice) -> int:
    """Forecast from each new row of a case until the limit or an interrupt, and return how many forecasts were written.

    The first forecast is from the last row that is there. Each reads what was added to the files, and the latest
    context, or the new row alone where the model goes on from states (see Continuation): its cost does not grow with
    what was written before. Rows of a restart are forecast from again.

    Raises:
        ValueError: no case, columns that it does not have, or a forecaster that needs more than its probes.
    """
    card = _checked_card(forecaster, case, choice)
    file = ForecastFile(output)
    predict = Continuation(forecaster, card.target_len).predict if can_continue(forecaster) else forecaster.predict
    is_told = False  # what is wrong with rows is said once, until they are as they should be again
    ends = None if following.limit_seconds is None else time.monotonic() + following.limit_seconds
    try:
        growing = GrowingProbes(Path(case), card.context_columns, choice)
        for latest, row in _rows_as_they_come(growing, card, following, ends):
            notes = _forecast_from(forecaster, latest, row, following.horizon, file, predict)
            for note in [] if is_told else notes:
                print(f"note: from {latest.times[row]:.15g} s on: {with_flags(note, own_data=True)}", flush=True)
            is_told = bool(notes)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    return file.count


def _rows_as_they_come(
    growing: GrowingProbes, card: DataCard, following: Following, ends: float | None
) -> Iterator[tuple[LatestRows, int]]:
    """Yield the rows to forecast from: the last one that is there, then each that is written; wait for them."""
    latest, is_caught_up, idle, told = LatestRows(card), False, 0, 0
    while True:
        parts = growing.read()
        for start in growing.passed_over[told:]:
            remedy = "follow again after moving the folders of later starts elsewhere"
            print(f"note: the start at {start:.15g} s is passed over, as a later one is there: {remedy}", flush=True)
        told = len(growing.passed_over)
        idle = 0 if parts else idle + 1
        if idle == PATIENCE and (behind := growing.behind()):
            ended = ", ".join(f"{name} ends at {time:.15g} s" for name, time in behind.items())
            print(f"note: waiting for fields that others are ahead of: {ended}", flush=True)
        for part in parts:
            latest.add(part)
            rows = len(latest.times)
            new = len(part.times) if is_caught_up else int(part is parts[-1])
            for row in range(max(0, rows - new), rows):
                yield latest, row
                if ends is not None and time.monotonic() >= ends:
                    return
        is_caught_up |= bool(parts)
        left = following.poll_seconds if ends is None else min(following.poll_seconds, ends - time.monotonic())
        if left <= 0:
            return
        time.sleep(left)


def _forecast_from(
    forecaster: Forecaster,
    latest: LatestRows,
    row: int,
    horizon: int | None,
    file: "ForecastFile",
    predict: Callable[..., Tensor],
) -> list[str]:
    """Write the forecast from a row; return what is to be said of it, or why there is none."""
    record = latest.context(row)
    if record is None:
        return [f"waiting for {latest.span} rows, which a forecast starts from"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DataWarning)
        try:
            forecast = forecast_future(forecaster, record, horizon, predict=predict)
        except ValueError as error:  # a gap or a dead context, which later rows leave behind
            return [f"no forecast: {error}"]
    file.append(forecast)
    return [str(each.message) for each in caught if issubclass(each.category, DataWarning)]


def _checked_card(forecaster: Forecaster, case: str, choice: FieldChoice) -> DataCard:
    card = DataCard.of_dict(forecaster.data_card or {})
    if not holds_probes(Path(case)):
        raise ValueError(f"--follow needs an OpenFOAM case, whose probe files grow; got {case!r}")
    if card.known_columns:
        raise ValueError(
            f"--follow cannot know {card.known_columns} ahead, the known_columns of training: train without them"
        )
    try:
        record = record_of(case, choice=choice)
    except ValueError as error:
        if "holds a row yet" not in str(error):
            raise
        return card
    card.positions([name for name in record.columns if name in card.context_columns], need_known=False)
    return card


class ForecastFile:
    """A CSV that forecasts are appended to, each as a whole: origin, step of the horizon, time, sensors.

    Args:
        path: of the file; one that is there is added to.

    Attributes:
        count: of forecasts appended.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0

    def append(self, forecast: Forecast) -> None:
        """Append a forecast by one write, so that no reader and no end of the process sees half a row.

        Raises:
            ValueError: the file there has other columns, or its last row is not whole.
        """
        origin = time_texts(forecast.context_times, forecast.time_zone)[-1]
        name = forecast.time_label.replace("time", "origin", 1)
        steps = np.arange(1, len(forecast.values) + 1)
        text = forecast.to_csv(**{name: origin, "step": steps})
        header, _, body = text.partition("\n")
        is_new = not self.path.exists() or self.path.stat().st_size == 0
        if self.count == 0 and not is_new:
            self._check(header)
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            content = (text if is_new else body).encode()
            if os.write(handle, content) < len(content):
                raise OSError(f"{self.path}: the disk is full")
        finally:
            os.close(handle)
        self.count += 1

    def _check(self, header: str) -> None:
        with self.path.open("rb") as file:
            first = file.readline().decode().rstrip("\r\n")
            file.seek(-1, os.SEEK_END)
            is_whole = file.read() == b"\n"
        if first != header or not is_whole:
            raise ValueError(f"{self.path} holds something else than forecasts of these sensors; name another --output")
