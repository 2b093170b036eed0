"""Constructors that take the fields of dataclasses: what is declared once is seen everywhere."""

import ast
import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any

import jsonargparse
import pytest
import torch
import yaml
from small_forecaster import SMALL, cpu_trainer

from favorcast.forecasting import (
    DataModule,
    Forecaster,
    SimulationTimeSeries,
    SpatioTemporalPerformer_Forecaster,
    train_forecaster,
)
from favorcast.forecasting.data.module import WindowLoading
from favorcast.forecasting.data.series_config import SeriesConfig
from favorcast.forecasting.forecaster import ForecasterConfig
from favorcast.forecasting.spatiotemporal_performer_forecaster import PerformerForecasterConfig
from favorcast.forecasting.st_transformer.softmax_attention import SoftmaxAttention, SoftmaxConfig

SOURCES = sorted(Path(inspect.getfile(Forecaster)).parent.rglob("*.py"))
SAVED_CONFIG = Path(__file__).with_name("saved_run") / "config.yaml"
TAKERS = [
    (Forecaster, ForecasterConfig),
    (SpatioTemporalPerformer_Forecaster, PerformerForecasterConfig),
    (SimulationTimeSeries, SeriesConfig),
    (DataModule, WindowLoading),
    (SoftmaxAttention, SoftmaxConfig),
]
DIFFERENT_DEFAULTS = {"l2_regul_factor", "warmup_steps", "use_revin", "from_last_value"}
each_taker = pytest.mark.parametrize(("kind", "config"), TAKERS, ids=lambda x: x.__name__)


class Deeper(SpatioTemporalPerformer_Forecaster):
    """A user's own.

    Args:
        depth: how deep.
    """

    def __init__(self, depth: int = 1, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.depth = depth


@each_taker
def test_a_field_is_declared_in_one_class(kind, config):
    declared = [name for each in config.__mro__ for name in inspect.get_annotations(each) if name != "_"]
    twice = {name for name in declared if declared.count(name) > 1}
    # attention_factory, no argument here, is what attention_class names
    expected = DIFFERENT_DEFAULTS | {"attention_factory"} if kind is SpatioTemporalPerformer_Forecaster else set()
    assert twice == expected


@each_taker
def test_the_signature_is_that_of_the_fields(kind, config):
    assert set(inspect.signature(kind).parameters) == {field.name for field in fields(config) if field.init}


@each_taker
def test_each_argument_has_its_sentence_in_the_docs_and_on_the_command_line(kind, config, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "2000")
    parser = jsonargparse.ArgumentParser()
    parser.add_class_arguments(kind, "model")
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    text = capsys.readouterr().out
    documented = inspect.getdoc(kind.__init__).splitlines()
    for name in inspect.signature(kind).parameters:
        (line,) = [line for line in documented if line.startswith(f"    {name}: ")]
        assert line.partition(": ")[2] in text


def test_a_subclass_has_its_own_signature_and_every_argument_on_the_command_line():
    assert list(inspect.signature(Deeper).parameters) == ["depth", "arguments"]
    parser = jsonargparse.ArgumentParser()
    parser.add_class_arguments(Deeper, "model")
    given = parser.parse_args(["--model.depth=3", "--model.d_model=8"]).model
    assert set(given.as_dict()) == {"depth", *inspect.signature(SpatioTemporalPerformer_Forecaster).parameters}
    assert (given.depth, given.d_model) == (3, 8)


def test_a_subclass_that_saves_nothing_itself_loads_with_its_own_arguments(tmp_path):
    model = Deeper(3, **SMALL)
    trainer = cpu_trainer(max_epochs=0)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = Deeper.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert (loaded.depth, loaded.hparams) == (3, model.hparams)


def test_arguments_and_defaults_are_those_of_a_run_saved_before():
    saved = yaml.safe_load(SAVED_CONFIG.read_text())
    model, series = saved["model"]["init_args"], saved["data"]["series"]["init_args"]
    sizes = {"d_model": 128, "n_heads": 4, "n_encoder_layers": 2, "n_decoder_layers": 2, "max_seq_len": 512}
    widths = {"d_y_context": 49, "d_y_target": 49, "d_x": 1}
    now = defaults(SpatioTemporalPerformer_Forecaster)
    assert {name: now[name] for name in model | widths} == model | sizes | widths
    given = {"data_path": None, "target_columns": None, "exogenous_columns": None, "fractions": (0.7, 0.1, 0.2)}
    now = defaults(SimulationTimeSeries)  # what has come since is not in the saved run
    assert {name: now[name] for name in series} == series | given


def defaults(kind: type) -> dict[str, Any]:
    return {name: parameter.default for name, parameter in inspect.signature(kind).parameters.items()}


def test_positions_are_kept():
    assert SpatioTemporalPerformer_Forecaster(3, 2, 1, 16, n_heads=2).hparams["d_model"] == 16
    options = inspect.signature(Forecaster).parameters.values()
    assert [x.name for x in options if x.kind != x.KEYWORD_ONLY] == ["d_x", "d_y_context", "d_y_target"]
    assert len(SimulationTimeSeries(None, torch.rand(99, 2).numpy(), None, 5.0, 2.0).times) == 99


def test_an_unknown_argument_is_refused_by_name():
    with pytest.raises(TypeError, match="d_modle"):
        SpatioTemporalPerformer_Forecaster(d_modle=3)


def test_statistics_given_as_tensors_are_saved_as_lists_and_applied_as_given():
    mean = torch.tensor([1e8 + 0.5, 0.0, 0.0], dtype=torch.float64)
    model = SpatioTemporalPerformer_Forecaster(**SMALL, global_mean=mean, global_std=torch.ones(3))
    assert model.hparams["global_mean"] == mean.tolist()
    assert model.normalization.mean_rest[0] != 0  # what float32 alone would have lost


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_function_takes_more_than_seven_arguments(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
            names = [each.arg for each in given if each is not None and each.arg not in ("self", "cls")]
            assert len(names) <= 7, f"{node.name} takes {names}: name what they have in common as a dataclass"


@pytest.mark.parametrize(
    ("build", "argument", "message"),
    [
        (train_forecaster, {"max_epochs": 1}, "give it as trainer={'max_epochs': 1}"),
        (train_forecaster, {"time_zone": "UTC"}, "give it as table=TableFormat(time_zone='UTC')"),
        (train_forecaster, {"context_len": 24}, "give it as DataModule(series, context_len=24)"),
        (train_forecaster, {"d_model": 8}, "give it as SpatioTemporalPerformer_Forecaster(..., d_model=8), trained by"),
        (train_forecaster, {"time_column": "t"}, "did you mean time_col_name?"),
        (SimulationTimeSeries, {"decimal": ","}, "give it as table=TableFormat(decimal=',')"),
        (SimulationTimeSeries, {"target_len": 2}, "give it as DataModule(series, target_len=2)"),
        (SimulationTimeSeries, {"xyz": 2}, "SimulationTimeSeries has no argument 'xyz'; it takes "),
        (DataModule, {"contextlen": 2}, "DataModule has no argument 'contextlen'; did you mean context_len?"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_argument_that_belongs_elsewhere_is_named_with_its_place(build, argument, message):
    with pytest.raises(TypeError) as refusal:
        build(torch.zeros(40, 2), **argument)
    assert message in str(refusal.value)
    assert str(refusal.value).startswith(f"{build.__name__} has no argument {next(iter(argument))!r}")
