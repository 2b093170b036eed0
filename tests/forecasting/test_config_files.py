from pathlib import Path

import pytest

from favorcast.forecasting.cli.config_files import bundled_configs, bundled_folder, resolve_config


def test_the_bundled_configurations_are_listed():
    flows = "cylinder_wake", "fluidic_pinball", "fluidic_pinball_plain", "fluidic_pinball_stepwise", "unseen_reynolds"
    public_sets = "boundary_layer", "etth1", "ettm1", "metr_la_week", "weather"
    assert bundled_configs() == sorted(flows + public_sets)


def test_a_bundled_name_may_end_in_yaml():
    expected = bundled_folder() / "cylinder_wake.yaml"
    assert resolve_config("cylinder_wake") == resolve_config("cylinder_wake.yaml") == expected
    assert expected.is_file()


def test_a_file_wins_over_a_bundled_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cylinder_wake").write_text("")
    assert resolve_config("cylinder_wake") == Path("cylinder_wake")


def test_an_unknown_configuration_is_refused_with_the_names_there_are():
    with pytest.raises(FileNotFoundError, match=r"'waves'.*cylinder_wake, etth1"):
        resolve_config("waves")
    with pytest.raises(FileNotFoundError, match=r"elsewhere/cylinder_wake"):
        resolve_config("elsewhere/cylinder_wake")
