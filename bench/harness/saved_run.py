"""Open the run folder of a fitted forecaster again: the model, and the data that it was tested on."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from favorcast.forecasting import DataModule, Forecaster, load_forecaster
from favorcast.forecasting.cli.run_folder import resolve_checkpoint
from favorcast.forecasting.data.data_card import DataCard
from favorcast.forecasting.evaluation.baseline import Baseline
from favorcast.forecasting.evaluation.baseline_comparison import rows_for_baselines


class SavedRun(NamedTuple):
    """A forecaster, the data module of its run, and what its checkpoint knows of the data."""

    model: Forecaster
    data: DataModule
    card: DataCard

    def fitted(self, baseline: Baseline) -> Baseline:
        """Fit a baseline on the rows that the forecaster was trained on, its settings chosen on the validation rows."""
        rows, sizes = rows_for_baselines(self.data, self.card.null_value)
        return baseline.fit(rows, **sizes)


def open_run(run: Path, data_path: str | None = None) -> SavedRun:
    """Return the forecaster of a run folder or checkpoint, with its data from where the run read them.

    Args:
        run: a run folder or .ckpt file.
        data_path: the data file, where it has moved.
    """
    model = load_forecaster(resolve_checkpoint(str(run)))
    card = DataCard.of_dict(model.data_card or {})
    return SavedRun(model, DataModule.of_card(card, data_path or card.source), card)
