"""The layers of the package: who imports whom, and that everything written is also installed."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {"kernels": "favorcast.kernels", "forecasting": "favorcast.forecasting"}


def modules() -> dict[str, Path]:
    """Return every source file by its installed module name."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            name = ".".join((package, *parts)).removesuffix(".__init__")
            found[name] = path
    return found


def package_of(name: str, path: Path) -> str:
    return name if path.name == "__init__.py" else name.rpartition(".")[0]


def imports(name: str, path: Path) -> Iterator[str]:
    """Yield the absolute name of every import of a file, wherever in it, but for those that only type checkers read."""
    tree = ast.parse(path.read_text())
    typing_only = [x for x in ast.walk(tree) if isinstance(x, ast.If) and ast.unparse(x.test) == "TYPE_CHECKING"]
    skipped = {x for block in typing_only for x in ast.walk(block)}
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package_of(name, path).split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *([base] if base else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


MODULES = modules()
IMPORTS = {name: set(imports(name, path)) for name, path in MODULES.items()}


def importing(package: str, *forbidden: str) -> list[str]:
    """List the imports of `package` that begin with a forbidden name."""
    return [
        f"{name} imports {target}"
        for name, targets in IMPORTS.items()
        if name == package or name.startswith(package + ".")
        for target in sorted(targets)
        if any(target == f or target.startswith(f + ".") for f in forbidden)
    ]


def test_relative_imports_are_resolved():
    assert "favorcast.kernels.favor.functions.favor_attention" in IMPORTS["favorcast.kernels.layers.multihead"]
    assert any(t.startswith("favorcast.kernels.") for ts in IMPORTS.values() for t in ts)


def test_kernels_know_nothing_of_forecasting_or_lightning():
    assert not importing("favorcast.kernels", "favorcast.forecasting", "pytorch_lightning", "lightning", "torchmetrics")


def test_data_does_not_know_models_nor_models_data():
    data, flows = "favorcast.forecasting.data", "favorcast.forecasting.flows"
    neutral = "favorcast.forecasting.flat_arguments"
    above = [n for n in MODULES if n.startswith("favorcast.forecasting.") and not n.startswith((data, flows, neutral))]
    assert not importing(data, "favorcast.kernels", *above)
    assert not importing(neutral, "favorcast", "torch", "pytorch_lightning")
    for model in ("forecaster", "training", "spatiotemporal_performer_forecaster", "st_transformer"):
        assert not importing(f"favorcast.forecasting.{model}", data)


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("favor.reference", ["favor.triton", "favor.operators", "favor.functions"]),
        ("favor.triton", ["favor.reference", "favor.operators", "favor.functions"]),
        ("favor.triton.full", ["favor.triton.full_backward", "favor.triton.causal"]),
        ("favor.triton.full_kernels", ["favor.triton.full_backward_kernels"]),
        ("favor.triton.causal", ["favor.triton.causal_backward"]),
        ("favor.triton.causal_kernels", ["favor.triton.causal_backward_kernels"]),
        ("dispatch", ["favor", "decomposition", "layers", "huggingface", "random_features"]),
        ("favor", ["layers", "huggingface", "decomposition"]),
        ("decomposition", ["favor", "layers", "huggingface"]),
        ("layers", ["huggingface"]),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_rooms_of_the_kernels_look_one_way(package, forbidden):
    assert f"favorcast.kernels.{package}" in MODULES
    assert all(f"favorcast.kernels.{x}" in MODULES for x in forbidden)
    assert not importing(f"favorcast.kernels.{package}", *(f"favorcast.kernels.{x}" for x in forbidden))


def bench_modules() -> dict[str, Path]:
    paths = (ROOT / "bench").rglob("*.py")
    return {".".join(path.relative_to(ROOT / "bench").with_suffix("").parts): path for path in paths}


@pytest.mark.parametrize("of", ["favorcast", "bench"])
def test_no_files_import_each_other_in_a_circle(of):
    files = MODULES if of == "favorcast" else bench_modules()
    found = {name: set(imports(name, path)) for name, path in files.items()}
    graph = {
        name: {x if x in files else x.rpartition(".")[0] for x in targets} & set(files) - {name}
        for name, targets in found.items()
    }
    assert sum(map(len, graph.values())) > len(graph)  # some are found
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError, with the circle


def test_no_module_bears_the_name_of_a_public_function():
    import favorcast.forecasting
    import favorcast.kernels

    for package in (favorcast.kernels, favorcast.forecasting):
        assert not {name.rpartition(".")[2] for name in MODULES if name.startswith(package.__name__)} & {
            name for name in package.__all__ if callable(getattr(package, name))
        }


def test_names_of_test_files_are_unique():
    names = [path.name for path in (ROOT / "tests").rglob("*.py")]
    assert len(names) == len(set(names))


def test_nothing_installed_imports_tests_or_benches():
    assert not importing("favorcast", "tests", "bench", "pytest")


def test_one_lightning_only():
    assert not importing("favorcast", "lightning")


@pytest.mark.parametrize("name", MODULES)
def test_the_packages_own_imports_are_relative(name):
    absolute = [
        node
        for node in ast.walk(ast.parse(MODULES[name].read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        and "favorcast" in (getattr(node, "module", None) or "", *(a.name.split(".")[0] for a in node.names))
        and not getattr(node, "level", 0)
    ]
    assert not absolute


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def test_every_folder_of_source_is_an_installed_package():
    folders = {package_of(name, path) for name, path in MODULES.items()}
    assert folders == set(project()["packages"])
    for name, path in MODULES.items():
        assert (path.parent / "__init__.py").exists(), f"{name} is not inside a package"


def test_every_data_file_is_installed():
    listed = project()["package-data"]
    for folder, package in FOLDERS.items():
        for path in (ROOT / folder).rglob("*"):
            if path.is_dir() or path.suffix in (".py", ".pyc", ".md"):
                continue
            owner = ".".join((package, *path.parent.relative_to(ROOT / folder).parts))
            assert any(path.match(pattern) for pattern in listed.get(owner, [])), f"{path} is not in package-data"


def test_public_names_exist_and_are_sorted():
    import favorcast.forecasting
    import favorcast.kernels

    for package in (favorcast.kernels, favorcast.forecasting):
        names = getattr(package, "__all__", [])
        assert names == sorted(names)
        assert all(hasattr(package, name) for name in names)


def test_every_import_is_declared():
    """Of everything that is installed, what stands in pyproject.toml; names of packages and of imports may differ."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [listed["dependencies"], *listed["optional-dependencies"].values()]
    declared = {re.split(r"[\[<>=;! ]", one)[0].lower().replace("-", "_") for group in groups for one in group}
    declared |= {"yaml"} & {x.removeprefix("py") for x in declared}
    found = {target.partition(".")[0] for targets in IMPORTS.values() for target in targets}
    outside = found - set(sys.stdlib_module_names) - {"favorcast", "__future__"}
    assert outside <= declared, f"not declared in pyproject.toml: {sorted(outside - declared)}"
