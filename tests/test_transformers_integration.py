"""transformers runs FAVOR attention: tiny random models of every kind, against the textbook inside the same models."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from favorcast.kernels import favor_cache, register_with_transformers
from favorcast.kernels.transformers_attention import FavorForTransformers

transformers = pytest.importorskip("transformers", reason='pip install "favorcast[transformers]"')

from transformers import masking_utils  # noqa: E402
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface  # noqa: E402

WIDTHS = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {**WIDTHS, "vocab_size": 50, "max_position_embeddings": 64, "pad_token_id": 0}
DECODER = {**TEXT, "num_key_value_heads": 2, "eos_token_id": None, "bos_token_id": None}
IMAGES = {**WIDTHS, "image_size": 16, "patch_size": 4, "num_channels": 3}

ENCODERS = {
    "bert": lambda: transformers.BertConfig(**TEXT),
    "modernbert": lambda: transformers.ModernBertConfig(
        **TEXT, cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2, local_attention=128
    ),
}
DECODERS = {
    "llama": lambda: transformers.LlamaConfig(**DECODER),
    "qwen3": lambda: transformers.Qwen3Config(**DECODER, head_dim=16),
    "bert decoder": lambda: transformers.BertConfig(**TEXT, is_decoder=True),
}


def textbook(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **options: Any) -> Any:
    """FAVOR attention with every weight written out, under transformers' own (b, 1, t, s) bool mask, in float64."""
    groups = query.shape[1] // key.shape[1]
    features = FavorForTransformers()._features(query, getattr(module, "layer_idx", None) or 0)
    key, inside = (x.repeat_interleave(groups, 1).double() for x in (key, value))
    q, k, w = query.double() * options["scaling"] ** 0.5, key * options["scaling"] ** 0.5, features.projection.double()
    log_query, log_key = q @ w.T, k @ w.T - k.square().sum(-1, keepdim=True) / 2
    logits = (log_query.unsqueeze(-2) + log_key.unsqueeze(-3)).logsumexp(-1)
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf)
    weights = logits.softmax(-1).nan_to_num(0.0)  # a padded query sees nothing
    return (weights @ inside).to(query).transpose(1, 2), None


def full_mask(*args: Any, **options: Any) -> Tensor:
    return masking_utils.sdpa_mask(*args, **{**options, "allow_is_causal_skip": False})


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    kept = [dict(x._global_mapping) for x in (AttentionInterface, masking_utils.AttentionMaskInterface)]
    register_with_transformers()
    AttentionInterface.register("textbook", textbook)
    masking_utils.AttentionMaskInterface.register("textbook", full_mask)
    yield
    for interface, mapping in zip((AttentionInterface, masking_utils.AttentionMaskInterface), kept, strict=True):
        interface._global_mapping.clear()
        interface._global_mapping.update(mapping)


def built(config: Any, kind: str = "AutoModel", implementation: str = "favor") -> Any:
    torch.manual_seed(0)
    model = getattr(transformers, kind).from_config(config, attn_implementation=implementation)
    for parameter in model.parameters():  # at 0.02 every attention is the mean
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.2)
    return model.eval()


def language_model(name: str = "llama", implementation: str = "favor") -> Any:
    return built(DECODERS[name](), "AutoModelForCausalLM", implementation)


def tokens(batch: int = 2, length: int = 9) -> Tensor:
    return torch.randint(1, 50, (batch, length))


def padding(side: str, *lengths: int, length: int = 9) -> Tensor:
    """1 = attend."""
    position = torch.arange(length) if side == "right" else torch.arange(length).flip(0)
    return (position < torch.tensor(lengths)[:, None]).long()


def both(model: Any, **inputs: Any) -> tuple[Tensor, Tensor]:
    found = model(**inputs)[0]
    model.set_attn_implementation("textbook")
    expected = model(**inputs)[0]
    model.set_attn_implementation("favor")
    return found, expected


@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_attend_by_the_textbook(name, padded):
    model, mask = built(ENCODERS[name]()), padding("right", 9, 5)
    inputs = {"input_ids": tokens(), **({"attention_mask": mask} if padded else {})}
    found, expected = both(model, **inputs)
    keep = mask.bool() if padded else torch.ones(2, 9, dtype=torch.bool)
    torch.testing.assert_close(found[keep], expected[keep], rtol=1e-4, atol=1e-5)
    if padded:
        changed = torch.where(mask.bool(), inputs["input_ids"], tokens())
        torch.testing.assert_close(model(changed, attention_mask=mask)[0][keep], found[keep])
    model.set_attn_implementation("sdpa")
    assert not torch.allclose(model(**inputs)[0][keep], found[keep], atol=1e-3)


@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
@pytest.mark.parametrize("name", DECODERS)
def test_decoders_attend_causally_by_the_textbook(name, padded):
    model, mask, ids = language_model(name), padding("left", 9, 5), tokens()
    inputs = {"input_ids": ids, "use_cache": False, **({"attention_mask": mask} if padded else {})}
    keep = mask.bool() if padded else torch.ones(2, 9, dtype=torch.bool)
    found, expected = both(model, **inputs)
    torch.testing.assert_close(found[keep], expected[keep], rtol=1e-4, atol=1e-5)
    inputs["input_ids"] = torch.cat([ids[:, :6], tokens(2, 3)], 1)
    torch.testing.assert_close(model(**inputs)[0][:, :6][keep[:, :6]], found[:, :6][keep[:, :6]])


def test_vision_models_attend_by_the_textbook():
    found, expected = both(built(transformers.ViTConfig(**IMAGES)), pixel_values=torch.randn(2, 3, 16, 16))
    assert found.shape == (2, 17, 32)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_an_encoder_decoder_attends_by_the_textbook():
    sizes = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in (("layers", 1), ("ffn_dim", 48))}
    heads = {f"{side}_attention_heads": 4 for side in ("encoder", "decoder")}
    config = transformers.BartConfig(d_model=32, vocab_size=50, max_position_embeddings=64, **sizes, **heads)
    inputs = {"input_ids": tokens(2, 7), "decoder_input_ids": tokens(), "use_cache": False}
    found, expected = both(built(config), **inputs, attention_mask=padding("right", 7, 4, length=7))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_decoder_told_to_see_everything_does():
    config = DECODERS["llama"]()
    config.is_causal = False
    model, ids = built(config), tokens()
    found, expected = both(model, input_ids=ids, use_cache=False)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    ids[:, -1] = (ids[:, -1] + 1) % 50
    assert not torch.allclose(model(ids, use_cache=False)[0][:, 0], found[:, 0], atol=1e-4)


def test_models_train_with_gradient_checkpointing():
    model, ids = language_model().train(), tokens()
    model(ids, labels=ids).loss.backward()
    expected = [p.grad.clone() for p in model.parameters()]
    assert all(g.any() for g in expected)
    model.zero_grad()
    model.activation_checkpointing_enable()
    model(ids, labels=ids).loss.backward()
    for p, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, gradient)


def test_dropout_acts_in_training_only():
    config = ENCODERS["bert"]()
    config.hidden_dropout_prob, config.attention_probs_dropout_prob = 0.0, 0.5
    model, ids = built(config), tokens()
    assert torch.equal(model(ids)[0], model(ids)[0])
    model.train()
    assert not torch.equal(model(ids)[0], model(ids)[0])


def test_a_model_compiles():
    torch.compiler.reset()
    model, ids = built(DECODERS["llama"]()), tokens()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        for mask in (torch.ones(2, 9), padding("left", 9, 5)):
            expected = model(ids, attention_mask=mask, use_cache=False)[0]
            torch.testing.assert_close(compiled(ids, attention_mask=mask, use_cache=False)[0], expected)
        with pytest.raises(torch._dynamo.exc.Unsupported, match="pass attention_mask"):
            compiled(ids, use_cache=False)  # transformers then looks for packed sequences


@pytest.mark.parametrize("name", ["llama", "qwen3"])
@pytest.mark.parametrize("kind", ["DynamicCache", "favor_cache"])
def test_a_cache_continues_as_if_there_had_been_no_break(name, kind):
    model, ids, mask = language_model(name), tokens(), padding("left", 9, 2)
    expected = model(ids, attention_mask=mask, use_cache=False)[0]
    cache = transformers.DynamicCache() if kind == "DynamicCache" else favor_cache(model)
    begin, parts = 0, []
    for end in (5, 6, 9):
        parts.append(model(ids[:, begin:end], attention_mask=mask[:, :end], cache=cache)[0])
        begin = end
    assert cache.get_seq_length() == 9
    keep = mask.bool()
    torch.testing.assert_close(torch.cat(parts, 1)[keep], expected[keep], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3}, {"prefill_chunk_size": 4}], ids=["greedy", "beams", "chunked prefill"]
)
def test_generation_with_states_is_generation_with_keys(options):
    model, ids, mask = language_model(), tokens(), padding("left", 9, 5)
    options = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, **options}
    expected = model.generate(ids, **options)
    assert expected.shape == (2, 15)
    assert torch.equal(model.generate(ids, cache=favor_cache(model), **options), expected)


def test_the_memory_of_a_state_does_not_grow():
    model, cache = language_model(), None
    cache = favor_cache(model)
    sizes = []
    for length in (30, 1, 1):
        model(tokens(1, length), cache=cache)
        sizes.append([sum(x.numel() for x in layer.state) for layer in cache.layers])
    m, e = 32, 8
    assert sizes == [[2 * m * (1 + e)] * 2] * 3
    cache.reset()
    assert cache.get_seq_length() == 0
    ids = tokens(1, 4)
    torch.testing.assert_close(model(ids, cache=cache)[0], model(ids, use_cache=False)[0])


def test_a_cache_selects_and_repeats_samples():
    model, ids = language_model(), tokens(3, 5)
    cache = favor_cache(model)
    model(ids[:, :4], cache=cache)
    cache.batch_select_indices(torch.tensor([2, 0]))
    cache.batch_repeat_interleave(2)
    chosen = ids[[2, 2, 0, 0]]
    found = model(chosen[:, 4:], cache=cache)[0]
    torch.testing.assert_close(found, model(chosen, use_cache=False)[0][:, 4:], rtol=1e-4, atol=1e-5)


def test_a_cache_is_for_favor_attention_in_models_that_can_use_it():
    for model, message in (
        (language_model(implementation="sdpa"), "expected attn_implementation"),
        (built(transformers.MistralConfig(**DECODER, sliding_window=4)), "got sliding_attention"),
    ):
        with pytest.raises(ValueError, match=message):
            favor_cache(model)
    model = language_model()
    cache = favor_cache(model)
    with pytest.raises(ValueError, match="cannot forget tokens"):
        cache.crop(-1)
    model.set_attn_implementation("sdpa")
    model(tokens(), cache=cache)
    with pytest.raises(ValueError, match="not attended through the cache"):
        model(tokens(2, 1), cache=cache)


def block(causal: bool = True) -> Tensor:
    """Two sequences in one row, as packing makes them: True = attend."""
    part = torch.arange(9) // 5
    same = part[:, None] == part
    return (same.tril() if causal else same)[None, None].expand(2, 1, 9, 9)


def causal_float() -> Tensor:
    lowest = torch.finfo(torch.float32).min
    mask = torch.zeros(9, 9).masked_fill(torch.ones(9, 9).triu(1).bool(), lowest).expand(2, 1, 9, 9).clone()
    mask[1, :, :, :3] = lowest
    return mask


def test_masks_of_the_users_own_are_recognised():
    model, ids = language_model(), tokens()
    expected = model(ids, attention_mask=padding("left", 9, 6), use_cache=False)[0]
    for mask in (causal_float(), causal_float() == 0):
        found = model(ids, attention_mask=mask, use_cache=False)[0]
        torch.testing.assert_close(found[0], expected[0])
        torch.testing.assert_close(found[1, 3:], expected[1, 3:])


def mistral(**options: Any) -> Any:
    return built(transformers.MistralConfig(**DECODER, sliding_window=4), **options)


def gemma() -> Any:
    return built(transformers.Gemma2Config(**DECODER, head_dim=8, attn_logit_softcapping=50.0))


REFUSED = {
    "packed sequences by position": (
        lambda: language_model()(tokens(), position_ids=torch.arange(9)[None] % 5, use_cache=False),
        "cannot apply this mask",
    ),
    "a block mask": (
        lambda: language_model()(tokens(), attention_mask=block(), use_cache=False),
        "cannot apply this mask",
    ),
    "a bias": (
        lambda: language_model()(tokens(), attention_mask=torch.full((2, 1, 9, 9), 0.5), use_cache=False),
        "cannot apply this mask",
    ),
    "a static cache": (
        lambda: language_model()(tokens(), cache=transformers.StaticCache(DECODERS["llama"](), max_cache_len=20)),
        "use a DynamicCache or",
    ),
    "a sliding window": (lambda: mistral()(tokens()), "no sliding window: .* got a window of 4 for 9 keys"),
    "capped logits": (lambda: gemma()(tokens()), "no capped logits"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_linear_attention_cannot_do_is_refused(name):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_short_inputs_of_a_sliding_window_are_full_attention():
    model, ids = mistral(), tokens(2, 4)
    found, expected = both(model, input_ids=ids, use_cache=False)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["mistral", "modernbert"])
def test_layers_with_a_window_may_be_left_to_softmax(name):
    register_with_transformers("favor_and_local", local_layers="softmax")
    config = (
        ENCODERS["modernbert"]() if name == "modernbert" else transformers.MistralConfig(**DECODER, sliding_window=4)
    )
    if name == "modernbert":
        config = transformers.ModernBertConfig(**{**config.to_dict(), "local_attention": 4})
        config.layer_types = ["sliding_attention"] * 2
    model, inputs = built(config), {"input_ids": tokens(), "attention_mask": padding("right", 9, 7)}
    model.set_attn_implementation("favor_and_local")
    found = model(**inputs)[0]
    model.set_attn_implementation("sdpa")
    keep = inputs["attention_mask"].bool()
    torch.testing.assert_close(found[keep], model(**inputs)[0][keep])


def test_features_differ_by_layer_and_seed_and_not_by_process():
    query, one = torch.randn(1, 2, 3, 8), FavorForTransformers()
    assert torch.equal(one._features(query, 0).projection, FavorForTransformers()._features(query, 0).projection)
    assert not torch.equal(one._features(query, 0).projection, one._features(query, 1).projection)
    assert torch.equal(FavorForTransformers(seed=1)._features(query, 0).projection, one._features(query, 1).projection)
    assert one._features(query, 0).projection.shape == (32, 8)


def test_options_reach_the_attention():
    register_with_transformers("normed", num_features=16, qk_norm=True)
    attention = ALL_ATTENTION_FUNCTIONS["normed"]
    q, k, v = (torch.randn(1, 2, 5, 8) for _ in range(3))
    output, weights = attention(nn.Identity(), q, k, v, None, scaling=0.25)
    assert weights is None
    assert attention._features(q, 0).projection.shape == (16, 8)
    torch.testing.assert_close(attention(nn.Identity(), 3 * q, k / 2, v, None, scaling=0.25)[0], output)
    with pytest.raises(ValueError, match="attention weights as an output"):
        attention(nn.Identity(), q, k, v, None, output_attentions=True)
    with pytest.raises(ValueError, match="unknown local_layers"):
        register_with_transformers(local_layers="sdpa")  # pyright: ignore[reportArgumentType]


def test_without_transformers_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"favorcast\[transformers\]"):
        register_with_transformers()
