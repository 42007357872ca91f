"""Who may import whom, and what stays light."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from trueup import campaign, cli

REPOSITORY = Path(__file__).parents[1]
STAGES = {"sft", "reward", "rlhf", "ui"}
HEAVY = "torch transformers trl peft datasets accelerate gradio matplotlib scipy numpy pandas".split()


def imported(file: Path) -> Iterator[tuple[int, str]]:
    """Line and top-level package of every import, wherever in the file it stands; `module:name` strings too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, (node.module or "").split(".")[0] if node.level == 0 else file.parent.name


@pytest.mark.parametrize("package", sorted(STAGES))
def test_a_stage_imports_only_itself_and_trueup(package: str) -> None:
    files = sorted((REPOSITORY / package).rglob("*.py"))
    assert files
    others = STAGES - {package}
    assert [f"{file}:{line} {name}" for file in files for line, name in imported(file) if name in others] == []


def test_trueup_imports_no_stage() -> None:
    files = sorted((REPOSITORY / "trueup").rglob("*.py"))
    assert [f"{file}:{line} {name}" for file in files for line, name in imported(file) if name in STAGES] == []


LOADED = "import sys; print(' '.join(sorted({name.split('.')[0] for name in sys.modules} & set(sys.argv[1:]))))"


def test_help_loads_nothing_that_costs_time(python) -> None:
    code = (
        "import contextlib, io, trueup.cli\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as said:\n"
        "    trueup.cli.main(['--help'])\n"
        "assert 'align' in said.getvalue()\n"
    )
    assert python(code + LOADED, *HEAVY, "pydantic", "yaml", "rich", "sqlalchemy").stdout == "\n"


def test_the_keys_of_a_campaign_are_told_without_torch(python) -> None:
    code = (
        "import contextlib, io, trueup.cli\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        "    assert trueup.cli.main(['keys', 'align.ppo']) == 0\n"
    )
    assert python(code + LOADED, *HEAVY, "sqlalchemy").stdout == "\n"


def test_a_campaign_is_loaded_and_planned_without_torch(python) -> None:
    code = (
        "import pathlib, trueup.cli, sft.config, reward.config, rlhf.config, ui.config\n"
        "from trueup.campaign import load_campaign, plan\n"
        "assert len(plan(load_campaign(pathlib.Path('configs/demo.yaml')))) == 6\n"
    )
    answer = python(code + LOADED, *HEAVY)
    assert (answer.stderr, answer.stdout) == ("", "\n")


def test_the_command_line_names_the_stages_of_a_campaign_in_their_order() -> None:
    assert tuple(campaign.STAGES) == cli.STAGES
