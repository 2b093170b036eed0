"""The machine and the versions a number belongs to."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("*.py", "*.sh", "*.yaml")


def description(device: torch.device) -> dict[str, str]:
    """Return device, driver, versions, commit and date, by the columns of the result files."""
    return {
        "device": device_name(device),
        "threads": "" if device.type == "cuda" else str(torch.get_num_threads()),
        "driver": driver_version() if device.type == "cuda" else "",
        "torch": importlib.metadata.version("torch"),
        "triton": package_version("triton"),
        "ptxas": ptxas_version() if device.type == "cuda" else "",
        "python": platform.python_version(),
        "commit": commit(ROOT),
        "date": datetime.date.today().isoformat(),
    }


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, or of the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def file_stem(device: torch.device) -> str:
    """Return the name of the result file of a device: "cpu", or the GPU's name in small letters."""
    if device.type != "cuda":
        return "cpu"
    return re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")


def package_version(name: str) -> str:
    """Return a package's version, empty if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def driver_version() -> str:
    """Return the NVIDIA driver's version."""
    return _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0]


def ptxas_version() -> str:
    """Return the version of the assembler that compiles the kernels."""
    return next(iter(assemblers()), "")


def assemblers() -> dict[str, Path]:
    """Return version to path of the assemblers (ptxas) at hand, the one that compiles the kernels first.

    The others are what it could be swapped for: the triton package holds two, a CUDA toolkit one more.
    """
    spec = importlib.util.find_spec("triton")
    if spec is None or spec.origin is None:
        return {}
    folder = Path(spec.origin).parent / "backends" / "nvidia" / "bin"
    packaged = {"TRITON_PTXAS_PATH": folder / "ptxas", "TRITON_PTXAS_BLACKWELL_PATH": folder / "ptxas-blackwell"}
    if torch.cuda.is_available() and torch.cuda.get_device_capability() >= (10, 0):
        packaged = dict(reversed(packaged.items()))
    chosen = os.environ.get(next(iter(packaged)), "")
    found: dict[str, Path] = {}
    for program in (chosen, *packaged.values(), shutil.which("ptxas") or "", "/usr/local/cuda/bin/ptxas"):
        version = re.search(r"V([\d.]+)", _output(str(program), "--version") if program else "")
        if version:
            found.setdefault(version.group(1), Path(program))
    return found


def commit(root: Path, *parts: str) -> str:
    """Return the commit of a checkout, with a hash of the sources if they were edited; of a plain copy, that hash.

    The sources are those of the package, and of other folders that are named.
    """
    parts = ("kernels", "forecasting", *parts)
    found = _output("git", "-C", str(root), "rev-parse", "--short=10", "HEAD")
    if found and Path(_output("git", "-C", str(root), "rev-parse", "--show-toplevel")).resolve() == root:
        patterns = [f"{part}/{name}" for part in parts for name in SOURCES]
        edited = _output("git", "-C", str(root), "status", "--porcelain", "--untracked-files=all", "--", *patterns)
        return f"{found}-dirty-{_digest(root, parts)[:6]}" if edited else found
    return "source-" + _digest(root, parts)


def _digest(root: Path, parts: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for part in parts for name in SOURCES for path in root.glob(f"{part}/**/{name}")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:10]


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""
