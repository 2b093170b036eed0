"""bench/gpu_suite.sh, with a Python that only says what it is asked for: what runs, what is skipped, how it ends."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SUITE = TESTS.parent / "bench" / "gpu_suite.sh"
MARK = "mark." + "gpu"  # in two parts, or this file had it
PARTS = ["tests", "bench", "peers", "compile", "profile"]
FAKE = """#!/usr/bin/env bash
printf '%s\\n' "$*" >> "$CALLS"
case "$*" in
  *machine.commit*) echo "$SOURCES" ;;
  *get_device_capability*) echo 90 ;;
  *--report* | *--failures*) ;;
esac
if [ -n "$BEHAVES" ] && [[ "$*" =~ $WHERE ]]; then eval "$BEHAVES"; fi
"""

pytestmark = pytest.mark.skipif(shutil.which("timeout") is None, reason="needs bash and GNU timeout")


class Suite:
    """An output folder, and the calls of Python that the last run made."""

    def __init__(self, folder: Path) -> None:
        self.out, self.log, self.python = folder / "out", folder / "calls", folder / "python"
        self.python.write_text(FAKE)
        self.python.chmod(0o755)
        self.calls: list[str] = []

    def run(self, *parts: str, where: str = "", behaves: str = "", sources: str = "abc", seconds: int = 60) -> int:
        """Run the suite; a call of Python that matches `where` behaves as a shell command says."""
        self.log.write_text("")
        environment = {"CALLS": self.log, "SOURCES": sources, "WHERE": where, "BEHAVES": behaves}
        result = subprocess.run(
            [SUITE, self.out, *parts],
            env={**os.environ, **environment, "PYTHON": self.python, "PART_SECONDS": str(seconds)},
            capture_output=True,
            text=True,
            check=False,
        )
        self.calls = self.log.read_text().splitlines()
        self.output = result.stdout + result.stderr
        return result.returncode

    def called(self, text: str) -> list[str]:
        """Return the calls with a text in them."""
        return [call for call in self.calls if text in call]

    @property
    def done(self) -> set[str]:
        return {path.stem for path in self.out.glob("*.done")}


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    return Suite(tmp_path)


def test_every_part_runs_once_and_is_not_run_again(suite: Suite):
    assert suite.run() == 0, suite.output
    assert suite.done >= set(PARTS)
    files = {path for path in TESTS.glob("test_*.py") if path.stem.endswith("_triton") or MARK in path.read_text()}
    assert {call.split()[-1] for call in suite.called("-m pytest")} == {f"tests/{path.name}" for path in files}
    assert " -m gpu -p" in suite.called("tests/test_forecaster.py")[0]
    assert " -m gpu or not slow -p" in suite.called("tests/test_favor_triton.py")[0]
    assert {call.split()[-1] for call in suite.called("--group")} == {"core", "peers"}
    assert all("--resume --budget-seconds 42" in call for call in suite.called("--group"))
    assert len(suite.called("compile_report.py --architecture 90 ")) == 1
    assert len(suite.called("kernel_profile.py")) == 3
    assert suite.run() == 0
    assert "compile: done before" in suite.output
    assert not [
        call for word in ("-m pytest", "--group", "compile_report", "kernel_profile") for call in suite.called(word)
    ]


def test_parts_may_be_chosen(suite: Suite):
    assert suite.run("compile", "profile") == 0
    assert suite.done == {"compile", "profile"}
    assert not suite.called("-m pytest")
    assert suite.run("colour") == 2
    assert "there is no such part" in suite.output


@pytest.mark.parametrize(("part", "where"), [("peers", "--group peers"), ("compile", "compile_report")])
def test_an_unfinished_part_goes_on_when_called_again(suite: Suite, part: str, where: str):
    assert suite.run("profile", part, where=where, behaves="exit 3") == 3
    assert f"{part}: UNFINISHED" in suite.output
    assert suite.done == {"profile"}
    assert suite.run("profile", part) == 0
    assert suite.done == {"profile", part}
    assert len(suite.called(where)) == 1
    assert "--resume" in suite.called(where)[0]


def test_wrong_rows_fail_the_suite_whatever_the_parts_say(suite: Suite):
    (suite.out / "results").mkdir(parents=True)
    assert suite.run("bench", where="--failures", behaves="echo 1 wrong; exit 1") == 1
    assert "bench: passed" in suite.output
    assert "1 wrong" in (suite.out / "summary.txt").read_text()


def test_the_bench_runs_although_the_host_cost_fails(suite: Suite):
    assert suite.run("bench", where="host_cost", behaves="exit 1") == 1
    assert suite.called("--group core")
    assert suite.run("bench") == 0


def test_a_folder_that_cannot_be_made_ends_the_suite(suite: Suite):
    suite.out = Path("/dev/null/out")
    assert suite.run("profile") == 2
    assert not suite.calls


def test_a_failure_is_told_and_only_what_failed_runs_again(suite: Suite):
    assert suite.run("tests", "profile", where="test_favor_triton.py", behaves="echo FAILED test_x - why; exit 1") == 1
    assert "tests: FAILED with code 1" in suite.output
    assert "FAILED test_x - why" in (suite.out / "summary.txt").read_text()
    assert suite.done >= {"profile", "test_favor_gpu.py", "test_series_decomposition_triton.py"}
    assert not suite.done & {"tests", "test_favor_triton.py"}
    assert suite.run("tests", "profile") == 0
    assert [call.split()[-1] for call in suite.called("-m pytest")] == ["tests/test_favor_triton.py"]


def test_an_unfinished_part_does_not_hide_a_failed_one(suite: Suite):
    assert (
        suite.run("compile", "bench", where="compile_report|--group", behaves="[[ $* = *core ]] && exit 3; exit 1") == 1
    )
    assert "bench: UNFINISHED" in suite.output
    assert "compile: FAILED" in suite.output


def test_a_part_that_takes_too_long_is_cut_off(suite: Suite):
    assert suite.run("profile", "compile", where="kernel_profile", behaves="sleep 30", seconds=1) == 1
    assert "profile: CUT OFF after 1 s" in suite.output
    assert suite.done == {"compile"}


def test_other_sources_run_every_part_again(suite: Suite):
    assert suite.run("compile") == 0
    assert suite.run("compile", sources="def") == 0
    assert "is about abc, this checkout is def" in suite.output
    assert suite.called("compile_report")
    assert suite.run("compile", sources="def") == 0
    assert not suite.called("compile_report")
