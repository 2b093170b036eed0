import sys

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from favorcast.forecasting.evaluation.plots import ForecastWindow, plot_errors, plot_forecast
from favorcast.forecasting.evaluation.report import Report, Score

NAN = float("nan")
STEPS, SENSORS = 6, 2


def score(level):
    errors = {"mse": np.array(level), "mae": np.array(level)}
    return Score(
        errors,
        {name: level * np.arange(1.0, STEPS + 1) for name in errors},
        {name: np.full(SENSORS, level) for name in errors},
    )


def report(names=("Model", "persistence", "ridge"), **labels):
    return Report({name: score(10.0**-i) for i, name in enumerate(names)}, ["u_0", "u_1"], windows=9, **labels)


def forecast_figure(times=None, *, context_len=8, missing=False, **labels):
    time = np.arange(context_len + STEPS) * 0.25 if times is None else times
    values = np.stack([np.sin(np.arange(context_len + STEPS)), np.cos(np.arange(context_len + STEPS))], axis=1)
    if missing:
        values[context_len // 2 : context_len + 2, 0] = NAN
    return plot_forecast(
        ForecastWindow(values[:context_len], values[context_len:], values[context_len:] + 0.5, time),
        sensors=["u_0", "u_1"],
        title="Model",
        **labels,
    )


def legend_entries(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def rendered(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return canvas.get_renderer()


def artist_boxes(figure):
    """Return the rectangles of all texts and of the data areas, in pixels, after the layout is done."""
    renderer = rendered(figure)
    texts = [title for axes in figure.axes for title in (axes.title, axes._left_title)]
    texts += [axis.label for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]
    texts += [figure.text(0, 0, "") if figure._suptitle is None else figure._suptitle]
    texts = [text for text in texts if text.get_text()]
    boxes = [text.get_window_extent(renderer) for text in texts]
    return (
        boxes,
        [axes.get_window_extent(renderer) for axes in figure.axes],
        figure.legends[0].get_window_extent(renderer),
    )


def test_errors_are_drawn_against_the_step_for_each_forecaster():
    figure = plot_errors(report())
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    assert list(lines) == legend_entries(figure) == ["Model", "persistence", "ridge"]
    np.testing.assert_array_equal(lines["ridge"].get_xdata(), np.arange(1, STEPS + 1))
    np.testing.assert_allclose(lines["ridge"].get_ydata(), 0.01 * np.arange(1, STEPS + 1))


def test_error_axes_name_their_units():
    figure = plot_errors(report(unit="U", time_unit="D/U", time_step=0.25))
    assert figure.axes[0].get_xlabel() == "horizon step"
    assert figure.axes[0].get_ylabel() == "mean squared error [U²]"
    lead_time = figure.axes[0].child_axes[0]
    assert lead_time.get_xlabel() == "lead time [D/U]"
    rendered(figure)
    np.testing.assert_allclose(lead_time.get_xlim(), np.multiply(figure.axes[0].get_xlim(), 0.25))


def test_unknown_units_leave_the_labels_bare():
    figure = plot_errors(report())
    assert figure.axes[0].get_ylabel() == "mean squared error"
    assert figure.axes[0].child_axes == []


def test_lines_differ_without_colour():
    figure = plot_errors(report(["Model", "persistence", "seasonal naive", "ridge", "vector ridge", "dmd"]))
    looks = [(line.get_linestyle(), line.get_marker()) for line in figure.axes[0].get_lines()]
    assert len(set(looks)) == len(looks)
    colors = [line.get_color() for line in figure.axes[0].get_lines()]
    assert len(set(colors)) == len(colors)


def test_more_forecasters_than_styles_can_be_drawn():
    figure = plot_errors(report(["Model", "persistence", *(f"ridge {i}" for i in range(9))]))
    assert len(figure.axes[0].get_lines()) == 11


def test_a_horizon_of_one_step_can_be_drawn():
    one = Score(*({name: np.atleast_1d(value)[:1] for name, value in scope.items()} for scope in score(1.0)[:3]))
    rendered(plot_errors(Report({"persistence": one}, ["u_0"], windows=1)))


def test_context_truth_forecast_and_error_show_the_given_values():
    figure = forecast_figure()
    values, error = figure.axes[:2]
    lines = {line.get_label(): line for line in values.get_lines()}
    np.testing.assert_allclose(lines["context"].get_ydata(), np.sin(np.arange(8)))
    np.testing.assert_allclose(lines["truth"].get_ydata(), np.sin(np.arange(7, 14)))  # from the last context point on
    np.testing.assert_allclose(lines["forecast"].get_ydata(), np.sin(np.arange(8, 14)) + 0.5)
    np.testing.assert_allclose(lines["forecast"].get_xdata(), np.arange(8, 14) * 0.25)
    np.testing.assert_allclose([bar.get_height() for bar in error.patches], 0.5)
    assert legend_entries(figure) == ["context", "truth", "forecast", "error"]


def test_forecast_axes_name_sensors_and_units():
    figure = forecast_figure(unit="U", time_unit="D/U")
    assert [axes.get_title(loc="left") for axes in figure.axes[::2]] == ["u_0", "u_1"]
    assert [axes.get_ylabel() for axes in figure.axes] == ["value [U]", "error [U]"] * 2
    assert figure.axes[-1].get_xlabel() == "time [D/U]"


@pytest.mark.filterwarnings("error")
def test_missing_values_leave_gaps():
    figure = forecast_figure(missing=True)
    rendered(figure)
    assert np.isnan(figure.axes[1].patches[0].get_height())
    assert np.isfinite(figure.axes[1].patches[-1].get_height())


@pytest.mark.filterwarnings("error")
def test_dates_are_drawn_as_dates():
    figure = forecast_figure(np.datetime64("2020-01-01", "ns") + np.arange(14) * np.timedelta64(1, "h"))
    rendered(figure)
    assert figure.axes[-1].get_xlabel() == "time"
    assert any(":" in label.get_text() for label in figure.axes[-1].get_xticklabels())


@pytest.mark.parametrize("draw", [lambda: plot_errors(report(unit="U", time_unit="s")), forecast_figure])
def test_labels_overlap_neither_each_other_nor_the_data(draw):
    texts, areas, legend = artist_boxes(draw())
    for i, text in enumerate(texts):
        assert not any(text.overlaps(other) for other in texts[i + 1 :])
        assert not any(text.overlaps(area) for area in areas)
    assert not any(legend.overlaps(box) for box in texts + areas)


def test_plots_leave_pyplot_alone():
    had_pyplot = "matplotlib.pyplot" in sys.modules
    rendered(forecast_figure())
    assert ("matplotlib.pyplot" in sys.modules) == had_pyplot
