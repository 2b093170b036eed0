import pytest
import torch

from favorcast.forecasting.st_transformer import TimeWindows


def steps(t):
    return torch.arange(t).view(1, t, 1)


def test_windows_hold_neighbouring_steps():
    assert TimeWindows(3).split(steps(12)).squeeze(-1).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_shifted_windows_straddle_the_cuts_on_a_ring():
    split = TimeWindows(3, is_shifted=True).split(steps(12)).squeeze(-1)
    assert split.tolist() == [[2, 3, 4, 5], [6, 7, 8, 9], [10, 11, 0, 1]]


@pytest.mark.parametrize("is_shifted", [False, True])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_merge_undoes_split(count, is_shifted):
    windows = TimeWindows(count, is_shifted)
    x = torch.randn(3, 10, 4, 6)
    assert torch.equal(windows.merge(windows.split(x)), x)


def test_unshifted_split_copies_nothing():
    x = torch.randn(3, 10, 4, 6)
    assert TimeWindows(5).split(x).data_ptr() == x.data_ptr()


def test_count_that_does_not_divide_time_is_refused():
    with pytest.raises(ValueError, match="got windows=4 for 10 steps"):
        TimeWindows(4).split(steps(10))
