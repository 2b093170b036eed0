import pytest
import torch

from favorcast.forecasting.st_transformer import LearnedPosition, PeriodicPosition


@pytest.mark.parametrize("position", [LearnedPosition, PeriodicPosition])
def test_a_start_continues_the_count(position):
    module = position(d_model=8, max_seq_len=20)
    torch.testing.assert_close(module(6, 5), module(0, 20)[6:11])


@pytest.mark.parametrize("position", [LearnedPosition, PeriodicPosition])
def test_positions_differ(position):
    vectors = position(d_model=8, max_seq_len=20)(0, 20)
    distances = torch.cdist(vectors, vectors) + torch.eye(20)
    assert distances.min() > 1e-3


def test_learned_positions_beyond_the_table_are_refused():
    with pytest.raises(ValueError, match=r"at least 21, got 20; raise max_seq_len"):
        LearnedPosition(d_model=8, max_seq_len=20)(15, 6)


def test_periodic_positions_have_no_end_and_stay_bounded():
    vectors = PeriodicPosition(d_model=8, max_seq_len=20)(0, 200)
    assert vectors.shape == (200, 8)
    assert vectors.abs().max() < 20
