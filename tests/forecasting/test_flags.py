"""Errors and notes of the command line name flags, which work, and not the options of Python."""

import re

import numpy as np
import pytest
from small_run import refused, run
from user_tables import DATED, STAMPS, table

from favorcast.forecasting.cli.flags import with_flags
from favorcast.forecasting.cli.main import main


@pytest.mark.parametrize(
    ("message", "short", "long"),
    [
        ("state table.date_order", "state --date_order", "state --data.series.init_args.table.date_order"),
        (
            "state table.decimal ',' for",
            "state --decimal ',' for",
            "state --data.series.init_args.table.decimal ',' for",
        ),
        (
            "table.missing ['-1e+30'] says",
            "--missing=-1e+30 says",
            "--data.series.init_args.table.missing '[\"-1e+30\"]' says",
        ),
        (
            "of table.time_zone='Mars': x",
            "of --time_zone 'Mars': x",
            "of --data.series.init_args.table.time_zone 'Mars': x",
        ),
        ("pass time_col_name='d' if", "pass --time_column 'd' if", "pass --data.series.init_args.time_col_name 'd' if"),
        ("with time_col_name", "with --time_column", "with --data.series.init_args.time_col_name"),
        ("or set gaps to 'split' or 'resample'", "or give --gaps split or --gaps resample", None),
        ("gaps='resample' puts", "--gaps resample puts", "--data.series.init_args.gaps resample puts"),
        ("check null_value, the split", "check --null_value, the split", None),
        ("one window (context_len=9, target_len=4", "one window (--data.context_len=9, --data.target_len=4", None),
        ("give covariates: the columns", "give --covariates: the columns", None),
        ("covariates follow the clock of training", "covariates follow the clock of training", None),
        (
            "choose some with sensors=7",
            "choose some with --sensors 7",
            "choose some with --data.series.init_args.sensors 7",
        ),
        ("the fields and sensors of", "the fields and sensors of", "the fields and sensors of"),
        ("leave out fields=", "leave out --fields", "leave out --data.series.init_args.fields"),
        ("horizon must be at least 1, got 0", "--horizon must be at least 1, got 0", None),
        ("a horizon must end", "a horizon must end", "a horizon must end"),
        ("unknown option --data.series.null_value", "unknown option --data.series.null_value", None),
        ("the table.csv is empty", "the table.csv is empty", "the table.csv is empty"),
    ],
)
def test_flags_stand_in_place_of_options(message, short, long):
    assert with_flags(message, own_data=True) == short
    if long is not None:
        assert with_flags(message, own_data=False) == long


AMBIGUOUS = {
    "date_order": ("date,u\n" + "".join(f"0{i}/0{i + 1}/2024,{i % 3}\n" for i in range(1, 8)), "mdy"),
    "decimal": ("time;u\n" + "".join(f"{i};1,{i}00\n" for i in range(1, 9)), ","),
    "thousands": ("time;u\n" + "".join(f"{i};1,{i}00\n" for i in range(1, 9)), ","),
    "time_column": ("start,end,u\n" + "".join(f"2024-01-0{i},2024-01-0{i + 1},{i % 3}\n" for i in range(1, 9)), "end"),
    "column_names": ("".join(f"2024-01-0{i},{i % 3}\n" for i in range(1, 9)), "time"),
}


@pytest.mark.parametrize("flag", AMBIGUOUS)
def test_the_flag_that_an_error_names_is_understood(flag, tmp_path, capsys):
    text, value = AMBIGUOUS[flag]
    (tmp_path / "a.csv").write_text(text)
    said = refused(capsys, "describe", tmp_path / "a.csv")
    assert f"--{flag}" in said
    assert not re.search(r"table\.\w|time_col_name", said)
    values = ["time", "u"] if flag == "column_names" else [value]
    main(["describe", str(tmp_path / "a.csv"), f"--{flag}", *values])
    assert "rows, " in capsys.readouterr().out


def test_the_flag_of_a_note_makes_marks_missing(tmp_path, capsys):
    lines = DATED["ISO"][0].splitlines()
    lines[5] = lines[5].rsplit(",", 1)[0] + ",-1e+30"
    (tmp_path / "a.csv").write_text("\n".join(lines))
    main(["describe", str(tmp_path / "a.csv")])
    output = capsys.readouterr().out
    (flag,) = re.findall(r"--missing\S+", output)
    main(["describe", str(tmp_path / "a.csv"), flag])
    output = capsys.readouterr().out
    assert "0.12% of the values missing" in output
    assert "note:" not in output


def test_a_configuration_names_its_own_flags(tmp_path, capsys):
    (tmp_path / "a.csv").write_text(AMBIGUOUS["date_order"][0])
    (tmp_path / "a.yaml").write_text(
        f"data:\n  series:\n    class_path: SimulationTimeSeries\n    init_args: {{data_path: {tmp_path / 'a.csv'}}}\n"
        "  context_len: 2\n  target_len: 1\n"
    )
    said = refused(capsys, "fit", "--config", tmp_path / "a.yaml", "--runs", tmp_path / "runs")
    assert "--data.series.init_args.table.date_order" in said


def test_predict_says_its_notes_and_reads_as_stated(tmp_path, capsys):
    (tmp_path / "a.csv").write_text(table())
    short = ["--trainer.max_steps=1", "--trainer.enable_progress_bar=false", "--trainer.limit_test_batches=1"]
    short += ["--trainer.limit_val_batches=1", "--trainer.accelerator=cpu", "--trainer.enable_model_summary=false"]
    found, _ = run(capsys, "fit", "--data", tmp_path / "a.csv", "--runs", tmp_path / "runs", *short)
    rows = [f"{stamp:%Y-%m-%d %H:%M},{20 + i % 3},{10 + i % 3},n" for i, stamp in enumerate(STAMPS[:120])]
    (tmp_path / "later.csv").write_text("\n".join(["date,temp,pres,station", *rows]).replace(",10,", ",?,"))
    predict = ["predict", "--ckpt_path", str(found), "--data", str(tmp_path / "later.csv")]
    predict += ["--output", str(tmp_path / "future.csv")]
    assert "--missing=?" in refused(capsys, *predict)
    main([*predict, "--missing", "?"])
    assert "note: " in (output := capsys.readouterr().out)
    assert "left out the text column 'station'" in output
    assert np.isfinite(np.loadtxt(tmp_path / "future.csv", delimiter=",", skiprows=1, usecols=(1, 2))).all()


def test_periods_that_training_rows_do_not_hold_twice_are_not_listed(tmp_path, capsys):
    rows = np.arange(400)
    np.save(tmp_path / "a.npy", np.stack([np.sin(rows / 60), np.sin(rows / 60 + 1)], axis=1))  # a period of 377 rows
    main(["describe", str(tmp_path / "a.npy")])
    output = capsys.readouterr().out
    periods = [
        float(number)
        for number in re.findall(r"([\d.]+) rows", output.partition("strongest periods: ")[2].split("\n")[0])
    ]
    assert all(period <= 140 for period in periods)
    np.save(tmp_path / "b.npy", np.sin(2 * np.pi * rows / 25)[:, None])
    main(["describe", str(tmp_path / "b.npy")])
    assert "strongest periods: 25 rows" in capsys.readouterr().out


def test_many_columns_leave_the_rest_in_sight(tmp_path, capsys):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(300, 60)))
    main(["describe", str(tmp_path / "a.npy")])
    output = capsys.readouterr().out
    assert "The first 40 of 60 columns" in output
    assert "Sensor_40 " in output
    assert "Sensor_41 " not in output
    assert "rows (" not in output  # rows without times last for an unknown time


def test_a_day_is_a_day(tmp_path, capsys):
    (tmp_path / "a.csv").write_text(table())
    main(["describe", str(tmp_path / "a.csv")])
    assert "24 rows (24 h)" not in capsys.readouterr().out
