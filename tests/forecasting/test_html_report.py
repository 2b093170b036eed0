"""The HTML report of a run: whole, without anything from outside, whatever is known of sensors and intervals."""

import base64
import re
import subprocess
from html.parser import HTMLParser
from shutil import which

import numpy as np
import pytest
from small_forecaster import cpu_trainer

from favorcast.forecasting import DataModule, SimulationTimeSeries, SpatioTemporalPerformer_Forecaster
from favorcast.forecasting.data.place_axes import PlaceAxis
from favorcast.forecasting.evaluation.baseline_comparison import BaselineComparison
from favorcast.forecasting.evaluation.diagnostic_plots import plot_error_map, plot_spectrum
from favorcast.forecasting.evaluation.result_files import write_results

xr = pytest.importorskip("xarray", reason='pip install "favorcast[data]"')

HEADINGS = [
    "Scores",
    "Forecast",
    "Error growth over the horizon",
    "Error map",
    "Spectrum",
    "Interval coverage",
    "Model card",
]


class Page(HTMLParser):
    """Collect headings, pictures, text, cells and what a page would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.headings, self.pictures, self.loaded, self.tags, self.text = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href"):
                (self.pictures if tag == "img" else self.loaded).append(value)

    def handle_data(self, data):
        self.text.append(data)
        if self.tags[-1:] == ["h2"] and data.strip():
            self.headings.append(data)


def grid(rows=260, side=3):
    """A wave that travels over a square of sensors, with positions."""
    time = np.arange(rows)[:, None, None]
    y, x = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    noise = 0.1 * np.random.default_rng(0).normal(size=(rows, side, side))
    values = np.sin(2 * np.pi * time / 12 - 0.7 * x + 0.2 * y) + noise
    coords = {"time": 0.5 * np.arange(rows), "y": np.arange(side) * 0.1, "x": np.arange(side) * 0.2}
    return xr.DataArray(values, dims=("time", "y", "x"), coords=coords, name="u", attrs={"units": "m/s"})


@pytest.fixture(scope="module")
def tested(tmp_path_factory):
    """A small model tested on the grid, and the folder of its results."""
    data = DataModule(SimulationTimeSeries(data=grid()), 16, 8, batch_size=16)
    small = {"d_model": 8, "n_heads": 2, "n_encoder_layers": 1, "n_decoder_layers": 1}
    widths = {name: getattr(data, name) for name in ("d_x", "d_y_context", "d_y_target")}
    model = SpatioTemporalPerformer_Forecaster(**widths, **small)
    cpu_trainer(max_steps=2, limit_val_batches=0).fit(model, data)
    model.calibrate(data.val_dataloader())
    comparison = BaselineComparison(adaptive=True)
    cpu_trainer(callbacks=[comparison]).test(model, data, verbose=False)
    folder = tmp_path_factory.mktemp("report")
    write_results(folder, comparison.report, model, data)
    return folder, comparison.report, data


def test_the_page_holds_everything_and_loads_nothing(tested):
    folder, report, _ = tested
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.headings == HEADINGS
    assert len(page.pictures) == 5
    for source in page.pictures:
        kind, _, content = source.partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(content, validate=True).startswith(b"\x89PNG")
    assert page.loaded == ["data:,"]  # an empty icon, which a browser would ask for
    assert not {"script", "iframe", "object"} & set(page.tags)
    assert not re.search(r"https?://|url\(|@import", text)
    words = " ".join(" ".join(page.text).split())
    assert "SpatioTemporalPerformer_Forecaster: squared error" in words
    assert "80% intervals held" in words
    assert "CRPS [m/s]" in words
    for name in report.scores:
        assert f"{float(report.skill(name)):.5f}" in words


def test_what_is_unknown_is_said_in_its_place(tested, tmp_path):
    _, report, data = tested
    figure = plot_error_map(report, None)
    assert "positions unknown" in figure.get_suptitle()
    assert plot_spectrum(np.ones((2, 3)), np.ones((2, 3)), 1.0, None) is None
    assert data.series.coordinates.shape == (9, 2)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_the_map_puts_each_error_where_its_sensor_stands(tested, dimensions):
    _, report, _ = tested
    places = np.arange(9.0)[:, None] * np.arange(1, dimensions + 1)
    figure = plot_error_map(report, places)
    mse = next(iter(report.scores.values())).sensor["mse"] / np.square(report.scales)
    axes = figure.axes[0]
    if dimensions == 1:
        drawn, error = axes.lines[0].get_ydata(), axes.lines[0].get_xdata()
        np.testing.assert_array_equal(drawn, places[:, 0])
    else:
        error = axes.collections[0].get_array()
        np.testing.assert_array_equal(axes.collections[0].get_offsets()[:, 0], places[:, 0])
    np.testing.assert_allclose(error, np.sqrt(mse), rtol=1e-6)


def drawn_labels(figure):
    return figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel(), figure.get_suptitle()


def test_x_points_to_the_right_and_y_upwards(tested):
    _, report, data = tested
    series = data.series
    assert [axis.name for axis in series.axes] == ["y", "x"]
    figure = plot_error_map(report, series.coordinates, series.axes)
    points = figure.axes[0].collections[0].get_offsets()
    np.testing.assert_array_equal(np.unique(points[:, 0]), np.unique(series.coordinates[:, 1]))
    assert drawn_labels(figure) == ("x", "y", "Test error on the sensor layout")


@pytest.mark.parametrize(
    ("fixed", "labels"), [("z", ("x [m]", "y [m]")), ("y", ("x [m]", "z [m]")), ("x", ("y [m]", "z [m]"))]
)
def test_sensors_in_one_plane_are_drawn_in_it(tested, fixed, labels):
    _, report, data = tested
    axes = [PlaceAxis(name, {"units": "m"}) for name in "xyz"]
    places = np.insert(data.series.coordinates, "xyz".index(fixed), 0.01 + 1e-12 * np.arange(9), axis=1)
    assert drawn_labels(plot_error_map(report, places, axes)) == (
        *labels,
        f"Test error on the sensor layout, {fixed} [m] = 0.01",
    )
    line = places * (np.array(list("xyz")) == labels[0][0]) + 1.0
    assert drawn_labels(plot_error_map(report, line, axes))[1] == labels[0]
    point = plot_error_map(report, np.ones((9, 3)), axes)
    assert point.axes[0].get_ylabel() == "x [m]"


def test_columns_at_one_position_are_averaged(tested):
    _, report, _ = tested
    places = np.repeat(np.arange(3.0), 3)[:, None] * [1, 2]
    mse = next(iter(report.scores.values())).sensor["mse"] / np.square(report.scales)
    drawn = plot_error_map(report, places).axes[0].collections[0].get_array()
    np.testing.assert_allclose(drawn, np.sqrt(mse.reshape(3, 3).mean(axis=1)), rtol=1e-6)


@pytest.mark.skipif(which("chromium") is None, reason="needs chromium")
def test_it_opens_in_a_browser_without_errors(tested, tmp_path):
    folder, _, _ = tested
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--user-data-dir={tmp_path}"]
    done = subprocess.run(
        ["chromium", *options, "--dump-dom", f"file://{folder}/report.html"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "Model card" in done.stdout
    assert "CONSOLE" not in done.stderr
