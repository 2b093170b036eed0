"""Read chosen sensors of a field, in blocks along time, so that a file far larger than the memory can be read."""

import os
from typing import Any

import numpy as np

from .field_sensors import SENSOR, FieldSensors

BLOCK_BYTES = 1 << 25  # of what is read at once
MEMORY_SHARE = 1 / 8  # of the memory, for one record: its series and their checks hold it several times
UNKNOWN_MEMORY = 16 << 30
MOST_SENSORS = 100_000


def check_size(rows: int, columns: int, source: str) -> None:
    """Raise ValueError for a record that is no series of sensors, or does not fit into memory."""
    most = MEMORY_SHARE * _memory()
    if columns > MOST_SENSORS or 4 * rows * columns > most:
        raise ValueError(
            f"{source} would give {columns} sensors of {rows} rows, {4 * rows * columns / 2**30:.3g} GiB; expected at "
            f"most {MOST_SENSORS} sensors and {most / 2**30:.3g} GiB: choose some with sensors=7, the number along "
            "each dimension, or fewer variables with fields="
        )


def read_sensors(array: Any, time: str, sensors: FieldSensors) -> np.ndarray:
    """Return the values of sensors (rows, sensors) of a DataArray; of a file only what is needed is read."""
    rows, dimensions = array.sizes[time], [time, *(axis.dimension for axis in sensors.axes)]
    kind = np.float32 if array.dtype.kind == "b" or array.dtype in (np.float16, np.float32) else np.float64
    values = np.empty((rows, sensors.count), kind)
    step = _block_rows(array, time, sensors)
    for first in range(0, rows, step):
        block = array.isel({time: slice(first, first + step), **sensors.indexers})
        values[first : first + step] = block.transpose(*dimensions).to_numpy().reshape(-1, sensors.count)
    return values


def _block_rows(array: Any, time: str, sensors: FieldSensors) -> int:
    """Return how many rows are read at once: whole chunks of the file, as many as fit into a block."""
    held = 1  # values of a row that are in memory at once
    for axis, dimension in enumerate(array.dims):
        where = sensors.indexers.get(dimension, slice(None))
        if dimension == time:
            continue
        if isinstance(where, slice):
            held *= len(range(*where.indices(array.shape[axis])))
        elif where[0] == (SENSOR,):  # the box around all points is read
            held *= int(np.ptp(where[1])) + 1
    fitting = max(1, BLOCK_BYTES // (held * array.dtype.itemsize))
    chunks = array.encoding.get("chunksizes") or array.encoding.get("chunks")
    chunk = chunks[array.dims.index(time)] if chunks and len(chunks) == array.ndim else 1
    return max(1, fitting // chunk) * chunk if chunk <= fitting else fitting


def _memory() -> int:
    """Return the bytes of memory of this machine."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on every system
        return UNKNOWN_MEMORY
