"""The README's Python runs as written."""

import re
from pathlib import Path

import numpy as np
import pytest

README = Path(__file__).parents[1] / "README.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
NAMES = ["layer", "functions", "forecast", "rollout"]


def test_readme_has_its_snippets() -> None:
    assert len(SNIPPETS) == len(NAMES)


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.parametrize("snippet", SNIPPETS, ids=NAMES)
def test_readme_snippet_runs(snippet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    steps = np.arange(400)[:, None]
    np.save("sensors.npy", np.sin(0.3 * steps + np.arange(3)).astype(np.float32))
    names: dict[str, object] = {}
    exec(compile(snippet, str(README), "exec"), names)
    if "forecast" in names:
        assert names["forecast"].shape in ((32, 20, 3), (2, 100, 4))  # pyright: ignore[reportAttributeAccessIssue]
