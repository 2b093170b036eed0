"""Open files of fields (NetCDF, HDF5, Zarr) as xarray Datasets, whose values stay on disk until they are asked for."""

from pathlib import Path
from typing import Any

NETCDF_SUFFIXES = (".nc", ".nc4", ".cdf")
HDF5_SUFFIXES = (".h5", ".hdf5")
ZARR_SUFFIX = ".zarr"  # a folder
FIELD_SUFFIXES = (*NETCDF_SUFFIXES, *HDF5_SUFFIXES, ZARR_SUFFIX)


def open_field(path: Path) -> Any:
    """Open a file of fields; close what is returned, or use it in a `with`.

    Dimensions of an HDF5 file have the names of their scales or labels, as h5py writes them.

    Raises:
        ImportError: without the package that reads it.
        ValueError: a file that holds no arrays, or is damaged.
    """
    suffix = path.suffix.lower()
    needs = "zarr" if suffix == ZARR_SUFFIX else "data"
    try:
        import xarray  # an optional dependency

        options: dict[str, Any] = {}
        if suffix == ZARR_SUFFIX:
            options = {"engine": "zarr", "chunks": None}
        elif suffix in HDF5_SUFFIXES:
            options = {"engine": "h5netcdf", "phony_dims": "sort"}
        dataset = xarray.open_dataset(path, **options)
        return _labelled(dataset, path) if suffix in HDF5_SUFFIXES else dataset
    except ImportError as error:
        raise ImportError(f"reading {path} needs xarray and more: pip install 'favorcast[{needs}]'") from error
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        if isinstance(error, ValueError) and "found the following matches" in reason:
            raise ImportError(f"reading {path} needs a package: pip install 'favorcast[{needs}]' ({reason})") from error
        raise ValueError(
            f"{path} cannot be read as {suffix}: {reason}; write it again, or copy it from its source"
        ) from error


def _labelled(dataset: Any, path: Path) -> Any:
    """Give dimensions of an HDF5 file without scales their labels, if they have some."""
    import h5py

    with h5py.File(path) as file:
        if not dataset.variables and any(isinstance(each, h5py.Group) for each in file.values()):
            raise ValueError(f"its arrays are in the groups {list(file)}; copy those of one group to the root")
        labels: dict[str, list[str]] = {
            str(name): [dimension.label or "" for dimension in each.dims]
            for name, each in file.items()
            if isinstance(each, h5py.Dataset)
        }
    variables = {}
    for name, variable in dataset.variables.items():
        stated = labels.get(str(name)) or [""] * variable.ndim
        variables[name] = variable.copy(deep=False)
        variables[name].dims = [label or old for label, old in zip(stated, variable.dims, strict=True)]
    closing = dataset.close
    renamed = type(dataset)(variables, attrs=dataset.attrs)
    renamed.set_close(closing)
    return renamed
