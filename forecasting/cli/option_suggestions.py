"""Name the option that a mistaken one was meant to be."""

import re
from argparse import ArgumentParser
from difflib import get_close_matches
from inspect import signature

from ..data import SimulationTimeSeries
from ..spatiotemporal_performer_forecaster import SpatioTemporalPerformer_Forecaster

SERIES = "data.series.init_args."
OTHER_WORDS = {  # of other packages, for options that are called otherwise here
    **dict.fromkeys(("context", "context_length", "lookback", "seq_len", "input_len", "window"), "context_len"),
    **dict.fromkeys(("horizon", "prediction_length", "pred_len", "output_len", "target"), "target_len"),
    **dict.fromkeys(("epochs", "n_epochs", "num_epochs"), "max_epochs"),
    **dict.fromkeys(("lr", "learning_rate"), "initial_lr"),
    "batch": "batch_size",
    "steps": "max_steps",
}


def suggestion(message: str, parser: ArgumentParser) -> str:
    """Name the option closest to the one that a message refuses, "" where none is close."""
    found = re.search(
        r"unrecognized arguments: --([\w.]+)|[Kk]ey '([\w.]+)' is not|'([\w.]+)' is not accepted", message
    )
    if found is None:
        return ""
    wrong = next(name for name in found.groups() if name).rpartition(".")[2]
    flags = {option.rpartition(".")[2]: option for option in parser._option_string_actions if option.startswith("--")}
    flags = {name.lstrip("-"): option for name, option in flags.items()}
    for place, kind in (("model.", SpatioTemporalPerformer_Forecaster), (SERIES, SimulationTimeSeries)):
        flags |= {name: f"--{place}{name}" for name in signature(kind).parameters if name not in flags}
    close = [OTHER_WORDS[wrong]] if wrong in OTHER_WORDS else get_close_matches(wrong, flags, n=1, cutoff=0.7)
    if not close:
        return ""
    is_flag = found.group(1) is not None  # else the key of a configuration
    return f"; did you mean {flags[close[0]] if is_flag else close[0]}?"
