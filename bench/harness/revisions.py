"""Compare a revision of the package with this checkout: two processes, measured in turn, one call each.

A revision is checked out into a temporary worktree. Each side is a process of its own (both register the same
operators) that answers requests on its standard input; the bench modules are this checkout's for both. A case is
flagged as slower if its median and its 20 % quantile are both more than 5 % above the other revision's.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import torch
from harness.cases import PASSES, Case, Passes
from harness.correctness_gate import Failure, gate, timed_call
from harness.machine import ROOT
from harness.measurement import Bench
from harness.roofline import Peaks
from harness.timing import Latency, capture, clock_of, latency, rounds_for, warm_up

THRESHOLD = 1.05
FAILED, SLOWER = 1, 4
BUDGET_MS = {True: 100.0, False: 1000.0}
"""Timing of one case and side, quick or not."""


class Side:
    """One revision: a worker process and the requests it answers."""

    def __init__(self, root: Path, folder: Path, options: list[str]) -> None:
        package = folder / "favorcast"
        package.mkdir(parents=True)
        for part in ("kernels", "forecasting"):
            (package / part).symlink_to(root / part, target_is_directory=True)
        path = os.pathsep.join([str(folder), str(ROOT / "bench"), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "harness.revisions", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        imported = Path(self.ask(request="package"))
        if root.resolve() not in imported.parents:
            raise RuntimeError(f"a worker imports {imported}, not the revision in {root}")

    def ask(self, **request: Any) -> Any:
        """Send one request and return its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"a worker ended with code {self.process.wait()} at {request}")
        return json.loads(answer)

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


def compare(revision: str, pattern: str, *, quick: bool, device: torch.device) -> int:
    """Print one line a case and pass; returns 1 if this checkout fails anywhere, 4 if it is slower, else 0."""
    found = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}"],
        check=False,
        stdout=subprocess.DEVNULL,
    )
    if found.returncode != 0:
        raise OSError(f"--compare {revision}: git knows no such revision here")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # which removes the worktree
    options = ["quick" if quick else "gpu" if device.type == "cuda" else "cpu", pattern, str(device)]
    with tempfile.TemporaryDirectory(prefix="favorcast-compare-") as temporary, contextlib.ExitStack() as stack:
        folder = Path(temporary)
        stack.enter_context(worktree(revision, folder / "revision"))
        roots = {revision: folder / "revision", "this checkout": ROOT}
        sides: list[Side] = []
        for index, root in enumerate(roots.values()):
            sides.append(Side(root, folder / f"path{index}", options))
            stack.callback(sides[-1].close)
        cases = sides[0].ask(request="cases")
        if not cases:
            raise OSError(f"no '<op> <shape> <dtype>' matches --op {pattern!r}")
        print(f"{'case':62s} {revision[:14]:>14s} {'this checkout':>14s}  ratio")
        verdicts = [_compare_case(sides[0], sides[1], case, quick) for case in cases]
    slower = verdicts.count("slower")
    print(f"{len(verdicts)} compared, {slower} slower by more than {100 * (THRESHOLD - 1):.0f} %")
    if "failed" in verdicts:
        return FAILED
    return SLOWER if slower else 0


@contextlib.contextmanager
def worktree(revision: str, folder: Path) -> Iterator[None]:
    """Check a revision out into a folder, for as long as it is needed."""
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(folder), revision], check=True)
    try:
        yield
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=False)


def verdict(base: Latency, new: Latency) -> str:
    """Say "slower", "faster" or "same" of two sets of timings; a difference must show in p20 and p50."""
    ratios = (new.p50 / base.p50, new.p20 / base.p20)
    if min(ratios) > THRESHOLD:
        return "slower"
    return "faster" if max(ratios) < 1 / THRESHOLD else "same"


def _compare_case(base: Side, new: Side, case: list, quick: bool) -> str:
    number, name, passes = case
    shown = f"{name} {passes}"
    answers = [side.ask(request="prepare", case=number, passes=passes) for side in (base, new)]
    failures = [answer["failure"] for answer in answers if "failure" in answer]
    if not failures and answers[0]["is_graph"] != answers[1]["is_graph"]:
        failures = ["only one side can be captured as a CUDA graph"]
    if failures:
        print(f"{shown:62s} not compared: {failures[0]}", flush=True)
        return "failed" if "failure" in answers[1] else "new"
    rounds = rounds_for({str(i): answer["estimate_ms"] for i, answer in enumerate(answers)}, BUDGET_MS[quick])
    samples: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for side, found in zip((base, new), samples, strict=True):
            found.append(side.ask(request="sample"))
    before, after = (latency(found) for found in samples)
    said = verdict(before, after)
    flag = "" if said == "same" else said.upper() if said == "slower" else said
    print(f"{shown:62s} {before.p50:11.4g} ms {after.p50:11.4g} ms {after.p50 / before.p50:6.3f} {flag}", flush=True)
    return said


class Worker:
    """The other end: holds one prepared call and times it when asked."""

    def __init__(self, scale: str, pattern: str, device: str) -> None:
        from discovery import selected

        self.device = torch.device(device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device.index or 0)
        self.bench = Bench(self.device, clock_of(self.device), Peaks(1, 1, 1, "unused"), {})
        self.cases = selected(scale, pattern)  # pyright: ignore[reportArgumentType]
        self.call: Any = None

    def answer(self, request: dict[str, Any]) -> Any:
        """Answer one request: "package", "cases", "prepare" or "sample"."""
        if request["request"] == "package":
            import favorcast.kernels

            return str(Path(favorcast.kernels.__file__).resolve())
        if request["request"] == "cases":
            return [
                (number, str(case), passes)
                for number, (module, case) in enumerate(self.cases)
                for passes in getattr(module, "PASSES", PASSES)
            ]
        if request["request"] == "sample":
            return self.bench.clock.read(self.bench.clock.start(self.call))
        self.call = None
        module, case = self.cases[request["case"]]
        try:
            self.call, is_graph = self._prepare(module, case, request["passes"])
        except Exception as error:  # any revision may fail in any way, and the other side has to know
            return {"failure": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
        return {"estimate_ms": warm_up(self.call, self.bench.clock), "is_graph": is_graph}

    def _prepare(self, module: Any, case: Case, passes: Passes) -> tuple[Any, bool]:
        """Return the call of our first implementation that passes the gate, and whether it is a CUDA graph."""
        inputs = module.inputs(case, self.device)
        failure: Exception = Failure("absent", "no implementation of favorcast")
        for provider in module.providers(case, self.device):
            if not provider.name.startswith("favorcast") or passes not in provider.passes:
                continue
            try:
                prepared = provider.prepare(inputs)
                exact = module.expected(case, inputs, provider.target)
                gate(provider, case, passes, prepared, exact)
            except (ValueError, Failure) as error:  # the kernels refuse what they cannot do; the reference follows
                failure = error
                continue
            call = timed_call(prepared, passes, exact)
            warm_up(call, self.bench.clock)
            return self._captured(call) if not provider.waits else (call, False)
        raise failure

    def _captured(self, call: Any) -> tuple[Any, bool]:
        """Return the call as a CUDA graph and True, or as it is where it cannot be captured."""
        if self.device.type != "cuda":
            return call, False
        try:
            return capture(call, self.device).replay, True
        except RuntimeError:  # torch's errors of capture; the reference may wait for the device
            return call, False


def _serve(answers: TextIO, scale: str, pattern: str, device: str) -> None:
    worker = Worker(scale, pattern, device)
    for line in sys.stdin:
        answers.write(json.dumps(worker.answer(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    protocol = sys.stdout
    sys.stdout = sys.stderr  # whatever a kernel prints is not an answer
    _serve(protocol, *sys.argv[1:])
