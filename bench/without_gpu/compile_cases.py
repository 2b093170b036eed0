"""Call our kernels once in each of the bench's GPU cases, in many processes at a time, before they are measured in one.

    python bench compile_cases --op 'favor full' --processes 16

Most of a first call is compilation, which Triton keeps in its cache. What fails here is said, and left to `run.py`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch
from discovery import selected
from harness.cases import PASSES, Case, Passes, Prepared, Provider
from harness.correctness_gate import as_tuple
from harness.measurement import first_line
from harness.result_families import OURS

GPU = torch.device("cuda")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one line a case that fails, and how long all of them took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", default="", help="regular expression of '<op> <shape> <dtype>'")
    parser.add_argument("--processes", type=int, default=min(16, os.cpu_count() or 1))
    options = parser.parse_args(arguments)
    begin, names = time.monotonic(), [str(case) for _, case in selected("gpu", options.op)]
    spawned = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    with ProcessPoolExecutor(options.processes, spawned) as pool:
        running = {pool.submit(compiled, name): name for name in names}
        for future in as_completed(running):
            try:
                said = future.result()
            except BrokenProcessPool as error:
                said = first_line(error)
            if said:
                print(f"{running[future]}: {said}", flush=True)
    print(f"{len(names)} cases called in {time.monotonic() - begin:.0f} s")
    return 0


def compiled(name: str) -> str:
    """Call the kernels of a case, forward and with gradients; return what went wrong, or nothing."""
    ((module, case),) = selected("gpu", f"^{re.escape(name)}$")
    try:
        inputs = module.inputs(case, GPU)
        for passes in getattr(module, "PASSES", PASSES):
            call_once(our_kernels(module, case).prepare(inputs), passes)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except Exception as error:  # `run.py` meets it again, and gives it a row
        return first_line(error)
    return ""


def our_kernels(module: Any, case: Case) -> Provider:
    """Return the provider that launches our kernels."""
    return next(x for x in module.providers(case, GPU) if x.name == OURS[0])


def call_once(prepared: Prepared, passes: Passes) -> None:
    """Call what is prepared, forward alone or with a backward for any upstream gradient."""
    with torch.set_grad_enabled(passes != "forward"):
        outputs = as_tuple(prepared.call())
    if passes != "forward":
        upstream = [torch.empty_like(x) for x in outputs]
        torch.autograd.grad(outputs, list(prepared.leaves.values()), upstream, allow_unused=True)


if __name__ == "__main__":
    sys.exit(main())
