"""The tests' runner on made-up tests: what is run in how many processes, what broke, and where it goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
from on_gpu import gpu_tests
from on_gpu.gpu_tests import read

HEADER = "import os, pytest, time\nRUNS_" + "KERNELS = ...\n"
MARK = "mark." + "gpu"  # these in two parts, or they were about this file


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout without tests, whose assemblers are two."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  gpu: needs one\n  slow: takes long\n")
    monkeypatch.setattr(gpu_tests, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_tests, "assemblers", lambda: {"1.0": Path("/one"), "2.0": Path("/two")})
    return tmp_path


def write_tests(checkout: Path, source: str, header: str = HEADER, name: str = "test_a.py") -> None:
    (checkout / "tests" / name).write_text(header + source)


def run(checkout: Path, processes: int = 2, budget: float = 60.0) -> int:
    options = ["--processes", str(processes), "--budget-seconds", str(budget)]
    return gpu_tests.main([str(checkout / "record"), *options])


def outcomes(checkout: Path) -> dict[str, str]:
    return {x.test.split("::")[-1]: x.what for x in read(checkout / "record").values()}


def test_tests_of_kernels_are_shared_out_and_run_once(checkout: Path):
    source = """
@pytest.mark.parametrize("i", range(5))
def test_one(i):
    open("ran", "a").write(f"{os.getpid()}\\n")

@pytest.mark.slow
def test_long(): assert False

def test_skipped(): pytest.skip("no reason")
"""
    write_tests(checkout, source)
    write_tests(
        checkout,
        f"def test_cpu(): assert False\n@pytest.{MARK}\ndef test_gpu(): pass\n",
        "import pytest\n",
        "test_b.py",
    )
    write_tests(checkout, "def test_other(): assert False\n", "", "test_c.py")
    assert run(checkout) == 0
    assert outcomes(checkout) == {f"test_one[{i}]": "passed" for i in range(5)} | {
        "test_skipped": "skipped",
        "test_gpu": "passed",
    }
    ran = (checkout / "ran").read_text().split()
    assert (len(ran), len(set(ran))) == (5, 2)
    assert run(checkout, processes=3) == 0
    assert len((checkout / "ran").read_text().split()) == 5


def test_what_failed_is_told_tried_with_another_assembler_and_run_again(checkout: Path, capsys):
    source = """
def test_ptxas(): assert os.environ.get("TRITON_PTXAS_PATH") == "/two"

def test_wrong(): assert 1 == 2, "the reason"
"""
    write_tests(checkout, source)
    write_tests(checkout, "import no_such_package\ndef test_it(): pass\n", name="test_b.py")
    assert run(checkout) == 1
    said = capsys.readouterr().out
    assert "the reason" in said
    assert "with ptxas 2.0, 1 of 2 failed tests pass: tests/test_a.py::test_ptxas\n" in said
    assert "FAILED tests/test_a.py::test_wrong AssertionError: the reason\n" in said
    assert "ABSENT tests/test_b.py ModuleNotFoundError: No module named 'no_such_package'\n" in said
    assert "0 passed, 0 skipped, 2 failed\n" in said
    write_tests(checkout, "def test_ptxas(): pass\n\ndef test_wrong(): pass\n")
    assert run(checkout) == 0


@pytest.mark.parametrize(
    "how", ["os.abort()", "raise RuntimeError('CUDA error: an illegal memory access was encountered')"]
)
def test_a_process_that_is_broken_takes_one_test_with_it(checkout: Path, how: str):
    source = f"""
broken = []

@pytest.mark.parametrize("i", range(6))
def test_one(i):
    assert not broken
    if i == 2:
        broken.append(True)
        {how}
"""
    write_tests(checkout, source)
    assert run(checkout, processes=1) == 1
    assert outcomes(checkout) == {f"test_one[{i}]": "failed" if i == 2 else "passed" for i in range(6)}


def test_no_test_starts_when_time_is_up_and_the_next_run_goes_on(checkout: Path, capsys):
    source = """
@pytest.mark.parametrize("i", range(4))
def test_one(i):
    time.sleep(3 if not os.path.exists("again") else 0)
"""
    write_tests(checkout, source)
    assert run(checkout, processes=1, budget=2.5) == 3
    assert outcomes(checkout) == {"test_one[0]": "passed"}
    assert "1 passed, 0 skipped, 0 failed, some not run" in capsys.readouterr().out
    (checkout / "again").touch()
    assert run(checkout) == 0
    assert set(outcomes(checkout).values()) == {"passed"}
    assert len(outcomes(checkout)) == 4
