"""FavorAttention under what people wrap models in: compilers, checkpointing, data parallelism."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from favorcast.kernels import FavorAttention, redraw_features


class Block(nn.Module):
    """Attention in a residual, so that the gradient has two ways."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.attention = FavorAttention(8, 2, batch_first=True, **options)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.attention(x, x, x, is_causal=True)[0]


def block(**options) -> Block:
    torch.manual_seed(0)
    return Block(**options)


@pytest.fixture
def one_process() -> Iterator[None]:
    """A process group of one, without network."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def gradients(module: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    module.zero_grad()
    module(x).square().sum().backward()
    return {name: p.grad.clone() for name, p in module.named_parameters()}


@pytest.mark.parametrize(
    "options",
    [{}, {"dropout": 0.5}, {"qk_norm": True}, {"learnable_projection": True}, {"redraw_interval": 1}],
    ids=["plain", "dropout", "qk-norm", "learnable projection", "redrawn"],
)
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_recomputes_with_the_same_projection(options, reentrant):
    module, x = block(**options), torch.randn(2, 5, 8)
    redraw_features(module, 3)
    torch.manual_seed(1)
    expected = gradients(module, x)
    module.zero_grad()
    torch.manual_seed(1)
    leaf = x.clone().requires_grad_()
    checkpoint(module, leaf, use_reentrant=reentrant).square().sum().backward()
    assert all(torch.equal(p.grad, expected[name]) for name, p in module.named_parameters())


@pytest.mark.parametrize("options", [{"qk_norm": True}, {"learnable_projection": True}], ids=str)
def test_the_layer_compiles_as_one_graph_and_sees_redraws(options):
    torch.compiler.reset()
    module = block(**options)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for length in (5, 9):
        x = torch.randn(2, length, 8)
        torch.testing.assert_close(compiled(x), module(x))
    expected = gradients(module, x)
    for name, gradient in gradients(compiled, x).items():
        torch.testing.assert_close(gradient, expected[name.removeprefix("_orig_mod.")])
    module.attention.redraw(7)
    torch.testing.assert_close(compiled(x), module(x))


def test_masks_and_weights_compile_as_one_graph():
    torch.compiler.reset()
    attention, x = block().attention, torch.randn(2, 5, 8)
    padding = torch.arange(5) >= torch.tensor([[5], [3]])
    causal = nn.Transformer.generate_square_subsequent_mask(5)

    def call() -> tuple[torch.Tensor, torch.Tensor | None]:
        return attention(x, x, x, padding, need_weights=True, attn_mask=causal, is_causal=True)

    for found, expected in zip(torch.compile(call, fullgraph=True, backend="aot_eager")(), call(), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("options", [{"qk_norm": True}, {"learnable_projection": True}], ids=str)
def test_data_parallel_wrappers_leave_outputs_and_gradients_as_they_are(options):
    module, x = block(**options), torch.randn(2, 5, 8)
    expected = gradients(module, x)
    wrapped = DistributedDataParallel(copy.deepcopy(module))
    for name, gradient in gradients(wrapped, x).items():
        assert torch.equal(gradient, expected[name.removeprefix("module.")])
    sharded = fully_shard(copy.deepcopy(module), mesh=torch.distributed.init_device_mesh("cpu", (1,)))
    for name, gradient in gradients(sharded, x).items():
        torch.testing.assert_close(gradient.full_tensor(), expected[name])
