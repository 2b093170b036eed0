import pytest

from favorcast.forecasting.data.splits import Split


def split_rows(rows, **options):
    return Split(**options).divide(rows)


def test_fractions_follow_the_published_rounding():
    # Weather: 52696 rows, training and test rounded down, validation the rest
    assert split_rows(52696) == {"train": range(36887), "val": range(36887, 42157), "test": range(42157, 52696)}


def test_fractions_are_not_lost_to_rounding_of_floats():
    assert split_rows(100, fractions=(0.57, 0.23, 0.2))["train"] == range(57)


def test_fractions_divide_the_rows_after_the_discarded_start():
    splits = split_rows(110, idx_start_train=10, fractions=(0.6, 0.2, 0.2))
    assert splits == {"train": range(10, 70), "val": range(70, 90), "test": range(90, 110)}


def test_without_test_split_validation_takes_the_rest():
    assert split_rows(100, have_test=False) == {"train": range(70), "val": range(70, 100)}


def test_indices_default_to_neighbouring_ends():
    splits = split_rows(100, idx_end_train=60, idx_end_val=80)
    assert splits == {"train": range(60), "val": range(60, 80), "test": range(80, 100)}


def test_gaps_between_splits_are_kept():
    splits = split_rows(7600, idx_end_train=6084, idx_start_val=6090, idx_end_val=7600, have_test=False)
    assert splits == {"train": range(6084), "val": range(6090, 7600)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"idx_end_train": 60, "idx_start_val": 50, "idx_end_val": 80},
            "val starts at row 50 and train ends at row 60",
        ),
        (
            {"idx_end_train": 60, "idx_end_val": 80, "idx_start_test": 70},
            "test starts at row 70 and val ends at row 80",
        ),
        ({"idx_end_train": 60, "idx_end_val": 60}, "val split must be a non-empty range .* rows 60 to 60"),
        ({"idx_end_train": 60, "idx_end_val": 200}, "val split must be a non-empty range within the 100 rows"),
        ({"idx_start_train": 60, "idx_end_train": 50, "idx_end_val": 80}, "train split must be a non-empty range"),
        ({"idx_start_train": -5}, "train split must be a non-empty range"),
        ({"idx_end_train": 60}, "needs idx_end_train and, with a test split, idx_end_val"),
        ({"idx_end_val": 80}, "needs idx_end_train"),
        ({"have_test": False, "idx_end_test": 90}, "need have_test=True"),
        ({"fractions": (0.7, 0.2, 0.2)}, "sum to 1"),
        ({"fractions": (1.2, -0.2, 0.0)}, "sum to 1"),
        ({"fractions": (0.8, 0.2, 0.0)}, "test split must be a non-empty range"),
        ({"fractions": (0.8, 0.0, 0.2)}, "val split must be a non-empty range"),
    ],
)
def test_splits_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        split_rows(100, **options)
