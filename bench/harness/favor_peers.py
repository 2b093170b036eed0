"""Other people's attention, set up as their documentation asks, on the inputs of a case.

Dimension key: b batch, h heads, l length, d head dim, m features.

Each function returns a `prepare` for a `Provider`. Peers are imported inside it: one that is not installed is absent
from the table's numbers, not from the table.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from harness.cases import Prepared, leaves
from torch import Tensor
from torch.nn import functional as F

Prepare = Callable[[dict[str, Tensor]], Prepared]
NAMES = ("query", "key", "value")


def performer_pytorch(projection: Tensor) -> Prepare:
    """lucidrains' FastAttention with our projection; it adds 1e-4 to every feature, so it is another function."""

    def prepare(inputs: dict[str, Tensor]) -> Prepared:
        from performer_pytorch import FastAttention  # pyright: ignore[reportMissingImports]

        found = leaves(inputs, *NAMES)
        attention = FastAttention(projection.shape[-1], nb_features=projection.shape[-2])
        attention = attention.to(found["query"].device)
        attention.projection_matrix.copy_(projection)
        return Prepared(lambda: attention(*found.values()), found)

    return prepare


def softmax_attention(backend: str, *, is_causal: bool) -> Prepare:
    """torch's scaled_dot_product_attention with one backend, e.g. "FLASH_ATTENTION", or its own choice ("")."""

    def prepare(inputs: dict[str, Tensor]) -> Prepared:
        from torch.nn.attention import SDPBackend

        found = leaves(inputs, *NAMES)
        chosen = getattr(SDPBackend, backend) if backend else None

        def call() -> Tensor:
            with _backend(chosen):
                query, key, value = found.values()
                return F.scaled_dot_product_attention(query, key, value, is_causal=is_causal)

        return Prepared(call, found)

    return prepare


@contextlib.contextmanager
def _backend(chosen: object) -> Iterator[None]:
    if chosen is None:
        yield
        return
    from torch.nn.attention import sdpa_kernel

    with sdpa_kernel(chosen):  # pyright: ignore[reportArgumentType]
        yield


def fla_linear_attention(name: str, projection: Tensor) -> Prepare:
    """fla's causal linear attention, e.g. "chunk_linear_attn", given phi(q) and phi(k): features cost it nothing."""

    def prepare(inputs: dict[str, Tensor]) -> Prepared:
        from fla.ops import linear_attn  # pyright: ignore[reportMissingImports]

        attention = getattr(linear_attn, name)
        found = {side: x.requires_grad_() for side, x in precomputed_features(inputs, projection).items()}
        # values stay (b, h, l, d) to the gate and are contiguous (b, l, h, d) to the peer
        found["value"] = inputs["value"].detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()

        def call() -> Tensor:
            values = found["value"].transpose(1, 2)
            output = attention(found["phi_query"], found["phi_key"], values, scale=1.0, normalize=True)
            return (output[0] if isinstance(output, tuple) else output).transpose(1, 2)

        return Prepared(call, found)

    return prepare


def precomputed_features(inputs: dict[str, Tensor], projection: Tensor) -> dict[str, Tensor]:
    """Return phi(q) and phi(k), (b, l, h, m), in the inputs' dtype, each scaled to a largest value of one."""
    query, key = (inputs[name].float() * projection.shape[-1] ** -0.25 for name in ("query", "key"))
    projection = projection.to(query)
    query_side = query @ projection.T
    key_side = key @ projection.T - key.square().sum(-1, keepdim=True) / 2
    phi_query = torch.exp(query_side - query_side.amax(-1, keepdim=True))
    phi_key = torch.exp(key_side - key_side.amax((-1, -2), keepdim=True))
    dtype = inputs["query"].dtype
    return {
        "phi_query": phi_query.transpose(1, 2).to(dtype).contiguous(),
        "phi_key": phi_key.transpose(1, 2).to(dtype).contiguous(),
    }


def two_hop_flex_attention(projection: Tensor, *, compiled: bool = True) -> Prepare:
    """FAVOR attention from FlexAttention twice: landmarks attend to the keys, queries attend to the landmarks."""

    def prepare(inputs: dict[str, Tensor]) -> Prepared:
        from torch.nn.attention.flex_attention import AuxRequest, flex_attention

        found = leaves(inputs, *NAMES)
        attend = torch.compile(flex_attention, dynamic=False) if compiled else flex_attention
        batch, heads, _, dim = found["query"].shape
        landmarks = projection.to(found["query"]).expand(batch, heads, -1, -1).contiguous()

        def call() -> Tensor:
            query, key = (found[name] * dim**-0.25 for name in ("query", "key"))
            key_bias = -key.float().square().sum(-1) / 2
            state, extra = attend(
                landmarks,
                key,
                found["value"],
                score_mod=lambda score, b, h, row, column: score + key_bias[b, h, column],
                scale=1.0,
                return_aux=AuxRequest(lse=True),
            )
            log_normalizer = extra.lse
            assert log_normalizer is not None
            return attend(
                query,
                landmarks,
                state,
                score_mod=lambda score, b, h, row, column: score + log_normalizer[b, h, column],
                scale=1.0,
            )  # pyright: ignore[reportReturnType]

        return Prepared(call, found)

    return prepare


def two_hop_torch(projection: Tensor, *, compiled: bool) -> Prepare:
    """FAVOR attention by its definition in plain torch, every (l, m) exponent in memory, compiled or not."""

    def prepare(inputs: dict[str, Tensor]) -> Prepared:
        found = leaves(inputs, *NAMES)
        landmarks = projection.to(found["query"])

        def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            scale = query.shape[-1] ** -0.25
            key = key * scale
            exponents = (key @ landmarks.T).float() - key.float().square().sum(-1, keepdim=True) / 2
            state = exponents.softmax(-2).to(value.dtype).transpose(-1, -2) @ value
            logits = (query * scale @ landmarks.T).float() + exponents.logsumexp(-2, keepdim=True)
            return logits.softmax(-1).to(value.dtype) @ state

        run = torch.compile(attention, dynamic=False) if compiled else attention
        return Prepared(lambda: run(*found.values()), found)

    return prepare
