"""What the project's forms and workflows say is true: they parse, and each path, command and version in them exists."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from named_commands import ROOT, commands_in, commands_of, exists, missing

GITHUB = ROOT / ".github"
FORMS = sorted((GITHUB / "ISSUE_TEMPLATE").glob("*.yml"))
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PATH = re.compile(r"(?<![\w/.])(?:(?:kernels|forecasting|tests|bench|\.ci|\.github)/[\w./-]+|[\w-]+\.toml|[A-Z]+\.md)")


def parsed(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def strings(content: Any) -> Iterator[str]:
    """Yield every text inside of parsed YAML."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict | list):
        for part in content.values() if isinstance(content, dict) else content:
            yield from strings(part)


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_there_are_forms_and_a_workflow() -> None:
    assert {path.stem for path in FORMS} >= {"bug", "wrong_numbers"}
    assert {path.stem for path in WORKFLOWS} >= {"ci"}


@pytest.mark.parametrize("path", [*FORMS, *WORKFLOWS], ids=relative)
def test_every_path_and_command_of_github_exists(path: Path) -> None:
    for text in strings(parsed(path)):
        assert not [found for command in commands_in(text) for found in missing(command)]
        assert not [found for found in PATH.findall(text) if not exists(found.rstrip("."))]


@pytest.mark.parametrize("path", WORKFLOWS, ids=relative)
def test_jobs_run_scripts_of_the_repository(path: Path) -> None:
    jobs = parsed(path)["jobs"].values()
    lines = [line for job in jobs for step in job["steps"] for line in step.get("run", "").splitlines()]
    assert lines
    for line in lines:
        (command,) = commands_of(line)
        assert not missing(command)
        script = command.split()[1]
        subprocess.run(["bash", "-n", script], cwd=ROOT, check=True)


def test_ci_calls_what_a_change_must_pass_and_tries_both_ends_of_the_versions() -> None:
    jobs = parsed(GITHUB / "workflows" / "ci.yml")["jobs"]
    runs = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()}
    assert runs["all"] == ["bash .ci/run"]
    matrix = jobs["versions"]["strategy"]["matrix"]["include"]
    assert [one["versions"] for one in matrix] == ["oldest", "newest"]
    script = (ROOT / ".ci" / "versions").read_text()
    assert all(f"  {one['versions']}) " in script for one in matrix)
    pythons = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)]
    assert [one["python"] for one in matrix] == [pythons[0], pythons[-1]]
    assert PROJECT["requires-python"] == f">={pythons[0]}"


@pytest.mark.parametrize("path", [".ci/run", ".ci/versions"])
def test_every_test_that_a_script_names_exists(path: str) -> None:
    text = (ROOT / path).read_text()
    found = []
    for folder, braces, rest in re.findall(r"(tests/[\w/]*)(?:\{([\w,]+)\})?([\w./]*\.py)", text):
        found += [f"{folder}{name}{rest}" for name in braces.split(",")]
    assert len(found) > 3
    assert not [name for name in found if not (ROOT / name).is_file()]


@pytest.mark.parametrize("path", FORMS, ids=relative)
def test_forms_have_what_github_asks_of_them(path: Path) -> None:
    form = parsed(path)
    assert {"name", "description", "body"} <= form.keys() <= {"name", "description", "title", "labels", "body"}
    assert len({part["id"] for part in form["body"]}) == len(form["body"])
    for part in form["body"]:
        assert part["type"] in ("textarea", "input", "dropdown")
        assert part["attributes"]["label"]
        assert (part["type"] == "dropdown") == ("options" in part["attributes"])
    asked = " ".join(strings(form)).lower()
    assert all(word in asked for word in ("versions", "card", "small"))


def test_the_pull_request_template_names_commands_that_exist() -> None:
    commands = commands_in((GITHUB / "pull_request_template.md").read_text(encoding="utf-8"))
    assert {"ruff check .", "ruff format --check ."} <= set(commands)
    assert not [found for command in commands for found in missing(command)]


CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
RECIPES = re.findall(r"^\*\*([^*]+)\*\* \((\d)[^)]*\)(.*?)(?=^\*\*|^## )", CONTRIBUTING, re.MULTILINE | re.DOTALL)


def test_every_path_of_contributing_exists() -> None:
    assert not [found for found in PATH.findall(CONTRIBUTING) if not exists(found.rstrip("."))]


@pytest.mark.parametrize(("name", "most", "text"), RECIPES, ids=[name for name, _, _ in RECIPES])
def test_a_recipe_names_as_many_source_files_as_it_says(name: str, most: str, text: str) -> None:
    assert len({path for path in PATH.findall(text) if path.startswith(("kernels/", "forecasting/"))}) == int(most)


def test_there_is_a_recipe_for_each_task_of_a_newcomer() -> None:
    limits = {"A feature map": 2, "A kernel variant": 3, "A data source": 2, "A baseline": 1}
    limits["A wrong gradient of padded causal attention"] = 4
    found = {name: int(most) for name, most, _ in RECIPES}
    assert all(found[name] <= limit for name, limit in limits.items())


def test_pre_commit_runs_the_ruff_of_the_dev_extra() -> None:
    (pinned,) = [x.partition("==")[2] for x in PROJECT["optional-dependencies"]["dev"] if x.startswith("ruff==")]
    (repository,) = parsed(ROOT / ".pre-commit-config.yaml")["repos"]
    assert repository["repo"].endswith("/ruff-pre-commit")
    assert repository["rev"] == f"v{pinned}"
    assert [hook["id"] for hook in repository["hooks"]] == ["ruff-check", "ruff-format"]


def test_the_oldest_versions_are_those_that_are_allowed() -> None:
    """The same two leading numbers; a later patch where the first release of them cannot be used."""
    lines = (ROOT / ".ci" / "oldest.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["transformers"]]
    bounds = dict(re.match(r"([\w-]+)[^>]*>=([\d.]+)", one).groups() for one in wanted)  # pyright: ignore
    assert pins.keys() == bounds.keys()
    for name, bound in bounds.items():
        pin = tuple(map(int, pins[name].split(".")))
        least = tuple(map(int, bound.split(".")))
        assert pin >= least, name
        assert (*pin, 0)[:2] == (*least, 0)[:2], name
