"""Train a forecaster on a user's data with settings that follow from the data."""

from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytorch_lightning as pl
import torch

from .automatic_settings import choose_settings
from .data import DataModule, SimulationTimeSeries
from .data.series import GIVEN_ELSEWHERE
from .data.series_config import SeriesConfig
from .flat_arguments import check_names
from .spatiotemporal_performer_forecaster import SpatioTemporalPerformer_Forecaster
from .training.best_checkpoint import BestCheckpoint

OF_OTHERS = {
    "trainer={{{name!r}: {value}}}": signature(pl.Trainer).parameters,
    **GIVEN_ELSEWHERE,
    "DataModule(series, {name}={value})": signature(DataModule).parameters,
    "SpatioTemporalPerformer_Forecaster(..., {name}={value}), trained by pl.Trainer": signature(
        SpatioTemporalPerformer_Forecaster
    ).parameters,
}


def train_forecaster(
    data: Any, *, trainer: dict[str, Any] | None = None, seed: int = 0, **series: Any
) -> SpatioTemporalPerformer_Forecaster:
    """Train a forecaster on data with the settings that `favorcast fit --data` chooses (see choose_settings).

        forecaster = train_forecaster("sensors.csv")
        forecast = forecaster.forecast("sensors.csv", horizon=48)

    Args:
        data: a file, or whatever else SimulationTimeSeries takes.
        trainer: options of pl.Trainer that replace those chosen, such as {"max_epochs": 20}.
        seed: of weights and training; random states outside are left alone.
        series: more options of SimulationTimeSeries, such as target_columns.

    Returns:
        The forecaster with the weights of the lowest val/loss (the last ones without any validation), and with
        prediction intervals from the validation windows.

    Raises:
        ValueError, FileNotFoundError: data that cannot be read or trained on.
        TypeError: an argument that none of these takes; the message says where it belongs.
    """
    check_names("train_forecaster", series, SeriesConfig, OF_OTHERS)
    source = "data_path" if isinstance(data, str | Path) else "data"
    record = SimulationTimeSeries(**{source: str(data) if isinstance(data, Path) else data}, **series)
    config = choose_settings(record).config()
    module = DataModule(record, **config["data"])
    widths = {name: getattr(module, name) for name in ("d_x", "d_y_context", "d_y_target")}
    with torch.random.fork_rng(), TemporaryDirectory() as folder:
        torch.manual_seed(seed)
        model = SpatioTemporalPerformer_Forecaster(**widths, **config["model"]["init_args"])
        best = BestCheckpoint(folder, monitor="val/loss")
        options = config["trainer"] | {"logger": False, "callbacks": [best]} | (trainer or {})
        pl.Trainer(**options).fit(model, datamodule=module)
        if best.best_model_path:
            weights = torch.load(best.best_model_path, map_location="cpu", weights_only=True)["state_dict"]
            model.load_state_dict(weights)
        model.fit_model_share(module.val_dataloader())
        model.calibrate(module.val_dataloader())
    return model
