"""The small trained tasks of kernels/README.md ask what they say, and their table comes out."""

from __future__ import annotations

import pytest
import torch
from studies import trained_tasks


def by_hand(task: str, tokens: torch.Tensor) -> torch.Tensor:
    """Answer the questions of one sequence by looking them up."""
    half = len(tokens) // 2
    told, asked = tokens[:half], tokens[half:]
    assert (asked[:, 1] == trained_tasks.QUESTION).all()
    if task == "copy":
        return told[:, 1]
    values = dict(told.tolist())  # of a key that is told again, the last
    assert len(values) == half // (trained_tasks.TOLD if task == "latest" else 1)
    return torch.tensor([values[key] for key in asked[:, 0].tolist()])


@pytest.mark.parametrize("task", trained_tasks.ITEMS)
def test_the_answers_stand_in_the_sequence(task):
    tokens, answers = trained_tasks.batch(task, 5, torch.Generator().manual_seed(0))
    assert tokens.shape == (5, 2 * trained_tasks.ITEMS[task], 2)
    for sequence, answer in zip(tokens, answers, strict=True):
        assert torch.equal(by_hand(task, sequence), answer)


@pytest.mark.parametrize("attention", trained_tasks.ATTENTIONS)
def test_answers_do_not_see_the_questions_that_follow(attention):
    model = trained_tasks.Model(trained_tasks.ATTENTIONS[attention], 2 * trained_tasks.ITEMS["copy"])
    tokens, _ = trained_tasks.batch("copy", 2, torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[:, -1] = 0
    torch.testing.assert_close(model(changed)[:, :-1], model(tokens)[:, :-1])


def test_the_table_has_a_row_for_every_attention(monkeypatch, capsys):
    monkeypatch.setattr(trained_tasks, "ITEMS", {"copy": 4, "recall": 4, "latest": 4})
    trained_tasks.main(["--steps", "0.02"])
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()]
    assert rows[0][1:] == [" copy 4 ", " recall 4 ", " latest 4 "]
    assert [row[0].strip() for row in rows[2:]] == [*trained_tasks.ATTENTIONS, trained_tasks.SWAPPED]
    assert all(0 <= float(cell) <= 1 for row in rows[2:] for cell in row[1:])


def test_swapping_keeps_the_weights():
    model = trained_tasks.Model(trained_tasks.ATTENTIONS["softmax"], 8)
    twin = trained_tasks.swapped(model).state_dict()
    assert all(torch.equal(tensor, twin[name]) for name, tensor in model.state_dict().items())
