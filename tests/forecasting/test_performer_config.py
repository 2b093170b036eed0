import pytest

from favorcast.forecasting.st_transformer import PerformerConfig

WIDTHS = {"d_y_context": 5, "d_y_target": 3, "d_x": 2}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("d_y_target", 6, "d_y_context must be at least d_y_target"),
        ("d_y_target", 0, "d_y_target must be at least 1"),
        ("d_x", 0, "d_x must be at least 1"),
        ("time_emb_dim", 0, "time_emb_dim must be at least 1"),
        ("start_len", -1, "start_len must be at least 0"),
        ("max_seq_len", 0, "max_seq_len must be at least 1"),
        ("n_encoder_layers", 0, "n_encoder_layers must be at least 1"),
        ("n_decoder_layers", 0, "n_decoder_layers must be at least 1"),
        ("windows", 0, "windows must be at least 1"),
        ("downsample_convs_embedding", -1, "downsample_convs_embedding must be at least 0"),
        ("downsample_convs_block", 2, "downsample_convs_block must be smaller than n_encoder_layers"),
        ("position_embedding", "rotary", "'learned', 'periodic', got 'rotary'"),
        ("data_dropout_embedding", 1.5, "data_dropout_embedding must be in"),
        ("n_heads", 7, "d_model must be divisible by n_heads"),
    ],
)
def test_bad_value_is_refused_by_name(name, value, message):
    with pytest.raises(ValueError, match=message):
        PerformerConfig(**{**WIDTHS, name: value})


def test_covariates_may_be_missing_when_the_time_embedding_is_off():
    assert PerformerConfig(d_y_context=5, d_y_target=3, d_x=0, time_embedding=False).d_x == 0
