"""FavorAttention(gate=True): learnt forgetting, the same over whole sequences, in chunks and token by token."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from favorcast.kernels import FavorAttention, multihead_state_dict
from favorcast.kernels.layers import gating

WIDTH, HEADS = 12, 3


def layer(**options) -> FavorAttention:
    torch.manual_seed(1)
    gated = FavorAttention(WIDTH, HEADS, batch_first=True, gate=True, is_causal=True, dtype=torch.float64, **options)
    with torch.no_grad():
        gated.gate_weight.normal_()
        gated.gate_bias.copy_(torch.tensor([3.0, 1.0, -1.0]))
    return gated


def tokens(length: int = 24, batch: int = 2) -> Tensor:
    return torch.randn(batch, length, WIDTH, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def dense(gated: FavorAttention, x: Tensor, step: int, padding: Tensor | None = None) -> Tensor:
    """Attend with weights written out: those of the layer without gates, times the product of gates in between."""
    heads = FavorAttention(WIDTH, HEADS, batch_first=True, is_causal=True, dtype=torch.float64, tokens_per_step=step)
    ungated = {name: p for name, p in (*gated.named_parameters(), *gated.named_buffers()) if "gate" not in name}
    options = {"need_weights": True, "average_attn_weights": False}
    _, weights = torch.func.functional_call(heads, ungated, (x, x, x, padding), options)
    gates = nn.functional.logsigmoid(x @ gated.gate_weight.T + gated.gate_bias).transpose(1, 2)
    b, h, t = gates.shape
    summed = torch.zeros(b, h, t, dtype=torch.float64)
    for i in range(b):
        for first in range(0, t, step):
            seen = [j for j in range(first, min(first + step, t)) if padding is None or not padding[i, j]]
            mean = gates[i, :, seen].mean(-1) if seen else torch.zeros(h, dtype=torch.float64)
            summed[i, :, first:] += mean[:, None]
    weights = weights * (summed.unsqueeze(-1) - summed.unsqueeze(-2)).clamp(max=0).exp()
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-300)
    value = nn.functional.linear(x, *(p.chunk(3)[2] for p in (gated.in_proj_weight, gated.in_proj_bias)))
    attended = weights @ value.unflatten(-1, (HEADS, -1)).transpose(1, 2)
    return gated.out_proj(attended.transpose(1, 2).flatten(2))


def assert_equal_with_gradients(gated: FavorAttention, one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=1e-11)
    upstream = torch.randn_like(one)
    parameters = [p for name, p in gated.named_parameters() if "in_proj_bias" not in name]
    results = [torch.autograd.grad(x, parameters, upstream, retain_graph=True) for x in (one, other)]
    for got, want in zip(*results, strict=True):
        assert got.any()
        torch.testing.assert_close(got, want, rtol=0, atol=1e-9)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("step", "length"), [(1, 24), (4, 24), (4, 22)])
def test_weights_are_multiplied_by_the_gates_in_between(step, length, padded):
    gated, x = layer(tokens_per_step=step), tokens(length)
    padding = torch.rand(2, length, generator=torch.Generator().manual_seed(3)) < 0.3 if padded else None
    assert_equal_with_gradients(gated, gated(x, x, x, padding)[0], dense(gated, x, step, padding))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("step", "chunk"), [(1, 1), (1, 7), (4, 4), (4, 12)])
def test_a_stream_equals_the_whole_sequence(step, chunk, padded):
    gated, x = layer(tokens_per_step=step), tokens()
    padding = torch.rand(2, 24, generator=torch.Generator().manual_seed(3)) < 0.3 if padded else None
    state, outputs = None, []
    for start in range(0, 24, chunk):
        part = x[:, start : start + chunk]
        hidden = None if padding is None else padding[:, start : start + chunk]
        output, state = gated.stream(part, part, part, state, hidden)
        outputs.append(output)
    assert_equal_with_gradients(gated, torch.cat(outputs, 1), gated(x, x, x, padding)[0])
    for got, want in zip(state, gated.summarize(x, x, padding), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-11)


def test_long_sequences_are_attended_to_in_chunks(monkeypatch):
    gated, x = layer(tokens_per_step=2), tokens()
    whole = gated(x, x, x)[0]
    monkeypatch.setattr(gating, "LONGEST_DECAY", 7)
    assert_equal_with_gradients(gated, gated(x, x, x)[0], whole)
    assert gating.needs_chunks((x[:, None],) * 3, 2)


def test_float32_keeps_its_digits_where_gates_add_up_to_thousands():
    """One sum of the gates, down to -1e4, is rounded to 1e-3, and so would be the weights."""
    gated, x = layer(), tokens(20_000, batch=1)
    with torch.no_grad():
        exact = gated(x, x, x)[0]
        gated = gated.float()
        output = gated(x.float(), x.float(), x.float())[0]
    assert float((output - exact).norm() / exact.norm()) < 1e-4


def test_what_is_ignored_may_hold_anything_and_forgets_nothing():
    gated, x = layer(), tokens()
    padding = torch.arange(24) < torch.tensor([[5], [0]])
    poisoned = x.masked_fill(padding.unsqueeze(-1), torch.nan)
    output = gated(poisoned, poisoned, poisoned, padding)[0]
    torch.testing.assert_close(output[:1, 5:], gated(*(x[:1, 5:],) * 3)[0], rtol=0, atol=1e-11)


def test_later_tokens_do_not_move_a_bit():
    gated, x = layer().float(), tokens().float()
    changed = x.clone()
    changed[:, 13:] = 30 * changed[:, 13:] - 5
    assert torch.equal(*(gated(y, y, y)[0][:, :13] for y in (x, changed)))


def test_gates_begin_with_long_memories_and_learn():
    gated = FavorAttention(WIDTH, HEADS, batch_first=True, gate=True)
    memories = -1 / nn.functional.logsigmoid(gated.gate_bias)
    torch.testing.assert_close(memories, torch.tensor([32.0, 362.0, 4096.0]), rtol=0.02, atol=0)
    x = tokens().float()
    gated(x, x, x, is_causal=True)[0].square().sum().backward()
    assert gated.gate_weight.grad.any()
    assert gated.gate_bias.grad.any()


def test_gates_need_causality_and_no_keys_for_everyone():
    gated, x = FavorAttention(WIDTH, HEADS, batch_first=True, gate=True), tokens().float()
    with pytest.raises(ValueError, match="expected causal attention"):
        gated(x, x, x)
    with pytest.raises(ValueError, match="leave one of them out"):
        FavorAttention(WIDTH, HEADS, gate=True, add_bias_kv=True)


def test_weights_of_softmax_attention_load_and_gates_are_not_lost_silently():
    gated = layer().float()
    kept = gated.gate_bias.detach().clone()
    gated.load_state_dict(nn.MultiheadAttention(WIDTH, HEADS).state_dict())
    assert torch.equal(gated.gate_bias, kept)
    with pytest.raises(ValueError, match="has gate=True, which"):
        multihead_state_dict(gated)
    converted = FavorAttention.from_multihead_attention(nn.MultiheadAttention(WIDTH, HEADS), gate=True)
    assert torch.equal(converted.gate_bias, gating.initial_gate_bias(HEADS))
    assert not converted.gate_weight.any()


def test_a_gated_layer_compiles_and_exports_with_a_dynamic_length():
    torch._dynamo.reset()
    gated = layer().eval()
    compiled = torch.compile(gated, backend="aot_eager", fullgraph=True, dynamic=True)
    for length in (6, 11):
        x = tokens(length)
        torch.testing.assert_close(compiled(x, x, x)[0], gated(x, x, x)[0])
    x, y = tokens(6), tokens(9)
    exported = torch.export.export(gated, (x, x, x), dynamic_shapes=({1: torch.export.Dim("t")},) * 3, strict=False)
    torch.testing.assert_close(exported.module()(y, y, y)[0], gated(y, y, y)[0])
