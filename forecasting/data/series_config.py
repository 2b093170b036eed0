"""What a user states about a series: where it comes from, its split, columns and covariates."""

from dataclasses import KW_ONLY, dataclass, field
from typing import Any, get_args

import numpy as np

from .column_choice import ColumnChoice
from .covariates import CovariateConfig
from .field_choice import FieldChoice
from .splits import Split
from .table_format import TableFormat
from .time_grid import Gaps


@dataclass(frozen=True)
class SeriesConfig(CovariateConfig, FieldChoice, ColumnChoice, Split):
    """Arguments of a SimulationTimeSeries.

    Args:
        data_path: a .npy, .npz, .csv, .parquet, .nc or .h5 file, a .zarr store, an OpenFOAM case, or the name of an
            embedded series (see read_series); of several runs of the same sensors, a list of these, a pattern such as
            "runs/*.csv", or a folder of them.
        data: in the place of data_path: (rows, sensors) array or tensor, a pandas DataFrame or Series, an xarray
            DataArray or Dataset, whatever has to_pandas(), or a SensorRecord; missing entries NaN. Of several runs a
            list of these, or a dict by name.
        time_col_name: the time column of a table, or the dimension of time of a field; None: found by name and content.
        start_time: time of row 0 where the file holds no times.
        time_step_df: time between rows, in seconds for dates; None: the usual step of the file's times, else its
            sampling time, else 1.
        null_value: a number that marks missing entries in the file, such as -9999.
        gaps: what to do where times have gaps, repeat themselves or differ in step, which is always reported: "split"
            lets no window reach across, "resample" puts the rows on a regular grid (see on_grid), "refuse" raises
            ValueError, "ignore" counts each row as one step.
        table: what you state about a table whose content leaves a choice.

    Raises:
        ValueError: a value outside its range, or not exactly one of data_path and data.
    """

    data_path: str | list[str] | None = None
    data: Any = field(default=None, repr=False)
    time_col_name: str | None = None
    start_time: float = 0.0
    time_step_df: float | None = None
    _: KW_ONLY
    null_value: float | None = None
    gaps: Gaps = "split"
    table: TableFormat | None = None

    def __post_init__(self) -> None:
        if (self.data_path is None) == (self.data is None):
            raise ValueError("give either data_path or data, got " + ("neither" if self.data is None else "both"))
        if self.gaps not in get_args(Gaps):
            raise ValueError(f"gaps must be one of {get_args(Gaps)}, got {self.gaps!r}")
        for name in ("time_step_df", "time_step_feature"):
            step = getattr(self, name)
            if step is not None and not (np.isfinite(step) and step > 0):
                raise ValueError(f"{name} must be positive and finite, got {step}")
