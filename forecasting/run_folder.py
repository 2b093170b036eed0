"""The folder that a run writes to, and what is found in the folder of an earlier one."""

import pickle
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from torch import nn

CONFIG_FILE = "config.yaml"
CHECKPOINT_FOLDER = "checkpoints"
BEST_CHECKPOINT = "best.ckpt"


def new_run_folder(root: Path, name: str, command: str) -> Path:
    """Return root/name/<date>_<time>_<command>, numbered when that exists; nothing is created."""
    stem = f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{command}"
    candidates = (root / name / (stem if number == 1 else f"{stem}_{number}") for number in count(1))
    return next(folder for folder in candidates if not folder.exists())


def create_run_folder(folder: Path) -> None:
    """Create a run folder.

    Raises:
        ValueError: it exists, or cannot be created.
    """
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise ValueError(f"cannot create the run folder {folder}: {error.strerror}; choose other --runs") from error


def resolve_checkpoint(path: str) -> Path:
    """Return the checkpoint file at `path`: the file itself, or the best one of a run folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is no checkpoint.
    """
    checkpoint = Path(path)
    if checkpoint.is_dir():
        checkpoint = checkpoint / CHECKPOINT_FOLDER / BEST_CHECKPOINT
    if not checkpoint.is_file():
        raise FileNotFoundError(f"no checkpoint at {str(checkpoint)!r}: give a .ckpt file or a run folder")
    load_checkpoint(checkpoint)
    return checkpoint


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU.

    Raises:
        ValueError: the file is no checkpoint of Lightning, or holds more than tensors and plain values.
    """
    content = None
    if is_zipfile(path):  # what torch.save writes
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, pickle.UnpicklingError):
            content = None
    if not isinstance(content, dict) or not {"pytorch-lightning_version", "state_dict"} <= content.keys():
        raise ValueError(f"{path} is no checkpoint: expected a .ckpt file written by fit")
    return content


def check_weights(model: nn.Module, path: Path) -> None:
    """Raise ValueError unless the weights of a checkpoint have the names and shapes of the model's."""
    own, saved = model.state_dict(), load_checkpoint(path)["state_dict"]
    shapes = [{name: tuple(weight.shape) for name, weight in weights.items()} for weights in (own, saved)]
    # what a fit solves for has no elements before, and takes the shape that was saved
    unsolved = {name for name, weight in own.items() if weight.numel() == 0 and name in saved}
    names = (own.keys() | saved.keys()) - unsolved
    different = sorted(name for name in names if shapes[0].get(name) != shapes[1].get(name))
    if different:
        expected, came = (each.get(different[0], "nothing") for each in shapes)
        raise ValueError(
            f"the weights in {path} do not fit the configured model and data: expected {expected} for {different[0]}, "
            f"got {came} (and {len(different) - 1} more); leave out --config to take that of the checkpoint's run"
        )


def run_config(checkpoint: Path) -> Path | None:
    """Return the configuration of the run that wrote a checkpoint, None when it does not lie in a run folder."""
    folder = checkpoint.resolve().parent
    config = folder.parent / CONFIG_FILE
    return config if folder.name == CHECKPOINT_FOLDER and config.is_file() else None
