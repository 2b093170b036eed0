"""Write what a test found into one HTML file that opens without a network: pictures and tables inside."""

from base64 import b64encode
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from jinja2 import Environment
from matplotlib.figure import Figure

from .interval_scores import interval_lines
from .report import Report, left_out_lines, verdict, with_unit

REPORT_FILE = "report.html"
PICTURE_DPI = 110

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{{ title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
.verdict { font-size: 1.1rem; background: #f4f4f4; border-left: 4px solid #d55e00; padding: .6rem 1rem; }
img { width: 100%; height: auto; } figure { margin: 1rem 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .25rem .6rem; border-bottom: 1px solid #eee; }
th:first-child, td:first-child { text-align: left; } tbody tr:first-child { font-weight: 600; }
pre { background: #f4f4f4; padding: 1rem; overflow-x: auto; font-size: .85rem; } .note { color: #555; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p class="verdict">{{ verdict }}</p>
<p class="note">{{ facts }}</p>
<h2>Scores</h2>
<table>
<thead><tr>{% for cell in headings %}<th>{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}</tbody>
</table>
{% for line in notes %}<p class="note">{{ line }}</p>{% endfor %}
{% for section in sections %}
<h2>{{ section.heading }}</h2>
{% if section.picture %}<figure><img alt="{{ section.heading }}" src="data:image/png;base64,{{ section.picture }}">
</figure>{% endif %}
{% for line in section.lines %}<p class="note">{{ line }}</p>{% endfor %}
{% endfor %}
<h2>Model card</h2>
<pre>{{ card }}</pre>
</body>
</html>
"""


@dataclass(frozen=True)
class Section:
    """A heading with a picture, or with a reason why there is none.

    Attributes:
        heading: of the section.
        figure: to draw, None for none.
        lines: said below.
    """

    heading: str
    figure: Figure | None
    lines: tuple[str, ...] = ()

    @property
    def picture(self) -> str | None:
        """The picture as PNG in base64."""
        if self.figure is None:
            return None
        buffer = BytesIO()
        self.figure.savefig(buffer, format="png", dpi=PICTURE_DPI)
        return b64encode(buffer.getvalue()).decode()


def write_html_report(path: Path, report: Report, sections: list[Section], card: str) -> None:
    """Write a page with the verdict, the scores, sections and a model card.

    Args:
        path: the file, replaced if it exists.
        report: the scores.
        sections: in their order.
        card: text of the model card.
    """
    model = next(iter(report.scores))
    notes = ["skill: share of persistence's squared error that is avoided", *left_out_lines(report)]
    if report.intervals is not None:
        notes += interval_lines(report.intervals)
        if np.isfinite(report.intervals.crps):
            notes.append(f"{with_unit('CRPS', report.unit)} of {model}: {report.intervals.crps:.3e}")
    page = Environment(autoescape=True).from_string(PAGE)
    text = page.render(
        title=f"{model}: test report",
        verdict=verdict(report),
        facts=f"{report.windows} test windows, {len(report.sensors)} sensors, {report.target_len} steps ahead",
        headings=_headings(report),
        rows=[_row(report, name) for name in report.scores],
        notes=notes,
        sections=sections,
        card=card,
    )
    path.write_text(text, encoding="utf-8")


def _headings(report: Report) -> list[str]:
    names = ["forecaster", "skill", with_unit("MAE", report.unit), with_unit("MSE", report.unit, power=2)]
    return names + (["standardised skill"] if report.scales is not None else [])


def _row(report: Report, name: str) -> list[str]:
    overall = report.scores[name].overall
    cells = [name, f"{float(report.skill(name)):.5f}", *(f"{float(overall[metric]):.3e}" for metric in ("mae", "mse"))]
    return cells + ([f"{report.standardised_skill(name):.5f}"] if report.scales is not None else [])
