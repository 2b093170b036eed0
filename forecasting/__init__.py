"""Spatio-temporal forecasting on PyTorch Lightning: data, models, training, baselines, reports."""

from .closed_form_linear import ClosedFormLinear
from .data import (
    DataModule,
    DataWarning,
    SimulationTimeSeries,
    SimulationTorchDataset,
    TableFormat,
    extract_datapoints,
)
from .evaluation.backtesting import Backtest, backtest
from .evaluation.baselines import (
    Analogs,
    DynamicModeDecomposition,
    Persistence,
    RidgeRegression,
    SeasonalNaive,
    VectorRidge,
    default_baselines,
)
from .forecaster import Forecaster
from .labelled_forecast import Forecast
from .linear_model import LinearModel
from .loading import load_forecaster
from .metrics.dynamics import DynamicsErrors
from .metrics.forecast_errors import ForecastErrors
from .normalization import GlobalNorm, NoNorm, RevIN
from .own_data import train_forecaster
from .spatiotemporal_performer_forecaster import SpatioTemporalPerformer_Forecaster
from .st_transformer import SpatioTemporalPerformer
from .stacked_linear import StackedLinear
from .training.best_checkpoint import BestCheckpoint
from .training.feature_redraw_callback import RedrawFeatures

__all__ = [
    "Analogs",
    "Backtest",
    "BestCheckpoint",
    "ClosedFormLinear",
    "DataModule",
    "DataWarning",
    "DynamicModeDecomposition",
    "DynamicsErrors",
    "Forecast",
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
    "StackedLinear",
    "TableFormat",
    "VectorRidge",
    "backtest",
    "default_baselines",
    "extract_datapoints",
    "load_forecaster",
    "train_forecaster",
]
