"""Linear attention with random features (FAVOR+) and moving-average series decomposition."""

from .decomposition.functions import MovingAverage, SeriesDecomposition, moving_average, series_decomposition
from .dispatch.implementation import set_impl
from .favor.diagnostics import softmax_error
from .favor.functions import (
    FavorState,
    Streamed,
    attend,
    favor_attention,
    merge,
    stream_attention,
    summarize,
)
from .huggingface.generation import favor_cache
from .huggingface.register import register_with_transformers
from .layers.lora import register_with_peft
from .layers.multihead import FavorAttention
from .layers.redraw import redraw_features
from .layers.replacement import AttentionLeft, AttentionReplacement, multihead_state_dict, replace_attention
from .random_features import RandomFeatures, draw_features

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
    "register_with_peft",
    "register_with_transformers",
    "replace_attention",
    "series_decomposition",
    "set_impl",
    "softmax_error",
    "stream_attention",
    "summarize",
]
