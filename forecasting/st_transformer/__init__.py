"""Spatio-temporal transformer with FAVOR+ attention."""

from .attention import GlobalAttention, LocalAttention, Memory, build_memory
from .decoder import Decoder, DecoderLayer
from .downsampling import DownsampleConv
from .embedding import TokenEmbedding
from .encoder import Encoder, EncoderLayer
from .feed_forward import FeedForward
from .layer_config import LayerConfig
from .performer_config import PerformerConfig
from .position import LearnedPosition, PeriodicPosition
from .softmax_attention import SoftmaxAttention
from .spatiotemporal_performer import SpatioTemporalPerformer
from .time2vec import Time2Vec
from .time_windows import TimeWindows
from .token_norm import TokenBatchNorm, token_norm

__all__ = [
    "Decoder",
    "DecoderLayer",
    "DownsampleConv",
    "Encoder",
    "EncoderLayer",
    "FeedForward",
    "GlobalAttention",
    "LayerConfig",
    "LearnedPosition",
    "LocalAttention",
    "Memory",
    "PerformerConfig",
    "PeriodicPosition",
    "SoftmaxAttention",
    "SpatioTemporalPerformer",
    "Time2Vec",
    "TimeWindows",
    "TokenBatchNorm",
    "TokenEmbedding",
    "build_memory",
    "token_norm",
]
