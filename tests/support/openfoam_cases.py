"""Cases as OpenFOAM writes them: postProcessing/<object>/<start time>/<field>, with headers of both styles."""

import numpy as np

PLACES = np.array([[0.5, 0.0, 0.01], [1.0, 0.25, 0.01], [1.5, -0.25, 0.01]])
NOT_FOUND = -1e300
WIDTH = 13


def number(x):
    return f"{x:.6g}"


def header(places, *, style="probes", not_found=()):
    """Return the header, of one line a probe, or of one line an axis as older versions write it."""
    if style == "axes":
        lines = [
            f"#{axis:>{WIDTH - 1}}" + "".join(f"{number(x):>{WIDTH}}" for x in places[:, i])
            for i, axis in enumerate("xyz")
        ]
        return "\n".join([*lines, f"#{'Time':>{WIDTH - 1}}"]) + "\n"
    lines = [
        f"# Probe {i} ({' '.join(map(number, place))})" + ("  # Not Found" if i in not_found else "")
        for i, place in enumerate(places)
    ]
    if style == "time":  # of OpenFOAM.org
        return "\n".join([*lines, "# Time        " + "".join(f"{i:<14}" for i in range(len(places)))]) + "\n"
    numbers = "".join(f" {i:>{WIDTH}}" for i in range(len(places)))
    return "\n".join([*lines, f"#{'Probe':>{WIDTH - 1}}{numbers}", f"#{'Time':>{WIDTH - 1}}"]) + "\n"


def rows(times, values):
    """Return rows of values (rows, probes) or (rows, probes, components)."""
    lines = []
    for time, row in zip(times, values, strict=True):
        cells = [number(x) if np.ndim(x) == 0 else f"({' '.join(map(number, x))})" for x in row]
        lines.append(f"{number(time):>{WIDTH}}" + "".join(f" {cell:>{WIDTH}}" for cell in cells))
    return "".join(line + "\n" for line in lines)


def write_probes(case, field, times, values, *, places=PLACES, name="probes1", start="0", **style):
    """Write a file of probes and return its path."""
    path = case / "postProcessing" / name / start / field
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(header(places, **style) + rows(times, values))
    return path


def wave(times, places=PLACES, components=1, *, period=1.7, seed=0):
    """Return a travelling wave with a little noise at some places: (rows, probes), or with components behind."""
    phase = 2 * np.pi * (np.asarray(times)[:, None, None] / period - places[:, 0][:, None] / 3)
    values = np.sin(phase + np.arange(components)) * (1 + np.arange(components))
    values = values + 0.02 * np.random.default_rng(seed).normal(size=values.shape)
    return values[..., 0] if components == 1 else values


def write_case(case, *, stop=40.0, step=0.1, restart=None, name="probes1", places=PLACES, seed=0):
    """Write a case with p and U; `restart` holds two times: where the first start ends, where the second begins."""
    times = step * np.arange(1, round(stop / step) + 1)
    p, u = wave(times, places, seed=seed), wave(times, places, 3, seed=seed)
    spans = {"0": times <= stop}
    if restart is not None:
        ended, begun = restart
        spans = {"0": times <= ended + step / 2, number(begun): times > begun + step / 2}
    for start, span in spans.items():
        write_probes(case, "p", times[span], p[span], places=places, name=name, start=start)
        write_probes(case, "U", times[span], u[span], places=places, name=name, start=start)
    (case / "system").mkdir(exist_ok=True)
    (case / "constant").mkdir(exist_ok=True)
    return times, p, u
