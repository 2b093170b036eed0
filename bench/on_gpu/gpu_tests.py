"""Run the tests that run kernels, on a GPU, in many processes at a time; go on where an earlier run stopped.

    python bench gpu_tests tests.txt --processes 16 --budget-seconds 400

Each process takes every 16th of the tests. The record, a line an outcome, says what has passed and is not run again. A
process whose CUDA context broke, or that died, is replaced, and the test it was at has failed. Failed tests are then
run with the other assemblers (ptxas) at hand. Exit codes: 0; 1 a test failed; 3 time is up, run it again.

This file is also the pytest plugin of these processes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from harness.machine import ROOT, assemblers
from harness.measurement import STICKY

BENCH = Path(__file__).resolve().parents[1]
FAILED, UNFINISHED = 1, 3
RUNS_KERNELS, NEEDS_GPU = "RUNS_KERNELS", "mark." + "gpu"
"""What tells the files of such tests."""


class Outcome(NamedTuple):
    """A line of the record: "started", "passed", "skipped", "failed" or "absent", the test, and more about it."""

    what: str
    test: str
    more: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tests, print what failed, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path)
    parser.add_argument("--processes", type=int, default=min(16, os.cpu_count() or 1))
    parser.add_argument("--budget-seconds", type=float, default=float("inf"), help="start no test after this time")
    options = parser.parse_args(arguments)
    until = time.time() + options.budget_seconds
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("tests/**/test_*.py"))}
    files = [path for path, text in texts.items() if RUNS_KERNELS in text or NEEDS_GPU in text]
    outcomes = [x for x in read(options.record).values() if x.what in ("passed", "skipped")]
    write(options.record, outcomes, "w")
    finished = run(files, options.record, options.processes, until)
    found = read(options.record).values()
    failed = [x for x in found if x.what == "failed"]
    for version, path in list(assemblers().items())[1:] if failed else ():
        passed = passed_with(path, files, failed, options.processes, until)
        print(f"with ptxas {version}, {len(passed)} of {len(failed)} failed tests pass: {', '.join(sorted(passed))}")
    for x in found:
        if x.what in ("failed", "absent"):
            print(f"{x.what.upper()} {x.test} {x.more}".rstrip())
    counts = {what: sum(x.what == what for x in found) for what in ("passed", "skipped", "failed")}
    print(", ".join(f"{count} {what}" for what, count in counts.items()) + ("" if finished else ", some not run"))
    return FAILED if failed else 0 if finished else UNFINISHED


def run(
    files: Sequence[Path],
    record: Path,
    processes: int,
    until: float,
    environment: Mapping[str, str] | None = None,
    among: Collection[str] = (),
) -> bool:
    """Run tests that the record has no outcome for; returns whether none is left."""
    python_path = os.pathsep.join([str(BENCH), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": python_path, **(environment or {})}

    def take(share: int) -> bool:
        """Start processes for one share until it is through; each of them has an outcome for one more test at least."""
        options = f"-q -rf --tb=short --disable-warnings --continue-on-collection-errors --share {share}/{processes}"
        command = [sys.executable, "-m", "pytest", "-p", "on_gpu.gpu_tests", "-p", "no:cacheprovider", *options.split()]
        command += [f"--record={record}", f"--until={until}", *(f"--among={x}" for x in among), *map(str, files)]
        while time.time() < until:
            before = len(read(record))
            done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
            if done.returncode in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
                return True
            expected = (pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED)
            if done.returncode not in expected or "\nFAILED " in done.stdout:
                print("\n".join((done.stdout + done.stderr).splitlines()[-60:]), flush=True)
            if done.returncode == pytest.ExitCode.TESTS_FAILED:
                return True
            cut = [x for x in read(record).values() if x.what == "started" and x.more == f"{share}/{processes}"]
            write(record, [Outcome("failed", x.test, f"its process ended with code {done.returncode}") for x in cut])
            if not cut and len(read(record)) == before:
                return False
        return False

    with ThreadPoolExecutor(processes) as pool:
        return all(list(pool.map(take, range(processes))))


def passed_with(
    assembler: Path, files: Sequence[Path], failed: Sequence[Outcome], processes: int, until: float
) -> set[str]:
    """Return which of the failed tests pass with another assembler."""
    chosen = dict.fromkeys(("TRITON_PTXAS_PATH", "TRITON_PTXAS_BLACKWELL_PATH"), str(assembler))
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "record"
        run(files, record, processes, until, chosen, [x.test for x in failed])
        return {x.test for x in read(record).values() if x.what == "passed"}


def read(record: Path) -> dict[str, Outcome]:
    """Return the latest outcome of each test; a line that was cut off is none."""
    lines = record.read_text(encoding="utf-8").splitlines() if record.exists() else []
    found = [Outcome(*parts) for parts in (line.split("\t") for line in lines) if len(parts) == len(Outcome._fields)]
    return {x.test: x for x in found}


def write(record: Path, outcomes: Sequence[Outcome], mode: str = "a") -> None:
    """Add lines to a record, each in one piece whoever else writes."""
    with record.open(mode, encoding="utf-8") as file:
        file.write("".join("\t".join(x) + "\n" for x in outcomes))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options of a process."""
    group = parser.getgroup("gpu_tests")
    group.addoption("--share", help="K/N: run every Nth test from the Kth on")
    group.addoption("--record", type=Path)
    group.addoption("--until", type=float, help="start no test after this time, in seconds of time.time()")
    group.addoption("--among", action="append", default=[], help="run this test only; may be repeated")


def pytest_configure(config: pytest.Config) -> None:
    """Take a share of the tests."""
    config.pluginmanager.register(_Share(config))


class _Share:
    """The hooks of one process."""

    def __init__(self, config: pytest.Config) -> None:
        self.share, self.of = map(int, config.getoption("share").split("/"))
        self.record, self.until = config.getoption("record"), config.getoption("until")
        self.among = set(config.getoption("among"))
        self.skipped, self.failure = False, ""
        self.session: Any = None

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        self.session = session

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and self.share == 0:
            reason = _reason(report)
            what = "absent" if "ModuleNotFoundError" in reason else "failed"
            write(self.record, [Outcome(what, report.nodeid, reason)])

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        wanted = [x for x in items if self._is_wanted(x)]
        done = read(self.record)
        items[:] = [x for x in wanted[self.share :: self.of] if x.nodeid not in done]

    def _is_wanted(self, item: pytest.Item) -> bool:
        if self.among:
            return item.nodeid in self.among
        on_either = RUNS_KERNELS in item.path.read_text(encoding="utf-8")
        return item.get_closest_marker("gpu") is not None or (on_either and item.get_closest_marker("slow") is None)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.skipped, self.failure = False, ""
        write(self.record, [Outcome("started", nodeid, f"{self.share}/{self.of}")])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.skipped |= report.skipped
        if report.failed:
            self.failure = _reason(report)
        if report.failed and any(sign in report.longreprtext for sign in STICKY):
            self.session.shouldstop = "this process's CUDA context is broken"
        if report.when == "teardown":
            what = "failed" if self.failure else "skipped" if self.skipped else "passed"
            write(self.record, [Outcome(what, report.nodeid, self.failure)])
            if time.time() > self.until:
                self.session.shouldstop = "time is up"


def _reason(report: pytest.CollectReport | pytest.TestReport) -> str:
    """Return the first line of an error's message, in one line of the record."""
    lines = report.longreprtext.splitlines() or [""]
    errors = [line.removeprefix("E").strip() for line in lines if line.startswith("E ")]
    return (errors or lines[-1:])[0].replace("\t", " ")[:200] or "without a word"


if __name__ == "__main__":
    sys.exit(main())
