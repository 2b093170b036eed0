"""Labels of times keep every digit that tells them apart, and the time zone."""

import numpy as np
import pandas as pd
import pytest

from favorcast.forecasting.data.time_labels import time_texts


@pytest.mark.parametrize(
    "numbers",
    [
        1709251200 + np.arange(5) * 0.1,
        1234.5 + np.arange(5) * 1e-7,
        1.7092512e12 + 3.6e6 * np.arange(5),
        np.arange(5) * 1e-12,
        1709251200.1234567 + np.arange(5) * 0.25,
    ],
    ids=["epoch seconds", "solver steps", "epoch milliseconds", "tiny", "epoch microseconds"],
)
def test_labels_of_numbers_read_back_as_the_numbers(numbers):
    texts = time_texts(numbers)
    step = numbers[1] - numbers[0]
    assert len(set(texts)) == len(numbers)
    np.testing.assert_allclose(texts.astype(float), numbers, rtol=0, atol=1e-9 * step)


def test_rounding_errors_are_no_digits():
    assert time_texts(0.1 * np.arange(4)).tolist() == ["0", "0.1", "0.2", "0.3"]


def test_dates_are_written_in_iso_8601_with_as_many_digits_as_needed():
    stamps = np.array(["2024-03-01T00:00:00", "2024-03-01T00:00:01"], "datetime64[ns]")
    assert time_texts(stamps).tolist() == ["2024-03-01T00:00:00", "2024-03-01T00:00:01"]
    assert time_texts(stamps + np.timedelta64(7, "ns"))[0] == "2024-03-01T00:00:00.000000007"


@pytest.mark.parametrize(
    ("zone", "first", "last"),
    [
        ("Europe/Berlin", "2024-03-31T01:00:00+01:00", "2024-03-31T03:00:00+02:00"),
        ("UTC", "2024-03-31T00:00:00+00:00", "2024-03-31T01:00:00+00:00"),
        ("+01:00", "2024-03-31T01:00:00+01:00", "2024-03-31T02:00:00+01:00"),
    ],
)
def test_dates_of_a_zone_carry_their_offset(zone, first, last):
    stamps = pd.date_range("2024-03-31", periods=2, freq="h").to_numpy()
    assert time_texts(stamps, zone).tolist() == [first, last]
