"""Say within a minute, kernel by kernel and dtype by dtype, whether results are right on this device.

    python bench smoke                                   # all checks, each in a process of its own, 16 at a time
    python bench smoke --only 'causal.*bfloat16'
    TRITON_INTERPRET=1 python bench smoke --device cpu   # without bfloat16, of which Triton's interpreter is wrong

One line a check: right or WRONG, with the largest relative error of results and of gradients against float64, or
FAILED, or HUNG. What is not right is then tried with the other assemblers (ptxas) at hand; if one of them makes all of
it right, the last line says how to use it. The first checks are no kernels of ours but patterns that toolchains get
wrong (`toolchain_probes.py`). Exit code 1 if a kernel of ours is not right.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import torch
from harness.machine import ROOT, assemblers, description
from harness.measurement import first_line
from on_gpu.smoke_checks import checks, size_of, verdict
from on_gpu.toolchain_probes import PROBES, probe_error

RIGHT = "right"
PROBE_TOLERANCE = 1e-2
SECONDS = 90
COMMAND = (sys.executable, str(ROOT / "bench"), "smoke")
"""A check that takes longer has hung."""

ONE_THREAD = {"OMP_NUM_THREADS": "1"}
"""For the exact results, which several processes compute on the CPU at once."""

WHAT_IS_KNOWN = (
    ("ptxas", (13, 1), "wrong code for Hopper in kernels of fla (its pull request 1262)"),
    ("triton", (3, 7, 1), "transposed results of products wrong on Hopper (fla-org issue 640)"),
)
"""What a package of the toolchain did before a version."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks, or one of them in this process; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", default="", metavar="REGEX", help="checks to run, by name")
    parser.add_argument("--processes", type=int, default=min(16, os.cpu_count() or 1))
    parser.add_argument("--record", type=Path, help="file of the lines; what is right in it is not run again")
    parser.add_argument("--in-process", metavar="NAME", help="run one check here")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if options.in_process:
        print(judge(options.in_process, device), flush=True)
        return 0
    print(toolchain(device), flush=True)
    before = options.record.read_text().splitlines() if options.record and options.record.exists() else []
    right = [line for line in before if f"  {RIGHT}  " in line]
    if options.record:
        options.record.write_text("".join(f"{line}\n" for line in right))
    done = {line.split("  ")[0] for line in right}
    names = [x for x in names_of(device) if re.search(options.only, x) and x not in done]
    if not names and not done:
        parser.error(f"no check matches --only {options.only!r}")
    begin = time.monotonic()
    bad = judged(names, device, options)
    print(f"{len(names)} checks in {time.monotonic() - begin:.0f} s, {len(bad)} not right")
    for version, path in list(assemblers().items())[1:] if bad and device.type == "cuda" else ():
        chosen = dict.fromkeys(("TRITON_PTXAS_PATH", "TRITON_PTXAS_BLACKWELL_PATH"), str(path))
        if not judged(bad, device, options, f"  with ptxas {version}", chosen):
            print("use", *(f"{name}={path}" for name in chosen))
            break
    return 1 if set(bad) - set(PROBES) else 0


def judged(
    names: Sequence[str],
    device: torch.device,
    options: argparse.Namespace,
    how: str = "",
    environment: Mapping[str, str] | None = None,
) -> list[str]:
    """Run checks, several at a time, print and record what they say; return those that are not right."""
    bad = []
    with ThreadPoolExecutor(options.processes) as pool:
        running = {pool.submit(in_process_of_its_own, name, device, environment or {}): name for name in names}
        for future in as_completed(running):
            said = future.result()
            line = f"{running[future]:58s}  {said}{how}"
            print(line, flush=True)
            if options.record and not how:
                with options.record.open("a") as file:
                    print(line, file=file)
            if not said.startswith(RIGHT):
                bad.append(running[future])
    return bad


def names_of(device: torch.device) -> list[str]:
    """Return the checks, those first that say most; in Triton's interpreter those that it can do."""
    on_gpu = device.type == "cuda"
    first = [(64, "bfloat16"), (64, "float16"), (64, "float32")] if on_gpu else [(16, "float32"), (16, "float16")]
    ours = [f"{name}, d {d}, {dtype}" for d, dtype in first for name in checks(size_of(device, d))]
    of_other_dims = [(d, name) for d in (128, 16) for name in checks(size_of(device, d)) if "decomp" not in name]
    return [*PROBES, *ours, *(f"{name}, d {d}, bfloat16" for d, name in of_other_dims)] if on_gpu else ours


def in_process_of_its_own(name: str, device: torch.device, environment: Mapping[str, str]) -> str:
    """Return the verdict of a check that cannot take the others with it."""
    command = [*COMMAND, "--device", str(device), "--in-process", name]
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **ONE_THREAD, **environment},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"HUNG   no answer in {SECONDS} s"
    said = done.stdout.strip().splitlines()
    if done.returncode or not said:
        return f"FAILED with code {done.returncode}: {(done.stderr.strip().splitlines() or [''])[-1][:200]}"
    return said[-1]


def judge(name: str, device: torch.device) -> str:
    """Return the verdict of a check, run in this process."""
    try:
        if name in PROBES:
            error = probe_error(name, device)
            return f"{RIGHT if error <= PROBE_TOLERANCE else 'WRONG'}  error {error:.1e}"
        check, d, dtype = name.rsplit(", ", 2)
        made = checks(size_of(device, int(d.removeprefix("d "))))[check]()
        return verdict(made, device, getattr(torch, dtype))
    except Exception as error:  # whatever it is, is the result
        return f"FAILED {first_line(error)}"


def toolchain(device: torch.device) -> str:
    """Say what compiles the kernels, and what is known against it."""
    machine = description(device)
    found = list(assemblers())
    lines = [", ".join(f"{name} {value}" for name, value in machine.items() if value)]
    lines.append(f"assemblers at hand: ptxas {', '.join(found) or 'none'}; the first is used")
    versions = {"ptxas": found[0] if found else "", "triton": machine["triton"]}
    for package, mended, fault in WHAT_IS_KNOWN:
        version = tuple(int(x) for x in re.findall(r"\d+", versions[package])[:3])
        if version and version < mended:
            lines.append(f"known of {package} {versions[package]}: {fault}; mended in {'.'.join(map(str, mended))}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
