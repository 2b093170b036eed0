"""Forecasting step by step: the decoder reads the value of the step before, given or forecast.

b batch, l context_len, s start_len, n target_len, d d_y_target; all values in model units. With patch_len p > 1 lengths
are whole patches, and what is said of steps holds for patches: the model reads the patch before.

At decoder step i the model reads the covariates of that step and the values of the step before, so that forecasts can
be made all at once when the values are known, and one after the other when they are not:

    decoder_x     start_x[0] ... start_x[s-1]            target_x[0]     target_x[1]    ...  target_x[n-1]
    decoder_y     context_y[l-s-1] ... context_y[l-2]    context_y[l-1]  next_input[0]  ...  next_input[n-2]
    forecast      (dropped)                              y[0]            y[1]           ...  y[n-1]
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from einops import repeat
from torch import Tensor

from .st_transformer import Memory, SpatioTemporalPerformer
from .st_transformer.patches import to_patches
from .training.scheduled_sampling import ScheduledSampling, draw_given


class DecoderInput(NamedTuple):
    """What a decoder knows before its first forecast.

    Attributes:
        x: (b, s + n, d_x) covariates of the start steps and the targets.
        y: (b, s + p, d) values of the patch before each start patch and before the first target; NaN where missing.
        position: of the first start patch, counted from the start of the context.
        patch_len: steps in a patch p.
        linear: (b, s + n, d) what the decoder is given of the linear forecast, 0 at the start steps; None for nothing.
    """

    x: Tensor
    y: Tensor
    position: int
    patch_len: int = 1
    linear: Tensor | None = None

    @property
    def start_len(self) -> int:
        """Number of start steps s."""
        return self.y.shape[1] - self.patch_len

    def linear_at(self, steps: slice) -> Tensor | None:
        """Return what the decoder is given of the linear forecast at some steps."""
        return None if self.linear is None else self.linear[:, steps]


def decoder_input(
    context_x: Tensor,
    context_y: Tensor,
    target_x: Tensor,
    *,
    start_len: int,
    d_y_target: int,
    patch_len: int = 1,
    linear_forecast: Tensor | None = None,
) -> DecoderInput:
    """Cut the decoder's input out of a window; the step before a context that is all start steps is missing.

    Context, horizon and start_len are whole patches.
    """
    context_len = context_y.shape[1]
    targets = context_y[..., :d_y_target]
    if start_len == context_len:
        targets = torch.cat((torch.full_like(targets[:, :patch_len], torch.nan), targets), dim=1)
    linear = None
    if linear_forecast is not None:
        before = linear_forecast.new_zeros(len(linear_forecast), start_len, d_y_target)
        linear = torch.cat((before, linear_forecast), dim=1)
    return DecoderInput(
        torch.cat((context_x[:, context_len - start_len :], target_x), dim=1),
        targets[:, targets.shape[1] - start_len - patch_len :],
        (context_len - start_len) // patch_len,
        patch_len,
        linear,
    )


def forecast_given(model: SpatioTemporalPerformer, memory: Memory, known: DecoderInput, values: Tensor) -> Tensor:
    """Forecast all n steps at once from the values before each of them, (b, n, d).

    Args:
        model: with a step-causal decoder.
        memory: of the context.
        known: what precedes the first forecast.
        values: (b, n - p, d) what the decoder reads at the patches after the first; NaN where missing.
    """
    read = torch.cat((known.y, values), dim=1)
    return model.decode(memory, known.x, read, known.position, known.linear)[:, known.start_len :]


def forecast_step_by_step(
    model: SpatioTemporalPerformer, memory: Memory, known: DecoderInput, next_input: Callable[[int, Tensor], Tensor]
) -> Tensor:
    """Forecast n steps one after the other, (b, n, d), each at the same cost.

    The memory is summarised once for each layer, and what the decoder has read is kept as states of constant size.

    Args:
        model: with a step-causal decoder.
        memory: of the context.
        known: what precedes the first forecast.
        next_input: maps (patch i, forecast (b, p, d) of that patch) to what the decoder reads at patch i + 1,
            (b, p, d).
    """
    patch_len = known.patch_len
    first = known.y.shape[1]
    summary = model.summarize(memory)
    now = slice(0, first)
    forecast, states = model.stream(summary, known.x[:, now], known.y, known.position, None, known.linear_at(now))
    forecasts = [forecast[:, -patch_len:]]
    for i in range(first, known.x.shape[1], patch_len):
        values = next_input((i - first) // patch_len, forecasts[-1])
        now, position = slice(i, i + patch_len), known.position + i // patch_len
        forecast, states = model.stream(summary, known.x[:, now], values, position, states, known.linear_at(now))
        forecasts.append(forecast)
    return torch.cat(forecasts, dim=1)


def baseline_increments(offset: Tensor, last: Tensor | None, patch_len: int = 1) -> tuple[Tensor, Tensor]:
    """Return the increments of the baseline and the baseline one step before, both (b, n, d).

    The decoder forecasts changes. With o the baseline that its forecast f is added to, and r what it reads,

        r[t] = f[t-1] + o[t-1]        decoder output c[t] = r[t] + change[t]        f[t] = c[t] - o[t-1]

    so that c plus the increment o[t] - o[t-1] continues the signal, and zero change follows the baseline. In a patch,
    t - 1 is the last step of the patch before.

    Args:
        offset: (b, n, d) the baseline o, zero where there is none.
        last: (b, d) o before the first step: the last value of the context, NaN where missing; None for zero.
        patch_len: steps in a patch, n is a multiple of it.
    """
    first = torch.zeros_like(offset[:, 0]) if last is None else torch.where(last.isnan(), 0.0, last)
    ends = to_patches(offset, patch_len)[..., -1]  # (b, n / p, d)
    before = repeat(torch.cat((first[:, None], ends[:, :-1]), dim=1), "b s d -> b (s p) d", p=patch_len)
    return offset - before, before


class TeacherInputs(NamedTuple):
    """What training adds to a window.

    Attributes:
        truth: (b, n, d) the signal that continues the context, NaN where missing.
        increment: (b, n, d) what a forecast lacks to continue the context, see `baseline_increments`.
        ratio: 0-d, how often the truth is read.
    """

    truth: Tensor
    increment: Tensor
    ratio: Tensor


def teacher_forced_forecast(
    model: SpatioTemporalPerformer, memory: Memory, known: DecoderInput, teacher: TeacherInputs
) -> Tensor:
    """Forecast each step from the truth of the step before, all in parallel."""
    return forecast_given(model, memory, known, teacher.truth[:, : -known.patch_len])


def parallel_scheduled_sampling(
    model: SpatioTemporalPerformer, memory: Memory, known: DecoderInput, teacher: TeacherInputs
) -> Tensor:
    """Forecast from the truth, then again from a mixture of truth and first forecasts; gradients flow through both.

    Mihaylova & Martins 2019 (Scheduled Sampling for Transformers), section 3, with a draw for each step.
    """
    own = (teacher_forced_forecast(model, memory, known, teacher) + teacher.increment)[:, : -known.patch_len]
    truth = teacher.truth[:, : -known.patch_len]
    is_given = draw_given(truth, teacher.ratio, known.patch_len)
    return forecast_given(model, memory, known, torch.where(is_given, truth, own))


def sequential_scheduled_sampling(
    model: SpatioTemporalPerformer, memory: Memory, known: DecoderInput, teacher: TeacherInputs
) -> Tensor:
    """Forecast step by step from the truth or the model's own forecast; gradients flow through the forecasts."""
    patch_len = known.patch_len
    is_given = draw_given(teacher.truth, teacher.ratio, patch_len)

    def next_input(i: int, forecast: Tensor) -> Tensor:
        step = slice(i * patch_len, (i + 1) * patch_len)
        return torch.where(is_given[:, step], teacher.truth[:, step], forecast + teacher.increment[:, step])

    return forecast_step_by_step(model, memory, known, next_input)


TRAINING_FORECASTS: dict[ScheduledSampling, Callable[..., Tensor]] = {
    "none": teacher_forced_forecast,
    "parallel": parallel_scheduled_sampling,
    "sequential": sequential_scheduled_sampling,
}
