"""The folder that a run writes to, and what is found in the folder of an earlier one."""

from datetime import datetime
from itertools import count
from pathlib import Path
from zipfile import is_zipfile

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
    if not is_zipfile(checkpoint):  # what torch.save writes
        raise ValueError(f"{checkpoint} is no checkpoint: expected a .ckpt file written by fit")
    return checkpoint


def run_config(checkpoint: Path) -> Path | None:
    """Return the configuration of the run that wrote a checkpoint, None when it does not lie in a run folder."""
    folder = checkpoint.resolve().parent
    config = folder.parent / CONFIG_FILE
    return config if folder.name == CHECKPOINT_FOLDER and config.is_file() else None
