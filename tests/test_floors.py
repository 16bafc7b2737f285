"""Imports go down the floors only, and the pure floor stays pure."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "prm_jax"

FLOORS = {
    "types": 0,
    "config": 0,
    "hosts": 1,
    "config_file": 2,
    "rl": 1,
    "sharding": 2,
    "tokenizer": 2,
    "tokenizer_files": 2,
    "prompts": 2,
    "pretrained": 2,
    "checkpoint": 2,
    "metrics": 2,
    "profiling": 1,
    "sandbox": 2,
    "problems": 2,
    "model": 2,
    "steps": 3,
    "stages": 4,
    "report": 5,
    "judge": 5,
    "train": 5,
    "export": 5,
    "process": 2,
    "evaluate": 5,
    "label": 5,
    "score": 5,
    "plan": 5,
    "study": 5,
}
# The rooms of floor 2 know nothing of each other, except for these.
SIDEWAYS = {
    "config": {"types"},
    "model": {"sharding"},
    "problems": {"sandbox", "metrics"},  # progress of long checks
    "prompts": {"tokenizer"},
    "tokenizer": {"tokenizer_files"},
    "tokenizer_files": {"pretrained"},  # reads the tokenizer in a GGUF file
    "pretrained": {"model", "sharding"},
    "train": {"report"},
    "score": {"report"},
    "study": {"report", "train"},
}
FORBIDDEN_IN_RL = {"flax", "optax", "orbax", "os", "subprocess", "logging"}
ONLY_IN = {
    "flax": {"model", "sharding"},
    "subprocess": {"sandbox", "study"},
    "tensorflow_datasets": {"problems"},
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def rooms_imported(path: Path) -> set[str]:
    split = [name.split(".") for name in imports(path)]
    return {
        parts[1] for parts in split if parts[0] == "prm_jax" and parts[1:2] and parts[1] in FLOORS
    }


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path: Path):
    here = room(path)
    if here == "__init__":
        return
    assert here in FLOORS, f"{path}: say in this table on which floor {here!r} lies"
    for other in rooms_imported(path) - {here} - SIDEWAYS.get(here, set()):
        assert FLOORS[other] < FLOORS[here], f"{path}: {here} must not import {other}"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_outside_packages_stay_in_their_room(path: Path):
    top = {name.split(".")[0] for name in imports(path)}
    if room(path) == "rl":
        assert not top & FORBIDDEN_IN_RL
    for package, rooms in ONLY_IN.items():
        if package in top:
            assert room(path) in rooms, f"{path} must not import {package}"


def test_every_file_is_short_enough_to_hold_in_the_head():
    long = {
        str(p.relative_to(PACKAGE)): n
        for p in modules()
        if (n := len(p.read_text().splitlines())) > 450
    }
    assert not long


def test_an_installed_package_has_every_module():
    """find_packages passes over a folder without an __init__.py, and an installation lacks it."""
    assert [p.parent for p in modules() if not (p.parent / "__init__.py").exists()] == []


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", "docs/results.md", "docs/sandbox.md", "docs/study.md"]
)
def test_files_that_the_documentation_links_to_exist(page: str):
    path = PACKAGE.parent / page
    text = path.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (path.parent / link).exists(), f"{page} links to {link}"
