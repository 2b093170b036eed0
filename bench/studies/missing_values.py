"""Measure how forecasts degrade as values of the context go missing: at random, a dead sensor, an outage.

    favorcast fit --data ETTh1.csv
    python bench missing_values runs/ETTh1/...

b batch, l context_len, n target_len, c columns of the context
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from harness.saved_run import open_run
from torch import Tensor

from favorcast.forecasting import ForecastErrors, Persistence, RidgeRegression

EVERY = 7  # test windows: neighbours say the same


def complete(y: Tensor, steps: int, generator: torch.Generator) -> Tensor:
    """Lose nothing."""
    return y


def at_random(y: Tensor, steps: int, generator: torch.Generator) -> Tensor:
    """Lose one value in ten."""
    return y.masked_fill(torch.rand(y.shape, generator=generator) < 0.1, torch.nan)


def dead_sensor(y: Tensor, steps: int, generator: torch.Generator) -> Tensor:
    """Lose one column of each window, another one in the next window."""
    dead = torch.arange(len(y)) % y.shape[2]
    return y.masked_fill(torch.nn.functional.one_hot(dead, y.shape[2]).bool()[:, None], torch.nan)


def outage(y: Tensor, steps: int, generator: torch.Generator) -> Tensor:
    """Lose `steps` consecutive rows of every column, somewhere before the last row."""
    start = torch.randint(0, y.shape[1] - steps, (len(y), 1), generator=generator)
    rows = torch.arange(y.shape[1])[None]
    return y.masked_fill(((rows >= start) & (rows < start + steps))[..., None], torch.nan)


def latest_outage(y: Tensor, steps: int, generator: torch.Generator) -> Tensor:
    """Lose the last `steps` rows of every column."""
    y = y.clone()
    y[:, -steps:] = torch.nan
    return y


LOSSES: dict[str, Callable[[Tensor, int, torch.Generator], Tensor]] = {
    "nothing": complete,
    "10 % at random": at_random,
    "a dead sensor": dead_sensor,
    "an outage of {steps} rows": outage,
    "the latest {steps} rows": latest_outage,
}


def measure(run: Path, data_path: str | None, steps: int, every: int = EVERY) -> list[tuple[str, dict[str, float]]]:
    """Return, for each kind of loss, the test error of the forecaster, ridge and persistence in training variances."""
    saved = open_run(run, data_path)
    model, data, _ = saved
    yardsticks = {each.name: saved.fitted(each) for each in (RidgeRegression(), Persistence())}
    windows = data.windows("test")
    context_x, context_y, target_x, target_y = (
        torch.stack(parts) for parts in zip(*(windows[i] for i in range(0, len(windows), every)), strict=True)
    )
    found = []
    for name, lose in LOSSES.items():
        y = lose(context_y, steps, torch.Generator().manual_seed(0))
        forecasts = {"favorcast": torch.cat([model.predict(*part) for part in batches(context_x, y, target_x)])}
        forecasts |= {label: each.predict(y) for label, each in yardsticks.items()}
        errors = {}
        for label, forecast in forecasts.items():
            scaled = ForecastErrors()
            scaled.update(forecast / model.target_scale, target_y / model.target_scale)
            errors[label] = float(scaled.compute()["mse"])
        found.append((name.format(steps=steps), errors))
    return found


def batches(*tensors: Tensor, size: int = 64) -> zip:
    """Cut tensors into batches."""
    return zip(*(tensor.split(size) for tensor in tensors), strict=True)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run folder or .ckpt file")
    parser.add_argument("--data", help="the data file (default: where the run read it)")
    parser.add_argument("--outage", type=int, default=24, help="rows of the outage")
    options = parser.parse_args()
    table = measure(options.run, options.data, options.outage)
    print(f"| missing from the context | {' | '.join(table[0][1])} |\n|{' --- |' * (1 + len(table[0][1]))}")
    for name, errors in table:
        print(f"| {name} | {' | '.join(f'{error:.3f}' for error in errors.values())} |")


if __name__ == "__main__":
    main()
