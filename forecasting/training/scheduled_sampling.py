"""Scheduled sampling: how often training shows the decoder the truth.

b batch, n target_len, d d_y_target
"""

import math
from typing import Literal

import torch
from torch import Tensor

ScheduledSampling = Literal["none", "parallel", "sequential"]


def inverse_sigmoid_ratio(step: float, k: float) -> float:
    """Return the probability of reading the truth after `step` optimiser steps.

        eps = k / (k + exp(step / k)) = sigmoid(log k - step / k)

    Bengio et al. 2015 (Scheduled Sampling for Sequence Prediction with Recurrent Neural Networks), section 2.4; their
    i is our step. The sigmoid form is finite for every step.

    Args:
        step: optimiser steps so far, >= 0.
        k: speed, > 0; the ratio passes 1/2 at step = k log k.

    Raises:
        ValueError: for a negative step or a k that is not positive.
    """
    if not k > 0:
        raise ValueError(f"k must be positive: got {k}")
    if not step >= 0:
        raise ValueError(f"step must be at least 0: got {step}")
    logit = math.log(k) - step / k
    if logit >= 0:
        return 1 / (1 + math.exp(-logit))
    return math.exp(logit) / (1 + math.exp(logit))


def draw_given(truth: Tensor, ratio: Tensor | float, patch_len: int = 1) -> Tensor:
    """Draw which values the decoder is given, (b, n, d) bool: all sensors of a patch with probability `ratio`.

    A missing value (NaN) is never given: there the decoder reads its own forecast.

    Args:
        truth: (b, n, d).
        ratio: probability, a number or a 0-d tensor.
        patch_len: steps in a patch; n is a multiple of it.
    """
    coins = torch.rand(truth.shape[0], truth.shape[1] // patch_len, 1, device=truth.device) < ratio
    return coins.repeat_interleave(patch_len, dim=1) & ~truth.isnan()
