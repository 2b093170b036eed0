"""Statistics of columns with missing values, in float64."""

import numpy as np


def rows_of(array: np.ndarray, rows: range) -> np.ndarray:
    """Return a view of a range of rows."""
    return array[rows.start : rows.stop]


def varies(values: np.ndarray) -> np.ndarray:
    """Tell which columns take more than one observed value, (columns,)."""
    lowest = np.where(np.isnan(values), np.inf, values).min(axis=0)
    highest = np.where(np.isnan(values), -np.inf, values).max(axis=0)
    return highest > lowest


def statistics(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of the observed values of each column; see training_statistics."""
    rows = rows.astype(np.float64)
    observed = ~np.isnan(rows)
    count = np.maximum(observed.sum(axis=0), 1)
    mean = np.where(observed, rows, 0.0).sum(axis=0) / count
    variance = np.square(np.where(observed, rows - mean, 0.0)).sum(axis=0) / count
    return mean, np.where(varies(rows), np.sqrt(variance), 1.0)


def in_float32_if_fine_enough(values: np.ndarray, train: range) -> np.ndarray:
    """Return the values in float32 where that rounds by less than 1e-5 of each column's std over training rows."""
    if values.dtype == np.float32:
        return values
    rows = rows_of(values, train)
    changing = varies(rows)
    mean, std = statistics(rows)
    rounding = np.finfo(np.float32).eps / 2 * (np.abs(mean) + std)
    return values.astype(np.float64 if (rounding > 1e-5 * std)[changing].any() else np.float32)


def mark_missing(values: np.ndarray, null_value: float | None) -> np.ndarray:
    """Replace null_value by NaN."""
    if null_value is None:
        return values
    return np.where(values == values.dtype.type(null_value), values.dtype.type(np.nan), values)
