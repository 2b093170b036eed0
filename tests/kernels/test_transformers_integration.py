"""transformers runs FAVOR attention: tiny random models of every kind, against the textbook inside the same models."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from favorcast.kernels import favor_cache, register_with_transformers
from favorcast.kernels.huggingface.attention import FavorForTransformers

transformers = pytest.importorskip("transformers", reason='pip install "favorcast[transformers]"')

from transformers import masking_utils  # noqa: E402
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface  # noqa: E402
from transformers_textbook import register_textbook  # noqa: E402

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


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    kept = [dict(x._global_mapping) for x in (AttentionInterface, masking_utils.AttentionMaskInterface)]
    register_with_transformers()
    register_textbook()
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


def test_a_mask_of_biases_weighs_keys_with_and_without_a_cache_of_keys():
    """A key of log 2 counts twice; the model's own cache keeps keys, one of states alone cannot weigh them anew."""
    model, ids = language_model(), tokens()
    bias = torch.zeros(2, 9).index_fill(1, torch.tensor([2]), 1.0)
    mask = (bias[:, None, None, :] + causal_float()[:1]).clamp(min=torch.finfo(torch.float32).min)
    with torch.no_grad():
        expected = model(ids, attention_mask=mask, use_cache=False)[0]
        assert not torch.allclose(expected, model(ids, use_cache=False)[0])
        first = model(ids[:, :8], attention_mask=mask[..., :8, :8], use_cache=True)
        last = model(ids[:, 8:], attention_mask=mask[..., 8:, :], past_key_values=first.past_key_values)
    torch.testing.assert_close(torch.cat([first[0], last[0]], 1), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="a cache of states takes padding"):
        model(ids, attention_mask=mask, past_key_values=favor_cache(model))


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
    "a bias of pairs": (
        lambda: language_model()(tokens(), attention_mask=torch.rand(2, 1, 9, 9), use_cache=False),
        "cannot apply this mask",
    ),
    "a static cache": (
        lambda: language_model()(tokens(), cache=transformers.StaticCache(DECODERS["llama"](), max_cache_len=20)),
        "use a DynamicCache or",
    ),
    "sliding windows only": (lambda: mistral()(tokens()), "no sliding window: .* got a window of 4"),
    "sliding windows only, of short inputs": (lambda: mistral()(tokens(2, 3)), "no sliding window: .* window of 4"),
    "sliding windows only, while decoding": (
        lambda: mistral(kind="AutoModelForCausalLM").generate(tokens(2, 3), max_new_tokens=8, do_sample=False),
        "no sliding window: .* got a window of 4",
    ),
    "capped logits": (lambda: gemma()(tokens()), "no capped logits"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_linear_attention_cannot_do_is_refused(name):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        call()


LOCAL = {
    "mistral": lambda: transformers.MistralConfig(**DECODER, sliding_window=4),
    "gemma 3": lambda: transformers.Gemma3TextConfig(
        **DECODER, sliding_window=4, head_dim=8, layer_types=["sliding_attention", "full_attention"]
    ),
    "qwen 2": lambda: transformers.Qwen2Config(
        **DECODER, use_sliding_window=True, sliding_window=4, max_window_layers=1
    ),
}


@pytest.mark.parametrize("name", LOCAL)
def test_local_layers_are_exact_local_attention_with_a_cache_and_without(name):
    register_with_transformers(local_layers="softmax")
    model, ids = built(LOCAL[name](), "AutoModelForCausalLM"), tokens(1, 12)
    whole, expected = both(model, input_ids=ids, use_cache=False)
    torch.testing.assert_close(whole, expected, rtol=1e-4, atol=1e-5)
    cache = transformers.DynamicCache(config=model.config)
    parts = [model(ids[:, :9], cache=cache).logits]
    parts += [model(ids[:, i : i + 1], cache=cache).logits for i in range(9, 12)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(ids[:, :4], use_cache=False).logits, whole[:, :4], rtol=1e-4, atol=1e-5)


def test_local_layers_of_mixed_models_are_softmax_unless_told_otherwise():
    model, ids = built(LOCAL["gemma 3"]()), tokens(1, 12)
    found, expected = both(model, input_ids=ids, use_cache=False)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    register_with_transformers("strict", local_layers="refuse")
    model.set_attn_implementation("strict")
    with pytest.raises(ValueError, match="no sliding window: expected every layer to see"):
        model(ids, use_cache=False)


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


VISION = {
    "vit": transformers.ViTConfig,
    "dinov2": transformers.Dinov2Config,
    "clip": transformers.CLIPVisionConfig,
    "siglip": transformers.SiglipVisionConfig,
}


@pytest.mark.parametrize("name", VISION)
def test_every_layer_has_features_of_its_own(name, monkeypatch):
    seen, draw = [], FavorForTransformers._features
    monkeypatch.setattr(
        FavorForTransformers, "_features", lambda self, query, layer: seen.append(layer) or draw(self, query, layer)
    )
    model = built(VISION[name](**{**IMAGES, "num_hidden_layers": 3}))
    model(torch.randn(1, 3, 16, 16))
    assert seen == [0, 1, 2]


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


BY_THEMSELVES = {
    "bloom": lambda: transformers.BloomConfig(vocab_size=50, hidden_size=32, n_layer=2, n_head=4),
    "megatron-bert": lambda: transformers.MegatronBertConfig(**TEXT),
    "informer": lambda: transformers.InformerConfig(prediction_length=4, context_length=8, d_model=16),
    "falcon": lambda: transformers.FalconConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=4
    ),
    "git": lambda: transformers.GitConfig(vision_config=IMAGES, **TEXT),
}
"""Models whose attention is not on transformers' interface, or in part, or chosen by the implementation's name."""


@pytest.mark.parametrize("name", BY_THEMSELVES)
def test_a_model_that_computes_softmax_itself_is_refused_when_made(name):
    message = r'cannot run attn_implementation="favor": .* softmax attention itself .* use attn_implementation='
    with pytest.raises(ValueError, match=message):
        built(BY_THEMSELVES[name]())
    model = built(BY_THEMSELVES[name](), implementation="eager")
    with pytest.raises(ValueError, match=message):
        model.set_attn_implementation("favor")
    assert model.config._attn_implementation == "eager"


class ScaledProducts(nn.Module):
    """An attention without the word in its name, by a user who has not heard of the interface."""

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        scores = x @ x.transpose(-1, -2)
        return torch.softmax(scores if mask is None else scores + mask, -1) @ x


class Hidden(nn.Module):
    """One whose code gives nothing away."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return self.layer(x, x, x, attn_mask=mask, need_weights=False)[0]


def homemade(layer: nn.Module) -> Any:
    class Model(transformers.PreTrainedModel):
        config_class = transformers.PreTrainedConfig
        _supports_sdpa = True

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.layer = layer
            self.post_init()

        def forward(self, x: Tensor) -> Tensor:
            mask = masking_utils.create_causal_mask(self.config, x, None, None)
            return self.layer(x, mask)

    return Model._from_config(transformers.PreTrainedConfig(), attn_implementation="favor")


def test_a_model_of_ones_own_is_refused_when_made_or_at_the_first_mask():
    with pytest.raises(ValueError, match="got ScaledProducts, which computes softmax attention itself"):
        homemade(ScaledProducts())
    with pytest.raises(ValueError, match="this mask is for FAVOR attention only"):
        homemade(Hidden())(torch.randn(1, 5, 8))


def test_a_pooling_head_that_stays_softmax_is_told():
    with pytest.warns(UserWarning, match=r"SiglipVisionModel: softmax attention stays in .*head\.attention"):
        model = built(transformers.SiglipVisionConfig(**IMAGES))
    assert isinstance(model.head.attention, nn.MultiheadAttention)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        built(transformers.SiglipVisionConfig(**IMAGES), implementation="sdpa")


USES = {
    "added": lambda mask, x: x + mask,
    "added to": lambda mask, x: mask + x,
    "compared": lambda mask, x: mask == 0,
    "a condition": lambda mask, x: torch.where(mask, x, 0.0),
    "inverted": lambda mask, x: (1.0 - mask) * -1e9,
    "cut": lambda mask, x: mask[:, :, :, :3],
    "cast": lambda mask, x: mask.to(torch.float32),
    "softmax": lambda mask, x: nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=mask),
    "tested": lambda mask, x: not mask,
    "asked": lambda mask, x: mask.dtype,
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("kind", ["causal", "bidirectional", "sliding_window_causal", "causal padded"])
def test_a_mask_of_ours_is_never_none_and_never_a_mask_to_others(kind, use):
    config = transformers.LlamaConfig(**DECODER, sliding_window=3)
    config._attn_implementation = "favor"
    x = torch.randn(2, 4, 9, 8)
    make = getattr(masking_utils, f"create_{kind.removesuffix(' padded')}_mask")
    padded = padding("right", 9, 5) if "padded" in kind else None
    mask = make(config, x[:, 0], padded, None)
    assert mask is not None
    assert not isinstance(mask, Tensor)
    assert mask.shape == (2, 1, 9, 9)
    with pytest.raises(ValueError, match="this mask is for FAVOR attention only"):
        USES[use](mask, x)


def test_a_keyword_with_a_tensor_that_nobody_knows_is_refused():
    q, k, v = (torch.randn(1, 2, 5, 8) for _ in range(3))
    attention = ALL_ATTENTION_FUNCTIONS["favor"]
    with pytest.raises(ValueError, match="no use for alibi"):
        attention(nn.Identity(), q, k, v, None, alibi=torch.randn(2, 5))
    with pytest.raises(ValueError, match="no choice of keys a query"):
        attention(nn.Identity(), q, k, v, None, indices=torch.zeros(1, 5, 2, dtype=torch.long))
    attention(nn.Identity(), q, k, v, None, position_ids=torch.arange(5)[None], output_attentions=False)


def saved_and_loaded(model: Any, folder: Any, **options: Any) -> Any:
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder, **options)


@pytest.mark.parametrize("options", [{}, {"attn_implementation": "favor"}], ids=["as saved", "favor"])
def test_what_defines_a_model_is_saved_with_it(options, tmp_path):
    register_with_transformers(num_features=16, features="orthogonal", seed=5)
    model, ids = language_model(), tokens()
    expected = model(ids)[0]
    register_with_transformers()  # as another script does
    with pytest.warns(UserWarning, match="it runs as it was saved"):
        loaded = saved_and_loaded(model, tmp_path, **options)
    assert loaded.config._attn_implementation == "favor"
    torch.testing.assert_close(loaded(ids)[0], expected)
    with pytest.warns(UserWarning, match="it runs as it was saved"):
        again = saved_and_loaded(loaded, tmp_path / "again")
    torch.testing.assert_close(again(ids)[0], expected)
    softmax = type(model).from_pretrained(tmp_path, attn_implementation="sdpa")
    assert softmax.config._attn_implementation == "sdpa"
    assert saved_and_loaded(softmax, tmp_path / "softmax").config._attn_implementation == "sdpa"


def test_a_saved_model_does_not_load_where_the_name_is_unknown(tmp_path):
    language_model().save_pretrained(tmp_path)
    del AttentionInterface._global_mapping["favor"]
    with pytest.raises(ValueError, match='attn_implementation="favor"` is not supported'):
        transformers.LlamaForCausalLM.from_pretrained(tmp_path)


def test_another_name_brings_its_own_options():
    register_with_transformers("seeded", seed=3)
    model, ids = language_model(), tokens()
    first = model(ids)[0]
    model.set_attn_implementation("seeded")
    assert model.config.favor["seed"] == 3
    assert not torch.allclose(model(ids)[0], first, atol=1e-4)
    model.set_attn_implementation("sdpa")
    assert "attn_implementation" not in model.config.to_dict()
    model.set_attn_implementation("favor")
    torch.testing.assert_close(model(ids)[0], first)


def test_options_of_a_later_version_are_refused():
    model = language_model()
    model.config.favor["warp"] = 9
    with pytest.raises(ValueError, match="got warp as well"):
        model(tokens())


def test_parts_of_a_composite_model_come_back_as_they_were(tmp_path):
    text = {**TEXT, "eos_token_id": 2, "bos_token_id": 1}
    config = transformers.CLIPConfig(text_config=text, vision_config=IMAGES, projection_dim=16)
    model = transformers.CLIPModel._from_config(
        config, attn_implementation={"": "sdpa", "text_config": "favor", "vision_config": "sdpa"}
    )
    loaded = saved_and_loaded(model, tmp_path)
    found = [x.config._attn_implementation for x in (loaded.text_model, loaded.vision_model)]
    assert found == ["favor", "sdpa"]


def bert_like() -> tuple[Any, dict[str, Tensor]]:
    return built(ENCODERS["bert"]()), {"input_ids": tokens(), "attention_mask": padding("right", 9, 5)}


@torch.no_grad()
def test_an_exported_model_computes_what_the_model_does(tmp_path):
    FavorForTransformers.__call__.__globals__["_DRAWN"].__dict__.clear()  # as in a process that has drawn nothing
    model, inputs = bert_like()
    exported = torch.export.export(model, (), inputs, strict=False)
    expected = model(**inputs)[0]
    assert type(expected) is Tensor
    torch.export.save(exported, tmp_path / "model.pt2")
    for program in (exported, torch.export.load(tmp_path / "model.pt2")):
        for _ in range(2):
            torch.testing.assert_close(program.module()(**inputs)[0], expected)
    assert not [x for x in exported.constants.values() if isinstance(x, torch._C.Generator)]


TRACED = {
    "export": lambda model, inputs: torch.export.export(model, (), inputs, strict=False),
    "strict export": lambda model, inputs: torch.export.export(model, (), inputs, strict=True),
    "compile": lambda model, inputs: torch.compile(model, backend="aot_eager", fullgraph=True)(**inputs),
    "inference mode": lambda model, inputs: torch.inference_mode()(model)(**inputs),
    "fake": lambda model, inputs: fake_forward(model, inputs),
}


def fake_forward(model: Any, inputs: dict[str, Tensor]) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert isinstance(model(**inputs)[0], FakeTensor)
        assert isinstance(model(input_ids=inputs["input_ids"])[0], FakeTensor)


@pytest.mark.parametrize("name", TRACED)
def test_features_drawn_while_tracing_are_real_ones(name):
    torch.compiler.reset()
    FavorForTransformers.__call__.__globals__["_DRAWN"].__dict__.clear()
    model, ids = language_model(), tokens()
    TRACED[name](model, {"input_ids": ids, "attention_mask": padding("left", 9, 5), "use_cache": False})
    loss = model.train()(ids, labels=ids, use_cache=False).loss
    assert type(loss) is Tensor
    loss.backward()
    fresh = language_model()
    torch.testing.assert_close(fresh(ids)[0], model.eval()(ids)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", [*DECODERS, "modernbert"])
def test_models_train_under_autocast(name, dtype):
    model = (built(ENCODERS[name]()) if name in ENCODERS else language_model(name)).train()
    with torch.autocast("cpu", dtype):
        output = model(tokens())[0]
    output.float().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
