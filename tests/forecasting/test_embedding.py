import pytest
import torch
from torch import nn

from favorcast.forecasting.st_transformer import LearnedPosition, PerformerConfig, Time2Vec, TokenEmbedding

D_MODEL = 16


def build(d_y=3, d_x=2, dropout=0.0, **options):
    torch.manual_seed(0)
    config = PerformerConfig(d_y, d_y, d_x, D_MODEL, data_dropout_embedding=dropout, **options)
    return TokenEmbedding(config, LearnedPosition(D_MODEL, 32))


def inputs(d_y=3, d_x=2, b=2, t=5):
    torch.manual_seed(1)
    return torch.rand(b, t, d_x), torch.randn(b, t, d_y)


def test_tokens_are_time_major():
    x, y = inputs()
    embedding = build()
    before = embedding(x, y)
    y[:, 3, 1] += 1.0
    moved = (embedding(x, y) != before).any(dim=-1).all(dim=0)
    assert moved.nonzero().tolist() == [[3, 1]]


def test_split_time_term_equals_the_linear_map_of_the_concatenation():
    x, y = inputs()
    embedding = build(time_emb_dim=4, indicator_embedding=False)
    assert embedding.time is not None
    features = embedding.time[0](x).unsqueeze(2).expand(-1, -1, 3, -1)
    joined = torch.cat((features, y.unsqueeze(-1)), dim=-1)
    weight = torch.cat((embedding.time[1].weight, embedding.observation.weight), dim=1)
    expected = nn.functional.linear(joined, weight, embedding.observation.bias)
    expected = expected + embedding.position(0, 5).unsqueeze(1) + embedding.variable
    torch.testing.assert_close(embedding(x, y), expected)


def test_a_patch_is_mapped_as_its_steps_together():
    x, y = inputs(t=6)
    y[0, 4, 1] = torch.nan
    embedding = build(time_emb_dim=4, patch_len=3)
    assert embedding.time is not None
    tokens = embedding(x, y, start=7)
    assert tokens.shape == (2, 2, 3, D_MODEL)
    for patch, sensor in ((0, 2), (1, 1)):
        steps = slice(3 * patch, 3 * patch + 3)
        values = y[0, steps, sensor]
        observation = torch.cat((values.nan_to_num(), (~values.isnan()).float()))
        expected = embedding.observation(observation) + embedding.time[1](embedding.time[0](x[0, steps]).flatten())
        expected = expected + embedding.position(7 + patch, 1)[0] + embedding.variable[sensor]
        torch.testing.assert_close(tokens[0, patch, sensor], expected)


def test_missing_value_differs_from_zero_only_with_the_indicator():
    x, y = inputs()
    zero, missing = y.clone(), y.clone()
    zero[0, 2, 1], missing[0, 2, 1] = 0.0, torch.nan
    assert not torch.equal(build()(x, zero)[0, 2, 1], build()(x, missing)[0, 2, 1])
    without = build(indicator_embedding=False)
    assert torch.equal(without(x, zero), without(x, missing))


def test_missing_value_leaves_output_and_gradients_finite():
    x, y = inputs()
    y[0, 1] = torch.nan
    y.requires_grad_()
    embedding = build()
    out = embedding(x, y)
    out.square().sum().backward()
    assert out.isfinite().all()
    assert y.grad is not None
    assert y.grad.isfinite().all()
    assert (y.grad[0, 1] == 0).all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in embedding.parameters())


def test_time_term_switches_off():
    x, y = inputs()
    embedding = build(time_embedding=False)
    assert torch.equal(embedding(x, y), embedding(x + 1.0, y))
    assert not any(isinstance(module, Time2Vec) for module in embedding.modules())
    assert not torch.equal(build()(x, y), build()(x + 1.0, y))


def test_no_covariates_are_needed_without_the_time_term():
    x, y = inputs(d_x=0)
    assert build(d_x=0, time_embedding=False)(x, y).shape == (2, 5, 3, D_MODEL)


def test_fewer_sensors_use_the_first_rows_of_the_variable_table():
    x, y = inputs()
    embedding = build()
    torch.testing.assert_close(embedding(x, y[..., :2]), embedding(x, y)[:, :, :2])


def test_dropout_acts_only_in_training():
    x, y = inputs()
    embedding = build(dropout=0.5)
    assert (embedding(x, y) == 0).float().mean() > 0.3
    embedding.eval()
    assert (embedding(x, y) == 0).float().mean() == 0


@pytest.mark.parametrize("start", [0, 7])
def test_start_shifts_the_positions(start):
    x, y = inputs()
    embedding = build()
    moved = embedding(x, y, start=start) - embedding(x, y)
    expected = embedding.position(start, 5) - embedding.position(0, 5)
    torch.testing.assert_close(moved, expected.unsqueeze(1).expand_as(moved), atol=1e-6, rtol=1e-5)
