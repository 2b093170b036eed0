"""A single token goes by the formula, and gives what the operators give; where they are needed they run."""

import pytest
import torch

from favorcast.kernels import FavorState, attend, draw_features, merge, stream_attention, summarize
from favorcast.kernels.favor import functions
from favorcast.kernels.favor.feature_maps import FEATURE_MAPS

OPTIONS = {"feature_map": "exponential", "scale": 0.3}


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def by_operators(monkeypatch, call):
    with monkeypatch.context() as patch:
        patch.setattr(functions, "is_one_token", lambda inputs: False)
        patch.setattr(functions, "is_one_query", lambda inputs: False)
        return call()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["hyperbolic", "favor++", "per head"])
@pytest.mark.parametrize("feature_map", FEATURE_MAPS)
def test_one_token_equals_the_operators(monkeypatch, feature_map, kind, dtype):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    generator = torch.Generator().manual_seed(0)
    features = draw_features(32, 8, kind="iid" if kind == "per head" else kind, generator=generator, dtype=wide)
    if kind == "per head":
        features = features._replace(projection=drawn(3, 32, 8, dtype=wide), log_weight=drawn(3, 32, dtype=wide))
    options = {"feature_map": feature_map, "scale": 0.3}
    state = summarize(drawn(2, 3, 5, 8, dtype=dtype), drawn(2, 3, 5, 4, dtype=dtype), features, **options)
    tolerance = {"rtol": 1e-2, "atol": 1e-2} if dtype.itemsize == 2 else {"rtol": 1e-4, "atol": 1e-4}
    for size in (1.0, 30.0, 1e19 if dtype.itemsize > 2 else 100.0):
        query, key = size * drawn(2, 6, 1, 8, dtype=dtype, seed=1), size * drawn(2, 3, 1, 8, dtype=dtype, seed=2)
        value = drawn(2, 3, 1, 4, dtype=dtype, seed=3)
        for bias in (None, drawn(2, 3, 1)):
            call = lambda: stream_attention(query, key, value, state, features, key_bias=bias, **options)  # noqa: B023, E731
            found, expected = call(), by_operators(monkeypatch, call)
            assert found.output.dtype == dtype
            assert found.state.value.dtype == expected.state.value.dtype
            torch.testing.assert_close(found.output, expected.output, **tolerance)
            torch.testing.assert_close(found.state, expected.state, rtol=1e-4, atol=1e-4)
        call = lambda: attend(query, state, features, **options)  # noqa: B023, E731
        torch.testing.assert_close(call(), by_operators(monkeypatch, call), **tolerance)


def test_a_query_reads_zero_where_every_key_was_hidden():
    features = draw_features(32, 8, generator=torch.Generator().manual_seed(0))
    hidden = torch.arange(5) >= torch.tensor([[5], [0]])
    state = summarize(drawn(2, 3, 5, 8), drawn(2, 3, 5, 4), features, key_padding_mask=hidden, **OPTIONS)
    read = attend(drawn(2, 6, 1, 8), state, features, **OPTIONS)
    assert read[0].any()
    assert not read[1].any()


def test_a_query_reads_zero_in_a_state_that_has_forgotten_all():
    features = draw_features(32, 8, generator=torch.Generator().manual_seed(0))
    state = summarize(drawn(2, 3, 5, 8), drawn(2, 3, 5, 4), features, **OPTIONS)
    state = state.weighed(torch.tensor([[0.0, -torch.inf, 0.0]]))
    read = attend(drawn(2, 6, 1, 8), state, features, **OPTIONS)
    assert not read[:, 2:4].any()
    assert read[:, :2].any()
    assert read[:, 4:].any()


def test_a_long_stream_goes_on_averaging(monkeypatch):
    features = draw_features(8, 4, generator=torch.Generator().manual_seed(0))
    key, value = 0.3 * drawn(1, 1, 3000, 4), 1001 + 0.1 * drawn(1, 1, 3000, 4, seed=1)
    before = summarize(key[:, :, :1], torch.full((1, 1, 1, 4), 1000.0), features)
    before = before.weighed(torch.tensor([[100_000.0]]).log())  # a token now moves the mean by less than its last digit

    def found():
        state = before
        for k, v in zip(key.split(1, 2), value.split(1, 2), strict=True):
            state = stream_attention(k, k, v, state, features).state
        return state.value

    wide = features._replace(projection=features.projection.double())
    exact = merge(FavorState(*(x.double() for x in before)), summarize(key.double(), value.double(), wide)).value
    moved = (exact - 1000).abs().mean()
    assert (found() - exact).abs().mean() < 0.2 * moved
    assert (by_operators(monkeypatch, found) - exact).abs().mean() < 0.2 * moved


def test_sums_keep_their_precision_under_autocast(monkeypatch):
    features = draw_features(32, 8, generator=torch.Generator().manual_seed(0))
    query, key, value = drawn(3, 2, 2, 1, 8)
    state = summarize(key, value, features)
    call = lambda: stream_attention(query, key, value, state, features)  # noqa: E731
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = call(), by_operators(monkeypatch, call)
    torch.testing.assert_close(found.state, expected.state, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.output, expected.output, rtol=1e-2, atol=1e-2)


def test_a_bias_may_be_wider_than_the_tokens_and_a_batch_empty(monkeypatch):
    features = draw_features(32, 8, generator=torch.Generator().manual_seed(0))
    query, key, value = drawn(3, 2, 2, 1, 8)
    state = summarize(key, value, features)
    call = lambda: stream_attention(query, key, value, state, features, key_bias=drawn(2, 1).double())  # noqa: E731
    torch.testing.assert_close(call(), by_operators(monkeypatch, call), rtol=1e-5, atol=1e-5)
    none = FavorState(*(x[:0] for x in state))
    assert stream_attention(query[:0], key[:0], value[:0], none, features).output.shape == (0, 2, 1, 8)
    assert attend(query[:0], none, features).shape == (0, 2, 1, 8)
    wide = FavorState(*(x.double() for x in state))
    for tokens in (1, 2):  # the state that comes is that of the tokens, whatever their number
        pair = (x.expand(2, 2, tokens, 8) for x in (query, key, value))
        assert stream_attention(*pair, wide, features).state.value.dtype == torch.float32


def test_forward_mode_is_refused_as_by_the_operators():
    features = draw_features(32, 8, generator=torch.Generator().manual_seed(0))
    query, key, value = drawn(3, 2, 2, 1, 8)
    state = summarize(key, value, features)
    for feature_map in FEATURE_MAPS:
        with pytest.raises(NotImplementedError, match="forward-mode"):
            torch.func.jvp(lambda x, name=feature_map: attend(x, state, features, feature_map=name), (query,), (query,))


def operators_are_called(monkeypatch, call) -> bool:
    """Whether a call of one token comes to an operator."""
    called = []
    with monkeypatch.context() as patch:
        for name in ("causal_op", "attend_op"):
            operator = getattr(functions, name)
            patch.setattr(functions, name, lambda inputs, operator=operator: called.append(1) or operator(inputs))
        call()
    return bool(called)


def test_a_token_goes_through_the_operator_where_it_must(monkeypatch):
    features = draw_features(32, 8, generator=torch.Generator().manual_seed(0))
    query, key, value = drawn(3, 2, 2, 1, 8)
    state = summarize(key, value, features)

    def stream(query=query, key=key, value=value, state=state, features=features, **options):
        return lambda: stream_attention(query, key, value, state, features, **options)

    def read(query=query, state=state, features=features):
        return lambda: attend(query, state, features)

    def read_one(query):
        return attend(query[None], FavorState(*(x[:1] for x in state)), features)

    wanted = [drawn(2, 2, 1, 8).requires_grad_() for _ in range(4)]
    learnt = features._replace(projection=features.projection.clone().requires_grad_())
    watched = FavorState(state.log_normalizer, state.value.clone().requires_grad_())
    bias = drawn(2, 1).requires_grad_()
    padding = torch.tensor([[True], [False]])
    for call in (
        stream(query=wanted[0]),
        stream(key=wanted[1]),
        stream(value=wanted[2]),
        stream(features=learnt),
        stream(state=watched),
        stream(key_bias=bias),
        stream(key_padding_mask=padding),
        stream(key_bias=torch.tensor([[0.0], [-torch.inf]])),
        stream(state=None),
        read(query=wanted[0]),
        read(features=learnt),
        read(state=watched),
        lambda: torch.func.vmap(read_one)(query),
    ):
        assert operators_are_called(monkeypatch, call)
    for call in (stream(), stream(key_padding_mask=~padding & padding), stream(key_bias=bias.detach()), read()):
        assert not operators_are_called(monkeypatch, call)
    with torch.no_grad():
        assert not operators_are_called(monkeypatch, stream(query=wanted[0]))


def test_a_compiled_token_is_the_operator():
    features = draw_features(32, 8, generator=torch.Generator().manual_seed(0))
    query, key, value = drawn(3, 2, 2, 1, 8)
    state = summarize(key, value, features)
    targets = []

    def backend(graph, _):
        targets.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(stream_attention, backend=backend, fullgraph=True)
    torch.testing.assert_close(
        compiled(query, key, value, state, features), stream_attention(query, key, value, state, features)
    )
    assert any("favorcast" in target for target in targets)
