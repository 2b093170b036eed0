"""Forecast from one row after another by a step-by-step forecaster, on from its states.

b batch, l context_len, n target_len; d_x covariates, d_y_context and d_y_target sensors
"""

from typing import NamedTuple, TypeGuard

import torch
from torch import Tensor

from .autoregression import decoder_input
from .missing_values import fill_missing, mark_missing
from .normalization import Statistics
from .spatiotemporal_performer_forecaster import SpatioTemporalPerformer_Forecaster
from .st_transformer.decoder import LayerMemory, LayerState


class _Anchor(NamedTuple):
    """A context that was encoded, and what the decoder has read since.

    Attributes:
        statistics: of the context, which forecasts go back to original units by.
        memory: the context, summarised for each layer.
        states: after all steps before the latest row; None before the first.
        position: of the step after the latest row.
        moved: rows that have come since the context.
        context_y: (b, l, d_y_context) the latest context, original units.
    """

    statistics: Statistics
    memory: list[LayerMemory]
    states: list[LayerState] | None
    position: int
    moved: int
    context_y: Tensor


class Continuation:
    """Forecast a context that moves on by a row each time, as a solver writes them.

    A context that is the one before and a row more costs that row and the n steps to forecast: the decoder reads the
    row and goes on from its states, in the scale of the context that was encoded last. Every other context, and one
    after `refresh` rows, is encoded itself, and gives what `Forecaster.predict` gives.

    Args:
        model: forecasts step by step (see `can_continue`); it is put into eval mode.
        refresh: rows after which the context is encoded anew, at least 1.

    Raises:
        ValueError: for another model or number.
    """

    def __init__(self, model: SpatioTemporalPerformer_Forecaster, refresh: int) -> None:
        if not can_continue(model) or refresh < 1:
            raise ValueError(
                "expected refresh >= 1 and a forecaster with autoregressive_training=True, patch_len=1, periodic "
                f"positions, and neither linear part nor trend, got refresh={refresh} and {type(model).__name__}; use "
                "model.predict, which reads the whole context"
            )
        self.model, self.refresh = model.eval(), refresh
        self._anchor: _Anchor | None = None

    @torch.no_grad()
    def predict(
        self, context_x: Tensor, context_y: Tensor, target_x: Tensor, *, block_len: int | None = None
    ) -> Tensor:
        """Forecast n steps, (b, n, d_y_target), original units; arguments as those of `Forecaster.predict`.

        Args:
            context_x: (b, l, d_x).
            context_y: (b, l, d_y_context), original units, NaN where missing.
            target_x: (b, n, d_x).
            block_len: unused: all n steps follow from the states.
        """
        device, dtype = self.model.normalization.mean.device, self.model.normalization.mean.dtype
        context_x, target_x = (fill_missing(x.to(device, dtype)) for x in (context_x, target_x))
        context_y = mark_missing(context_y.to(device), self.model.null_value)
        anchor = self._anchor
        if anchor is None or anchor.moved >= self.refresh or not _is_next(anchor.context_y, context_y):
            anchor = self._anchored(context_x, context_y, target_x)
        else:
            anchor = anchor._replace(context_y=context_y, moved=anchor.moved + 1, position=anchor.position + 1)
        last = self.model.normalization.normalize(context_y[:, -1:, : self.model.widths.d_y_target], anchor.statistics)
        forecasts, states = [], anchor.states
        for step in range(target_x.shape[1]):
            x = target_x[:, step : step + 1]
            last, states = self.model.model.stream(anchor.memory, x, last, anchor.position + step, states)
            if step == 0:
                self._anchor = anchor._replace(states=states)
            forecasts.append(last)
        return self.model.normalization.denormalize(torch.cat(forecasts, dim=1), anchor.statistics)

    def _anchored(self, context_x: Tensor, context_y: Tensor, target_x: Tensor) -> _Anchor:
        """Encode a context, and let the decoder read the steps before the latest row."""
        normalization, model = self.model.normalization, self.model.model
        statistics = normalization.statistics(context_y, ~context_y.isnan())
        signal = normalization.normalize(context_y, statistics)
        memory = model.summarize(model.encode(context_x, signal, signal.isnan() if self.model.mask_missing else None))
        config = model.config
        known = decoder_input(context_x, signal, target_x, start_len=config.start_steps, d_y_target=config.d_y_target)
        states, before = None, slice(0, known.start_len)
        if known.start_len:
            _, states = model.stream(memory, known.x[:, before], known.y[:, before], known.position)
        return _Anchor(statistics, memory, states, known.position + known.start_len, 0, context_y)


def can_continue(model: object) -> TypeGuard[SpatioTemporalPerformer_Forecaster]:
    """Tell whether a forecaster goes on from states: step by step, without a part that reads the whole context."""
    if not isinstance(model, SpatioTemporalPerformer_Forecaster):
        return False
    config = model.model.config
    is_stepwise = config.autoregressive_training and config.patch_len == 1
    reads_states_alone = model.linear_model is None and model.trend_kernel_size is None
    return is_stepwise and reads_states_alone and config.position_embedding == "periodic"


def _is_next(before: Tensor, now: Tensor) -> bool:
    """Tell whether a context is the one before and a row more."""
    return before.shape == now.shape and torch.equal(*(x.nan_to_num(torch.inf) for x in (before[:, 1:], now[:, :-1])))
