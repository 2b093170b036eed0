import pytest
import torch

from favorcast.forecasting.st_transformer import GlobalAttention, LayerConfig, LocalAttention, build_memory

CONFIG = LayerConfig(d_model=16, n_heads=2)
CHANGE = torch.linspace(-1.0, 1.0, 16)
BATCH, STEPS, SENSORS = 2, 6, 3


def tokens(seed=0, steps=STEPS, sensors=SENSORS):
    return torch.randn(BATCH, steps, sensors, 16, generator=torch.Generator().manual_seed(seed))


def moved_tokens(module, change):
    """Return which (step, sensor) outputs of the first sample move when the tokens picked by `change` do."""
    x = tokens()
    before = module(x)
    x[change] += CHANGE
    return (module(x) - before).abs().amax(dim=-1)[0] > 1e-6


def test_local_attention_stays_within_the_sensor_and_the_sample():
    module = LocalAttention(CONFIG.build_attention(seed=0))
    moved = moved_tokens(module, (0, 2, 1))
    assert moved[:, 1].all()
    assert not moved[:, [0, 2]].any()
    assert not moved_tokens(module, (1,)).any()


def test_global_attention_reaches_every_token_of_the_sample():
    module = GlobalAttention(CONFIG.build_attention(seed=0))
    assert moved_tokens(module, (0, 2, 1)).all()
    assert not moved_tokens(module, (1,)).any()


def test_local_attention_equals_one_call_for_each_sensor():
    attention = CONFIG.build_attention(seed=0)
    x = tokens()
    each = [attention(x[:, :, i], x[:, :, i], x[:, :, i])[0] for i in range(SENSORS)]
    torch.testing.assert_close(LocalAttention(attention)(x), torch.stack(each, dim=2), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("step", [0, 3, 5])
def test_causal_local_attention_hides_later_steps(step):
    module = LocalAttention(CONFIG.build_attention(seed=0, is_causal=True))
    moved = moved_tokens(module, (0, slice(step, None)))
    assert not moved[:step].any()
    assert moved[step:].all()


@pytest.mark.parametrize("step", [0, 3, 5])
def test_causal_global_attention_hides_later_steps_and_shows_the_sensors_of_a_step_to_each_other(step):
    module = GlobalAttention(CONFIG.build_attention(seed=0, is_causal=True, tokens_per_step=SENSORS))
    moved = moved_tokens(module, (0, step, 1))
    assert not moved[:step].any()
    assert moved[step:].all()


def test_cross_attention_reads_the_memory_of_its_own_sensor_or_of_all():
    memory_tokens = tokens(seed=1, steps=4, sensors=5)
    local = LocalAttention(CONFIG.build_attention(seed=0))
    joint = GlobalAttention(CONFIG.build_attention(seed=1))
    memory = build_memory(memory_tokens, SENSORS)
    before = local(tokens(), memory.per_sensor), joint(tokens(), memory.joint)
    memory_tokens[:, 2, 1] += CHANGE
    memory = build_memory(memory_tokens, SENSORS)
    local_moved = (local(tokens(), memory.per_sensor) - before[0]).abs().amax(dim=-1) > 1e-6
    joint_moved = (joint(tokens(), memory.joint) - before[1]).abs().amax(dim=-1) > 1e-6
    assert local_moved[:, :, 1].all()
    assert not local_moved[:, :, [0, 2]].any()
    assert joint_moved.all()


def test_sensors_beyond_the_targets_reach_only_the_global_memory():
    memory = build_memory(tokens(steps=4, sensors=5), SENSORS)
    assert memory.per_sensor.shape == (BATCH * SENSORS, 4, 16)
    assert memory.joint.shape == (BATCH, 4 * 5, 16)


def test_padded_memory_is_ignored():
    memory_tokens = tokens(seed=1, steps=4, sensors=5)
    padding = torch.zeros(BATCH, 4, 5, dtype=torch.bool)
    padding[:, 3] = True
    local = LocalAttention(CONFIG.build_attention(seed=0))
    joint = GlobalAttention(CONFIG.build_attention(seed=1))
    masked, cut = build_memory(memory_tokens, SENSORS, padding), build_memory(memory_tokens[:, :3], SENSORS)
    torch.testing.assert_close(
        local(tokens(), masked.per_sensor, masked.per_sensor_padding), local(tokens(), cut.per_sensor)
    )
    torch.testing.assert_close(joint(tokens(), masked.joint, masked.joint_padding), joint(tokens(), cut.joint))
