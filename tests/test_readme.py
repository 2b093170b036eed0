"""The READMEs: their Python runs as written, their links lead somewhere, the commands that they name exist."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from named_commands import ROOT, commands_in, missing
from user_tables import table

from favorcast.forecasting import automatic_settings

SNIPPETS = {
    "README.md": ("attention", "forecasting"),
    "kernels/README.md": (
        *("layer", "replacement", "transformers", "functions", "generation", "memory"),
        *("sequence_parallel", "weighing", "decomposition"),
    ),
    "forecasting/README.md": ("own_table", "fields", "forecast", "rollout"),
    "bench/README.md": (),
}
"""The Python of each README, by a name for each block in its order."""

OPTIONAL = {"transformers": "transformers", "h5netcdf": "data"}
"""What a block may need beside the package, and the extra that brings it."""

WORLD = 2
A_SCREEN = 75
LARGEST_PICTURE = 150_000


def text_of(readme: str) -> str:
    return (ROOT / readme).read_text(encoding="utf-8")


def blocks(readme: str, language: str = "python") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text_of(readme), flags=re.DOTALL)


RUN = [
    pytest.param(readme, code, id=name)
    for readme, names in SNIPPETS.items()
    for name, code in zip(names, blocks(readme), strict=False)
]


def test_readme_has_its_snippets() -> None:
    assert {readme: len(blocks(readme)) for readme in SNIPPETS} == {readme: len(x) for readme, x in SNIPPETS.items()}


def test_every_readme_is_known() -> None:
    ours = [
        path for path in ROOT.glob("*/README.md") if not path.parent.name.startswith((".", "build", "dist", "runs"))
    ]
    assert {str(path.relative_to(ROOT)) for path in [ROOT / "README.md", *ours]} == set(SNIPPETS)


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.parametrize(("readme", "snippet"), RUN)
def test_readme_snippet_runs(readme: str, snippet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(automatic_settings, "TRAINING_STEPS", 4)
    monkeypatch.setattr(automatic_settings, "STEPS_AN_EPOCH", 2)
    steps = np.arange(400)[:, None]
    np.save("sensors.npy", np.sin(0.3 * steps + np.arange(3)).astype(np.float32))
    Path("sensors.csv").write_text(table())
    if "init_process_group" in snippet:
        run_in_processes(snippet, tmp_path)
        return
    for package, extra in OPTIONAL.items():
        if package in snippet:
            pytest.importorskip(package, reason=f'pip install "favorcast[{extra}]"')
    names: dict[str, object] = {}
    exec(compile(snippet, readme, "exec"), names)
    if "context_x" in names:
        assert names["forecast"].shape in ((32, 20, 3), (2, 100, 4))  # pyright: ignore[reportAttributeAccessIssue]
    elif "forecast" in names:
        assert Path("future.csv").is_file()
        assert Path("future.png").is_file()


def run_in_processes(snippet: str, folder: Path) -> None:
    """Run a script as torchrun does, one process a rank, without its agent."""
    script = folder / "snippet.py"
    script.write_text(snippet, encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(WORLD)}
    environment = {**os.environ, **meeting, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, script], env={**environment, "RANK": str(rank)}, stdout=subprocess.PIPE)
        for rank in range(WORLD)
    ]
    printed = [process.communicate(timeout=120)[0].decode() for process in processes]
    assert [process.returncode for process in processes] == [0] * WORLD
    assert printed == [f"process {rank} of 2: exchanged 520 KiB\n" for rank in range(WORLD)]


def test_the_first_readme_is_a_screen_with_five_lines_of_each_package() -> None:
    assert len(text_of("README.md").splitlines()) <= A_SCREEN
    attention, forecasting = (len([line for line in code.splitlines() if line]) for code in blocks("README.md"))
    assert (attention, forecasting) == (5, 5)
    assert blocks("README.md")[1] == blocks("forecasting/README.md")[0]


@pytest.mark.parametrize("readme", [*SNIPPETS, "CONTRIBUTING.md"])
def test_links_and_pictures_lead_somewhere(readme: str) -> None:
    text = text_of(readme)
    for link in re.findall(r"\]\(([^)]+)\)", text):
        if link.startswith("https://"):
            continue
        file, _, heading = link.partition("#")
        target = (ROOT / readme).parent / file if file else ROOT / readme
        assert target.is_file(), link
        assert not heading or heading in headings(target.read_text(encoding="utf-8")), link
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text_of("README.md")):
        assert (ROOT / picture).stat().st_size < LARGEST_PICTURE, picture


def headings(text: str) -> set[str]:
    """Return the anchors that GitHub gives the headings of a Markdown text."""
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in re.findall(r"^#+ (.*)$", text, re.M)}


@pytest.mark.parametrize("readme", [*SNIPPETS, "CONTRIBUTING.md"])
def test_commands_exist(readme: str) -> None:
    commands = commands_in(text_of(readme))
    assert commands
    assert not [found for command in commands for found in missing(command)]
