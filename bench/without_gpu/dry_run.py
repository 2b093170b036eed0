"""Launch the kernels of the bench's GPU cases on a CUDA driver that does nothing: they compile, load and are launched.

    python bench dry_run                             # every case, for sm_90: five minutes, 20 GiB of memory
    python bench dry_run --op decode --architecture 80

What can fail on a GPU before a kernel runs fails here: compilation, shared memory, arguments, the launch itself. Prints
how many launches a call makes, and ends with exit code 1 if a case failed, 2 if none was asked for.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import torch
from discovery import selected
from harness.cases import PASSES, Case, Passes
from harness.measurement import first_line
from without_gpu.compile_cases import call_once, our_kernels
from without_gpu.stub_driver import StubDriver, install_stub

CPU = torch.device("cpu")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one line a case and pass."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", default="", help="regular expression of '<op> <shape> <dtype>'")
    parser.add_argument("--architecture", type=int, default=90, help="80, 90, 100 or 120 (default %(default)s)")
    options = parser.parse_args(arguments)
    cases = selected("gpu", options.op)
    if not cases:
        parser.error(f"no '<op> <shape> <dtype>' matches --op {options.op!r}")
    try:
        stub = install_stub(options.architecture)
    except RuntimeError as error:
        parser.error(str(error))
    failed = 0
    for module, case in cases:
        try:
            found = launches_of(module, case, stub)
        except Exception as error:  # whatever keeps a kernel from its launch is the result
            failed += 1
            print(f"{case!s:62s} FAILED: {first_line(error)}", flush=True)
            continue
        for passes, launches in found.items():
            print(f"{case!s:62s} {passes:16s} {launches:4d} launches", flush=True)
    print(f"{len(cases)} cases, {failed} failed")
    return 1 if failed else 0


def launches_of(module: Any, case: Case, stub: StubDriver) -> dict[Passes, int]:
    """Call the kernels of a case, which leave their results unwritten, and count their launches by pass."""
    inputs = module.inputs(case, CPU)
    found: dict[Passes, int] = {}
    for passes in getattr(module, "PASSES", PASSES):
        prepared, before = our_kernels(module, case).prepare(inputs), stub.launches()
        call_once(prepared, passes)
        found[passes] = stub.launches() - before
    return found


if __name__ == "__main__":
    sys.exit(main())
