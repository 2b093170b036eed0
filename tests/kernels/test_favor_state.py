"""States of keys: they add up, in any order and any split, and carry gradients."""

from __future__ import annotations

import pytest
import torch
from favor_textbook import qkv

from favorcast.kernels import FavorState, RandomFeatures, attend, draw_features, favor_attention, merge, summarize
from favorcast.kernels.favor.definition import summarize_definition
from favorcast.kernels.favor.feature_maps import FEATURE_MAPS
from favorcast.kernels.favor.types import FeatureSpace

pytestmark = pytest.mark.usefixtures("poisoned_allocations")

FEATURES = draw_features(16, 4, kind="favor++", generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def empty_state(b: int = 2, h: int = 2, m: int = 16, e: int = 4, dtype: torch.dtype = torch.float64) -> FavorState:
    return FavorState(torch.full((b, h, m), -torch.inf, dtype=dtype), torch.zeros(b, h, m, e, dtype=dtype))


def assert_states_close(one: FavorState, other: FavorState, tolerance: float = 1e-12) -> None:
    for x, y in zip(one, other, strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


def test_a_state_is_the_log_sum_and_the_softmax_average_of_its_definition():
    _, k, v = qkv(t=9, e=3)
    expected = summarize_definition(k, v, None, FeatureSpace(*FEATURES[:2], 0.5, "exponential"))
    assert_states_close(summarize(k, v, FEATURES), FavorState(*expected))


@pytest.mark.parametrize("feature_map", FEATURE_MAPS)
def test_attend_of_summarize_is_favor_attention(feature_map):
    q, k, v = qkv(query_heads=4, e=3)
    mask = torch.rand(2, 7) > 0.5
    state = summarize(k, v, FEATURES, feature_map=feature_map, key_padding_mask=mask, scale=0.3)
    whole = favor_attention(q, k, v, FEATURES, feature_map=feature_map, key_padding_mask=mask, scale=0.3)
    assert torch.equal(attend(q, state, FEATURES, feature_map=feature_map, scale=0.3), whole)


@pytest.mark.parametrize("cut", [0, 1, 5, 9])
def test_merging_the_states_of_two_parts_gives_the_state_of_the_whole(cut):
    _, k, v = qkv(t=9)
    parts = [summarize(k[:, :, part], v[:, :, part], FEATURES) for part in (slice(0, cut), slice(cut, 9))]
    assert_states_close(merge(*parts), summarize(k, v, FEATURES))


def test_merge_is_associative_and_commutative():
    states = [summarize(*qkv(t=5, seed=i)[1:], FEATURES) for i in range(3)]
    assert_states_close(merge(merge(*states[:2]), states[2]), merge(states[0], merge(*states[1:])))
    assert_states_close(merge(*states[:2]), merge(*states[1::-1]))


def test_the_empty_state_is_neutral_and_is_what_no_key_leaves():
    _, k, v = qkv()
    state = summarize(k, v, FEATURES)
    assert_states_close(merge(empty_state(), state), state)
    assert_states_close(merge(state, empty_state()), state)
    assert_states_close(merge(empty_state(), empty_state()), empty_state())
    assert_states_close(summarize(k[:, :, :0], v[:, :, :0], FEATURES), empty_state())
    masked = summarize(k * float("nan"), v * float("nan"), FEATURES, key_padding_mask=torch.ones(2, 7).bool())
    assert_states_close(masked, empty_state())


def test_attending_to_the_empty_state_gives_zeros_and_zero_gradients():
    query = qkv()[0].requires_grad_()
    state = FavorState(*(x.requires_grad_() for x in empty_state()))
    output = attend(query, state, FEATURES)
    output.backward(torch.randn_like(output))
    assert not output.any()
    assert all(not x.grad.any() for x in (query, *state))


def test_gradients_flow_through_merged_states():
    q, k, v = qkv(t=9)
    leaves = [x.requires_grad_() for x in (k, v)]
    parts = [(k[:, :, part], v[:, :, part]) for part in (slice(0, 0), slice(0, 4), slice(4, 9))]
    state = empty_state()
    for part in parts:
        state = merge(state, summarize(*part, FEATURES))
    upstream = torch.randn(2, 2, 9, 4, dtype=torch.float64)
    got = torch.autograd.grad(attend(q, state, FEATURES), leaves, upstream)
    want = torch.autograd.grad(favor_attention(q, k, v, FEATURES), leaves, upstream)
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-12)


def test_gradcheck_holds_for_states_in_and_out():
    q, k, v = qkv(b=1, t=3, d=2)
    features = draw_features(4, 2, dtype=torch.float64)
    leaves = [x.requires_grad_() for x in (k, v, features.projection)]
    assert torch.autograd.gradcheck(lambda k, v, w: tuple(summarize(k, v, w)), leaves)
    assert torch.autograd.gradgradcheck(lambda k, v, w: tuple(summarize(k, v, w)), leaves)
    state = [x.detach().requires_grad_() for x in summarize(k, v, features)]
    q.requires_grad_()
    assert torch.autograd.gradcheck(lambda q, level, value: attend(q, FavorState(level, value), features), [q, *state])
    assert torch.autograd.gradgradcheck(
        lambda q, level, value: attend(q, FavorState(level, value), features), [q, *state]
    )
    other = [x.detach().requires_grad_() for x in summarize(2 * k, v, features)]
    assert torch.autograd.gradcheck(lambda *x: tuple(merge(FavorState(*x[:2]), FavorState(*x[2:]))), [*state, *other])


def test_streaming_one_key_at_a_time_is_causal_attention():
    q, k, v = qkv(t=70)
    state, outputs = empty_state(), []
    for i in range(70):
        state = merge(state, summarize(k[:, :, i : i + 1], v[:, :, i : i + 1], FEATURES))
        outputs.append(attend(q[:, :, i : i + 1], state, FEATURES))
    causal = favor_attention(q, k, v, FEATURES, is_causal=True)
    torch.testing.assert_close(torch.cat(outputs, 2), causal, rtol=0, atol=1e-12)


def test_states_of_different_shapes_or_dtypes_do_not_merge():
    with pytest.raises(ValueError, match="same log_normalizer"):
        merge(empty_state(m=16), empty_state(m=8))
    with pytest.raises(ValueError, match="float32"):
        merge(empty_state(), empty_state(dtype=torch.float32))
    with pytest.raises(ValueError, match="same value"):
        merge(empty_state(), empty_state(e=3))


def test_states_on_other_devices_are_not_merged():
    with pytest.raises(ValueError, match=r"on cpu and .* on meta"):
        merge(empty_state(), FavorState(*(x.to("meta") for x in empty_state())))


def test_a_saved_state_loads_without_trusting_its_file(tmp_path):
    state = summarize(torch.randn(1, 2, 5, 4), torch.randn(1, 2, 5, 3), draw_features(8, 4))
    torch.save(state, tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    assert isinstance(loaded, FavorState)
    assert all(torch.equal(one, other) for one, other in zip(loaded, state, strict=True))
    features = draw_features(8, 4)
    torch.save(features, tmp_path / "features.pt")
    found = torch.load(tmp_path / "features.pt", weights_only=True)
    assert isinstance(found, RandomFeatures)
    assert torch.equal(found.projection, features.projection)
    assert found[1:] == features[1:]
