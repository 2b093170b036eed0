import dataclasses

import pytest
from torch import nn

from favorcast.forecasting.st_transformer import LayerConfig


class Recorder(nn.Module):
    """Keeps the arguments that an attention factory is called with."""

    def __init__(self, **arguments):
        super().__init__()
        self.arguments = arguments


@pytest.mark.parametrize(("kernel", "feature_map"), [("softmax", "exponential"), ("relu", "relu"), ("elu", "elu")])
def test_kernel_name_selects_the_feature_map(kernel, feature_map):
    config = LayerConfig(performer_attention_kernel=kernel, attention_factory=Recorder)
    assert config.build_attention(seed=0).arguments["feature_map"] == feature_map


def test_factory_receives_widths_causality_and_seed():
    config = LayerConfig(d_model=30, n_heads=5, d_v=7, dropout_attn=0.3, redraw_interval=9, attention_factory=Recorder)
    arguments = config.build_attention(seed=11, is_causal=True, tokens_per_step=4).arguments
    expected = {
        "embed_dim": 30,
        "num_heads": 5,
        "head_dim": 6,
        "value_head_dim": 7,
        "dropout": 0.3,
        "batch_first": True,
        "is_causal": True,
        "tokens_per_step": 4,
        "redraw_interval": 9,
        "seed": 11,
    }
    assert {name: arguments[name] for name in expected} == expected


@pytest.mark.parametrize("given", ["d_q_k", "d_v"])
def test_indivisible_width_needs_both_head_widths(given):
    with pytest.raises(ValueError, match="d_model must be divisible by n_heads when"):
        LayerConfig(d_model=30, n_heads=4, **{given: 8})
    LayerConfig(d_model=30, n_heads=4, d_q_k=8, d_v=8)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("performer_attention_kernel", "cosine", "'softmax', 'relu', 'elu', got 'cosine'"),
        ("activation", "tanh", "'relu', 'gelu', 'silu', got 'tanh'"),
        ("normalization_type", "group", "'layernorm', 'batchnorm', got 'group'"),
        ("dropout_ff", 1.0, r"dropout_ff must be in \[0, 1\), got 1.0"),
        ("dropout_attn", -0.1, "dropout_attn must be in"),
        ("dropout_qkv", 2.0, "dropout_qkv must be in"),
        ("n_heads", 0, "n_heads must be at least 1, got 0"),
        ("d_model", 0, "d_model must be at least 1, got 0"),
        ("d_ff", 0, "d_ff must be at least 1, got 0"),
        ("d_q_k", -1, "d_q_k must be at least 1, got -1"),
        ("redraw_interval", 0, "redraw_interval must be at least 1, got 0"),
    ],
)
def test_bad_value_is_refused_by_name(name, value, message):
    with pytest.raises(ValueError, match=message):
        LayerConfig(**{name: value})


def test_hidden_width_defaults_to_four_times_the_model_width():
    assert LayerConfig(d_model=12).build_feed_forward().layers[0].out_features == 48


def test_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        LayerConfig().d_model = 8  # pyright: ignore[reportAttributeAccessIssue]
