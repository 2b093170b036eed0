"""Going on from states gives what decoding everything since the last context would."""

import pytest
import torch

from favorcast.forecasting import SpatioTemporalPerformer_Forecaster
from favorcast.forecasting.autoregression import decoder_input, forecast_step_by_step
from favorcast.forecasting.continuation import Continuation, can_continue

CONTEXT, TARGET, ROWS = 10, 4, 20


def forecaster(**changes):
    torch.manual_seed(0)
    options = {"d_model": 16, "n_heads": 2, "n_encoder_layers": 1, "n_decoder_layers": 2, "start_len": 3}
    options |= {"autoregressive_training": True, "position_embedding": "periodic", "use_revin": True}
    return SpatioTemporalPerformer_Forecaster(d_y_context=3, d_y_target=2, d_x=1, **options | changes)


def series(missing=False):
    generator = torch.Generator().manual_seed(1)
    y = torch.randn(1, ROWS + 1, 3, generator=generator) * 5 + 20
    if missing:
        y[0, CONTEXT + 1, 0] = torch.nan
    return torch.linspace(0, 1, ROWS + 1 + TARGET)[None, :, None], y


def window(x, y, end):
    """Return the context that ends before row `end`, and the covariates of the rows from there on."""
    return x[:, end - CONTEXT : end], y[:, end - CONTEXT : end], x[:, end : end + TARGET]


def expected(model, x, y, anchor, end):
    """Decode all since the context before row `anchor`: rows up to `end` as they were, then own forecasts."""
    normalization = model.normalization
    context_x, context_y, _ = window(x, y, anchor)
    statistics = normalization.statistics(context_y, ~context_y.isnan())
    signal = normalization.normalize(context_y, statistics)
    target_x = x[:, anchor : end + TARGET]
    known = decoder_input(context_x, signal, target_x, start_len=3, d_y_target=2)
    truth = normalization.normalize(y[:, anchor:end, :2], statistics)

    def next_input(i, value):
        return truth[:, i : i + 1] if i < end - anchor else value

    memory = model.model.encode(context_x, signal, signal.isnan() if model.mask_missing else None)
    decoded = forecast_step_by_step(model.model, memory, known, next_input)
    return normalization.denormalize(decoded[:, end - anchor :], statistics)


@pytest.mark.parametrize("missing", [False, True])
@torch.no_grad()
def test_rows_that_come_one_by_one_are_forecast_from_states(missing, monkeypatch):
    model = forecaster()
    x, y = series(missing)
    continuation = Continuation(model, refresh=TARGET)
    encoded = []
    original = model.model.encode
    monkeypatch.setattr(model.model, "encode", lambda *inputs: encoded.append(1) or original(*inputs))
    ours = {end: continuation.predict(*window(x, y, end)) for end in range(CONTEXT, ROWS + 1)}
    assert len(encoded) == 3  # of eleven contexts
    monkeypatch.undo()
    for end, forecast in ours.items():
        anchor = end - (end - CONTEXT) % (TARGET + 1)
        torch.testing.assert_close(forecast, expected(model.eval(), x, y, anchor, end), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours[CONTEXT], model.predict(*window(x, y, CONTEXT)), rtol=1e-4, atol=1e-4)


def test_a_context_that_does_not_follow_is_encoded(monkeypatch):
    model = forecaster()
    x, y = series()
    continuation = Continuation(model, refresh=100)
    for end in (CONTEXT, CONTEXT + 1, CONTEXT + 5, CONTEXT + 2):
        forecast = continuation.predict(*window(x, y, end))
    torch.testing.assert_close(forecast, model.predict(*window(x, y, CONTEXT + 2)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"autoregressive_training": False},
        {"patch_len": 2, "start_len": 4},
        {"linear_window": 4},
        {"position_embedding": "learned"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_other_forecasters_are_refused(changes):
    model = forecaster(**changes)
    assert not can_continue(model)
    with pytest.raises(ValueError, match=r"expected refresh >= 1 and a forecaster with autoregressive_training=True"):
        Continuation(model, refresh=4)
