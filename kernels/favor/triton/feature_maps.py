"""Feature maps on the device, by the names of the table in `favor/feature_maps.py`: base-2 exponents and their slopes.

What no branch knows is refused when a kernel is compiled.
"""

import triton
import triton.language as tl

from ..feature_maps import RELU_OFFSET as RELU_OFFSET_OF_TORCH
from .tiles import LOG2_E

RELU_OFFSET = tl.constexpr(RELU_OFFSET_OF_TORCH)


@triton.jit
def exponent_of(x, logit_scale, bias, S: tl.constexpr):
    """Return log2 phi + bias for x = w . token, the exponential map's norm left to bias.

    The logit scale is the square root of the scale, times log2(e) for the exponential map, and negative for rows -w.
    """
    if S.FEATURE_MAP == "relu":
        positive = tl.clamp(x * logit_scale, 0.0, 1e38, propagate_nan=tl.PropagateNan.ALL)
        return tl.log2(positive + RELU_OFFSET) + bias
    elif S.FEATURE_MAP == "elu":
        y = x * logit_scale
        positive = tl.clamp(y, 0.0, 1e38, propagate_nan=tl.PropagateNan.ALL)
        return tl.where(y > 0, tl.log2(1.0 + positive), y * LOG2_E) + bias
    else:
        tl.static_assert(S.FEATURE_MAP == "exponential", "the kernels do not know this feature map")
        return tl.fma(x, logit_scale, bias)


@triton.jit
def feature_slope(d_exponent, x, logit_scale, S: tl.constexpr):
    """Multiply d_exponent by d(ln phi) / d(sqrt(scale) w . token) at x = w . token."""
    if S.FEATURE_MAP == "relu":
        y = x * logit_scale
        return tl.where(y > 0, d_exponent / (y + RELU_OFFSET), 0.0)
    elif S.FEATURE_MAP == "elu":
        y = x * logit_scale
        return tl.where(y > 0, d_exponent / (1.0 + y), d_exponent)
    else:
        tl.static_assert(S.FEATURE_MAP == "exponential", "the kernels do not know the slope of this feature map")
        return d_exponent
