import pytest
import torch

from favorcast.forecasting.st_transformer import DownsampleConv


@pytest.mark.parametrize(("steps", "halved"), [(2, 1), (3, 2), (8, 4), (9, 5), (40, 20)])
def test_time_is_halved_rounding_up(steps, halved):
    assert DownsampleConv(8)(torch.randn(2, steps, 3, 8)).shape == (2, halved, 3, 8)


def test_sensors_and_samples_do_not_mix():
    conv = DownsampleConv(8).eval()
    tokens = torch.randn(2, 10, 3, 8)
    before = conv(tokens)
    tokens[1, :, 2] += 1.0
    moved = (conv(tokens) != before).any(dim=-1).any(dim=1)
    assert moved.nonzero().tolist() == [[1, 2]]


def test_result_equals_the_textbook_pipeline_on_one_sensor():
    conv = DownsampleConv(8, activation="relu").eval()
    tokens = torch.randn(1, 10, 1, 8)
    series = tokens[0, :, 0].T.unsqueeze(0)  # (1, d, t)
    padded = torch.cat((series[..., -1:], series, series[..., :1]), dim=-1)
    convolved = torch.nn.functional.conv1d(padded, conv.layers[0].weight[..., 0], conv.layers[0].bias)
    pooled = torch.nn.functional.max_pool1d((convolved / (1 + 1e-5) ** 0.5).relu(), 3, stride=2, padding=1)
    torch.testing.assert_close(conv(tokens)[0, :, 0].T.unsqueeze(0), pooled, atol=1e-5, rtol=1e-4)


def test_layout_survives_without_copies():
    assert DownsampleConv(8)(torch.randn(2, 10, 3, 8)).is_contiguous()


def test_a_single_step_cannot_be_halved():
    with pytest.raises(ValueError, match="at least 2 time steps, got 1; lower"):
        DownsampleConv(8)(torch.randn(2, 1, 3, 8))
