"""generate() and caches of transformers go on from FavorStates, and give what is computed without a cache."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from favorcast.kernels import (
    favor_cache,
    register_with_transformers,
)
from favorcast.kernels.huggingface import attention as favor
from favorcast.kernels.huggingface.holders import holder_of

transformers = pytest.importorskip("transformers", reason='pip install "favorcast[transformers]"')

from transformers import masking_utils  # noqa: E402
from transformers.modeling_utils import AttentionInterface  # noqa: E402
from transformers_textbook import register_textbook  # noqa: E402

from favorcast.kernels.huggingface import keyed_states  # noqa: E402

WIDTHS = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
ENDLESS = {"vocab_size": 50, "pad_token_id": 0, "eos_token_id": None, "bos_token_id": None}
DECODER = {**WIDTHS, **ENDLESS, "max_position_embeddings": 64, "num_key_value_heads": 2}
SIDES = {
    f"{side}_{name}": n
    for side in ("encoder", "decoder")
    for name, n in (("layers", 2), ("ffn_dim", 48), ("attention_heads", 4))
}
PAIR = {"d_model": 32, **SIDES, **ENDLESS, "decoder_start_token_id": 1, "forced_eos_token_id": None}

MODELS = {
    "llama": lambda: transformers.LlamaConfig(**DECODER),
    "qwen 3": lambda: transformers.Qwen3Config(**DECODER, head_dim=16),
    "gpt-2": lambda: transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **ENDLESS),
    "gpt-neox": lambda: transformers.GPTNeoXConfig(**WIDTHS, **ENDLESS, max_position_embeddings=64),
    "gemma 3": lambda: transformers.Gemma3TextConfig(
        **DECODER, sliding_window=4, head_dim=8, layer_types=["sliding_attention", "full_attention"]
    ),
    "bart": lambda: transformers.BartConfig(**PAIR, max_position_embeddings=64),
    "marian": lambda: transformers.MarianConfig(**PAIR, max_position_embeddings=64),
    "whisper": lambda: transformers.WhisperConfig(
        **PAIR, num_mel_bins=8, max_source_positions=10, max_target_positions=64, suppress_tokens=None
    ),
}
PAIRS = ("bart", "marian", "whisper")


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    kept = [dict(x._global_mapping) for x in (AttentionInterface, masking_utils.AttentionMaskInterface)]
    register_with_transformers()
    register_textbook()
    yield
    for interface, mapping in zip((AttentionInterface, masking_utils.AttentionMaskInterface), kept, strict=True):
        interface._global_mapping.clear()
        interface._global_mapping.update(mapping)


def built(name: str = "llama", implementation: str = "favor") -> Any:
    torch.manual_seed(0)
    config = MODELS[name]()
    kind = {"bart": "BartForConditionalGeneration", "marian": "MarianMTModel"}.get(name, "AutoModelForCausalLM")
    kind = "WhisperForConditionalGeneration" if name == "whisper" else kind
    make = getattr(transformers, kind)
    make = make.from_config if kind.startswith("Auto") else make._from_config
    model = make(config, attn_implementation=implementation)
    for parameter in model.parameters():  # at 0.02 every attention is the mean
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.2)
    return model.eval()


def prompt(name: str, length: int = 9) -> dict[str, Tensor]:
    if name == "whisper":
        return {"input_features": torch.randn(2, 8, 20)}
    padded = torch.arange(length).flip(0) if name not in PAIRS else torch.arange(length)
    mask = (padded < torch.tensor([length, length - 4])[:, None]).long()
    return {"input_ids": torch.randint(3, 50, (2, length)), "attention_mask": mask}


def generated(model: Any, inputs: dict[str, Tensor], **options: Any) -> tuple[Tensor, Tensor]:
    """Return the tokens and the logits of each."""
    torch.manual_seed(1)
    options = {"max_new_tokens": 8, "do_sample": False, **options}
    found = model.generate(**inputs, return_dict_in_generate=True, output_logits=True, **options)
    return found.sequences, torch.stack(found.logits)


@pytest.fixture
def whole(monkeypatch) -> list[int]:
    """How many keys each attention went through that did not go on from a state."""
    seen: list[int] = []
    attend_last = favor.attend_last
    monkeypatch.setattr(
        favor,
        "attend_last",
        lambda query, key, *rest, **options: seen.append(key.shape[-2]) or attend_last(query, key, *rest, **options),
    )
    return seen


WAYS = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "sampled": {"do_sample": True, "num_return_sequences": 2},
    "sampled beams": {"do_sample": True, "num_beams": 2, "num_return_sequences": 2},
    "chunked prefill": {"prefill_chunk_size": 4},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MODELS)
def test_generate_goes_on_from_states_by_itself_and_equals_generation_without_a_cache(name, way, whole):
    if name in PAIRS and way == "chunked prefill":
        pytest.skip("transformers prefills decoders only in chunks")
    model, inputs = built(name), prompt(name)
    found = generated(model, inputs, **WAYS[way])
    assert len(whole) == (2 if name in PAIRS else 0), "only the encoder's two layers may go without a state"
    model.set_attn_implementation("textbook")
    expected = generated(model, inputs, use_cache=False, **{**WAYS[way], "prefill_chunk_size": None})
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt-neox", "bart"])
@pytest.mark.parametrize("way", ["prompt lookup", "assistant"])
def test_assisted_decoding_takes_tokens_back(name, way, whole):
    model, inputs = built(name), {key: x[:1] for key, x in prompt(name).items()}
    options = {"prompt_lookup_num_tokens": 3} if way == "prompt lookup" else {"assistant_model": assistant(model)}
    found = generated(model, inputs, **options)[0]
    assert len(whole) == (4 if way == "assistant" else 2) * (name == "bart")
    assert torch.equal(found, generated(model, inputs, use_cache=False)[0])


def assistant(model: Any) -> Any:
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        parameter.data += 0.03 * torch.randn_like(parameter)
    return other


@pytest.mark.parametrize("name", ["llama", "gpt-neox", "bart", "whisper"])
@pytest.mark.parametrize("way", ["greedy", "beams"])
def test_a_cache_without_keys_generates_the_same(name, way):
    model, inputs = built(name), prompt(name)
    if name == "whisper":  # whose generate() takes the keys of the cache that it returns apart
        with pytest.raises(AttributeError, match="keeps no keys and values"):
            generated(model, inputs, cache=favor_cache(model), **WAYS[way])
        options = {"max_new_tokens": 8, "do_sample": False, **WAYS[way]}
        expected = model.generate(**inputs, use_cache=False, **options)
        assert torch.equal(model.generate(**inputs, cache=favor_cache(model), **options), expected)
        return
    found = generated(model, inputs, cache=favor_cache(model), **WAYS[way])
    expected = generated(model, inputs, use_cache=False, **WAYS[way])
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_several_turns_go_on_with_the_cache_of_the_last(whole):
    model, ids = built(), torch.randint(3, 50, (1, 9))
    first = model.generate(ids, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    turn = torch.cat([first.sequences, torch.randint(3, 50, (1, 5))], 1)
    found = model.generate(turn, cache=first.cache, max_new_tokens=4, do_sample=False)
    assert not whole
    assert torch.equal(found, model.generate(turn, use_cache=False, max_new_tokens=4, do_sample=False))


def go_on(model: Any, tokens: Tensor, change: Any, cache: Any) -> list[Tensor]:
    """Return the logits of six tokens and two more, then, with the cache changed, of two more and two at once.

    Args:
        tokens: (b, length, 2), the ids and the mask.
    """
    logits, begin = [], 0
    for end in (6, 7, 8):
        logits.append(model(tokens[:, begin:end, 0], cache=cache, attention_mask=tokens[:, :end, 1]).logits)
        begin = end
    tokens, cache = change(tokens, cache)
    begin = cache.get_seq_length()
    for end in (begin + 1, begin + 2, begin + 4):
        logits.append(model(tokens[:, begin:end, 0], cache=cache, attention_mask=tokens[:, :end, 1]).logits)
        begin = end
    return logits


def some_tokens(batch: int = 2, length: int = 14) -> Tensor:
    """Padded on the left."""
    tokens = torch.stack([torch.randint(3, 50, (batch, length)), torch.ones(batch, length, dtype=torch.long)], -1)
    tokens[-1, :2, 1] = 0
    return tokens


def with_layers(change: Any) -> Any:
    def changed(ids: Tensor, cache: Any) -> Any:
        for layer in cache.layers:
            change(layer)
        return ids, cache

    return changed


def set_keys(layer: Any) -> None:
    layer.keys, layer.values = layer.keys.flip(-2), layer.values.flip(-2)


def edit_keys(layer: Any) -> None:
    layer.keys[:, :, 3] += 1.0


def edit_values(layer: Any) -> None:
    layer.values.mul_(2.0)


def branch(ids: Tensor, cache: Any) -> Any:
    """Go on with the cache, and come back to a copy."""
    return ids, copy.deepcopy(cache)


def pickled(ids: Tensor, cache: Any) -> Any:
    return ids, pickle.loads(pickle.dumps(cache))


def moved_out(ids: Tensor, cache: Any) -> Any:
    """Into a cache of transformers' own layers, as data."""
    return ids, transformers.DynamicCache([(keys, values) for keys, values, _ in cache])


def shared_tensors(ids: Tensor, cache: Any) -> Any:
    """Let a copy that shares the tensors go on first, with other tokens."""
    other = copy.copy(cache)
    other.layers = [copy.copy(layer) for layer in cache.layers]
    MODEL[0](ids[:, 9:10, 0], attention_mask=ids[:, :9, 1], cache=other)
    return ids, cache


MODEL: list[Any] = []
"""The model of a test, for changes that need one."""


def cropped(tokens: int) -> Any:
    def crop(ids: Tensor, cache: Any) -> Any:
        """Go on with other tokens than those taken back."""
        cache.crop(-tokens)
        kept = cache.get_seq_length()
        return torch.cat([ids[:, :kept], ids[:, kept:].flip(1)], 1), cache

    return crop


def selected(ids: Tensor, cache: Any) -> Any:
    chosen = torch.tensor([1, 1, 0])
    cache.batch_select_indices(chosen)
    return ids[chosen], cache


def repeated(ids: Tensor, cache: Any) -> Any:
    cache.batch_repeat_interleave(2)
    return ids.repeat_interleave(2, 0), cache


def reordered(ids: Tensor, cache: Any) -> Any:
    cache.reorder_cache(torch.tensor([1, 0]))
    return ids[[1, 0]], cache


def reset(ids: Tensor, cache: Any) -> Any:
    cache.reset()
    return ids, cache


CHANGES = {
    "nothing": lambda ids, cache: (ids, cache),
    "one token back": cropped(1),
    "five tokens back": cropped(5),
    "samples selected": selected,
    "samples repeated": repeated,
    "beams": reordered,
    "set": with_layers(set_keys),
    "keys edited in place": with_layers(edit_keys),
    "values edited in place": with_layers(edit_values),
    "copied": branch,
    "pickled": pickled,
    "moved out": moved_out,
    "shared tensors": shared_tensors,
    "reset": reset,
}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("change", CHANGES)
def test_whatever_is_done_to_a_cache_states_follow_its_keys(change, mode):
    if mode is torch.inference_mode and "in place" in change:
        pytest.skip("nobody counts changes in place under inference_mode")
    if mode is torch.enable_grad and change == "copied":
        pytest.skip("torch does not copy tensors with a history")
    model, ids = built(), some_tokens()
    MODEL[:] = [model]
    with mode():
        found = go_on(model, ids, CHANGES[change], transformers.DynamicCache(config=model.config))
        expected = go_on(model, ids, CHANGES[change], transformers.DynamicCache())  # of layers that know no states
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("change", ["nothing", "one token back", "five tokens back", "beams", "copied", "pickled"])
def test_states_outlive_what_leaves_their_keys_as_they_are(change, whole, monkeypatch):
    model, ids = built(), some_tokens()
    lengths: list[int] = []
    taken_in = keyed_states.summarize
    monkeypatch.setattr(
        keyed_states,
        "summarize",
        lambda key, *rest, **options: lengths.append(key.shape[-2]) or taken_in(key, *rest, **options),
    )
    go_on(model, ids, CHANGES[change], transformers.DynamicCache(config=model.config))
    assert not whole
    assert lengths == {"one token back": [7, 7], "five tokens back": [3, 3]}.get(change, [])


@torch.no_grad()
def test_layers_that_share_keys_have_states_of_their_own():
    attention, layer = AttentionInterface()["favor"], keyed_states.FavorDynamicLayer()
    modules = [nn.Identity() for _ in range(2)]
    for number, module in enumerate(modules):
        module.layer_idx = number
    for length in (5, 1, 1, 3):
        keys, values = layer.update(*torch.randn(2, 1, 2, length, 8))
        query = torch.randn(1, 4, length, 8)
        for module, scaling in ((modules[0], 0.3), (modules[1], 0.3), (modules[0], 0.2)):
            found = attention(module, query, keys, values, None, scaling=scaling)[0]
            expected = attention(module, query, keys.clone(), values, None, scaling=scaling)[0]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert len(layer._taken) == 3


@torch.no_grad()
def test_after_going_back_once_a_step_back_is_to_a_state_nearby(monkeypatch):
    model, ids = built(), torch.randint(3, 50, (1, 60))
    cache = transformers.DynamicCache(config=model.config)
    model(ids[:, :40], cache=cache)
    cache.crop(-1)
    lengths: list[int] = []
    taken_in = keyed_states.summarize
    monkeypatch.setattr(
        keyed_states,
        "summarize",
        lambda key, *rest, **options: lengths.append(key.shape[-2]) or taken_in(key, *rest, **options),
    )
    for begin, end, back in ((39, 44, 3), (41, 46, 5), (41, 42, 0), (42, 43, 0), (43, 44, 2)):
        model(ids[:, begin:end], cache=cache)
        cache.crop(-back)
    logits = model(ids[:, 42:], cache=cache).logits
    assert max(lengths[2:]) <= 3, "the first two make the state again, from all keys"
    torch.testing.assert_close(logits, model(ids, use_cache=False).logits[:, 42:], rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["DynamicCache", "favor_cache"])
def test_a_mask_that_hides_other_tokens_than_before_is_followed_or_refused(kind):
    model, ids = built(), torch.randint(3, 50, (2, 9))
    cache = transformers.DynamicCache(config=model.config) if kind == "DynamicCache" else favor_cache(model)
    plain = transformers.DynamicCache()
    before, after = torch.ones(2, 8), torch.ones(2, 9)
    after[:, 2] = 0.0
    for one in (cache, plain):
        model(ids[:, :8], cache=one, attention_mask=before)
    expected = model(ids[:, 8:], cache=plain, attention_mask=after).logits
    assert not torch.allclose(expected, model(ids, use_cache=False).logits[:, 8:], atol=1e-3)
    if kind == "DynamicCache":
        found = model(ids[:, 8:], cache=cache, attention_mask=after).logits
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    else:
        with pytest.raises(ValueError, match="cannot hide tokens that it has taken in"):
            model(ids[:, 8:], cache=cache, attention_mask=after)


@torch.no_grad()
def test_padding_moves_with_its_samples():
    model, ids = built(), torch.randint(3, 50, (2, 14))
    mask = torch.ones(2, 14)
    mask[1, :3] = 0.0
    for kind in ("keys", "states"):
        cache = transformers.DynamicCache(config=model.config) if kind == "keys" else favor_cache(model)
        model(ids[:, :8], cache=cache, attention_mask=mask[:, :8])
        cache.reorder_cache(torch.tensor([1, 0]))
        ids, mask = ids[[1, 0]], mask[[1, 0]]
        found = model(ids[:, 8:], cache=cache, attention_mask=mask).logits
        expected = model(ids, attention_mask=mask, use_cache=False).logits[:, 8:]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_gradients_go_through_the_keys_of_a_cache(whole):
    model, ids = built(), torch.randint(3, 50, (2, 9))
    cache = transformers.DynamicCache(config=model.config)
    logits = torch.cat([model(ids[:, :5], cache=cache).logits, model(ids[:, 5:], cache=cache).logits], 1)
    assert len(whole) == 4
    logits.square().mean().backward()
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(ids, use_cache=False).logits.square().mean().backward()
    for gradient, p in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, p.grad, rtol=1e-3, atol=1e-6)


def test_only_caches_of_models_that_run_favor_attention_keep_states():
    model = built(implementation="sdpa")
    assert {type(x) for x in transformers.DynamicCache(config=model.config).layers} == {
        transformers.cache_utils.DynamicLayer
    }
    model.set_attn_implementation("favor")
    cache = transformers.DynamicCache(config=model.config)
    assert {type(x) for x in cache.layers} == {keyed_states.FavorDynamicLayer}
    ids = torch.randint(3, 50, (2, 9))
    model(ids[:, :8], cache=cache)
    model.set_attn_implementation("sdpa")  # finds the keys it needs
    found = model(ids[:, 8:], cache=cache).logits
    assert found.shape == (2, 1, 50)


def test_keys_that_are_gone_are_forgotten():
    layer = keyed_states.FavorDynamicLayer()
    for _ in range(3):
        keys, _ = layer.update(torch.randn(1, 2, 4, 8), torch.randn(1, 2, 4, 8))
    assert holder_of(keys) is layer
    assert holder_of(keys.clone()) is None
    del layer
    assert holder_of(keys) is None


@torch.no_grad()
def test_a_graph_of_a_model_with_a_cache_is_that_of_its_keys():
    torch.compiler.reset()
    model, ids = built(), torch.randint(3, 50, (2, 9))
    compiled = torch.compile(model, backend="aot_eager")
    cache, mask = transformers.DynamicCache(config=model.config), torch.ones(2, 9)
    parts = [compiled(ids[:, :6], attention_mask=mask[:, :6], cache=cache).logits]
    parts.append(model(ids[:, 6:7], attention_mask=mask[:, :7], cache=cache).logits)  # and eagerly between
    parts.append(compiled(ids[:, 7:], attention_mask=mask, cache=cache).logits)
    torch.testing.assert_close(torch.cat(parts, 1), model(ids, use_cache=False).logits, rtol=1e-4, atol=1e-4)
