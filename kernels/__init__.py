"""Linear attention with random features (FAVOR+) and moving-average series decomposition."""

from .favor_attention import (
    FavorState,
    Streamed,
    attend,
    favor_attention,
    merge,
    softmax_error,
    stream_attention,
    summarize,
)
from .favor_module import FavorAttention
from .random_features import RandomFeatures, draw_features
from .series_decomposition import MovingAverage, SeriesDecomposition, moving_average, series_decomposition

__all__ = [
    "FavorAttention",
    "FavorState",
    "MovingAverage",
    "RandomFeatures",
    "SeriesDecomposition",
    "Streamed",
    "attend",
    "draw_features",
    "favor_attention",
    "merge",
    "moving_average",
    "series_decomposition",
    "softmax_error",
    "stream_attention",
    "summarize",
]
