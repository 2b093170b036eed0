"""Open the run folder of a fitted forecaster again: the model, and the data that it was tested on."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from favorcast.forecasting import DataModule, Forecaster, SimulationTimeSeries, load_forecaster
from favorcast.forecasting.cli.run_folder import resolve_checkpoint
from favorcast.forecasting.data.data_card import DataCard
from favorcast.forecasting.evaluation.baseline import Baseline


class SavedRun(NamedTuple):
    """A forecaster, the data module of its run, and what its checkpoint knows of the data."""

    model: Forecaster
    data: DataModule
    card: DataCard

    def fitted(self, baseline: Baseline) -> Baseline:
        """Fit a baseline on the rows and for the windows that the forecaster was trained on."""
        series, every = self.data.series, self.data.time_resolution
        train = series.splits["train"]
        sizes = {"context_len": self.data.context_len, "target_len": self.data.target_len}
        rows: Tensor = torch.from_numpy(series.values[train.start : train.stop : every])
        return baseline.fit(rows, **sizes, d_y_target=self.data.d_y_target)


def open_run(run: Path, data_path: str | None = None) -> SavedRun:
    """Return the forecaster of a run folder or checkpoint, with its data from where the run read them.

    Args:
        run: a run folder or .ckpt file.
        data_path: the data file, where it has moved.
    """
    model = load_forecaster(resolve_checkpoint(str(run)))
    card = DataCard.of_dict(model.data_card or {})
    series = SimulationTimeSeries(
        data_path or card.source,
        target_columns=card.target_columns,
        exogenous_columns=card.exogenous_columns,
        known_columns=card.known_columns,
        time_col_name=card.time_column,
        null_value=card.null_value,
        table=card.table,
        gaps=card.gaps,
    )
    data = DataModule(series, card.context_len, card.target_len, time_resolution=card.time_resolution)
    data.adopt(card.to_dict())
    return SavedRun(model, data, card)
