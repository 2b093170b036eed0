"""Find configurations: files of the user, and those that ship with the package, by name."""

from importlib import resources
from pathlib import Path

from .. import configs

SUFFIX = ".yaml"


def bundled_folder() -> Path:
    """Return the folder of the configurations that ship with the package."""
    return Path(str(resources.files(configs)))


def bundled_configs() -> list[str]:
    """List the names of the configurations that ship with the package."""
    return sorted(path.stem for path in bundled_folder().glob(f"*{SUFFIX}"))


def resolve_config(name: str) -> Path:
    """Return the file behind a path, or behind the name of a bundled configuration, with or without .yaml.

    Raises:
        FileNotFoundError: neither exists.
    """
    path = Path(name)
    if path.is_file():
        return path
    if path.name == name and name.removesuffix(SUFFIX) in bundled_configs():
        return bundled_folder() / f"{name.removesuffix(SUFFIX)}{SUFFIX}"
    raise FileNotFoundError(f"no configuration at {name!r}: expected a file, or one of {', '.join(bundled_configs())}")
