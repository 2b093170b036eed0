"""Score forecasters on public data sets, ours and yardsticks beside peers: results/forecasting/accuracy.md.

    python bench forecasting_accuracy --data FOLDER …                      # every set, seed 0; hours
    python bench forecasting_accuracy --data FOLDER --sets ETT --seeds 0 1 2 --peers none
    python bench forecasting_accuracy --report                           # the table, from the CSV file

A set is one of `harness/accuracy_sets.py`; the folders hold their files (bench/README.md says from where). Ours is
`favorcast fit` with the set's bundled configuration; its report scores the yardsticks too. Each peer (neuralforecast's
networks with their default sizes, `pip install "favorcast[peers]"`) is trained on the same windows for as many seconds
of CPU time as that whole run took. Rows are added to the CSV file as they come, and what is there is not run again.
How often our prediction intervals held goes to coverage.csv and coverage.md beside it.
"""

from __future__ import annotations

import argparse
import csv
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import yaml
from harness.accuracy_peers import PEERS, Errors, train_peer
from harness.accuracy_sets import SETS, AccuracySet
from harness.interval_coverage import FIELDS as COVERAGE_FIELDS
from harness.interval_coverage import coverage_in, coverage_table
from harness.machine import description, package_version
from jsonargparse import ArgumentParser

from favorcast.forecasting import DataModule
from favorcast.forecasting.cli.config_files import resolve_config

RESULTS = Path(__file__).parents[1] / "results" / "forecasting" / "accuracy.csv"
COVERAGE = "coverage.csv"
OURS = "favorcast"
FIT = "import sys; from favorcast.forecasting.cli.main import main; sys.exit(main())"
YARDSTICKS = ("persistence", "seasonal naive", "ridge", "vector ridge", "dmd", "analogs")
KEY = ("set", "forecaster", "seed")
FIELDS = (
    *KEY,
    "mse",
    "mae",
    "windows",
    "cpu_s",
    "threads",
    "torch",
    "neuralforecast",
    "commit",
    "python",
    "device",
    "date",
)

Row = dict[str, str]


def read(path: Path) -> list[Row]:
    """Return the rows of the CSV file, none if there is none."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def append(path: Path, rows: Sequence[Row], fields: Sequence[str] = FIELDS) -> None:
    """Add rows to a CSV file."""
    is_new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fields, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerows(rows)


def row_of(key: tuple[str, str, str], errors: Errors, cpu_seconds: float | None) -> Row:
    """Return what the CSV file holds of a result."""
    return {
        **dict(zip(KEY, key, strict=True)),
        "mse": f"{errors.mse:.5g}",
        "mae": f"{errors.mae:.5g}",
        "windows": str(errors.windows),
        "cpu_s": "" if cpu_seconds is None else f"{cpu_seconds:.0f}",
        "neuralforecast": package_version("neuralforecast") if key[1] in PEERS else "",
        **{field: value for field, value in description(torch.device("cpu")).items() if field in FIELDS},
    }


def fit(arguments: Sequence[str], seed: int, runs: Path) -> tuple[Path, float]:
    """Run `favorcast fit` in a process of its own; return its run folder and the CPU seconds it took.

    Raises:
        RuntimeError: it failed, with its output.
    """
    before = _children_seconds()
    ours = [f"--seed_everything={seed}", f"--runs={runs}", "--adaptive_intervals=true"]
    command = [sys.executable, "-c", FIT, "fit", *arguments, *ours]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"favorcast fit {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return max(runs.glob("*/*_fit"), key=lambda folder: folder.stat().st_mtime), _children_seconds() - before


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def data_of(arguments: Sequence[str]) -> DataModule:
    """Return the windows of such a run."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(DataModule, "data")
    config = parser.parse_object({"data": yaml.safe_load(resolve_config(arguments[1]).read_text())["data"]})
    return parser.instantiate(parser.parse_args([x for x in arguments if x.startswith("--data.")], config)).data


def errors_in(run: Path, data: DataModule) -> dict[str, Errors]:
    """Return the test errors of all forecasters in metrics.csv, of z-scored sensors."""
    scale = dict(zip(data.series.target_cols, data.training_statistics()[1].tolist(), strict=False))
    found: dict[str, dict[str, list[float]]] = {}
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["scope"] == "sensor" and row["metric"] in ("mse", "mae") and row["value"] not in ("", "nan"):
                std = scale[row["position"]]
                value = float(row["value"]) / (std**2 if row["metric"] == "mse" else std)
                found.setdefault(row["forecaster"], {"mse": [], "mae": []})[row["metric"]].append(value)
    windows = data.window_counts["test"]
    means = {name: Errors(statistics.mean(x["mse"]), statistics.mean(x["mae"]), windows) for name, x in found.items()}
    return {name if name in YARDSTICKS else OURS: errors for name, errors in means.items()}


def measure(
    name: str,
    some: AccuracySet,
    folders: Sequence[Path],
    seed: int,
    peers: Sequence[str],
    done: dict[tuple[str, ...], Row],
    coverage: Path,
) -> Iterator[Row]:
    """Yield the rows of a set and a seed that are not among those done; add to the file of coverage."""
    key = (name, OURS, str(seed))
    missing = [peer for peer in peers if (name, peer, str(seed)) not in done]
    if key in done and not missing:
        return
    options = some.arguments(folders)
    data = data_of(options)
    if data.window_counts["test"] != some.windows:
        raise ValueError(f"{name} should have {some.windows} test windows: got {data.window_counts['test']}")
    if key in done:
        seconds = float(done[key]["cpu_s"])
    else:
        with tempfile.TemporaryDirectory() as runs:
            run, seconds = fit(options, seed, Path(runs))
            found = errors_in(run, data)
            append(coverage, coverage_in(run, name, seed), COVERAGE_FIELDS)
        ours = found.pop(OURS)
        for yardstick, errors in found.items():
            if (name, yardstick, "") not in done:
                yield row_of((name, yardstick, ""), errors, None)
        yield row_of(key, ours, seconds)
    for peer in missing:
        yield row_of((name, peer, str(seed)), train_peer(peer, data, seed, seconds), seconds)


def report(rows: Sequence[Row]) -> str:
    """Return the table as Markdown: a set a row, the mean of its seeds in each cell, the best in bold."""
    forecasters = [name for name in (*YARDSTICKS, *PEERS, OURS) if any(row["forecaster"] == name for row in rows)]
    lines = [
        f"| test MSE, z-scored | {' | '.join(forecasters)} | seeds | CPU s | published (rows of context) |",
        f"| --- |{' --- |' * (len(forecasters) + 3)}",
    ]
    for name, some in SETS.items():
        of_set = [row for row in rows if row["set"] == name]
        errors = {each: [float(row["mse"]) for row in of_set if row["forecaster"] == each] for each in forecasters}
        if not errors.get(OURS):
            continue
        means = {each: statistics.mean(values) for each, values in errors.items() if values}
        least = min(means.values())
        cells = [_cell(means.get(each), errors[each], least) for each in forecasters]
        seconds = [float(row["cpu_s"]) for row in of_set if row["forecaster"] == OURS]
        published = "; ".join(f"{who} {value}" for who, value in some.published.items())
        lines.append(
            f"| {name} | {' | '.join(cells)} | {len(errors[OURS])} | {statistics.mean(seconds):.0f} | {published} |"
        )
    return "\n".join(lines) + "\n"


def _cell(mean: float | None, values: Sequence[float], least: float) -> str:
    if mean is None:
        return "–"
    text = f"{mean:.4f}"
    spread = f" ± {(max(values) - min(values)) / 2:.4f}" if len(values) > 1 else ""
    return (f"**{text}**" if mean == least else text) + spread


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is asked for, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", default=[], help="folders of data sets")
    parser.add_argument("--sets", nargs="*", default=[""], help="beginnings of names of sets; all by default")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=[*PEERS, "none"])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="write the table beside the results, measure nothing")
    options = parser.parse_args(arguments)
    coverage = options.results.with_name(COVERAGE)
    if not options.report:
        if not options.data:
            parser.error("--data is needed: folders of data sets; or --report for the table of what was measured")
        chosen = {name: some for name, some in SETS.items() if name.startswith(tuple(options.sets))}
        if not chosen:
            parser.error(f"no set begins with {options.sets}: there are {', '.join(SETS)}")
        peers = [peer for peer in options.peers if peer != "none"]
        for seed in options.seeds:
            for name, some in chosen.items():
                done = {tuple(row[field] for field in KEY): row for row in read(options.results)}
                for row in measure(name, some, options.data, seed, peers, done, coverage):
                    append(options.results, [row])
                    print(*(row[field] for field in (*KEY, "mse", "mae", "cpu_s")), flush=True)
    options.results.with_suffix(".md").write_text(report(read(options.results)), encoding="utf-8")
    coverage.with_suffix(".md").write_text(coverage_table(read(coverage)), encoding="utf-8")


if __name__ == "__main__":
    main()
