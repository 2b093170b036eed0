"""bench/gpu_suite.sh, with a Python that only says what it is asked for: what runs, what is skipped, how it ends."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import run as bench
import torch
from discovery import selected
from without_gpu import compile_cases

SUITE = Path(bench.__file__).with_name("gpu_suite.sh")
PARTS = ["smoke", "headline", "tests", "bench", "peers", "profile"]
FILES = {"log.txt", "summary.txt", "done.txt", "smoke.txt", "tests.txt", "toolchain.txt", "a-gpu.csv"}
FAKE = """#!/usr/bin/env bash
printf '%s\\n' "${TRITON_PTXAS_PATH:+[$TRITON_PTXAS_PATH] }$*" >> "$CALLS"
case "$*" in
  *machine.commit*) echo "$SOURCES" ;;
  *machine.assemblers*) echo "13.1.80 /other/ptxas" ;;
esac
if [ -n "$BEHAVES" ] && [[ "$*" =~ $WHERE ]]; then eval "$BEHAVES"; fi
"""
SPENDS_ITS_BUDGET = 'left=${*#*--budget-seconds }; sleep "${left%% *}"; exit 3'

pytestmark = pytest.mark.skipif(shutil.which("timeout") is None, reason="needs bash and GNU timeout")


class Suite:
    """An output folder, and the calls of Python that the last run made."""

    def __init__(self, folder: Path) -> None:
        self.out, self.log, self.programs = folder / "out", folder / "calls", folder / "programs"
        self.programs.mkdir()
        self.install("python", FAKE)
        self.calls: list[str] = []

    def install(self, name: str, source: str) -> None:
        path = self.programs / name
        path.write_text(source)
        path.chmod(0o755)

    def run(self, *parts: str, where: str = "", behaves: str = "", sources: str = "abc", seconds: int = 60) -> int:
        """Run the suite; a call of Python that matches `where` behaves as a shell command says."""
        self.log.write_text("")
        environment = {"CALLS": self.log, "SOURCES": sources, "WHERE": where, "BEHAVES": behaves}
        environment |= {"PATH": f"{self.programs}:{os.environ['PATH']}", "PYTHON": self.programs / "python"}
        result = subprocess.run(
            [SUITE, self.out, *parts],
            env={**os.environ, **environment, "PART_SECONDS": str(seconds), "OUT": self.out},
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
        return set((self.out / "done.txt").read_text().split()[2:])

    @property
    def summary(self) -> str:
        return (self.out / "summary.txt").read_text()


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    return Suite(tmp_path)


def test_every_part_runs_once_in_order_and_is_not_run_again(suite: Suite):
    assert suite.run() == 0, suite.output
    assert suite.done == set(PARTS)
    order = ["bench smoke", "--group core", "host_cost", "gpu_tests", "--group peers", "kernel_profile"]
    firsts = [suite.calls.index(suite.called(text)[0]) for text in order]
    assert firsts == sorted(firsts)
    assert all("--resume --budget-seconds 5" in call for call in suite.called("--group"))
    assert len(suite.called("kernel_profile")) == 3
    assert {path.name for path in suite.out.iterdir()} <= FILES
    assert suite.run() == 0
    assert not [call for text in order for call in suite.called(text)]
    assert [f"{part}: done before" in suite.summary for part in PARTS] == [True] * 6


def test_headline_cases_are_those_of_the_targets_and_leave_out_the_reference(suite: Suite):
    suite.run("headline")
    (call,) = suite.called("--group core")
    pattern, providers = re.search(r"--op (.*) --group core --provider (.*)", call).groups()
    found = [str(case) for _, case in selected("gpu", pattern)]
    assert len(found) == 9
    assert "favor causal b8-h16-l16384-d64-m256 bfloat16" in found
    assert suite.called("compile_cases")[0].endswith(pattern)
    names = ["favorcast triton", "favorcast reference", "sdpa flash"]
    assert [bool(re.search(providers, name)) for name in names] == [True, False, True]


def test_all_cases_of_the_bench_are_in_one_of_its_two_runs(suite: Suite):
    suite.run("bench")
    patterns = [re.search(r"--op (\S+ ?\S*) ", call)[1] for call in suite.called("--group core")]
    found = [str(case) for pattern in patterns for _, case in selected("gpu", pattern)]
    assert sorted(found) == sorted(str(case) for _, case in selected("gpu", ""))


def test_parts_may_be_chosen(suite: Suite):
    assert suite.run("peers", "profile") == 0
    assert suite.done == {"peers", "profile"}
    assert not suite.called("gpu_tests")
    assert suite.run("colour") == 2
    assert "there is no such part" in suite.output


@pytest.mark.parametrize(("part", "where"), [("peers", "--group peers"), ("tests", "gpu_tests")])
def test_an_unfinished_part_goes_on_when_called_again(suite: Suite, part: str, where: str):
    assert suite.run("profile", part, where=where, behaves=SPENDS_ITS_BUDGET, seconds=3) == 3
    assert f"{part}: UNFINISHED" in suite.summary
    assert suite.done == {"profile"}
    assert suite.run("profile", part) == 0
    assert suite.done == {"profile", part}
    assert suite.called(where)


def test_a_bench_whose_process_had_to_end_goes_on_in_another_while_there_is_time(suite: Suite):
    behaves = 'echo >> "$CALLS.count"; [ "$(wc -l < "$CALLS.count")" -ge 3 ] || exit 3'
    assert suite.run("headline", where="--group core", behaves=behaves) == 0
    assert len(suite.called("--group core")) == 3


def test_wrong_rows_fail_the_suite_and_are_tried_with_the_other_assemblers(suite: Suite):
    suite.out.mkdir()
    (suite.out / "a-gpu.csv").touch()
    line = "favor full b1-h2-l3-d4-m5 bfloat16 forward+backward: favorcast triton wrong: output: error 1.0 above 0.01"
    assert suite.run("headline", where="--failures", behaves=f"echo '{line}'; exit 1") == 1
    assert "headline: passed" in suite.summary
    assert line in suite.summary
    (call,) = suite.called("[/other/ptxas] ")
    assert "--op ^(favor full b1-h2-l3-d4-m5 bfloat16)$ --provider favorcast triton" in call
    assert "wrong cases with ptxas 13.1.80" in (suite.out / "log.txt").read_text()


def test_an_assembler_that_makes_the_smoke_right_compiles_what_follows(suite: Suite):
    behaves = "echo 'use TRITON_PTXAS_PATH=/other TRITON_PTXAS_BLACKWELL_PATH=/other'; exit 1"
    assert suite.run("smoke", "tests", where="bench smoke", behaves=behaves) == 1
    assert "smoke: FAILED" in suite.summary
    assert "kernels were compiled with TRITON_PTXAS_PATH=/other" in suite.summary
    assert suite.called("gpu_tests")[0].startswith("[/other] ")
    assert suite.run("smoke", "bench") == 0
    assert suite.called("bench smoke")[0].startswith("[/other] ")
    assert suite.called("--group core")[0].startswith("[/other] ")


def test_what_is_not_right_is_in_the_summary(suite: Suite):
    suite.out.mkdir()
    behaves = """case "$*" in
      *smoke*) echo "known of ptxas 1: wrong code"; printf 'a  right  0\\nb  WRONG  1\\n' > "$OUT/smoke.txt"; exit 1 ;;
      *) printf 'failed\\ttest_x\\twhy\\npassed\\ttest_y\\t\\n' > "$OUT/tests.txt"; exit 1 ;;
    esac"""
    assert suite.run("smoke", "tests", where="smoke|gpu_tests", behaves=behaves) == 1
    for line in ("known of ptxas 1: wrong code", "b  WRONG  1", "test failed: test_x\twhy"):
        assert f"\n{line}\n" in suite.summary
    assert "test_y" not in suite.summary
    assert "a  right" not in suite.summary


def test_a_failed_part_does_not_keep_others_from_running_nor_an_unfinished_one_hide_it(suite: Suite):
    behaves = f"[[ $* = *kernel_profile* ]] && exit 1; {SPENDS_ITS_BUDGET}"
    assert suite.run("profile", "peers", "tests", where="kernel_profile|peers", behaves=behaves, seconds=3) == 1
    assert "profile: FAILED with code 1" in suite.summary
    assert "peers: UNFINISHED" in suite.summary
    assert suite.done == {"tests"}
    assert suite.run("profile", "tests") == 0
    assert not suite.called("gpu_tests")


def test_the_bench_runs_on_although_the_host_cost_fails(suite: Suite):
    assert suite.run("headline", where="host_cost", behaves="exit 1") == 1
    assert suite.run("headline") == 0
    assert suite.called("--group core")


def test_a_part_that_takes_too_long_is_cut_off_and_what_it_said_is_kept(suite: Suite):
    assert suite.run("tests", "profile", where="gpu_tests", behaves="echo so far; sleep 30", seconds=1) == 1
    assert "tests: CUT OFF" in suite.summary
    assert suite.done == {"profile"}
    assert "so far" in (suite.out / "log.txt").read_text()


@pytest.mark.parametrize(
    ("says", "code", "noted"),
    [
        ("========= ERROR SUMMARY: 0 errors", 0, False),
        ("========= Error: Device not supported; exit 255", 0, True),
        ("========= Invalid __shared__ read of size 16 bytes; exit 1", 1, False),
    ],
)
def test_a_memory_checker_that_cannot_run_is_a_note_and_what_it_finds_a_failure(
    suite: Suite, says: str, code: int, noted: bool
):
    text, _, end = says.partition("; ")
    suite.install("compute-sanitizer", f"#!/usr/bin/env bash\necho '{text}'\n{end}\n")
    assert suite.run("profile") == code
    assert ("note: compute-sanitizer does not run here" in suite.summary) == noted


def test_a_restored_folder_goes_on_where_another_machine_stopped(suite: Suite, tmp_path: Path):
    suite.run("tests", "peers")
    kept = suite.out
    suite.out = tmp_path / "restored"
    shutil.copytree(kept, suite.out)
    assert suite.run("tests", "profile") == 0
    assert suite.done == {"tests", "peers", "profile"}
    assert not suite.called("gpu_tests")


def test_other_sources_run_everything_again(suite: Suite):
    suite.run("tests")
    (suite.out / "tests.txt").touch()
    assert suite.run("tests", sources="def") == 0
    assert "is about sources abc, this checkout is def" in suite.output
    assert suite.called("gpu_tests")
    assert not (suite.out / "tests.txt").exists()
    assert suite.run("tests", sources="def") == 0
    assert not suite.called("gpu_tests")


def test_without_a_folder_or_a_device_nothing_runs(suite: Suite):
    assert suite.run("smoke", where="is_available", behaves="exit 1") == 2
    assert "no CUDA device" in suite.output
    assert len(suite.calls) == 1
    suite.out = Path("/dev/null/out")
    assert suite.run("profile") == 2
    assert not suite.calls


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about cases that fail: without a device, all do")
def test_cases_that_cannot_be_compiled_ahead_are_named_and_left_to_the_bench(capsys):
    assert compile_cases.main(["--op", "favor decode b8-h16-l(1024|4096)-", "--processes", "1"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^favor decode b8-h16-l1024-d64-m256 bfloat16: \w+Error: ", said, re.MULTILINE)
    assert re.search(r"^favor decode b8-h16-l4096-d64-m256 bfloat16: \w+Error: ", said, re.MULTILINE)
    assert "2 cases called in " in said
