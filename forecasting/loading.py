"""Load a forecaster from its checkpoint alone."""

from importlib import import_module
from pathlib import Path

from .cli.run_folder import load_checkpoint
from .forecaster import Forecaster


def load_forecaster(path: Path) -> Forecaster:
    """Load a forecaster from a checkpoint alone, whatever its class.

    Raises:
        ValueError: no checkpoint, or one that does not know its class or data.
    """
    content = load_checkpoint(path)
    name = content.get("forecaster_class")
    if name is None or content.get("data_card") is None:
        raise ValueError(f"{path} was written by a favorcast that kept no description of the data; train again")
    module, _, qualified = name.rpartition(".")
    kind = getattr(import_module(module), qualified)
    if not (isinstance(kind, type) and issubclass(kind, Forecaster)):
        raise ValueError(f"{path} names {name!r} as its forecaster, which is none")
    return kind.load_from_checkpoint(path, map_location="cpu", weights_only=True)
