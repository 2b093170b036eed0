"""What a launch of a FAVOR kernel needs besides tensors: tile sizes, compile-time values, the number of splits.

Dimension key: b batch, h key heads, n tokens, d head dim, e value dim, m features.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple, cast

import torch
import triton.language as tl
from torch import Tensor
from triton.runtime import JITFunction, driver

from ..feature_maps import FEATURE_MAPS
from ..types import FeatureSpace
from .tiles import Spec, Vectors, load_tile, vectors_of
from .tuning import launch_config

INTERPRETED = not isinstance(load_tile, JITFunction)
"""Whether TRITON_INTERPRET=1 was set when the kernels were imported: they then run on CPU tensors, slowly."""

LONGEST_SPLIT = 8192
"""Tokens summed in one go: more would let float32 sums drift, by 2e-4 over 1e5 equal values."""

SHORTEST_SPLIT_TILES = 4
"""Token tiles below which a split is not worth its merging."""


def ceil_div(n: int, d: int) -> int:
    return -(-n // d)


def next_power_of_two(n: int) -> int:
    """Return the smallest power of two that is at least n and at least 16, the least a tensor core takes."""
    return max(16, 1 << (n - 1).bit_length())


@lru_cache(maxsize=256)
def _spec(m: int, d: int, e: int, feature_map: str, paired: bool, dtype: torch.dtype, impl: str) -> Spec:
    precision = "tf32" if dtype != torch.float32 else "ieee" if impl == "triton-ieee" else "tf32x3"
    operand = tl.bfloat16 if dtype == torch.bfloat16 else tl.float32
    blocks = next_power_of_two(d), next_power_of_two(e)
    return Spec(
        m // 2 if paired else m,
        m,
        d,
        e,
        feature_map,
        FEATURE_MAPS[feature_map].has_norm,
        paired,
        *blocks,
        operand,
        precision,
    )


def operand_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which softmax weights and state enter a product: never float16."""
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float32


@lru_cache(maxsize=16)
def processors(device: torch.device) -> int:
    """Return how many programs run at once, at one a multiprocessor."""
    if device.type != "cuda":
        return 4  # under the interpreter: enough to exercise splits
    return torch.cuda.get_device_properties(device).multi_processor_count


@lru_cache(maxsize=16)
def _cuda_capability(device: torch.device) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def capability(device: torch.device) -> int:
    """Return the architecture to launch for, 90 for 9.0; off the GPU that of the interpreter or of Triton's driver."""
    if device.type == "cuda":
        return _cuda_capability(device)
    if INTERPRETED:
        return 90
    return cast(Any, driver.active).get_current_target().arch


class Launch(NamedTuple):
    """Tile sizes clipped to the problem, and keyword arguments: compile-time values, and those of Triton's launcher."""

    tokens: int
    tiles: int
    options: dict[str, Any]


def launch_of(kernel: str, spec: Spec, token_count: int, device: torch.device) -> Launch:
    """Return how to launch a kernel over `token_count` tokens: its tabled configuration, no larger than the problem."""
    return _clipped_launch(kernel, spec, capability(device), next_power_of_two(token_count))


@lru_cache(maxsize=1024)
def _clipped_launch(kernel: str, spec: Spec, architecture: int, most_tokens: int) -> Launch:
    config = launch_config(kernel, max(spec.BLOCK_D, spec.BLOCK_E), spec.OPERAND is tl.float32, architecture)
    features = min(config.features, next_power_of_two(spec.FEATURES))
    tiles = ceil_div(spec.FEATURES, features)
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    filled = spec._replace(BLOCK_M=features, TILES=tiles)
    return Launch(min(config.tokens, most_tokens), tiles, {"S": compile_time(filled), **options})


def compile_time(spec: Spec) -> Any:
    """Return a spec as kernels take it."""
    return Spec(*map(cast(Any, tl.constexpr), spec))


@lru_cache(maxsize=256)
def landmark_spec(m: int, e: int) -> tuple[int, Any]:
    """Return the tiles of features of a kernel that only adds up states (m, e), and its compile-time values."""
    block = min(16, next_power_of_two(m))
    spec = Spec(m, m, 0, e, "", False, False, 0, next_power_of_two(e), tl.float32, "", block, ceil_div(m, block))
    return spec.TILES, compile_time(spec)


class Problem(NamedTuple):
    """Tokens (b, heads, length, d) that meet the landmarks of `key_heads` heads, and what launches over them share."""

    tokens: Tensor
    mask: Tensor | None
    space: FeatureSpace
    spec: Spec
    batch: int
    heads: int
    length: int
    key_heads: int

    @classmethod
    def of(
        cls, tokens: Tensor, mask: Tensor | None, space: FeatureSpace, impl: str, key_heads: int, value_dim: int
    ) -> Problem:
        (batch, heads, length, d), m = tokens.shape, space.projection.shape[-2]
        spec = _spec(m, d, value_dim, space.feature_map, space.paired, tokens.dtype, impl)
        return cls(tokens, mask, space, spec, batch, heads, length, key_heads)

    @property
    def group(self) -> int:
        """Heads of tokens for each key head."""
        return self.heads // self.key_heads

    @property
    def batch_heads(self) -> int:
        """Batches and key heads."""
        return self.batch * self.key_heads

    @property
    def token_planes(self) -> int:
        """Batches and heads of tokens."""
        return self.batch * self.heads

    @property
    def chain(self) -> float:
        """What d(w . x) is multiplied with for d x."""
        return math.sqrt(self.space.scale)

    @property
    def scales(self) -> tuple[float, float]:
        """What w . x and |x|^2 are multiplied with: the scale, and log2(e) for the exponential map."""
        base = math.log2(math.e) if self.space.feature_map == "exponential" else 1.0
        return self.chain * base, 0.5 * self.space.scale * base

    @property
    def log_weight(self) -> Vectors | None:
        return None if self.space.log_weight is None else vectors_of(self.space.log_weight)

    def reading(self, projection: Tensor) -> Problem:
        """Return the same with a copy of the projection, of paired features the first half, unless that is empty."""
        return self if projection.numel() == 0 else self._replace(space=self.space._replace(projection=projection))

    def launch(self, kernel: str) -> Launch:
        """Return how to launch a kernel over the tokens: its tabled configuration, no larger than the problem."""
        return launch_of(kernel, self.spec, self.length, self.tokens.device)

    def empty(self, dtype: torch.dtype, *shape: int) -> Tensor:
        return self.tokens.new_empty(shape, dtype=dtype)


def split_tokens(token_tiles: int, tile_length: int, programs: int, device: torch.device) -> tuple[int, int]:
    """Return (splits, token tiles of each) so that two waves of programs fill the device and no split is too long."""
    wanted = ceil_div(2 * processors(device), programs)
    allowed = token_tiles // SHORTEST_SPLIT_TILES
    needed = ceil_div(token_tiles * tile_length, LONGEST_SPLIT)
    each = ceil_div(token_tiles, max(1, needed, min(wanted, allowed)))
    return max(1, ceil_div(token_tiles, max(1, each))), max(1, each)
