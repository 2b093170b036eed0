"""What the FAVOR kernels share: how a tile is addressed, and how products are rounded.

Dimension key: b batch, h heads, n tokens, d columns, A rows of a tile, B columns of a tile.

Kernels receive the caller's tensors as `Rows` and `Vectors`: a pointer with the strides of its dimensions, so any
layout is read in place. What our own launchers allocate is contiguous and enters as a bare pointer, read by the
`_block` functions. Offsets are 64-bit, but for those within a plane of a block. Exponents are kept in base 2
throughout, where exp2 is one instruction.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ..types import LOWEST_BIAS as LOWEST_BIAS_OF_TORCH

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
NO_MAX = tl.constexpr(-1.7e38)  # a running maximum before its first entry: finite, so that no difference is NaN
NORM_DOMINATES = tl.constexpr(1e30)  # |x|^2 beyond which w . x is less than the rounding of |x|^2 / 2
FARTHEST = tl.constexpr(1e36)  # |x|^2 is cut here, so that exponents stay finite
LARGEST_ENTRY = tl.constexpr(1e18)  # the same cut for single entries
LOWEST_BIAS = tl.constexpr(LOWEST_BIAS_OF_TORCH)


class Spec(NamedTuple):
    """The compile-time values of a launch, in kernels the one parameter `S`."""

    FEATURES: int
    """Rows of the projection that are multiplied: half of all where they are paired."""
    ALL: int
    DIM: int
    VALUE_DIM: int
    FEATURE_MAP: str
    HAS_NORM: bool
    ANTITHETIC: bool
    BLOCK_D: int
    BLOCK_E: int
    OPERAND: tl.dtype
    """Of softmax weights and states in products."""
    PRECISION: str
    BLOCK_M: int = 0
    TILES: int = 0
    """Tiles of features, and those of the walk that leaves a causal problem's states."""
    WALK_TILES: int = 0
    WITHIN: bool = False
    """Whether the tokens of a causal segment see each other by steps, and not all."""


class Rows(NamedTuple):
    """A (b, h, n, d) tensor: where it starts and how far apart its neighbours are along each dimension."""

    pointer: Tensor
    batch_stride: int
    head_stride: int
    row_stride: int
    column_stride: int


class Vectors(NamedTuple):
    """A (b, h, n) tensor, likewise."""

    pointer: Tensor
    batch_stride: int
    head_stride: int
    row_stride: int


def rows_of(x: Tensor) -> Rows:
    """Describe a (b, h, n, d) tensor, or an (n, d) or (h, n, d) one that the batch (and the heads) share."""
    return Rows(x, *(0,) * (4 - x.ndim), *x.stride())


def vectors_of(x: Tensor) -> Vectors:
    """Describe a (b, h, n) tensor, or an (n) or (h, n) one that the batch (and the heads) share."""
    return Vectors(x, *(0,) * (3 - x.ndim), *x.stride())


def mask_of(mask: Tensor | None) -> Vectors | None:
    """Describe padding (b, n), which the heads share, or a key bias (b, h, n)."""
    if mask is None:
        return None
    return vectors_of(mask) if mask.ndim == 3 else Vectors(mask, mask.stride(0), 0, mask.stride(1))


@triton.jit
def row_pointers(x, batch, head, rows):
    start = x.pointer + batch.to(tl.int64) * x.batch_stride + head.to(tl.int64) * x.head_stride
    return start + rows.to(tl.int64) * x.row_stride


@triton.jit
def tile_of(index, count, BLOCK: tl.constexpr):
    """Return (rows [BLOCK], which of them exist, rest of index) of a tile of `count` tokens."""
    tiles = tl.cdiv(count, BLOCK)
    rows = index % tiles * BLOCK + tl.arange(0, BLOCK)
    return rows, rows < count, index // tiles


@triton.jit
def load_tile(x, batch, head, rows, keep, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr):
    """Load [A, BLOCK_DIM] of x; rows that are not kept and columns from DIM on are zero."""
    columns = tl.arange(0, BLOCK_DIM)
    pointers = row_pointers(x, batch, head, rows)[:, None] + columns.to(tl.int64)[None, :] * x.column_stride
    return tl.load(pointers, mask=keep[:, None] & (columns < DIM)[None, :], other=0.0)


@triton.jit
def store_tile(x, batch, head, rows, keep, tile, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr):
    columns = tl.arange(0, BLOCK_DIM)
    pointers = row_pointers(x, batch, head, rows)[:, None] + columns.to(tl.int64)[None, :] * x.column_stride
    tl.store(pointers, tile.to(x.pointer.dtype.element_ty), mask=keep[:, None] & (columns < DIM)[None, :])


@triton.jit
def load_vector(x, batch, head, rows, keep, other):
    return tl.load(row_pointers(x, batch, head, rows), mask=keep, other=other)


@triton.jit
def store_vector(x, batch, head, rows, keep, vector):
    tl.store(row_pointers(x, batch, head, rows), vector.to(x.pointer.dtype.element_ty), mask=keep)


@triton.jit
def block_pointers(pointer, plane, count, rows, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr):
    """Return pointers [A, BLOCK_DIM] into a contiguous (batch_heads, count, DIM) tensor, each below 2^31 elements."""
    columns = tl.arange(0, BLOCK_DIM)
    return pointer + plane.to(tl.int64) * count * DIM + (rows[:, None] * DIM + columns[None, :])


@triton.jit
def load_block(pointer, plane, count, rows, keep, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr):
    """Load [A, BLOCK_DIM] of a contiguous (batch_heads, count, DIM) tensor, zero where not kept and from DIM on."""
    pointers = block_pointers(pointer, plane, count, rows, DIM, BLOCK_DIM)
    return tl.load(pointers, mask=keep[:, None] & (tl.arange(0, BLOCK_DIM) < DIM)[None, :], other=0.0)


@triton.jit
def store_block(pointer, plane, count, rows, keep, block, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr):
    pointers = block_pointers(pointer, plane, count, rows, DIM, BLOCK_DIM)
    mask = keep[:, None] & (tl.arange(0, BLOCK_DIM) < DIM)[None, :]
    tl.store(pointers, block.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def load_block_vector(pointer, plane, count, rows, keep, other):
    """Load [A] of a contiguous (batch_heads, count) tensor."""
    return tl.load(pointer + plane.to(tl.int64) * count + rows, mask=keep, other=other)


@triton.jit
def store_block_vector(pointer, plane, count, rows, keep, vector):
    tl.store(pointer + plane.to(tl.int64) * count + rows, vector, mask=keep)


@triton.jit
def seen_keys(mask, batch, head, rows, end):
    """Return which keys of a tile exist and are not hidden: by padding, or a bias of -inf."""
    keep = rows < end
    if mask is not None:
        if mask.pointer.dtype.element_ty == tl.int1:
            keep = keep & (load_vector(mask, batch, batch * 0, rows, keep, 1) == 0)
        else:
            hidden = load_vector(mask, batch, head, rows, keep, 0.0).to(tl.float32) <= LOWEST_BIAS
            keep = keep & (hidden == 0)  # NaN hides nothing
    return keep


@triton.jit
def with_key_bias(bias, mask, batch, head, rows, keep):
    """Return the bias [N] of keys' exponents with log2(e) times the caller's own, where the mask is one."""
    if mask is not None and mask.pointer.dtype.element_ty != tl.int1:
        bias += load_vector(mask, batch, head, rows, keep, 0.0).to(tl.float32) * LOG2_E
    return bias


@triton.jit
def keep_if(condition, keep):
    """Return keep [A] where a scalar condition holds, else nothing.

    `keep & condition` is the same when compiled; Triton 3.9's interpreter spreads the condition as a number, no mask.
    """
    return tl.where(condition, keep, False)


@triton.jit
def square_norm(tile):
    """Return |x|^2 [A], cut so that it stays finite."""
    wide = tile.to(tl.float32)
    return tl.minimum(tl.sum(wide * wide, 1), FARTHEST, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def cut_entries(tile):
    """Keep entries within a range where their products stay finite."""
    wide = tile.to(tl.float32)
    return tl.clamp(wide, -LARGEST_ENTRY, LARGEST_ENTRY, propagate_nan=tl.PropagateNan.ALL).to(tile.dtype)


@triton.jit
def exponent_bias(k, mask, batch, head, rows, keep, norm_scale, S: tl.constexpr):
    """Return log2(e) (bias - |k|^2 / 2) [N] of keys, -inf where they are not seen."""
    if S.HAS_NORM:
        bias = tl.where(keep, -norm_scale * square_norm(k), float("-inf"))
    else:
        bias = tl.where(keep, 0.0, float("-inf"))
    return with_key_bias(bias, mask, batch, head, rows, keep)


@triton.jit
def usable_tokens(x, KEYS: tl.constexpr, S: tl.constexpr):
    """Return tokens [N, D] as the forward used them: keys so far away that only their norm counts are zero."""
    if KEYS and S.HAS_NORM:
        return tl.where((square_norm(x) > NORM_DOMINATES)[:, None], 0.0, x).to(x.dtype)
    else:
        return cut_entries(x)


@triton.jit
def rounded_away(x, rounded):
    """Return what rounding x has taken from it, in the dtype of the rounded."""
    return (x - rounded.to(tl.float32)).to(rounded.dtype)


@triton.jit
def project_back(d_projected, rows, acc, S: tl.constexpr):
    """Return acc + d_projected @ rows, [A, B] @ [B, D]; where operands are bfloat16, d_projected is the sum of two.

    The rounding of one alone is a third of the error of the gradients of keys and learnt features.
    """
    high = d_projected.to(S.OPERAND)
    acc = tl.dot(high, rows.to(S.OPERAND), acc, input_precision=S.PRECISION)
    if tl.bfloat16 == S.OPERAND:
        acc = tl.dot(rounded_away(d_projected, high), rows.to(S.OPERAND), acc, input_precision=S.PRECISION)
    return acc


@triton.jit
def online_softmax_update(exponent, rows, row_max, row_sum, acc, S: tl.constexpr):
    """Fold exponents [A, B] of rows [B, E] into an online softmax over B: its maximum, sum and weighted sum of rows."""
    new_max = tl.maximum(row_max, tl.max(exponent, 1))
    weight = tl.exp2(exponent - new_max[:, None])  # [A, B]
    rescale = tl.exp2(row_max - new_max)
    row_sum = row_sum * rescale + tl.sum(weight, 1)
    acc = tl.dot(weight.to(rows.dtype), rows, acc * rescale[:, None], input_precision=S.PRECISION)  # [A, E]
    return new_max, row_sum, acc


@triton.jit
def online_softmax_update_pair(exponent, neg_exponent, rows, neg_rows, row_max, row_sum, acc, S: tl.constexpr):
    """Fold two tiles at once: the sum of rows is rescaled once for both."""
    new_max = tl.maximum(row_max, tl.max(tl.maximum(exponent, neg_exponent), 1))
    weight = tl.exp2(exponent - new_max[:, None])  # [A, B]
    neg_weight = tl.exp2(neg_exponent - new_max[:, None])
    rescale = tl.exp2(row_max - new_max)
    row_sum = row_sum * rescale + tl.sum(weight + neg_weight, 1)
    acc = tl.dot(weight.to(rows.dtype), rows, acc * rescale[:, None], input_precision=S.PRECISION)
    acc = tl.dot(neg_weight.to(neg_rows.dtype), neg_rows, acc, input_precision=S.PRECISION)
    return new_max, row_sum, acc
