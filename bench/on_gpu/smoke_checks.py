"""What `smoke.py` tries: every kernel in the ways it is called, through the public functions, against float64.

Dimension key: b batch, h key heads, t queries, s keys, d head dim, e value dim, m features, l time, c channel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from harness.cases import OUR_TOLERANCE
from torch import Tensor

from favorcast.kernels import (
    RandomFeatures,
    attend,
    draw_features,
    favor_attention,
    merge,
    series_decomposition,
    stream_attention,
    summarize,
)

Leaves = dict[str, Tensor]
Results = tuple[Tensor, ...]


class Size(NamedTuple):
    """Tokens that one launch attends to, or that make several splits and segments; tokens of steps; d, m; a series."""

    short: int
    long: int
    step: int
    long_step: int
    d: int
    m: int
    series: tuple[int, int, int]


@dataclass(frozen=True)
class Check:
    """A function of some leaves and `impl`; its results and its gradients in the leaves are compared."""

    leaves: Leaves
    run: Callable[[Leaves, str], Results]


def size_of(device: torch.device, d: int) -> Size:
    """Return sizes that fill a GPU's tiles, or that Triton's interpreter gets through in seconds."""
    if device.type == "cuda":
        return Size(200, 2000, 49, 300, d, 100 if d == 16 else 256, (2, 2000, 100))
    return Size(40, 300, 7, 100, d, 64, (1, 60, 5))


def _attention(
    size: Size, t: int, *, s: int = 0, query_heads: int = 2, e: int = 0, kind: Any = "hyperbolic", call: Any = None
) -> Check:
    """Return a check of `call(query, key, value, features, impl)`; of features that are not pairs, the rows are learnt.

    Queries and keys have norm 1 after scaling, where random features estimate softmax attention well.
    """
    generator = torch.Generator().manual_seed(0)
    shapes = {"query": (1, query_heads, t, size.d), "key": (1, 2, s or t, size.d), "value": (1, 2, s or t, e or size.d)}
    leaves = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name in ("query", "key"):
        leaves[name] *= size.d**-0.25
    drawn = draw_features(size.m, size.d, kind=kind, generator=generator)
    if not drawn.paired:
        leaves["projection"] = drawn.projection

    def run(leaves: Leaves, impl: str) -> Results:
        query, key, value = (leaves[name] for name in shapes)
        wide = torch.float64 if query.dtype == torch.float64 else torch.float32
        projection = leaves.get("projection", drawn.projection).to(query.device, wide)
        return call(query, key, value, RandomFeatures(projection, None, drawn.paired), impl)

    return Check(leaves, run)


def _calling(**options: Any) -> Callable[..., Results]:
    def call(query: Tensor, key: Tensor, value: Tensor, features: RandomFeatures, impl: Any) -> Results:
        found = dict(options)
        if found.pop("padded", False):
            generator = torch.Generator().manual_seed(1)
            found["key_padding_mask"] = (torch.rand(1, key.shape[2], generator=generator) < 0.3).to(key.device)
        if (growth := found.pop("growth", None)) is not None:
            found["key_bias"] = torch.linspace(0, growth, key.shape[2], device=key.device).expand(*key.shape[:2], -1)
        return (favor_attention(query, key, value, features, impl=impl, **found),)

    return call


def _through_states(query: Tensor, key: Tensor, value: Tensor, features: RandomFeatures, impl: Any) -> Results:
    half = key.shape[2] // 2
    parts = (slice(0, half), slice(half, None))
    first, second = (summarize(key[:, :, part], value[:, :, part], features, impl=impl) for part in parts)
    state = merge(first, second)
    return attend(query, state, features, impl=impl), *state


def _streamed(query: Tensor, key: Tensor, value: Tensor, features: RandomFeatures, impl: Any) -> Results:
    """Attend in three chunks, the last of a single token."""
    state, outputs, t = None, [], query.shape[2]
    for rows in (slice(0, t // 3), slice(t // 3, t - 1), slice(t - 1, t)):
        output, state = stream_attention(*(x[:, :, rows] for x in (query, key, value)), state, features, impl=impl)
        outputs.append(output)
    assert state is not None
    return torch.cat(outputs, 2), *state


def _decoded(query: Tensor, key: Tensor, value: Tensor, features: RandomFeatures, impl: Any) -> Results:
    """Take five steps after a summarised prompt; the later ones are carried out as earlier ones were."""
    with torch.no_grad():
        state, outputs, t = summarize(key[:, :, :-5], value[:, :, :-5], features, impl=impl), [], query.shape[2]
        for i in range(t - 5, t):
            step = (x[:, :, i : i + 1] for x in (query, key, value))
            output, state = stream_attention(*step, state, features, impl=impl)
            outputs.append(output)
    return torch.cat(outputs, 2), *state


def _decomposition(
    size: Size, kernel_size: int | list[int], *, masked: bool = False, mixed: bool = False, causal: bool = False
) -> Check:
    generator = torch.Generator().manual_seed(0)
    leaves = {"x": torch.randn(size.series, generator=generator)}
    observed = torch.rand(leaves["x"].shape, generator=generator) > 0.3
    if mixed:
        assert isinstance(kernel_size, list)
        leaves["weights"] = torch.rand(*leaves["x"].shape, len(kernel_size), generator=generator)

    def run(leaves: Leaves, impl: Any) -> Results:
        mask = observed.to(leaves["x"].device) if masked else None
        weights = leaves.get("weights")
        return series_decomposition(leaves["x"], kernel_size, causal=causal, mask=mask, weights=weights, impl=impl)

    return Check(leaves, run)


def checks(size: Size) -> dict[str, Callable[[], Check]]:
    """Return name to what makes the check."""
    short, long, causal = size.short, size.long, {"is_causal": True}
    grouped = {"query_heads": 4, "e": 3 * size.d // 4}

    def attention(t: int, call: Callable[..., Results], **shape: Any) -> Callable[[], Check]:
        return lambda: _attention(size, t, call=call, **shape)

    def steps(tokens: int) -> Callable[..., Results]:
        return _calling(is_causal=True, tokens_per_step=tokens)

    return {
        "full": attention(2 * long, _calling()),
        "full in one launch": attention(short, _calling()),
        "full, padded, grouped": attention(short, _calling(padded=True), s=long, **grouped),
        "full, biased": attention(short, _calling(growth=3.0), s=long, **grouped),
        "full, learnt rows": attention(short, _calling(), kind="orthogonal"),
        "full, relu features": attention(short, _calling(feature_map="relu")),
        "summarize, merge, attend": attention(short, _through_states, s=long),
        "causal": attention(long, _calling(**causal)),
        "causal, padded, grouped": attention(long, _calling(padded=True, **causal), **grouped),
        "causal, biased, grouped": attention(long, _calling(growth=46.0, **causal), **grouped),
        "causal, learnt rows": attention(long, _calling(**causal), kind="orthogonal"),
        "causal over steps": attention(long, steps(size.step)),
        "causal over long steps": attention(long, steps(size.long_step)),
        "stream": attention(long, _streamed),
        "decoding": attention(long, _decoded),
        "decomposition": lambda: _decomposition(size, 25),
        "decomposition, causal, masked": lambda: _decomposition(size, 24, causal=True, masked=True),
        "decomposition, mixture": lambda: _decomposition(size, [7, 12, 25], mixed=True),
        "decomposition, masked mixture": lambda: _decomposition(size, [7, 12, 25], masked=True, mixed=True),
        "decomposition, long window": lambda: _decomposition(size, 1025, masked=True),
    }


class Computed(NamedTuple):
    """What a check gives: results, and gradients of its leaves where it has any."""

    results: Results
    gradients: Results


def computed(check: Check, impl: str, device: torch.device, dtype: torch.dtype, *, exact: bool = False) -> Computed:
    """Compute a check from leaves rounded to a dtype; `exact` goes on in float64."""
    leaves = {}
    for name, x in check.leaves.items():
        rounded = x if name == "projection" else x.to(dtype)
        leaves[name] = rounded.to(device, torch.float64 if exact else None).requires_grad_()
    found = check.run(leaves, impl)
    if not found[0].requires_grad:
        return Computed(found, ())
    generator = torch.Generator().manual_seed(5)
    upstream = [torch.randn(x.shape, generator=generator).to(dtype).to(x) for x in found]
    gradients = torch.autograd.grad(found, list(leaves.values()), upstream)
    return Computed(tuple(x.detach() for x in found), gradients)


def verdict(check: Check, device: torch.device, dtype: torch.dtype) -> str:
    """Return "right" or "WRONG" with the largest relative errors, and whether equal calls give other bits."""
    wanted = computed(check, "reference", torch.device("cpu"), dtype, exact=True)
    first = computed(check, "triton", device, dtype)
    said, is_right = [], True
    for kind, got, exact, bound in zip(Computed._fields, first, wanted, OUR_TOLERANCE[dtype], strict=True):
        errors = [float((x.double().cpu() - y).norm() / y.norm()) for x, y in zip(got, exact, strict=True)]
        is_right &= all(error <= bound for error in errors)  # a NaN is not
        said += [f"{kind} {max(errors, key=lambda x: (x != x, x)):.1e}"] if errors else []
    for _ in range(2 if device.type == "cuda" else 0):
        again = computed(check, "triton", device, dtype)
        if not all(torch.equal(x, y) for x, y in zip(sum(again, ()), sum(first, ()), strict=True)):
            return f"WRONG  {', '.join(said)}, and other bits in another run"
    return f"{'right' if is_right else 'WRONG'}  {', '.join(said)}"
