"""Remember which values training saw of each column, to tell a context that lies far outside of them.

c columns of the context
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .column_statistics import statistics, varies

FAR = 5.0  # training deviations beyond all that training saw: test rows of ETTh1 reach 0.64, of the pinball 2.2
COLUMNS_NAMED = 3


@dataclass(frozen=True)
class TrainingRange:
    """The least and largest training value of each column, and its standard deviation.

    Args:
        low, high, std: c numbers each, original units; std 0 for a column that never varies, which is not judged.
    """

    low: list[float]
    high: list[float]
    std: list[float]

    @classmethod
    def of(cls, values: np.ndarray) -> "TrainingRange":
        """Measure the training rows (rows, c), NaN where missing."""
        seen = ~np.isnan(values)
        low, high = np.where(seen, values, np.inf).min(axis=0), np.where(seen, values, -np.inf).max(axis=0)
        judged = varies(values)
        ends = (np.where(judged, each, 0.0).astype(np.float64).tolist() for each in (low, high, statistics(values)[1]))
        return cls(*ends)

    def note(self, columns: Sequence[str], context: np.ndarray) -> str | None:
        """Name the columns of which a context (rows, c) lies further than FAR outside of training, None for none."""
        low, high, std = (np.array(each) for each in (self.low, self.high, self.std))
        outside = np.nan_to_num(np.maximum(context - high, low - context).astype(np.float64), nan=-np.inf).max(axis=0)
        distance = np.divide(outside, std, out=np.zeros(len(std)), where=std > 0)
        far = [int(i) for i in np.argsort(-distance, kind="stable") if distance[i] > FAR]
        if not far:
            return None
        named = ", ".join(f"{columns[i]!r} by {distance[i]:.3g}" for i in far[:COLUMNS_NAMED])
        more = f" and {len(far) - COLUMNS_NAMED} more" if len(far) > COLUMNS_NAMED else ""
        return (
            f"the context lies far beyond all that training saw, {named}{more} training standard deviations: the "
            "forecast is a guess; check units and sensors, or train on such data too"
        )
