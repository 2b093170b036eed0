"""Which masks of nn.MultiheadAttention are understood, and which are refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from favorcast.kernels.attention_masks import key_padding, recognise_attention_mask


def causal_mask(t: int, s: int, step: int = 1) -> torch.Tensor:
    """True = hidden."""
    return torch.arange(s)[None, :] // step > torch.arange(t)[:, None] // step


def as_float(mask: torch.Tensor) -> torch.Tensor:
    return torch.zeros(mask.shape).masked_fill(mask, -torch.inf)


@pytest.mark.parametrize("form", [lambda m: m, as_float], ids=["bool", "float"])
@pytest.mark.parametrize(("t", "s", "step"), [(5, 5, 1), (1, 1, 1), (3, 7, 1), (7, 3, 1), (8, 8, 2), (7, 7, 3)])
def test_a_causal_mask_is_recognised(form, t, s, step):
    assert recognise_attention_mask(form(causal_mask(t, s, step)), (1, t, s), step) is True


def test_pytorchs_own_causal_mask_is_recognised():
    mask = nn.Transformer.generate_square_subsequent_mask(6)
    assert recognise_attention_mask(mask, (1, 6, 6), 1) is True


@pytest.mark.parametrize("mask", [torch.zeros(4, 4, dtype=torch.bool), torch.zeros(4, 4)], ids=["bool", "float"])
def test_a_mask_that_hides_nothing_is_full_attention(mask):
    assert recognise_attention_mask(mask, (1, 4, 4), 1) is False


OTHER_MASKS = {
    "anti-causal": causal_mask(4, 4).T,
    "band": causal_mask(4, 4) | causal_mask(4, 4).T,
    "one extra entry": causal_mask(4, 4).index_put((torch.tensor(3), torch.tensor(0)), torch.tensor(True)),
    "hides the diagonal": ~torch.ones(4, 4).tril(-1).bool(),
    "all hidden": torch.ones(4, 4, dtype=torch.bool),
    "bias": torch.full((4, 4), 0.5).masked_fill(causal_mask(4, 4), -torch.inf),
    "large but finite": torch.zeros(4, 4).masked_fill(causal_mask(4, 4), -1e9),
    "nan": torch.full((4, 4), float("nan")),
    "other shape": causal_mask(4, 5),
    "steps of 2": causal_mask(4, 4, 2),
}


@pytest.mark.parametrize("name", OTHER_MASKS)
def test_any_other_mask_is_refused(name):
    with pytest.raises(ValueError, match="linear attention cannot apply any other mask"):
        recognise_attention_mask(OTHER_MASKS[name], (1, 4, 4), 1)


def test_integer_masks_are_refused():
    with pytest.raises(ValueError, match="attn_mask must be bool or floating point"):
        recognise_attention_mask(causal_mask(4, 4).int(), (1, 4, 4), 1)
    with pytest.raises(ValueError, match="key_padding_mask must be bool or floating point"):
        key_padding(torch.zeros(2, 4, dtype=torch.uint8), 2, 4)


def test_padding_masks_become_bool_with_a_batch_dimension():
    mask = torch.tensor([[False, True, True], [False, False, True]])
    assert key_padding(None, 2, 3) is None
    assert torch.equal(key_padding(mask, 2, 3), mask)
    assert torch.equal(key_padding(as_float(mask), 2, 3), mask)
    assert torch.equal(key_padding(mask[0], 1, 3), mask[:1])


def test_padding_masks_of_another_shape_or_with_biases_are_refused():
    with pytest.raises(ValueError, match=r"key_padding_mask must be \(2, 3\), got \(3, 2\)"):
        key_padding(torch.zeros(3, 2, dtype=torch.bool), 2, 3)
    with pytest.raises(ValueError, match="must hold only 0"):
        key_padding(torch.full((2, 3), -1e9), 2, 3)
