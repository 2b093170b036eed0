"""Data sets on which forecasters are compared: which configuration, which windows, and what others publish.

The protocol is that of the literature: each column z-scored by its training rows, squared and absolute errors averaged
over all test windows, steps and columns, windows at every row, contexts of validation and test reaching back into the
split before. ETT: 12, 4 and 4 months of 30 days; Weather: 70, 10, 20 %, its -9999 taken for values, as published
figures do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

NAME_OF_DATA = "data.series.init_args.data_path"


class AccuracySet(NamedTuple):
    """A data set with its windows.

    Attributes:
        config: bundled configuration of favorcast.
        data: file or folder below the folder of data sets; None for what comes with the package.
        windows: test windows there must be.
        options: what this set changes in the configuration, by dotted name.
        published: test errors that others print, by forecaster and rows of context.
    """

    config: str
    data: str | None
    windows: int
    options: Mapping[str, str] = {}
    published: Mapping[str, str] = {}

    def arguments(self, folders: Sequence[Path]) -> list[str]:
        """Return the arguments of `favorcast fit` that run it.

        Raises:
            FileNotFoundError: none of the folders holds its data.
        """
        given = dict(self.options)
        if self.data is not None:
            found = next((folder / self.data for folder in folders if (folder / self.data).exists()), None)
            if found is None:
                places = ", ".join(map(str, folders))
                raise FileNotFoundError(f"no {self.data} below {places}: bench/README.md says where it comes from")
            given[NAME_OF_DATA] = str(found.resolve())
        return ["--config", self.config, *(f"--{name}={value}" for name, value in given.items())]


SHORT_CONTEXT = {"data.context_len": "96", "model.init_args.linear_window": "96", "model.init_args.max_seq_len": "192"}
SETS = {
    "ETTh1 336 → 96": AccuracySet(
        "etth1",
        "ett/ETTh1.csv",
        2785,
        published={"PatchTST, 512": ".370", "PatchTST, 336": ".375", "DLinear, 336": ".375"},
    ),
    "ETTh1 96 → 96": AccuracySet(
        "etth1", "ett/ETTh1.csv", 2785, SHORT_CONTEXT, {"iTransformer": ".386", "PatchTST": ".414", "RLinear": ".386"}
    ),
    "ETTm1 336 → 96": AccuracySet(
        "ettm1",
        "ett/ETTm1.csv",
        11425,
        published={"PatchTST, 512": ".293", "PatchTST, 336": ".290", "DLinear, 336": ".299"},
    ),
    "ETTm1 96 → 96": AccuracySet(
        "ettm1", "ett/ETTm1.csv", 11425, SHORT_CONTEXT, {"iTransformer": ".334", "PatchTST": ".329", "RLinear": ".355"}
    ),
    "Weather 336 → 96": AccuracySet(
        "weather",
        "weather/weather.csv",
        10444,
        published={"PatchTST, 512": ".149", "PatchTST, 336": ".152", "DLinear, 336": ".176"},
    ),
    "Weather 96 → 96": AccuracySet(
        "weather",
        "weather/weather.csv",
        10444,
        SHORT_CONTEXT,
        {"iTransformer": ".174", "PatchTST": ".177", "RLinear": ".192"},
    ),
    "METR-LA week 12 → 12": AccuracySet("metr_la_week", "metr_la_week/los_speed.csv", 392),
    "boundary layer 80 → 4": AccuracySet(
        "boundary_layer", "boundary_layer/boundary_layer.nc", 729, {"data.target_len": "4"}
    ),
    "boundary layer 80 → 16": AccuracySet("boundary_layer", "boundary_layer/boundary_layer.nc", 717),
    "pinball 20 → 40": AccuracySet("fluidic_pinball", None, 2361),
    "unseen Re 40 → 40": AccuracySet("unseen_reynolds", "unseen_reynolds", 2763),
}
