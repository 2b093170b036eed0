r"""Generate the flows that favorcast ships: the wake of one cylinder (periodic) and the fluidic pinball (chaotic).

Dimension key: K sensors, two velocity components each.

    python -m favorcast.forecasting.flows.records cylinder_wake --output DIR
    python -m favorcast.forecasting.flows.records fluidic_pinball --output DIR --compile

writes DIR/cylinder_wake.npz and DIR/fluidic_pinball.npz, sensor files that the package reads (keys: see `sensor_file`).

The same command on the same machine with the same torch writes the same bytes; another seed gives another run of the
same flow. Elsewhere (another processor, torch version, number of threads, a GPU, with or without --compile) float32
sums differ in the last digit. The cylinder's wake ends on the same cycle, with another phase at most; in the pinball
such differences grow until two runs share nothing but their statistics. The shipped files are data, not a test of a
machine.

    python -m favorcast.forecasting.flows.records fluidic_pinball --output DIR --compile --samples 1000 \
        --reynolds 80 90 100 110 120 130 140 150 160 --noise 0.02 --missing 0.1 --dead u_24

writes DIR/re_80.npz ..., several runs with poor sensors: what `favorcast fit --config unseen_reynolds.yaml` is for.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.progress import track

from ..data.sensors import extract_datapoints, nearest_cells
from .boundary_links import Cylinder
from .channel_flow import ChannelFlow

SOLVER_VERSION = "1"  # raise it with every change that alters a file


@dataclass(frozen=True)
class Damage:
    """What poor sensors make of a record.

    Args:
        noise: standard deviation of the noise added, in standard deviations of each column.
        missing: share of the values that are missing, at random.
        dead: columns that are missing throughout.
    """

    noise: float = 0.0
    missing: float = 0.0
    dead: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.noise < 0 or not 0 <= self.missing < 1:
            raise ValueError(f"expected noise >= 0 and 0 <= missing < 1, got {self.noise} and {self.missing}")

    def of(self, values: np.ndarray, columns: list[str], seed: int) -> np.ndarray:
        """Return values (rows, columns) with the damage, missing ones as NaN.

        Raises:
            ValueError: a dead column that there is not.
        """
        unknown = [name for name in self.dead if name not in columns]
        if unknown:
            raise ValueError(f"dead columns must be among {columns[0]} ... {columns[-1]}, got {unknown}")
        draw = np.random.default_rng(seed)
        damaged = values + self.noise * values.std(axis=0) * draw.standard_normal(values.shape)
        damaged[draw.random(values.shape) < self.missing] = np.nan
        damaged[:, [columns.index(name) for name in self.dead]] = np.nan
        return damaged.astype(np.float32)


@dataclass(frozen=True)
class FlowConfiguration:
    """Say how a flow is sampled: sensors on a grid of lines, one sample every so many steps after a transient.

    Args:
        name: of the file.
        channel: the flow.
        origin: (x, y) of the sensors' coordinate system, in cells.
        origin_name: what stands there.
        sensors_x: positions of the sensor columns, in D from the origin.
        sensors_y: positions of the sensor rows, in D from the origin.
        steps_per_sample: lattice steps between two samples.
        discarded_samples: samples dropped at the start.
        num_samples: samples kept.
    """

    name: str
    channel: ChannelFlow
    origin: tuple[float, float]
    origin_name: str
    sensors_x: tuple[float, ...]
    sensors_y: tuple[float, ...]
    steps_per_sample: int
    discarded_samples: int
    num_samples: int

    def __post_init__(self) -> None:
        for name in ("steps_per_sample", "num_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.discarded_samples < 0:
            raise ValueError(f"discarded_samples must not be negative, got {self.discarded_samples}")
        _ = self.sensor_cells

    @property
    def sampling_time(self) -> float:
        """Return the time between two samples, in D/U."""
        return self.steps_per_sample / self.channel.diameter_time

    @property
    def sensor_cells(self) -> tuple[list[int], list[int]]:
        """Return the cells along x and across y that hold the sensors."""
        diameter = self.channel.diameter
        x = [self.origin[0] + diameter * position for position in self.sensors_x]
        y = [self.origin[1] + diameter * position for position in self.sensors_y]
        return (
            nearest_cells(x, self.channel.cells_x, name="sensors_x"),
            nearest_cells(y, self.channel.cells_y, name="sensors_y"),
        )

    @property
    def sensor_coordinates(self) -> np.ndarray:
        """Return (K, 2): the sensors' cell centres in D from the origin, in the order of `extract_datapoints`."""
        cells_x, cells_y = (np.array(cells) + 0.5 for cells in self.sensor_cells)
        x = np.tile(cells_x - self.origin[0], len(cells_y))
        y = np.repeat(cells_y - self.origin[1], len(cells_x))
        return np.stack((x, y), axis=-1) / self.channel.diameter


def _evenly(first: float, last: float, count: int = 7) -> tuple[float, ...]:
    return tuple(np.linspace(first, last, count).tolist())


CYLINDER_WAKE = FlowConfiguration(
    name="cylinder_wake",
    channel=ChannelFlow(240, 96, (Cylinder(60.0, 48.0, 12.0),), reynolds=100.0, velocity=0.1),
    origin=(60.0, 48.0),
    origin_name="cylinder centre",
    sensors_x=_evenly(1.5, 12.0),
    sensors_y=_evenly(-2.5, 2.5),
    steps_per_sample=30,
    discarded_samples=600,
    num_samples=2000,
)

_PINBALL_CENTRE = (70.0, 60.0)
FLUIDIC_PINBALL = FlowConfiguration(
    name="fluidic_pinball",
    channel=ChannelFlow(
        240,
        120,
        (
            Cylinder(_PINBALL_CENTRE[0] - 15.0 * float(np.cos(np.pi / 6)), _PINBALL_CENTRE[1], 10.0),
            Cylinder(_PINBALL_CENTRE[0], _PINBALL_CENTRE[1] - 7.5, 10.0),
            Cylinder(_PINBALL_CENTRE[0], _PINBALL_CENTRE[1] + 7.5, 10.0),
        ),
        reynolds=140.0,
        velocity=0.08,
    ),
    origin=_PINBALL_CENTRE,
    origin_name="midpoint of the two rear cylinders",
    sensors_x=_evenly(1.5, 14.0),
    sensors_y=_evenly(-2.5, 2.5),
    steps_per_sample=25,
    discarded_samples=600,
    num_samples=12000,
)

FLOWS = {configuration.name: configuration for configuration in (CYLINDER_WAKE, FLUIDIC_PINBALL)}


def simulate_samples(
    configuration: FlowConfiguration, *, seed: int = 0, device: torch.device | str = "cpu", compile: bool = False
) -> Iterator[np.ndarray]:
    """Yield sample after sample: (2K,) float32 in units of U, u of all sensors and then v; the transient is left out.

    Raises:
        ValueError: the solution blew up.
    """
    channel = configuration.channel
    solver = channel.start(seed=seed, device=device, compile=compile)
    solver.advance(configuration.discarded_samples * configuration.steps_per_sample)
    cells_x, cells_y = configuration.sensor_cells
    for sample in range(configuration.num_samples):
        solver.advance(configuration.steps_per_sample)
        field = (solver.velocity() / channel.velocity).unsqueeze(0).cpu().numpy()
        values = np.concatenate(extract_datapoints(field, cells_x, cells_y), axis=-1)[0]
        if not np.isfinite(values).all():
            raise ValueError(f"{configuration.name} diverged before sample {sample}: lower velocity or refine the grid")
        yield values


def strouhal_number(values: np.ndarray, sampling_time: float) -> float:
    """Return the dominant frequency f D / U of series (rows, columns) sampled every sampling_time D/U.

    It is the highest peak of the Hann-windowed power spectrum averaged over the columns, placed between the bins by a
    parabola through the logarithms of three of them.
    """
    if values.ndim != 2 or len(values) < 16:
        raise ValueError(f"values must be (rows, columns) with at least 16 rows, got {values.shape}")
    centred = values.astype(np.float64) - values.mean(axis=0)
    power = (np.abs(np.fft.rfft(centred * np.hanning(len(values))[:, None], axis=0)) ** 2).mean(axis=1)
    peak = 1 + int(power[1:-1].argmax())
    if not power[peak] > 0:
        raise ValueError("values must vary and be finite to have a dominant frequency")
    left, middle, right = np.log(power[peak - 1 : peak + 2])
    offset = 0.5 * (left - right) / (left - 2 * middle + right)
    return float((peak + offset) / (len(values) * sampling_time))


def sensor_file(configuration: FlowConfiguration, values: np.ndarray, *, command: str) -> dict[str, np.ndarray]:
    """Return the contents of a sensor file for values (rows, 2K): the data, what it means and how it came about.

    dataset (rows, 2K) float32 in units of U; columns u_0 ... v_K-1; coordinates (2K, 2) in D from `origin`;
    sampling_time in D/U; strouhal: the dominant frequency of v in U/D. The rest repeats the configuration.
    """
    channel, num_sensors = configuration.channel, values.shape[1] // 2
    coordinates = configuration.sensor_coordinates.astype(np.float32)
    return {
        "dataset": values.astype(np.float32),
        "columns": np.array([f"{component}_{i}" for component in "uv" for i in range(num_sensors)]),
        "coordinates": np.concatenate((coordinates, coordinates)),
        "origin": np.array(configuration.origin_name),
        "sampling_time": np.array(configuration.sampling_time),
        "time_unit": np.array("D/U"),
        "unit": np.array("U"),
        "reynolds": np.array(channel.reynolds),
        "grid": np.array([channel.cells_x, channel.cells_y]),
        "diameter_cells": np.array(channel.diameter),
        "velocity_lattice": np.array(channel.velocity),
        "relaxation_time": np.array(channel.relaxation_time),
        "steps_per_sample": np.array(configuration.steps_per_sample),
        "discarded_samples": np.array(configuration.discarded_samples),
        "strouhal": np.array(strouhal_number(values[:, num_sensors:], configuration.sampling_time)),
        "blockage": np.array(channel.blockage),
        "solver_version": np.array(SOLVER_VERSION),
        "command": np.array(command),
    }


def main(arguments: list[str] | None = None) -> None:
    """Run the command line described at the top of this file."""
    parser = argparse.ArgumentParser(
        prog="python -m favorcast.forecasting.flows.records", description="Generate flow data."
    )
    parser.add_argument("flow", choices=sorted(FLOWS))
    parser.add_argument("--output", type=Path, required=True, help="folder for FLOW.npz; made if missing")
    parser.add_argument("--samples", type=int, help="samples to keep (default: the configuration's)")
    parser.add_argument(
        "--discard", type=int, help="samples of the transient to leave out (default: the configuration's)"
    )
    parser.add_argument(
        "--reynolds", type=float, nargs="+", help="Reynolds numbers: one file re_NUMBER.npz each (default: FLOW.npz)"
    )
    parser.add_argument(
        "--noise", type=float, default=0.0, help="std of noise added, in std of each column (default: 0)"
    )
    parser.add_argument("--missing", type=float, default=0.0, help="share of the values left out (default: 0)")
    parser.add_argument("--dead", nargs="*", default=[], metavar="COLUMN", help="columns that are missing throughout")
    parser.add_argument("--seed", type=int, default=0, help="of the noise that breaks the symmetry (default: 0)")
    parser.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    parser.add_argument(
        "--compile", action="store_true", help="compile the solver's step; needs a C++ compiler on the CPU"
    )
    options = parser.parse_args(arguments)

    configuration = FLOWS[options.flow]
    if options.samples is not None:
        configuration = replace(configuration, num_samples=options.samples)
    if options.discard is not None:
        configuration = replace(configuration, discarded_samples=options.discard)
    try:
        damage = Damage(options.noise, options.missing, tuple(options.dead))
        configurations = {configuration.name: configuration} | {
            f"re_{number:g}": replace(configuration, channel=replace(configuration.channel, reynolds=number))
            for number in options.reynolds or ()
        }
    except ValueError as error:
        parser.error(str(error))
    if options.reynolds:
        del configurations[configuration.name]
    options.output.mkdir(parents=True, exist_ok=True)
    for name, each in configurations.items():
        samples = simulate_samples(each, seed=options.seed, device=options.device, compile=options.compile)
        rows = np.stack(list(track(samples, description=name, total=each.num_samples)))
        contents = sensor_file(each, rows, command=_spelled(parser.prog, options, each))
        columns = contents["columns"].tolist()
        contents["dataset"] = damage.of(contents["dataset"], columns, options.seed)
        path = options.output / f"{name}.npz"
        np.savez_compressed(path, allow_pickle=False, **contents)
        sys.stdout.write(f"{path}\n")


def _spelled(program: str, options: argparse.Namespace, configuration: FlowConfiguration) -> str:
    """Return the command that writes one file."""
    parts = [program, options.flow, "--output", "DIR", "--samples", str(configuration.num_samples)]
    parts += ["--seed", str(options.seed), "--device", options.device] + ["--compile"] * options.compile
    given = {"discard": options.discard, "noise": options.noise, "missing": options.missing}
    given["reynolds"] = configuration.channel.reynolds if options.reynolds else None
    for name, number in given.items():
        parts += [f"--{name}", f"{number:g}"] if number else []
    return " ".join(parts + (["--dead", *options.dead] if options.dead else []))


if __name__ == "__main__":
    main()
