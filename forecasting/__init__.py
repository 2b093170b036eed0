"""Spatio-temporal forecasting on PyTorch Lightning: data, models, training, baselines, reports."""

from .baselines import (
    Analogs,
    DynamicModeDecomposition,
    Persistence,
    RidgeRegression,
    SeasonalNaive,
    VectorRidge,
    default_baselines,
)
from .best_checkpoint import BestCheckpoint
from .closed_form_linear import ClosedFormLinear
from .data import DataModule, SimulationTimeSeries, SimulationTorchDataset, extract_datapoints
from .dynamics_metrics import DynamicsErrors
from .feature_redraw_callback import RedrawFeatures
from .forecaster import Forecaster
from .linear_model import LinearModel
from .metrics import ForecastErrors
from .normalization import GlobalNorm, NoNorm, RevIN
from .spatiotemporal_performer_forecaster import SpatioTemporalPerformer_Forecaster
from .st_transformer import SpatioTemporalPerformer

__all__ = [
    "Analogs",
    "BestCheckpoint",
    "ClosedFormLinear",
    "DataModule",
    "DynamicModeDecomposition",
    "DynamicsErrors",
    "ForecastErrors",
    "Forecaster",
    "GlobalNorm",
    "LinearModel",
    "NoNorm",
    "Persistence",
    "RedrawFeatures",
    "RevIN",
    "RidgeRegression",
    "SeasonalNaive",
    "SimulationTimeSeries",
    "SimulationTorchDataset",
    "SpatioTemporalPerformer",
    "SpatioTemporalPerformer_Forecaster",
    "VectorRidge",
    "default_baselines",
    "extract_datapoints",
]
