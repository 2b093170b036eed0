"""Sensor series: readers, splits, time covariates, windows, batches.

The flow solver stays out of this list: `favorcast.forecasting.flows.records` is a program, run with `python -m`.
"""

from .augmentation import InputAugmentation, add_gaussian_noise, frequency_domain_augmentation
from .module import DataModule
from .readers import embedded_names, embedded_path, read_series
from .record import SensorRecord, sensor_record
from .sensors import extract_datapoints
from .series import DataWarning, SimulationTimeSeries
from .table_format import TableFormat
from .time_features import generate_spectral_welch
from .windows import SimulationTorchDataset

__all__ = [
    "DataModule",
    "DataWarning",
    "InputAugmentation",
    "SensorRecord",
    "SimulationTimeSeries",
    "SimulationTorchDataset",
    "TableFormat",
    "add_gaussian_noise",
    "embedded_names",
    "embedded_path",
    "extract_datapoints",
    "frequency_domain_augmentation",
    "generate_spectral_welch",
    "read_series",
    "sensor_record",
]
