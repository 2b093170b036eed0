"""Score trained forecasters of the pinball beside yardsticks: the table of forecasting/README.md.

    favorcast fit --config fluidic_pinball_plain.yaml
    python bench pinball_forecasts runs/fluidic_pinball_plain/…  # or several runs
    python bench pinball_forecasts runs/… runs/… --every 4       # runs with time_resolution 4 among them

Mean squared errors over all sensors and all windows of the test rows among the first 4000, in units of each sensor's
training standard deviation. Every forecast starts from the same rows. A model goes beyond the horizon it was trained
for in blocks, each from the forecasts before, or step by step from its states; the yardsticks are fitted for each
horizon. The network has two hidden layers of 512 and reads the last ten rows; its epoch is the one with the least error
on validation rows.
Dimension key: b windows, l context rows, n forecast rows, d sensors.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from torch import Tensor, nn

from favorcast.forecasting import SimulationTimeSeries, SpatioTemporalPerformer_Forecaster, default_baselines
from favorcast.forecasting.cli.run_folder import resolve_checkpoint, run_config
from favorcast.forecasting.evaluation.baseline import Baseline

FLOW, COLUMNS = "fluidic_pinball", ["u_*"]
SPLIT = {"idx_end_train": 2800, "idx_end_val": 3200, "idx_end_test": 4000}
HORIZONS = (40, 80)
CONTEXT = 20
LAGS, WIDTH, DROPOUT, EPOCHS = 10, 512, 0.2, 30
BATCH = 64


class Rows(NamedTuple):
    """The rows of the flow and how they are split.

    Attributes:
        values: (rows, d).
        covariates: (rows, d_x).
        splits: the rows of "train", "val" and "test".
        std: (d,) over the training rows.
    """

    values: Tensor
    covariates: Tensor
    splits: dict[str, range]
    std: Tensor

    def origins(self, split: str, horizon: int) -> Tensor:
        """Return the last context rows of all forecasts of a split: targets lie in it, contexts may begin before."""
        rows = self.splits[split]
        before = CONTEXT if split == "train" else 0
        return torch.arange(rows.start + before, rows.stop - horizon + 1) - 1

    def targets(self, origins: Tensor, horizon: int) -> Tensor:
        """Return the (b, n, d) rows that follow."""
        return self.values[origins[:, None] + torch.arange(1, horizon + 1)]

    def error(self, forecast: Tensor, origins: Tensor, horizon: int, every: int) -> Tensor:
        """Return the squared error at rows every, 2 every, … of the horizon, (n,)."""
        target = self.targets(origins, horizon)[:, every - 1 :: every]
        return ((forecast - target) / self.std).square().mean(dim=(0, 2))


def read_rows() -> Rows:
    """Read the flow that comes with the package."""
    series = SimulationTimeSeries(FLOW, target_columns=COLUMNS, **SPLIT)
    splits = {split: series.split_range(split) for split in ("train", "val", "test")}
    std = series.training_statistics()[1].float()
    return Rows(torch.from_numpy(series.values), torch.from_numpy(series.time_features), splits, std)


class Run:
    """A trained forecaster and the windows it was trained on."""

    def __init__(self, path: str) -> None:
        checkpoint = resolve_checkpoint(path)
        config = run_config(checkpoint)
        if config is None:
            raise FileNotFoundError(
                f"no {checkpoint.parent.parent / 'config.yaml'}: give a run folder of favorcast fit"
            )
        data = yaml.safe_load(config.read_text())["data"]
        self.name = Path(path).parent.name if Path(path).is_dir() else checkpoint.parents[2].name
        self.context_len, self.target_len, self.every = (
            data[name] for name in ("context_len", "target_len", "time_resolution")
        )
        self.model = SpatioTemporalPerformer_Forecaster.load_from_checkpoint(checkpoint, weights_only=True)
        self.is_stepwise = self.model.model.config.autoregressive_training

    def __call__(self, rows: Rows, origins: Tensor, horizon: int) -> Tensor:
        """Forecast every `self.every`-th row of the horizon, (b, n, d)."""
        steps = horizon // self.every
        is_rolled = steps > self.target_len and not self.is_stepwise
        before = self.every * torch.arange(1 - self.context_len, 1)
        after = self.every * torch.arange(1, steps + 1)
        return torch.cat(
            [
                self.model.predict(
                    rows.covariates[some[:, None] + before],
                    rows.values[some[:, None] + before],
                    rows.covariates[some[:, None] + after],
                    block_len=self.target_len if is_rolled else None,
                )
                for some in origins.split(BATCH)
            ]
        )


def by_baseline(baseline: Baseline) -> Callable[[Rows, Tensor, int], Tensor]:
    """Return the forecasts of a baseline, fitted on the training rows for a horizon."""

    def forecast(rows: Rows, origins: Tensor, horizon: int) -> Tensor:
        train = rows.splits["train"]
        sensors = rows.values.shape[1]
        baseline.fit(rows.values[train.start : train.stop], context_len=CONTEXT, target_len=horizon, d_y_target=sensors)
        return baseline.predict(rows.values[origins[:, None] + torch.arange(1 - CONTEXT, 1)])

    return forecast


def by_network(rows: Rows, origins: Tensor, horizon: int, *, epochs: int = EPOCHS) -> Tensor:
    """Return the forecasts of a plain network, trained for a horizon."""
    torch.manual_seed(0)
    train, held_out = rows.origins("train", horizon), rows.origins("val", horizon)
    mean = rows.values[rows.splits["train"].start : rows.splits["train"].stop].mean(dim=0)

    def scaled(values: Tensor) -> Tensor:
        return ((values - mean) / rows.std).flatten(1)

    def inputs(some: Tensor) -> Tensor:
        return scaled(rows.values[some[:, None] + torch.arange(1 - LAGS, 1)])

    sensors = rows.values.shape[1]
    network = nn.Sequential(
        *(nn.Linear(LAGS * sensors, WIDTH), nn.GELU(), nn.Dropout(DROPOUT)),
        *(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Dropout(DROPOUT)),
        nn.Linear(WIDTH, horizon * sensors),
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.1)
    least, best = torch.inf, torch.empty(0)
    for _ in range(epochs):
        network.train()
        for some in train[torch.randperm(len(train))].split(BATCH):
            optimizer.zero_grad()
            (network(inputs(some)) - scaled(rows.targets(some, horizon))).square().mean().backward()
            optimizer.step()
        network.eval()
        with torch.no_grad():
            error = (network(inputs(held_out)) - scaled(rows.targets(held_out, horizon))).square().mean().item()
            if error < least:
                least, best = error, network(inputs(origins)).unflatten(1, (horizon, sensors))
    return best * rows.std + mean


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="*", help="run folders or checkpoints in them")
    parser.add_argument("--every", type=int, default=1, help="score at every so many rows of the horizon")
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of the network")
    options = parser.parse_args(arguments)
    rows, runs = read_rows(), [Run(path) for path in options.run]
    for run in runs:
        if options.every % run.every or any(horizon % options.every for horizon in HORIZONS):
            parser.error(f"--every must be a multiple of {run.every}, the time_resolution of {run.name}, and divide 40")
    models: dict[str, Callable[[Rows, Tensor, int], Tensor]] = {
        **{f"{run.name} ({i})": run for i, run in enumerate(runs, 1)},
        "network": lambda *given: by_network(*given, epochs=options.epochs),
        **{baseline.name: by_baseline(baseline) for baseline in default_baselines()},
    }
    print(f"| {options.split} rows | " + " | ".join(f"{n} samples | at the {n}th" for n in HORIZONS) + " |")
    print("| --- |" + " --- | --- |" * len(HORIZONS))
    for name, model in models.items():
        cells = []
        for horizon in HORIZONS:
            origins = rows.origins(options.split, horizon)
            forecast = model(rows, origins, horizon)
            own = model.every if isinstance(model, Run) else 1
            forecast = forecast[:, options.every // own - 1 :: options.every // own]
            error = rows.error(forecast, origins, horizon, options.every)
            cells += [f"{error.mean():.3f}", f"{error[-1]:.3f}"]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
