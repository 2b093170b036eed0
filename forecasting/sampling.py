"""Scheduled sampling: how often training shows the decoder the truth."""

import math


def inverse_sigmoid_ratio(step: float, k: float) -> float:
    """Return the probability of feeding the truth after `step` optimiser steps.

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
