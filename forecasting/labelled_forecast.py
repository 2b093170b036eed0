"""A forecast with its labels: as a table, a file, a picture.

n horizon, d d_y_target, l context_len
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil, log10
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .data.place_axes import PlaceAxis
from .data.time_grid import local_index
from .data.time_labels import time_texts

SUFFIXES = (".csv", ".parquet", ".nc")
DIGITS = 7  # of float32, in units of the spread of the context


@dataclass(frozen=True)
class Forecast:
    """A forecast of the future of a record, with its labels.

    Attributes:
        values: (n, d) float64, original units.
        times: (n,) datetime64[ns] (UTC where there is a time zone) or float64, continuing those of the record.
        columns: names of the d sensors.
        units: of each sensor, None where unknown.
        coordinates: (d, dimensions) positions of the sensors, None where unknown; axes: of their dimensions.
        time_unit: of numeric times; time_zone: of dates; None where unknown.
        context_times, context: (l,) and (l, d), what the forecast was made from, NaN where missing.
        intervals: level to (2, n, d), the lower and upper ends of prediction intervals, NaN where there is none.
    """

    values: np.ndarray
    times: np.ndarray
    columns: list[str]
    units: list[str | None]
    coordinates: np.ndarray | None
    time_unit: str | None
    time_zone: str | None
    context_times: np.ndarray
    context: np.ndarray
    intervals: dict[float, np.ndarray] = field(default_factory=dict)
    axes: Sequence[PlaceAxis] = ()

    @property
    def labels(self) -> list[str]:
        """The names, with units behind those that do not hold them already."""
        pairs = zip(self.columns, self.units, strict=True)
        return [name if unit is None or f"[{unit}]" in name else f"{name} [{unit}]" for name, unit in pairs]

    def to_frame(self) -> pd.DataFrame:
        """Return a DataFrame: times as the index, one column a sensor, units in attrs.

        Intervals follow as columns <sensor>-lo-80 and <sensor>-hi-80, the names that statsforecast gives them.
        """
        index = local_index(self.times, self.time_zone) if self.times.dtype.kind == "M" else pd.Index(self.times)
        frame = pd.DataFrame(self.values, index=index.rename("time"), columns=pd.Index(self.columns))
        ends = pd.DataFrame(self._ends(self.columns), index=frame.index)
        frame = pd.concat([frame, ends], axis=1) if self.intervals else frame
        frame.attrs["units"] = dict(zip(self.columns, self.units, strict=True))
        return frame

    def to_xarray(self) -> Any:
        """Return a DataArray (time, sensor) with names, units and coordinates; dates are in UTC where there is a zone.

        Places of sensors are coordinates with the names and attributes of those that were read, coordinate_0, … where
        these are unknown. Intervals are coordinates lo_80 and hi_80 (time, sensor).

        Raises:
            ImportError: without xarray.
        """
        try:
            import xarray  # an optional dependency
        except ImportError as error:
            raise ImportError("this needs xarray: pip install 'favorcast[data]'") from error
        coords: dict[str, Any] = {"time": self.times, "sensor": self.columns}
        if any(unit is not None for unit in self.units):
            coords["unit"] = ("sensor", [unit or "" for unit in self.units])
        for number, positions in enumerate([] if self.coordinates is None else self.coordinates.T):
            axis = self.axes[number] if self.axes else PlaceAxis(f"coordinate_{number}")
            name = axis.name if axis.name not in coords else f"coordinate_{number}"
            coords[name] = ("sensor", positions, {"long_name": axis.name} | axis.attributes if self.axes else {})
        for level, ends in self.intervals.items():
            for side, values in zip(("lo", "hi"), ends, strict=True):
                coords[f"{side}_{round(level * 100)}"] = (("time", "sensor"), values)
        array = xarray.DataArray(self.values, dims=("time", "sensor"), coords=coords, name="forecast")
        if len(set(self.units)) == 1 and self.units[0] is not None:
            array.attrs["units"] = self.units[0]
        if self.time_zone is not None:
            array.attrs["time_zone"] = self.time_zone
        if self.time_unit is not None and self.times.dtype.kind != "M":
            array["time"].attrs["units"] = self.time_unit
        return array

    def to_csv(self, *, with_header: bool = True, **first: Any) -> str:
        """Return the forecast as the text of a CSV, a row for each time, in ISO 8601 where it is a date.

        Args:
            with_header: whether the first line names the columns.
            first: columns before that of the times, each a value for all rows or one for each.
        """
        table = pd.DataFrame(self.values, columns=pd.Index(self.labels))
        table = pd.concat([table, pd.DataFrame(self._ends(self.labels))], axis=1) if self.intervals else table
        table.insert(0, self.time_label, time_texts(self.times, self.time_zone))
        for name, value in reversed(first.items()):
            table.insert(0, name, value)
        return table.to_csv(index=False, header=with_header, float_format=f"%.{self._digits}g", lineterminator="\n")

    def save(self, path: str | Path) -> None:
        """Write the forecast to a file: .csv (times in ISO 8601), .parquet or .nc (NetCDF).

        Raises:
            ValueError: another suffix.
            ImportError: .parquet without pyarrow, .nc without xarray and h5netcdf.
        """
        path = Path(path)
        match path.suffix.lower():
            case ".csv":
                path.write_text(self.to_csv(), encoding="utf-8")
            case ".parquet":
                self.to_frame().to_parquet(path)
            case ".nc":
                self.to_xarray().to_netcdf(path, engine="h5netcdf")
            case suffix:
                raise ValueError(f"a forecast is written to {', '.join(SUFFIXES)}, got {suffix!r}")

    def plot(self, sensors: list[str] | None = None) -> Any:
        """Draw the latest context and the forecast, as a matplotlib Figure (see plot_future)."""
        from .evaluation.future_plot import plot_future  # matplotlib takes a while to import

        return plot_future(self, sensors)

    def _ends(self, names: list[str]) -> dict[str, np.ndarray]:
        """Return the lower and upper ends of all intervals by the names of their columns."""
        return {
            f"{name}-{side}-{round(level * 100)}": ends[i, :, j]
            for j, name in enumerate(names)
            for level, ends in self.intervals.items()
            for i, side in enumerate(("lo", "hi"))
        }

    @property
    def time_label(self) -> str:
        """The name of times, with their unit where they are numbers."""
        return "time" if self.time_unit is None or self.times.dtype.kind == "M" else f"time [{self.time_unit}]"

    @property
    def _digits(self) -> int:
        spread = np.nanstd(np.where(np.isnan(self.context).all(axis=0), 0.0, self.context), axis=0)
        largest = np.abs(self.values).max(axis=0)
        ratio = (largest / np.where(spread > 0, spread, 1.0)).max()
        return min(DIGITS + max(0, ceil(log10(ratio)) if ratio > 0 else 0), 15)
