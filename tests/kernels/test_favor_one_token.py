"""A single token goes by the formula, and gives what the operators give; where they are needed they run."""

import pytest
import torch

from favorcast.kernels import FavorState, attend, draw_features, stream_attention, summarize
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
