"""Linear attention with random features (FAVOR+) and moving-average series decomposition."""

from . import onnx_decompositions as onnx_decompositions  # registers them
from .attention_replacement import AttentionLeft, AttentionReplacement, multihead_state_dict, replace_attention
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
from .feature_redraw import redraw_features
from .implementation import set_impl
from .random_features import RandomFeatures, draw_features
from .series_decomposition import MovingAverage, SeriesDecomposition, moving_average, series_decomposition
from .transformers_cache import favor_cache
from .transformers_integration import register_with_transformers

__all__ = [
    "AttentionLeft",
    "AttentionReplacement",
    "FavorAttention",
    "FavorState",
    "MovingAverage",
    "RandomFeatures",
    "SeriesDecomposition",
    "Streamed",
    "attend",
    "draw_features",
    "favor_attention",
    "favor_cache",
    "merge",
    "moving_average",
    "multihead_state_dict",
    "redraw_features",
    "register_with_transformers",
    "replace_attention",
    "series_decomposition",
    "set_impl",
    "softmax_error",
    "stream_attention",
    "summarize",
]
