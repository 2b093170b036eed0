"""Linear attention with random features (FAVOR+) and moving-average series decomposition."""

from .favor_attention import FavorState, attend, favor_attention, merge, softmax_error, summarize
from .favor_module import FavorAttention
from .random_features import RandomFeatures, draw_features
from .series_decomposition import MovingAverage, SeriesDecomposition, moving_average, series_decomposition

__all__ = [
    "FavorAttention",
    "FavorState",
    "MovingAverage",
    "RandomFeatures",
    "SeriesDecomposition",
    "attend",
    "draw_features",
    "favor_attention",
    "merge",
    "moving_average",
    "series_decomposition",
    "softmax_error",
    "summarize",
]
