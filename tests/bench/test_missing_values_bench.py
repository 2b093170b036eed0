"""bench/studies/missing_values.py loses what it says, and scores forecasters beside yardsticks."""

import numpy as np
import pytest
import torch
from small_run import config_file, metrics, run, series_file
from studies import missing_values as bench

WINDOWS = torch.randn(60, 40, 5)


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("nothing", 0.0),
        ("10 % at random", 0.1),
        ("a dead sensor", 0.2),
        ("an outage of {steps} rows", 0.25),
        ("the latest {steps} rows", 0.25),
    ],
)
def test_a_loss_takes_its_share_and_changes_nothing_else(name, share):
    lost = bench.LOSSES[name](WINDOWS, 10, torch.Generator().manual_seed(0))
    missing = lost.isnan()
    assert missing.float().mean().item() == pytest.approx(share, abs=0.01)
    torch.testing.assert_close(lost[~missing], WINDOWS[~missing], rtol=0, atol=0)
    assert not WINDOWS.isnan().any()
    if "outage" in name:
        assert not missing[:, -1].any()


def test_a_run_is_measured_from_its_folder(tmp_path, capsys):
    config = config_file(tmp_path, series_file(tmp_path))
    folder, _ = run(capsys, "fit", "--config", config, "--runs", tmp_path / "runs")
    table = dict(bench.measure(folder, None, steps=3, every=1))
    assert list(table) == [name.format(steps=3) for name in bench.LOSSES]
    scale = np.load(tmp_path / "waves.npz")["dataset"][:140, :2].std(axis=0)
    by_sensor = [metrics(folder)["persistence", "sensor", name, "mse"] for name in ("u_0", "u_1")]
    assert table["nothing"]["persistence"] == pytest.approx(np.mean(by_sensor / scale**2), rel=1e-3)
    assert table["the latest 3 rows"]["persistence"] != table["nothing"]["persistence"]
