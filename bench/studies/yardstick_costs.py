"""Measure CPU time and memory of every yardstick on a record of many sensors.

    python bench yardstick_costs --sensors 1000

The record holds waves that travel over the sensors, with noise. Each yardstick is fitted, its settings chosen,
and asked in a process of its own, whose peak is read from the operating system.
"""

import argparse
import multiprocessing
import resource
import sys
import time
from typing import NamedTuple

import torch
from torch import Tensor

from favorcast.forecasting.evaluation.baselines import default_baselines

CONTEXT_LEN, TARGET_LEN, QUERIES = 96, 24, 64
PERIOD = 24
PEAK_UNIT = 2**20 if sys.platform == "darwin" else 2**10  # of ru_maxrss in a MiB


class Cost(NamedTuple):
    """CPU seconds of a fit and of 64 forecasts, MiB at most beyond the record, and what was wrong if anything."""

    fit_s: float
    predict_s: float
    peak_mib: float
    message: str = ""


def record(rows: int, sensors: int) -> Tensor:
    """Return waves of 24 and 61 rows that travel over the sensors, with noise: (rows, sensors) float32."""
    steps, places = torch.arange(rows)[:, None], torch.linspace(0, 6, sensors)
    waves = torch.sin(2 * torch.pi * steps / PERIOD - places) + 0.5 * torch.sin(2 * torch.pi * steps / 61 - 3 * places)
    return waves + 0.2 * torch.randn(rows, sensors, generator=torch.Generator().manual_seed(0))


def cost(index: int, rows: int, sensors: int) -> Cost:
    """Measure one of the default yardsticks, in this process."""
    values = record(rows, sensors)
    baseline = default_baselines(PERIOD)[index]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sizes = {"context_len": CONTEXT_LEN, "target_len": TARGET_LEN, "d_y_target": sensors}
    started = time.process_time()
    try:
        baseline.fit(values, validation_rows=rows // 5, **sizes)
    except ValueError as error:
        return Cost(0.0, 0.0, 0.0, str(error))
    fitted = time.process_time()
    baseline.predict(values[-CONTEXT_LEN:].expand(QUERIES, -1, -1))
    asked = time.process_time()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return Cost(fitted - started, asked - fitted, peak / PEAK_UNIT)


def measure(rows: int, sensors: int) -> dict[str, Cost]:
    """Measure all default yardsticks, each in a new process."""
    found = {}
    for index, baseline in enumerate(default_baselines(PERIOD)):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found[baseline.name] = pool.apply(cost, (index, rows, sensors))
    return found


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sensors", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=2000, help="of training and validation (a fifth)")
    options = parser.parse_args()
    print(f"| {options.sensors} sensors, {options.rows} rows | fit, CPU [s] | 64 forecasts, CPU [s] | memory [MiB] |")
    print("| --- | --- | --- | --- |")
    for name, (fit_s, predict_s, peak_mib, message) in measure(options.rows, options.sensors).items():
        numbers = message or f"{fit_s:.1f} | {predict_s:.2f} | {peak_mib:.0f}"
        print(f"| {name} | {numbers} |")


if __name__ == "__main__":
    main()
