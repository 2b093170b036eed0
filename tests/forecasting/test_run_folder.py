import pytest
import torch

from favorcast.forecasting.cli.run_folder import create_run_folder, new_run_folder, resolve_checkpoint, run_config


def checkpoint_in(folder):
    folder.mkdir(parents=True)
    path = folder / "best.ckpt"
    torch.save({"pytorch-lightning_version": "2.6.6", "state_dict": {}}, path)
    return path


def test_a_folder_is_named_after_the_run_its_time_and_its_command(tmp_path):
    folder = new_run_folder(tmp_path, "wake", "fit")
    assert folder.parent == tmp_path / "wake"
    assert folder.name.endswith("_fit")
    assert not folder.parent.exists()


def test_a_new_folder_is_never_an_existing_one(tmp_path):
    folders = []
    for _ in range(4):
        folders.append(new_run_folder(tmp_path, "wake", "fit"))
        create_run_folder(folders[-1])
    assert len(set(folders)) == 4


def test_an_existing_folder_is_not_taken_over(tmp_path):
    with pytest.raises(ValueError, match="cannot create the run folder"):
        create_run_folder(tmp_path)


def test_a_run_folder_stands_for_its_best_checkpoint(tmp_path):
    best = checkpoint_in(tmp_path / "run" / "checkpoints")
    assert resolve_checkpoint(str(tmp_path / "run")) == resolve_checkpoint(str(best)) == best


def test_what_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "text.ckpt").write_text("weights")
    with pytest.raises(ValueError, match="is no checkpoint"):
        resolve_checkpoint(str(tmp_path / "text.ckpt"))
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        resolve_checkpoint(str(tmp_path))


def test_the_configuration_of_a_run_is_found_from_its_checkpoint(tmp_path, monkeypatch):
    best = checkpoint_in(tmp_path / "run" / "checkpoints")
    assert run_config(best) is None
    (tmp_path / "run" / "config.yaml").write_text("")
    assert run_config(best) == tmp_path / "run" / "config.yaml"
    monkeypatch.chdir(best.parent)
    assert run_config(resolve_checkpoint("best.ckpt")) == tmp_path / "run" / "config.yaml"


def test_a_checkpoint_elsewhere_has_no_configuration(tmp_path):
    (tmp_path / "config.yaml").write_text("")
    assert run_config(checkpoint_in(tmp_path / "weights")) is None
