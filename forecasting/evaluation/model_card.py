"""Describe a run in its folder: the data, the settings, the scores, the versions."""

import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np

from ..data.data_card import DataCard
from ..forecaster import Forecaster
from .report import Report, left_out_lines, with_unit

CARD_FILE = "model_card.md"
PACKAGES = ("favorcast", "torch", "pytorch-lightning", "numpy", "pandas")
COLUMNS_LISTED = 12


def write_model_card(folder: Path, model: Forecaster, report: Report | None) -> None:
    """Write model_card.md.

    Args:
        folder: an existing folder; a file of this name is replaced.
        model: the forecaster.
        report: its scores, None where it was not tested.
    """
    sections = [f"# {type(model).__name__}", *_data(model), *_settings(model), *_scores(report), *_versions()]
    (folder / CARD_FILE).write_text("\n".join(sections) + "\n", encoding="utf-8")


def _data(model: Forecaster) -> list[str]:
    if model.data_card is None:
        return []
    card = DataCard.of_dict(model.data_card)
    rows = ", ".join(f"{count} for {split}" for split, count in card.rows.items())
    lines = [
        "\n## Data\n",
        f"- source: {card.source or 'given in Python'}; rows: {rows}; a row every {card.spelled_step}",
        f"- forecast: {card.target_len} steps from {card.context_len}, every {card.time_resolution} rows",
    ]
    for name in ("target_columns", "exogenous_columns", "known_columns"):
        columns = getattr(card, name)
        if columns:
            more = f" and {len(columns) - COLUMNS_LISTED} more" if len(columns) > COLUMNS_LISTED else ""
            lines.append(f"- {name.replace('_', ' ')}: {', '.join(columns[:COLUMNS_LISTED])}{more}")
    return [
        *lines,
        f"- gaps: {card.gaps}; missing values: NaN{'' if card.null_value is None else f', {card.null_value:g}'}",
    ]


def _settings(model: Forecaster) -> list[str]:
    trained = model.trainer.global_step if model._trainer is not None else None
    weights = sum(parameter.numel() for parameter in model.parameters())
    lines = [
        "\n## Settings\n",
        f"- {weights} weights" + (f", {trained} optimiser steps in this run" if trained else ""),
    ]
    return [*lines, *(f"- {name}: {value}" for name, value in model.hparams.items() if not name.startswith("_"))]


def _scores(report: Report | None) -> list[str]:
    if report is None:
        return []
    mae, mse = with_unit("MAE", report.unit), with_unit("MSE", report.unit, power=2)
    lines = [
        f"\n## Scores\n\n{report.windows} test windows, {report.target_len} steps ahead, {len(report.sensors)} "
        f"sensors\n",
        f"| forecaster | skill | {mae} | {mse} | standardised skill |\n| --- | --- | --- | --- | --- |",
    ]
    for name, score in report.scores.items():
        skill = float(np.asarray(report.skill(name)))
        standardised = "" if report.scales is None else f"{report.standardised_skill(name):.5f}"
        numbers = f"{float(score.overall['mae']):.3e} | {float(score.overall['mse']):.3e}"
        lines.append(f"| {name} | {skill:.5f} | {numbers} | {standardised} |")
    lines += [f"\n{line}" for line in left_out_lines(report)]
    return [*lines, "\nStandardised: each sensor in its training standard deviation, so that none counts for its unit."]


def _versions() -> list[str]:
    found = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return [f"\n## Versions\n\n{found}, Python {platform.python_version()}"]
