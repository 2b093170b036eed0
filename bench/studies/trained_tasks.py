"""Train small causal transformers with softmax attention and with FAVOR+ on tasks that need precise attention.

    python bench trained_tasks            the table of kernels/README.md, some minutes on one core
    python bench trained_tasks --steps 0.02

Three tasks, all impossible without looking back at one particular token:

    copy     v_1 … v_n ? ? …                  repeat n random symbols
    recall   k_1 v_1, …, k_n v_n, k ?, k ? …  give the symbol that came with a key, for every key in another order
    latest   likewise, of n / 4 keys that are told four times each: give the symbol that came with a key last, the
             others distract

A token is a key and a value, whose embeddings add up; the value of a question is the same for all. All models have the
same blocks, initial weights, data and number of steps; only the attention differs. Accuracy is over the questions of
fresh sequences, mean over seeds; 1/8 is chance. The last row runs the softmax model's weights with FAVOR+, without
training it further. Dimension key: b batch, t tokens, n items.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from favorcast.kernels import FavorAttention

WIDTH, HEADS, LAYERS = 64, 4, 2
ITEMS = {"copy": 32, "recall": 64, "latest": 64}
STEPS = {"copy": 200, "recall": 300, "latest": 300}
TOLD = 4
"""Times that a key of "latest" is told."""
KEYS, VALUES = 128, 8
QUESTION = VALUES


class Softmax(nn.MultiheadAttention):
    """Causal softmax attention that is called as FavorAttention is."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        mask = nn.Transformer.generate_square_subsequent_mask(query.shape[1])
        return super().forward(query, key, value, attn_mask=mask, is_causal=True, need_weights=False)


ATTENTIONS: dict[str, Callable[[], nn.Module]] = {
    "softmax": lambda: Softmax(WIDTH, HEADS, batch_first=True),
    "FAVOR+": lambda: favor(),
    "FAVOR+, m = 16 d": lambda: favor(num_features=16 * WIDTH // HEADS),
    "FAVOR+, qk_norm": lambda: favor(qk_norm=True),
    "FAVOR+, gate": lambda: favor(gate=True),
}
SWAPPED = "FAVOR+ with the weights trained in softmax attention"


def favor(**options) -> FavorAttention:
    """Return a causal FavorAttention, by default with m = 4 d."""
    return FavorAttention(WIDTH, HEADS, batch_first=True, is_causal=True, **options)


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.feed_forward = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norms[0](x)
        x = x + self.attention(normed, normed, normed)[0]
        return x + self.feed_forward(self.norms[1](x))


class Model(nn.Module):
    """A causal transformer from tokens (b, t, 2), keys and values, to logits (b, t, values)."""

    def __init__(self, attention: Callable[[], nn.Module], length: int) -> None:
        super().__init__()
        self.key, self.value = nn.Embedding(KEYS, WIDTH), nn.Embedding(VALUES + 1, WIDTH)
        self.position = nn.Embedding(length, WIDTH)
        self.blocks = nn.Sequential(*(Block(attention()) for _ in range(LAYERS)))
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VALUES))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.key(tokens[..., 0]) + self.value(tokens[..., 1]) + self.position.weight
        return self.head(self.blocks(x))


def batch(task: str, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return (tokens (b, 2 n, 2), answers (b, n) to the questions in the second half)."""
    n = ITEMS[task]
    values = torch.randint(VALUES, (count, n), generator=generator)
    questions = torch.full((count, n), QUESTION)
    keys, order = (torch.rand(count, size, generator=generator).argsort(-1)[:, :n] for size in (KEYS, n))
    if task == "copy":
        keys, order = torch.zeros_like(keys), torch.arange(n).expand(count, n)
    if task == "latest":
        keys = keys[:, : n // TOLD].repeat(1, TOLD).gather(1, torch.rand(count, n, generator=generator).argsort(-1))
    questioned = keys.gather(1, order)
    told = (questioned.unsqueeze(-1) == keys.unsqueeze(1)) if task != "copy" else order.unsqueeze(-1) == torch.arange(n)
    last = (told * torch.arange(1, n + 1)).argmax(-1)
    asked = torch.cat([keys, questioned], 1)
    return torch.stack([asked, torch.cat([values, questions], 1)], -1), values.gather(1, last)


def trained(task: str, attention: str, seed: int, steps: int) -> Model:
    """Return a model after its training."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = Model(ATTENTIONS[attention], 2 * ITEMS[task])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        tokens, answers = batch(task, 32, generator)
        loss = F.cross_entropy(model(tokens)[:, -ITEMS[task] :].flatten(0, 1), answers.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model


def swapped(model: Model) -> Model:
    """Return the model with FAVOR+ in the place of softmax attention and its weights as they are."""
    twin = Model(ATTENTIONS["FAVOR+"], model.position.num_embeddings)
    twin.load_state_dict(model.state_dict())
    return twin


def accuracy(model: Model, task: str) -> float:
    """Return the share of right answers to the questions of fresh sequences."""
    tokens, answers = batch(task, 256, torch.Generator().manual_seed(1000))
    with torch.no_grad():
        return float((model(tokens)[:, -ITEMS[task] :].argmax(-1) == answers).float().mean())


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=float, default=1.0, help="train for this share of the steps")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--tasks", nargs="+", choices=ITEMS, default=list(ITEMS))
    parser.add_argument("--attentions", nargs="+", choices=ATTENTIONS, default=list(ATTENTIONS))
    options = parser.parse_args(arguments)
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for task, attention, seed in product(options.tasks, options.attentions, range(options.seeds)):
        model = trained(task, attention, seed, max(1, round(options.steps * STEPS[task])))
        found[attention, task].append(accuracy(model, task))
        if attention == "softmax":
            found[SWAPPED, task].append(accuracy(swapped(model), task))
    print("| attention | " + " | ".join(f"{task} {ITEMS[task]}" for task in options.tasks) + " |")
    print("| --- |" + " --- |" * len(options.tasks))
    for attention in (*options.attentions, *([SWAPPED] if "softmax" in options.attentions else [])):
        cells = [f"{statistics.mean(found[attention, task]):.3f}" for task in options.tasks]
        print(f"| {attention} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
