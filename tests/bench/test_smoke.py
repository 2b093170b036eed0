"""The smoke of bench/ in Triton's interpreter: its checks reach every kernel, and can fail; what it says then."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from kernel_runs import DTYPE_IDS, RUNS_KERNELS
from on_gpu import smoke
from on_gpu.smoke_checks import Check, checks, size_of, verdict
from on_gpu.toolchain_probes import PROBES

from favorcast import kernels

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SIZE = size_of(CPU, 16)

pytestmark = [
    RUNS_KERNELS,
    pytest.mark.skipif(
        torch.cuda.is_available(), reason="is about the interpreter; with a GPU, run `python bench smoke`"
    ),
]


def kernel_names() -> set[str]:
    names = set()
    for module in pkgutil.walk_packages(kernels.__path__, "favorcast.kernels."):
        if module.name.endswith("kernels"):
            found = vars(importlib.import_module(module.name))
            names |= {name for name, x in found.items() if name.endswith("_kernel") and hasattr(x, "run")}
    return names


def test_all_checks_are_right_and_launch_every_kernel(monkeypatch):
    from triton.runtime.interpreter import InterpretedFunction

    launched, run = set(), InterpretedFunction.run

    def recorded(self, *arguments, **options):
        launched.add(self.fn.__name__)
        return run(self, *arguments, **options)

    monkeypatch.setattr(InterpretedFunction, "run", recorded)
    said = {name: verdict(make(), CPU, torch.bfloat16) for name, make in checks(SIZE).items()}
    assert all(x.startswith("right  results ") for x in said.values()), said
    assert launched == kernel_names()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=DTYPE_IDS)
def test_wrong_results_and_gradients_are_told_from_rounded_ones(dtype):
    right = checks(SIZE)["full in one launch"]()

    def off_by(share: float, where: str) -> str:
        def run(leaves, impl):
            (output,) = right.run(leaves, impl)
            error = share if impl == "triton" else 0.0
            if where == "results":
                return (output * (1 + error),)
            return (output + error * output.detach() * (leaves["value"].sum() - leaves["value"].detach().sum()),)

        return verdict(Check(right.leaves, run), CPU, dtype)

    for where in ("results", "gradients"):
        assert off_by(0.0, where).startswith("right")
        assert off_by(0.05, where).startswith("WRONG")
    assert off_by(float("nan"), "results").startswith("WRONG  results nan")


@pytest.mark.parametrize("name", PROBES)
def test_probes_are_right_where_no_compiler_is_involved(name):
    assert smoke.judge(name, CPU).startswith("right  error ")


def test_checks_answer_from_processes_of_their_own_and_those_right_before_are_left_out(tmp_path, capfd):
    record = tmp_path / "smoke.txt"
    record.write_text(f"{'decoding, d 16, float16':58s}  right  results 1.0e-03\n")
    only = "^(full in one launch|decoding), .*float16"
    assert smoke.main(["--device", "cpu", "--only", only, "--record", str(record)]) == 0
    assert "1 checks in " in capfd.readouterr().out
    assert "full in one launch, d 16, float16 " in record.read_text()
    assert smoke.main(["--device", "cpu", "--only", only, "--record", str(record)]) == 0
    assert "0 checks in " in capfd.readouterr().out
    assert len(record.read_text().splitlines()) == 2


def test_checks_that_die_raise_or_hang_are_told_apart(monkeypatch, tmp_path):
    script = tmp_path / "check.py"
    monkeypatch.setattr(smoke, "COMMAND", [sys.executable, str(script)])
    monkeypatch.setattr(smoke, "SECONDS", 2)
    for source, said in (
        ("import os; os.abort()", "FAILED with code -6: "),
        ("raise RuntimeError('CUDA error: out of luck')", "FAILED with code 1: RuntimeError: CUDA error: out of luck"),
        ("import time; time.sleep(60)", "HUNG   no answer in 2 s"),
        ("print('noise'); print('right  error 0')", "right  error 0"),
    ):
        script.write_text(source)
        assert smoke.in_process_of_its_own("any", CPU, {}) == said
    assert smoke.judge("full, d sixteen, float32", CPU).startswith("FAILED ValueError: ")


def test_what_is_wrong_is_tried_with_the_other_assemblers(monkeypatch, capsys):
    tried: list[tuple[str, str]] = []
    gives = {"probe": {"12.8.93": "WRONG", "13.1.80": "right"}, "full": {"12.8.93": "WRONG", "12.9.86": "WRONG"}}

    def answer(name: str, device: torch.device, environment: Mapping[str, str]) -> str:
        version = environment.get("TRITON_PTXAS_PATH", "/12.8.93")[1:]
        assert len(environment) in (0, 2)
        tried.append((name, version))
        return gives[name.split()[0].strip(":,")].get(version, "right") + "  error 1"

    monkeypatch.setattr(smoke, "in_process_of_its_own", answer)
    monkeypatch.setattr(smoke, "assemblers", lambda: {v: Path(f"/{v}") for v in ("12.8.93", "12.9.86", "13.1.80")})
    monkeypatch.setattr(smoke, "description", lambda device: {"triton": "3.6.0"})
    monkeypatch.setattr(smoke, "checks", lambda size: {"full": None})
    assert smoke.main(["--device", "cuda", "--only", "full, d 64, bf|result, 64 x 64", "--processes", "1"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [version for _, version in tried] == ["12.8.93"] * 2 + ["12.9.86"] * 2 + ["13.1.80"] * 2
    assert "known of ptxas 12.8.93: " in lines[2]
    assert "known of triton 3.6.0: " in lines[3]
    assert lines[4].startswith("probe: transposed result, 64 x 64 in 4 warps ")
    assert lines[4].endswith("  WRONG  error 1")
    assert lines[6] == "2 checks in 0 s, 2 not right"
    assert lines[7].endswith("  right  error 1  with ptxas 12.9.86")
    assert lines[8].endswith("  WRONG  error 1  with ptxas 12.9.86")
    assert lines[-1] == "use TRITON_PTXAS_PATH=/13.1.80 TRITON_PTXAS_BLACKWELL_PATH=/13.1.80"


def test_a_probe_that_fails_is_no_failure_of_ours(monkeypatch, capsys):
    monkeypatch.setattr(smoke, "in_process_of_its_own", lambda *_: "WRONG  error 1")
    monkeypatch.setattr(smoke, "assemblers", dict)
    monkeypatch.setattr(smoke, "description", lambda device: {"triton": ""})
    assert smoke.main(["--device", "cuda", "--only", "probe"]) == 0
    assert capsys.readouterr().out.count("WRONG") == len(PROBES)
    with pytest.raises(SystemExit):
        smoke.main(["--only", "no such check"])
