"""FAVOR attention, full, causal and causal over time steps, against its peers.

Dimension key: b batch, h heads, l length, d head dim, m features.

Every provider of a case gets the same q, k, v and, where it uses random features, the same projection. q and k have
entries of standard deviation 1/2, where FAVOR attention is worth using and where performer-pytorch's 1e-4 on each
feature changes its result by percents, not entirely.
"""

from __future__ import annotations

import torch
from harness.cases import (
    OUR_TOLERANCE,
    Case,
    Expected,
    Impl,
    Passes,
    Prepared,
    Provider,
    Scale,
    Tolerance,
    Work,
    leaves,
    our_implementations,
)
from harness.favor_exact import AttentionShape, Mask, expected_attention, favor_work, softmax_work
from harness.favor_peers import (
    NAMES,
    Prepare,
    fla_linear_attention,
    performer_pytorch,
    softmax_attention,
    two_hop_flex_attention,
    two_hop_torch,
)
from torch import Tensor

from favorcast.kernels import RandomFeatures, draw_features, favor_attention

FULL, CAUSAL, STEP_CAUSAL = "favor full", "favor causal", "favor step-causal"
SEED_SHAPES = [AttentionShape(4, 8, 3920, 16, 100), AttentionShape(196, 8, 80, 16, 100)]
"""Global and local encoder attention of the ancestor's own configuration: 80 steps of 49 sensors."""

TARGET_SHAPES = [AttentionShape(8, 16, length, 64, 256) for length in (1024, 4096, 16384)]
FLA_SHAPES = [
    AttentionShape(1, 96, 8192, 128, 256),
    AttentionShape(2, 16, 16384, 128, 256),
    AttentionShape(4, 16, 2048, 128, 256),
    AttentionShape(4, 64, 4096, 128, 256),
    AttentionShape(8, 32, 2048, 256, 256),
    AttentionShape(8, 8, 1024, 64, 256),
]
"""The production shapes of fla's own benchmark, with m = 256."""

FORECASTING_SHAPES = [AttentionShape(32, 8, length, 32, 128) for length in (96, 192, 336, 720, 1024, 2048)]
LONG_SHAPES = [AttentionShape(1, 8, 1 << power, 64, 256) for power in (10, 12, 14, 16, 18, 20)]
CPU_SHAPES = [AttentionShape(1, 8, 1 << power, 64, 256) for power in range(8, 15)] + SEED_SHAPES[:1]
QUICK_SHAPES = [AttentionShape(1, 2, length, 16, 64) for length in (128, 512, 2048)]

SOFTMAX_LIMIT = {"cpu": 1e11, "cuda": 1.2e14}
"""Products (FLOP) forward beyond which softmax attention is left out: about a second forward and backward."""

PERFORMER_TOLERANCE = Tolerance(0.3, 0.5)
"""performer-pytorch adds 1e-4 to each feature, which changes the result by some percent at these inputs."""


def cases(scale: Scale) -> list[Case]:
    """Return the cases; GPU figures are bfloat16, with float32 at one shape, CPU figures float32."""
    if scale != "gpu":
        shapes = QUICK_SHAPES if scale == "quick" else CPU_SHAPES
        stepped = (shapes[0] if scale == "quick" else SEED_SHAPES[0])._replace(step=16 if scale == "quick" else 49)
        return [Case(op, shape, torch.float32) for op in (FULL, CAUSAL) for shape in shapes] + [
            Case(STEP_CAUSAL, stepped, torch.float32)
        ]
    both = TARGET_SHAPES + SEED_SHAPES[:1] + LONG_SHAPES + FLA_SHAPES
    found = [Case(FULL, shape, torch.bfloat16) for shape in both + SEED_SHAPES[1:] + FORECASTING_SHAPES]
    found += [Case(CAUSAL, shape, torch.bfloat16) for shape in both]
    found += [Case(STEP_CAUSAL, SEED_SHAPES[0]._replace(step=49), torch.bfloat16)]
    return found + [Case(FULL, shape, torch.float32) for shape in (TARGET_SHAPES[1], SEED_SHAPES[0])]


def mask_of(case: Case) -> Mask:
    """Return what a query of the case sees."""
    return Mask(case.op != FULL, _shape(case).step)


def features_of(case: Case) -> RandomFeatures:
    """Return the hyperbolic features shared by the providers."""
    shape = _shape(case)
    return draw_features(shape.m, shape.d, generator=torch.Generator().manual_seed(1))


def inputs(case: Case, device: torch.device) -> dict[str, Tensor]:
    """Return query, key, value (b, h, l, d); drawn on the device, where a million tokens take no time."""
    shape = _shape(case)
    generator = torch.Generator(device).manual_seed(0)
    found = {}
    for name, deviation in (("query", 0.5), ("key", 0.5), ("value", 1.0)):
        drawn = torch.randn(shape[:4], generator=generator, device=device, dtype=case.dtype)
        found[name] = drawn * deviation
    return found


def providers(case: Case, device: torch.device) -> list[Provider]:
    """Return the implementations to compare; the first is the yardstick."""
    projection, mask = features_of(case).projection, mask_of(case)
    found = [_ours(name, impl, case) for name, impl in our_implementations(device).items()]
    found += _softmax_providers(case, device, mask)
    if mask.is_causal:
        no_causal_form = (
            "its causal form needs a CUDA extension of another package; its substitute holds (l, m, d) sums"
        )
        found.append(Provider("performer-pytorch", performer_pytorch(projection), skip=no_causal_form))
        if mask.step == 1 and device.type == "cuda":
            found += [
                Provider(f"fla {name}", fla_linear_attention(name, projection), group="peers")
                for name in ("chunk_linear_attn", "fused_chunk_linear_attn", "fused_recurrent_linear_attn")
            ]
        return found
    found.append(Provider("performer-pytorch", performer_pytorch(projection), tolerance=PERFORMER_TOLERANCE))
    if device.type == "cuda":
        found += [
            Provider("torch two-hop", two_hop_torch(projection, compiled=False), group="peers"),
            Provider("torch two-hop compiled", two_hop_torch(projection, compiled=True), group="peers"),
            Provider("FlexAttention two-hop", two_hop_flex_attention(projection), group="peers"),
        ]
    return found


def expected(case: Case, inputs: dict[str, Tensor], target: str) -> Expected:
    """Return the exact output and gradients at some queries of the last head."""
    return expected_attention(inputs, target, mask_of(case), features_of(case).projection)


def work(case: Case, passes: Passes, target: str) -> Work:
    """Return what FAVOR attention, or softmax attention, needs at least."""
    mask, size, shape = mask_of(case), case.dtype.itemsize, _shape(case)
    if target == "softmax":
        return softmax_work(shape, passes, mask.is_causal, size)
    return favor_work(shape, passes, mask.is_causal, size, paired=True)


def _shape(case: Case) -> AttentionShape:
    assert isinstance(case.shape, AttentionShape)
    return case.shape


def _ours(name: str, impl: Impl, case: Case) -> Provider:
    mask, drawn = mask_of(case), features_of(case)

    def prepare(inputs: dict[str, Tensor]) -> Prepared:
        found = leaves(inputs, *NAMES)
        features = drawn._replace(projection=drawn.projection.to(found["query"].device))

        def call() -> Tensor:
            return favor_attention(
                *found.values(), features, is_causal=mask.is_causal, tokens_per_step=mask.step, impl=impl
            )

        return Prepared(call, found)

    waits = impl == "reference" and mask.is_causal  # it looks at each chunk's exponents
    return Provider(name, prepare, tolerance=OUR_TOLERANCE[case.dtype], waits=waits)


def _softmax_providers(case: Case, device: torch.device, mask: Mask) -> list[Provider]:
    if mask.step > 1:
        return []  # no fused softmax attention takes a mask over steps
    on_gpu = device.type == "cuda"
    flops = softmax_work(_shape(case), "forward", mask.is_causal, 2).flops
    limit = SOFTMAX_LIMIT[device.type]
    skip = f"quadratic: {flops:.1e} FLOP forward, above {limit:.0e}" if flops > limit else None
    backends = {"sdpa": ""}
    if on_gpu:
        backends = {"sdpa efficient": "EFFICIENT_ATTENTION"}
        if case.dtype != torch.float32:
            backends |= {"sdpa flash": "FLASH_ATTENTION", "sdpa cudnn": "CUDNN_ATTENTION"}

    def provider(name: str, backend: str) -> Provider:
        prepare: Prepare = softmax_attention(backend, is_causal=mask.is_causal)
        return Provider(name, prepare, target="softmax", skip=skip)

    return [provider(name, backend) for name, backend in backends.items()]
