import pytest
import torch

from favorcast.forecasting.st_transformer import token_norm


def test_layernorm_standardises_each_token():
    out = token_norm("layernorm", 16)(3.0 + 2.0 * torch.randn(2, 5, 3, 16))
    torch.testing.assert_close(out.mean(-1), torch.zeros(2, 5, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std(-1, unbiased=False), torch.ones(2, 5, 3), atol=1e-3, rtol=0)


def test_batchnorm_standardises_each_feature_over_all_tokens():
    out = token_norm("batchnorm", 16)(3.0 + 2.0 * torch.randn(2, 5, 3, 16)).flatten(0, 2)
    torch.testing.assert_close(out.mean(0), torch.zeros(16), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std(0, unbiased=False), torch.ones(16), atol=1e-3, rtol=0)


def test_batchnorm_lets_no_token_see_another_in_eval_mode():
    norm = token_norm("batchnorm", 8)
    norm(torch.randn(2, 5, 3, 8))
    norm.eval()
    tokens = torch.randn(2, 5, 3, 8)
    before = norm(tokens)
    tokens[:, -1] += 1.0
    assert torch.equal(norm(tokens)[:, :-1], before[:, :-1])


def test_unknown_name_lists_the_valid_ones():
    with pytest.raises(ValueError, match="'layernorm', 'batchnorm', got 'rms'"):
        token_norm("rms", 8)  # pyright: ignore[reportArgumentType]
