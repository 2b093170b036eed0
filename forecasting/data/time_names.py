"""Tell by its name whether a column holds the time, may hold it, or counts steps; and the unit that a name states."""

import re

TIME_WORDS = frozenset(
    (
        *("time", "date", "datetime", "timestamp", "ds", "datum", "zeit", "uhrzeit", "zeitpunkt", "stamp"),
        *("utc", "gmt", "local", "epoch", "unix", "unixtime"),
    )
)
TIME_UNITS = frozenset(("s", "sec", "seconds", "ms", "us", "ns", "min", "h", "hours", "days"))  # as in time_ms
DURATIONS = {
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), "s"),
    **dict.fromkeys(("ms", "msec", "millis", "millisecond", "milliseconds"), "ms"),
    **dict.fromkeys(("us", "usec", "microsecond", "microseconds"), "us"),
    **dict.fromkeys(("ns", "nanosecond", "nanoseconds"), "ns"),
    **dict.fromkeys(("min", "mins", "minute", "minutes"), "min"),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), "h"),
    **dict.fromkeys(("d", "day", "days"), "days"),
}
STEPS = frozenset(
    (
        *("step", "steps", "nstep", "timestep", "timesteps", "time_step", "time_steps", "step_number", "time_index"),
        *("it", "iter", "iters", "niter", "iteration", "iterations", "frame", "frames", "frame_number"),
        *("cycle", "cycles", "tick", "ticks", "snapshot", "snapshots"),
    )
)
SYMBOLS = frozenset(("s", "ms", "us", "ns", "min", "h", "d", "it"))  # of other things too: slip, height, a minimum
PARTS = frozenset(("day", "hour", "hr", "minute", "second"))  # of a date, which start again and again
YEARS = frozenset(("year", "years", "yr", "jahr"))
CALENDAR_NAMES = frozenset(("date", "datum", "datetime", "timestamp", "ds"))
# t of solvers is a temperature too, and travel_time a sensor: such names count only with content that runs forward
ENDS_WITH_TIME = re.compile(
    r"(?:t|ts|step_?time|elapsed|\w*_(?:time|date|datetime|timestamp)|\w*(?:time|stamp))(?:_([a-z]+))?"
)
HOUR_NAMES = frozenset(("hour", "hours", "hr", "hrs", "h", "hod", "hour_of_day", "stunde", "hh"))
CLOCK_NAMES = frozenset(("time", "clock", "uhrzeit", "zeit", "hhmm", "hrmn", "local_time", "time_of_day"))
MINUTE_NAMES = frozenset(("minute", "minutes", "min", "mm"))
SECOND_NAMES = frozenset(("second", "seconds", "sec", "ss"))


def is_time_name(name: str) -> bool:
    """Tell whether a name says that its column holds the time, such as "Date (UTC)" or "Time [s]"."""
    words = [word for word in re.split(r"[^a-zà-ÿ]+", without_unit(name)) if word]
    return bool(words and words[0] in TIME_WORDS) and all(word in TIME_WORDS | TIME_UNITS for word in words)


def may_be_time(name: str) -> bool:
    """Tell whether a name leaves open that its column holds the time: t, Flow-Time, seconds, step, year, ..."""
    plain = plain_name(name)
    ends = ENDS_WITH_TIME.fullmatch(plain)
    if ends is not None and ends.group(1) in (None, *DURATIONS):
        return True
    return plain in DURATIONS or plain in STEPS or plain in YEARS


def is_symbol(name: str) -> bool:
    """Tell whether a name is a unit of time as well as the symbol of something else (s, h, min)."""
    return plain_name(name) in SYMBOLS


def must_grow(name: str) -> bool:
    """Tell whether a name that may say time says so only where each row is later than the one before."""
    return plain_name(name) in SYMBOLS | PARTS


def counts_steps(name: str) -> bool:
    """Tell whether a name says that its column counts steps, iterations or frames."""
    return plain_name(name) in STEPS


def plain_name(name: str) -> str:
    """Return a name without its unit, in small letters, its words joined by underscores."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)
    return re.sub(r"[\s.\-]+", "_", without_unit(words)).strip("_")


def without_unit(name: str) -> str:
    """Return a name in small letters without what stands in brackets."""
    return re.sub(r"\[[^\]]*\]|\([^)]*\)", "", name.casefold()).strip()


def unit_in_name(name: str) -> str | None:
    """Return the unit in brackets at the end of a column's name.

    Example:
        >>> unit_in_name("u [m/s]")
        'm/s'
    """
    found = re.search(r"\[([^\[\]]+)\]\s*$", name)
    return found.group(1).strip() if found else None


def time_unit_in_name(name: str) -> str | None:
    """Return the unit of a column of times: in brackets, as the last word (time_ms), or the name itself (seconds)."""
    in_round_brackets = re.search(r"\(([^()]+)\)\s*$", name)
    unit = unit_in_name(name) or (in_round_brackets.group(1).strip() if in_round_brackets else None)
    if unit is not None:
        return unit
    last = re.split(r"[^a-z]+", name.casefold())[-1]
    if last in TIME_UNITS and last != name.casefold():
        return last
    return DURATIONS.get(plain_name(name))
