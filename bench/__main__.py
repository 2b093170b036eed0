"""Run one of the commands of this folder by its name: `python bench smoke --only causal`; without a name, list them."""

import runpy
import sys
from ast import get_docstring, parse
from pathlib import Path

HERE = Path(__file__).resolve().parent
IS_COMMAND = "def main("


def commands() -> dict[str, Path]:
    """Return the file of every command by its name."""
    found = sorted(path for path in HERE.rglob("*.py") if path != HERE / "__main__.py")
    return {path.stem: path for path in found if IS_COMMAND in path.read_text(encoding="utf-8")}


def main() -> None:
    """Run the command that the first argument names, as its own program."""
    known = commands()
    if len(sys.argv) < 2 or sys.argv[1] not in known:
        lines = {name: (get_docstring(parse(path.read_text())) or "").split("\n")[0] for name, path in known.items()}
        sys.exit("python bench COMMAND ...\n\n" + "\n".join(f"  {name:18} {line}" for name, line in lines.items()))
    name = sys.argv.pop(1)
    sys.path[0] = str(HERE)
    module = ".".join(known[name].relative_to(HERE).with_suffix("").parts)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
