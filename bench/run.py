"""Measure favorcast's operations against references and peers, on a GPU or a CPU, with one command.

    python bench/run.py                      every bench, appended to bench/results/<device>.csv
    python bench/run.py --quick              tiny shapes on the CPU: table and plots in a temporary folder
    python bench/run.py --op favor --provider favorcast --device cpu
    python bench/run.py --report             tables (Markdown) and plots of every file in bench/results/
    python bench/run.py --compare main       this checkout against another revision, interleaved; above 5 % is flagged

Order: correctness gate (no number from a wrong result), warm-up, then all providers of a case in turn, again and again,
in one process on the same inputs. Exit codes: 0; 1 something of ours is wrong or failed; 2 the command cannot be
carried out; 3 --budget-seconds is spent, run again with --resume; 4 --compare has found this checkout slower.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch
from discovery import selected
from harness.cases import DTYPE_NAMES, Case, Provider, Scale
from harness.machine import description, file_stem
from harness.measurement import Bench, BrokenDeviceError, first_line, measure, refuse_if_broken
from harness.results_file import MACHINE, ResultFileError, Row, append, latest, read
from harness.roofline import peaks_of
from harness.timing import clock_of

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
OURS = "favorcast"
WRONG, IMPOSSIBLE, UNFINISHED = 1, 2, 3
BROKEN = ("wrong", "failed")
QUICK_BUDGET_MS = 60.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benches, or one of the commands on results and revisions; returns the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        return _command(options)
    except (ResultFileError, ImpossibleError, OSError) as error:
        parser.exit(IMPOSSIBLE, f"{parser.prog}: error: {error}\n")


class ImpossibleError(ValueError):
    """What was asked for cannot be done."""


def _command(options: argparse.Namespace) -> int:
    if options.report:
        from harness.result_report import write_reports

        written = write_reports(options.output or RESULTS)
        print("\n".join(str(path) for path in written) or "no result files", file=sys.stderr)
        return 0 if written else WRONG
    if options.failures:
        return print_failures(options.output or RESULTS)
    if options.compare:
        from harness.revisions import compare

        return compare(options.compare, options.op, quick=options.quick, device=_device(options))
    device = torch.device("cpu") if options.quick and options.device is None else _device(options)
    bench, cases = _bench(options, device), selected(_scale(options, device), options.op)
    if not any(bench.wanted(provider) for module, case in cases for provider in module.providers(case, device)):
        raise ImpossibleError(
            f"nothing to run: no '<op> <shape> <dtype>' matches --op {options.op!r}, or none of its providers matches "
            f"--provider {options.provider!r} and --group {options.group}"
        )
    folder = options.output or (Path(tempfile.mkdtemp(prefix="favorcast-bench-")) if options.quick else RESULTS)
    path = folder / f"{file_stem(device)}.csv"
    append(path, [])  # where nothing can be written is known before anything is measured
    code = run(bench, cases, path, resume=options.resume, budget_seconds=options.budget_seconds)
    if options.quick:
        from harness.result_report import write_reports

        write_reports(folder)
    print(f"written to {folder}", file=sys.stderr)
    return code


def run(
    bench: Bench,
    cases: Sequence[tuple[ModuleType, Case]],
    path: Path,
    *,
    resume: bool = False,
    budget_seconds: float = float("inf"),
) -> int:
    """Measure cases one by one, writing each as soon as it is done; returns the exit code."""
    bench.report = _print_row
    begin, worst = time.monotonic(), 0
    _print_header(bench)
    before = read(path) if resume else []
    done, broken = _identities(before), _identities([row for row in before if _is_ours_broken(row)])
    for number, (module, case) in enumerate(cases):
        names = [p.name for p in module.providers(case, bench.device) if bench.wanted(p)]
        identities = [_identity(str(case), name, bench.machine) for name in names]
        if all(identity in done for identity in identities):
            worst = WRONG if any(identity in broken for identity in identities) else worst
            continue
        if time.monotonic() - begin > budget_seconds:
            print(f"{len(cases) - number} cases are left; run again with --resume", file=sys.stderr)
            return UNFINISHED if resume else worst or UNFINISHED  # --resume finds what is wrong in the rows
        try:
            rows = _measured(module, case, bench)
        except BrokenDeviceError as error:
            append(path, _broken_rows(bench, case, names, str(error), path))
            print(f"{case}: the device is unusable, {error}", file=sys.stderr)
            return UNFINISHED if resume else WRONG
        except Exception as error:  # whatever went wrong beside the providers, the other cases still have numbers
            rows = _broken_rows(bench, case, names, first_line(error), path)
            print(f"{case}: {first_line(error)}", file=sys.stderr)
            worst = WRONG
        append(path, rows)
        if any(_is_ours_broken(row) for row in rows):
            worst = WRONG
    return worst


def _measured(module: ModuleType, case: Case, bench: Bench) -> list[Row]:
    """Measure a case; any error after which the device answers nothing else is a BrokenDeviceError."""
    try:
        return measure(module, case, bench)  # pyright: ignore[reportArgumentType] - a module is its own protocol
    except BrokenDeviceError:
        raise
    except Exception as error:
        refuse_if_broken(error)
        raise


def _is_ours_broken(row: Row) -> bool:
    return row["provider"].startswith(OURS) and row["status"] in BROKEN


def print_failures(folder: Path) -> int:
    """Print the latest rows that are wrong or failed, and which providers are absent; returns 1 if ours is wrong."""
    if not folder.is_dir():
        raise ImpossibleError(f"there is no folder {folder}")
    rows = [row for path in sorted(folder.glob("*.csv")) for row in latest(read(path))]
    broken = [row for row in rows if row["status"] in BROKEN]
    for row in broken:
        print(f"{row['op']} {row['shape']} {row['dtype']} {row['pass']}: {row['provider']} {row['status']}:", end=" ")
        print(row["message"])
    for provider, message in sorted({(row["provider"], row["message"]) for row in rows if row["status"] == "absent"}):
        print(f"absent: {provider}, {message}")
    print(f"{len(rows)} rows, {len(broken)} of them wrong or failed")
    return WRONG if any(OURS in row["provider"] for row in broken) else 0


def _bench(options: argparse.Namespace, device: torch.device) -> Bench:
    def wanted(provider: Provider) -> bool:
        in_group = options.group in ("all", provider.group) or (options.group == "peers" and OURS in provider.name)
        return in_group and re.search(options.provider, provider.name) is not None

    budget = QUICK_BUDGET_MS if options.quick else options.budget_ms
    machine = description(device)
    return Bench(device, clock_of(device), peaks_of(device), machine, budget, wanted, graphs=not options.no_graphs)


def _device(options: argparse.Namespace) -> torch.device:
    """Return the device asked for, made the current one: streams, events and graphs belong to that."""
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda":
        if (device.index or 0) >= torch.cuda.device_count():
            raise ImpossibleError(f"--device {device}: torch sees {torch.cuda.device_count()} CUDA devices")
        torch.cuda.set_device(device.index or 0)
    return device


def _scale(options: argparse.Namespace, device: torch.device) -> Scale:
    return "quick" if options.quick else "gpu" if device.type == "cuda" else "cpu"


def _regex(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from error
    return text


def _known_device(text: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"expected cpu, cuda or cuda:<number>, got {text!r}")
    return text


def _identities(rows: list[Row]) -> set[tuple[str, ...]]:
    return {_identity(f"{r['op']} {r['shape']} {r['dtype']}", r["provider"], r) for r in rows}


def _identity(case: str, provider: str, machine: Row) -> tuple[str, ...]:
    return (case, provider, *(machine.get(field, "") for field in MACHINE))


def _broken_rows(bench: Bench, case: Case, providers: Sequence[str], message: str, path: Path) -> list[Row]:
    """Say of the providers of a case that it failed as a whole; numbers that they have from before stay."""
    measured = _identities([row for row in read(path) if row["status"] == "ok"])
    common = {"op": case.op, "shape": str(case.shape), "dtype": DTYPE_NAMES[case.dtype], "pass": "forward"}
    return [
        {**bench.machine, **common, "provider": name, "status": "failed", "message": f"the whole case: {message}"}
        for name in providers
        if _identity(str(case), name, bench.machine) not in measured
    ]


def _print_header(bench: Bench) -> None:
    described = ", ".join(f"{name} {value}" for name, value in bench.machine.items() if value)
    rates = f"{bench.peaks.bytes / 1e9:.0f} GB/s, {bench.peaks.flops / 1e12:.3g} TFLOP/s, {bench.peaks.exps:.2g} exp/s"
    print(f"{described}\nroofline: {rates} ({bench.peaks.source})", flush=True)


def _print_row(row: Row) -> None:
    case = f"{row['op']:18s} {row['shape']:24s} {row['pass']:16s} {row['provider']:28s}"
    if row["status"] != "ok":
        print(f"{case} {row['status']}: {row['message']}", flush=True)
        return
    graph = f" graph {row['graph_p50_ms']:>9s} ms" if row.get("graph_p50_ms") else ""
    peak = f" {row['peak_mib']:>9s} MiB" if row["peak_mib"] else ""
    share = f" {row['roofline_percent']:>6s} %" if row.get("roofline_percent") else ""
    print(f"{case} {row['p50_ms']:>9s} ms{graph}{peak}{share}  error {row['error']}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny shapes, on the CPU unless --device says otherwise")
    parser.add_argument("--report", action="store_true", help="render the result files of --output")
    parser.add_argument("--failures", action="store_true", help="list what is wrong or failed in --output")
    parser.add_argument("--compare", metavar="REVISION", help="measure a revision of git and this checkout in turn")
    parser.add_argument("--device", type=_known_device, help="cpu or cuda (default: cuda if there is one)")
    parser.add_argument("--op", default="", type=_regex, metavar="REGEX", help="cases to run, by op, shape and dtype")
    parser.add_argument("--provider", default="", type=_regex, metavar="REGEX", help="providers to run, by name")
    parser.add_argument("--group", choices=("all", "core", "peers"), default="all", help="providers to run, by group")
    parser.add_argument("--output", type=Path, help="folder of the result files (default bench/results)")
    parser.add_argument("--budget-ms", type=float, default=600.0, help="timing of one case and pass (default 600)")
    parser.add_argument("--budget-seconds", type=float, default=float("inf"), help="start no case after this time")
    parser.add_argument("--resume", action="store_true", help="leave out cases that the result file has already")
    parser.add_argument("--no-graphs", action="store_true", help="do not time CUDA graphs")
    return parser


if __name__ == "__main__":
    sys.exit(main())
