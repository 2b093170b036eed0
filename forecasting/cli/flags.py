"""Name the flags of the command line where a message names the options of Python."""

import re
from dataclasses import fields

from ..data import TableFormat

IN_CONFIGURATION = "--data.series.init_args."
TABLE_OPTIONS = "|".join(field.name for field in fields(TableFormat))
SERIES_OPTIONS = "null_value|target_columns|exogenous_columns|known_columns"
NOT_IN_A_NAME = r"(?<![\w.\-])"


def with_flags(message: str, *, own_data: bool) -> str:
    """Return a message with flags in place of arguments.

    Args:
        message: of an error or a note.
        own_data: whether the command is one for a user's own data (describe, --data FILE), whose flags are short; those
            of a configuration name the place of the option in it.

    Example:
        >>> with_flags("dates can be read as dmy, mdy; state table.date_order", own_data=True)
        'dates can be read as dmy, mdy; state --date_order'
    """
    series = "--" if own_data else IN_CONFIGURATION
    table = series if own_data else f"{series}table."
    time = "--time_column" if own_data else f"{series}time_col_name"
    listed = "={}" if own_data else " '[\"{}\"]'"  # argparse would take -1e300 for a flag
    replacements = (
        (
            rf"{NOT_IN_A_NAME}table\.missing \['([^']*)'\]",
            lambda found: f"{table}missing" + listed.format(found.group(1)),
        ),
        (rf"{NOT_IN_A_NAME}table\.({TABLE_OPTIONS})(?:=(?='))?", lambda found: f"{table}{found.group(1)} "),
        (rf"{NOT_IN_A_NAME}time_col_name=(?=')", lambda _: f"{time} "),
        (rf"{NOT_IN_A_NAME}time_col_name\b", lambda _: time),
        (r"\b(?:set|setting) gaps to '(\w+)' or '(\w+)'", rf"give {series}gaps \1 or {series}gaps \2"),
        (r"\b(?:set|setting) gaps to '(\w+)'", rf"give {series}gaps \1"),
        (rf"{NOT_IN_A_NAME}gaps='(\w+)'", rf"{series}gaps \1"),
        (rf"{NOT_IN_A_NAME}({SERIES_OPTIONS})\b", rf"{series}\1"),
        (rf"{NOT_IN_A_NAME}(context_len|target_len)=(?=\d)", r"--data.\1="),
        (rf"{NOT_IN_A_NAME}(fields|objects|sensors)=", rf"{series}\1 "),
        (r"\b(give|leave) covariates\b", r"\1 --covariates"),
        (r"^covariates must\b", "--covariates must"),
        (r"^horizon must\b", "--horizon must"),
        (rf"{NOT_IN_A_NAME}have_test=True", f"{IN_CONFIGURATION}have_test true"),
    )
    for pattern, replacement in replacements:
        message = re.sub(pattern, replacement, message)
    return re.sub(r"(--[\w.]+) +(?=[\s,;:.)]|$)", r"\1", message)
