"""Write times as text, with every digit that tells them apart."""

import numpy as np

from .time_grid import local_index

ROUNDING = 1e-9  # of a step: what a label may lose of a number, so that 0.1 + 0.2 is 0.3


def time_texts(times: np.ndarray, zone: str | None = None) -> np.ndarray:
    """Return times as text: dates in ISO 8601, with their offset from UTC where there is a zone, numbers as they are.

    Args:
        times: (rows,) datetime64 (UTC where there is a zone) or numbers.
        zone: time zone of dates.
    """
    if times.dtype.kind != "M":
        return _number_texts(times.astype(np.float64))
    index = local_index(times, zone)
    whole_seconds = bool((times == times.astype("datetime64[s]")).all())
    return np.array([stamp.isoformat(timespec="seconds" if whole_seconds else "nanoseconds") for stamp in index])


def _number_texts(numbers: np.ndarray) -> np.ndarray:
    texts = np.char.mod("%.15g", numbers)
    steps = np.abs(np.diff(numbers))
    step = steps[steps > 0].min(initial=np.inf)
    if (np.abs(texts.astype(np.float64) - numbers) <= ROUNDING * step).all():
        return texts
    return np.array([repr(number) for number in numbers.tolist()])
