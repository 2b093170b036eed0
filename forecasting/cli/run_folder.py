"""The folder that a run writes to, and what is found in the folder of an earlier one."""

import pickle
import shutil
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from torch import nn

CONFIG_FILE = "config.yaml"
CHECKPOINT_FOLDER = "checkpoints"
BEST_CHECKPOINT, LAST_CHECKPOINT = "best.ckpt", "last.ckpt"
CARD_FILE = "model_card.md"
TABLES, PICTURES = ("metrics", "backtest", "future", "forecast"), ("errors", "forecast", "future")
RUN_FILES = {CONFIG_FILE, CARD_FILE, "report.html", *(f"{x}.csv" for x in TABLES), *(f"{x}.png" for x in PICTURES)}
RUN_FOLDERS = (CHECKPOINT_FOLDER, "log", "tensorboard")
ADDED_LATER = {"model_share.share"}  # loading fills it in where an earlier version wrote the checkpoint


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


def is_file_of_run(path: Path) -> bool:
    """Tell whether a file that is there was written by fit, test or backtest into the folder of a run."""
    folders = [path.resolve().parent, path.resolve().parent.parent]
    is_run = [any((folder / name).is_file() for name in (CONFIG_FILE, CARD_FILE)) for folder in folders]
    is_own = is_run[0] and path.name in RUN_FILES
    return path.is_file() and (is_own or (is_run[1] and folders[0].name in RUN_FOLDERS))


def resolve_checkpoint(path: str) -> Path:
    """Return the checkpoint file at `path`: the file itself, or the best one of a run folder.

    A run that ended before its first validation has no best one; its last one is taken.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is no checkpoint.
    """
    checkpoint = Path(path)
    if checkpoint.is_dir():
        best, last = (checkpoint / CHECKPOINT_FOLDER / name for name in (BEST_CHECKPOINT, LAST_CHECKPOINT))
        checkpoint = last if last.is_file() and not best.is_file() else best
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
    names = (own.keys() | saved.keys()) - unsolved - (ADDED_LATER - saved.keys())
    different = sorted(name for name in names if shapes[0].get(name) != shapes[1].get(name))
    if different:
        expected, came = (each.get(different[0], "nothing") for each in shapes)
        raise ValueError(
            f"the weights in {path} do not fit the configured model and data: expected {expected} for {different[0]}, "
            f"got {came} (and {len(different) - 1} more); leave out --config to take that of the checkpoint's run"
        )


def copy_earlier_best(resumed: Path, folder: Path, score: float | None, mode: str) -> Path | None:
    """Copy the best checkpoint of the run that was resumed, unless the new run found a better one.

    Args:
        resumed: the checkpoint that training went on from.
        folder: the checkpoints of the new run.
        score: best score of the new run, None where it has none.
        mode: "min" or "max", what is better.

    Returns:
        The copy, or None when there is nothing better to copy.
    """
    for name, state in load_checkpoint(resumed).get("callbacks", {}).items():
        earlier, path = state.get("best_model_score"), Path(state.get("best_model_path") or "")
        if not name.startswith("ModelCheckpoint") or earlier is None or not path.is_file():
            continue
        gain = float(earlier) - (score if score is not None else float("nan"))
        if score is None or (gain < 0 if mode == "min" else gain > 0):
            folder.mkdir(parents=True, exist_ok=True)
            return Path(shutil.copyfile(path, folder / BEST_CHECKPOINT))
    return None


def run_config(checkpoint: Path) -> Path | None:
    """Return the configuration of the run that wrote a checkpoint, None when it does not lie in a run folder."""
    folder = checkpoint.resolve().parent
    config = folder.parent / CONFIG_FILE
    return config if folder.name == CHECKPOINT_FOLDER and config.is_file() else None
