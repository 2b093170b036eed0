"""Softmax attention in the place of FavorAttention."""

import pytest
import torch

from favorcast.forecasting.st_transformer import SoftmaxAttention


def build(**options) -> SoftmaxAttention:
    torch.manual_seed(0)
    return SoftmaxAttention(8, 2, num_features=4, features="iid", **options)


def test_it_is_multihead_attention():
    ours = build()
    theirs = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([part.weight for part in (ours.query, ours.key, ours.value)]))
        theirs.out_proj.load_state_dict(ours.out_proj.state_dict())
    query, memory = torch.randn(3, 5, 8), torch.randn(3, 7, 8)
    padding = torch.zeros(3, 7, dtype=torch.bool)
    padding[1, 4:] = True
    expected, _ = theirs(query, memory, memory, key_padding_mask=padding, need_weights=False)
    torch.testing.assert_close(ours(query, memory, memory, padding)[0], expected)
    torch.testing.assert_close(ours.attend(query, ours.summarize(memory, memory, padding)), expected)


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("tokens_per_step", [1, 3])
def test_streaming_equals_causal_forward_and_hides_later_steps(tokens_per_step, qk_norm):
    attention = build(is_causal=True, tokens_per_step=tokens_per_step, qk_norm=qk_norm)
    x = torch.randn(2, 4 * tokens_per_step, 8)
    whole, _ = attention(x, x, x)
    state, outputs = None, []
    for piece in x.split([tokens_per_step, 3 * tokens_per_step], 1):
        output, state = attention.stream(piece, piece, piece, state)
        outputs.append(output)
    torch.testing.assert_close(torch.cat(outputs, 1), whole)
    x[:, tokens_per_step:] *= -3
    torch.testing.assert_close(attention(x, x, x)[0][:, :tokens_per_step], whole[:, :tokens_per_step])


def test_a_query_that_sees_no_key_gets_the_bias_and_finite_gradients():
    attention = build()
    x = torch.randn(2, 3, 8)
    padding = torch.tensor([[True] * 3, [False] * 3])
    output, _ = attention(x, x, x, padding)
    torch.testing.assert_close(output[0], attention.out_proj.bias.expand(3, 8))
    output.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in attention.parameters())


def test_length_first_is_refused():
    with pytest.raises(ValueError, match="expected batch_first=True, got False"):
        build(batch_first=False)
