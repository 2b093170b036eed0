"""The README's Python runs as written."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

README = Path(__file__).parents[1] / "README.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
NAMES = (
    *("layer", "replacement", "transformers", "functions", "generation", "memory"),
    *("sequence_parallel", "decomposition", "forecast", "rollout"),
)
WORLD = 2


def test_readme_has_its_snippets() -> None:
    assert len(SNIPPETS) == len(NAMES)


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.parametrize("snippet", SNIPPETS, ids=NAMES)
def test_readme_snippet_runs(snippet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    steps = np.arange(400)[:, None]
    np.save("sensors.npy", np.sin(0.3 * steps + np.arange(3)).astype(np.float32))
    if "init_process_group" in snippet:
        run_in_processes(snippet, tmp_path)
        return
    if "transformers" in snippet:
        pytest.importorskip("transformers", reason='pip install "favorcast[transformers]"')
    names: dict[str, object] = {}
    exec(compile(snippet, str(README), "exec"), names)
    if "forecast" in names:
        assert names["forecast"].shape in ((32, 20, 3), (2, 100, 4))  # pyright: ignore[reportAttributeAccessIssue]


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
