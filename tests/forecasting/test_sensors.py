import numpy as np
import pytest

from favorcast.forecasting.data.sensors import extract_datapoints, nearest_cells


@pytest.fixture
def field() -> np.ndarray:
    """(n 3, X 6, Y 5, 2): each entry spells its own place as sample, x, y, component."""
    sample, x, y, component = np.meshgrid(*(np.arange(size) for size in (3, 6, 5, 2)), indexing="ij")
    return 1000 * sample + 100 * x + 10 * y + component


def test_points_run_through_all_x_of_the_first_y_first(field):
    u, v = extract_datapoints(field, [1, 4], [0, 2, 3])
    assert u[0].tolist() == [100, 400, 120, 420, 130, 430]
    assert v[2].tolist() == [2101, 2401, 2121, 2421, 2131, 2431]


def test_seven_by_seven_sensors_give_49_columns_a_component():
    u, v = extract_datapoints(
        np.zeros((5, 60, 141, 2), dtype=np.float32), list(range(4, 52, 7)), list(range(3, 141, 22))
    )
    assert u.shape == v.shape == (5, 49)
    assert u.dtype == np.float32


def test_joint_array_alternates_the_components_point_by_point(field):
    u, v = extract_datapoints(field, [1, 4, 5], [0, 2])
    joint = extract_datapoints(field, [1, 4, 5], [0, 2], separate_channels=False)
    assert joint.shape == (3, 12)
    np.testing.assert_array_equal(joint[:, 0::2], u)
    np.testing.assert_array_equal(joint[:, 1::2], v)


def test_results_do_not_share_memory_with_the_field(field):
    before = field.copy()
    for part in (*extract_datapoints(field, [0], [0]), extract_datapoints(field, [0], [0], separate_channels=False)):
        part[...] = -1
    np.testing.assert_array_equal(field, before)


@pytest.mark.parametrize(
    ("x_indices", "y_indices", "message"),
    [
        pytest.param([1, 6], [0], r"x_indices must lie in \[0, 6\), got \[6\]", id="x-too-large"),
        pytest.param([1], [0, 5], r"y_indices must lie in \[0, 5\), got \[5\]", id="y-too-large"),
        pytest.param([-1], [0], r"x_indices must lie in", id="negative"),
        pytest.param([], [0], "x_indices must be a non-empty list", id="empty"),
        pytest.param([1.5], [0], "x_indices must be a non-empty list of integers", id="not-integer"),
        pytest.param([[1, 2]], [0], "x_indices must be a non-empty list", id="nested"),
    ],
)
def test_bad_indices_raise(field, x_indices, y_indices, message):
    with pytest.raises(ValueError, match=message):
        extract_datapoints(field, x_indices, y_indices)


@pytest.mark.parametrize("shape", [(3, 6, 5), (3, 6, 5, 3)], ids=str)
def test_a_field_without_two_components_raises(shape):
    with pytest.raises(ValueError, match=r"dataset must be \(samples, X, Y, 2\)"):
        extract_datapoints(np.zeros(shape), [0], [0])


def test_positions_map_to_the_cells_that_hold_them():
    assert nearest_cells([0.0, 0.99, 1.0, 5.5][1:], 6) == [0, 1, 5]


def test_positions_outside_the_field_raise():
    with pytest.raises(ValueError, match=r"sensors_x must lie in \[0, 6\), got \[6.0\]"):
        nearest_cells([1.0, 6.0], 6, name="sensors_x")


def test_two_positions_in_one_cell_raise():
    with pytest.raises(ValueError, match="different cells"):
        nearest_cells([1.1, 1.9], 6)
