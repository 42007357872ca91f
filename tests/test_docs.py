"""The pages at the top and in docs/ name what is there: files, headings, commands, options, keys, modules, tests."""

from __future__ import annotations

import ast
import re
import shlex
from argparse import ArgumentParser, _SubParsersAction
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from trueup.campaign import CampaignConfig
from trueup.cli import command_first, make_parser
from trueup.stages import STAGES, load_object

REPOSITORY = Path(__file__).parents[1]
DOCS = [*sorted(REPOSITORY.glob("*.md")), *sorted((REPOSITORY / "docs").glob("*.md"))]
PACKAGES = ("trueup", "sft", "reward", "rlhf", "ui")
FOLDERS = (*PACKAGES, "tests", "benchmarks", "configs", "docs")

# ---- What a page says -------------------------------------------------------------------------------------------


def blocks(page: Path) -> list[str]:
    """The fenced blocks of a page."""
    return re.findall(r"^```\w*\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def spans(page: Path) -> list[str]:
    """The code within its sentences; `\\|` in a table is a bar."""
    text = re.sub(r"^```\w*\n.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return [span.replace("\\|", "|") for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]


def command_lines(page: Path) -> list[str]:
    """The lines of its blocks without comments, and its spans."""
    lines = [line for block in blocks(page) for line in block.replace("\\\n", " ").splitlines()]
    return [*(re.split(r"\s#\s|\s{4,}", line.removeprefix("$ "))[0].strip() for line in lines), *spans(page)]


pages = pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)

# ---- Files ------------------------------------------------------------------------------------------------------


@pages
def test_every_file_that_is_named_is_there(page: Path) -> None:
    words = [word.strip(",;:()'\"") for text in (*spans(page), *blocks(page)) for word in text.split()]
    named = [word for word in words if re.fullmatch(rf"(?:{'|'.join(FOLDERS)})/[\w./-]*\.\w+", word)]
    ours = [word for word in named if not is_left_by_a_run(word)]
    assert [word for word in ours if not (REPOSITORY / word).exists()] == []


def is_left_by_a_run(path: str) -> bool:
    """Whether a path is of a run's folder, such as reward/report.json, which is called as a package."""
    return path.partition("/")[0] in PACKAGES and not path.endswith((".py", ".jinja", ".js", ".css"))


@pages
def test_every_link_leads_to_a_file_and_to_a_heading(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://)([^)\s]+)\)", page.read_text(encoding="utf-8"))
    for link in links:
        name, _, heading = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not heading or heading in anchors(target), link


@cache
def anchors(page: Path) -> set[str]:
    """The headings of a page as links name them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_architecture_page_says_of_every_room_what_the_room_says_of_itself() -> None:
    page = (REPOSITORY / "docs/architecture.md").read_text(encoding="utf-8")
    shown = dict(re.findall(r"^\| `(\w+/[\w/]+)/` \| (.*) \|$", page, re.MULTILINE))
    rooms = {}
    for package in PACKAGES:
        for file in (REPOSITORY / package).glob("*/**/__init__.py"):
            text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
            rooms[str(file.parent.relative_to(REPOSITORY))] = " ".join(text.partition("\n\n")[0].split())
    assert shown == rooms


def test_the_tree_of_README_names_every_package_and_what_is_there() -> None:
    tree = next(block for block in blocks(REPOSITORY / "README.md") if block.startswith("trueup/"))
    folders = [line.split("/ ")[0] for line in tree.splitlines()]
    assert [folder for folder in folders if not (REPOSITORY / folder).is_dir()] == []
    assert set(PACKAGES) <= set(folders)


# ---- Commands ---------------------------------------------------------------------------------------------------


@pages
def test_every_command_of_a_block_is_one_that_trueup_takes(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A whole command of a block is parsed; in a sentence it may lack arguments, so its words are looked up."""
    for block in blocks(page):
        for line in block.replace("\\\n", " ").splitlines():
            command = re.split(r"\s#\s|\s{3,}(?=\S+ \S+ )", line.removeprefix("$ "))[0].strip()
            command = re.sub(r"^(trueup \w+)\s+", r"\1 ", command)
            if command.startswith("trueup ") and "<" not in command:
                try:
                    make_parser().parse_args(command_first(shlex.split(command)[1:]))
                except SystemExit:
                    pytest.fail(f"{command}: {capsys.readouterr().err}")


@pages
def test_every_command_in_a_sentence_exists_with_its_options(page: Path) -> None:
    unknown = []
    for span in spans(page):
        words = span.split()
        if words[0] == "trueup" and len(words) > 1:
            unknown += [f"{span}: {word}" for word in not_taken(make_parser(), list(command_first(words[1:])))]
    assert unknown == []


def not_taken(parser: ArgumentParser, words: list[str]) -> Iterator[str]:
    """The options and the names of commands that a parser does not know; `a|b|...` names several."""
    commands = next((action for action in parser._actions if isinstance(action, _SubParsersAction)), None)
    if commands is not None and words and not words[0].startswith("-") and words[0] not in {"CONFIG", "RUN"}:
        names = [name for name in words[0].split("|") if name != "..."]
        yield from (name for name in names if name not in commands.choices)
        for name in names:
            if name in commands.choices:
                yield from not_taken(commands.choices[name], words[1:])
        return
    for word in words:
        if word.startswith("--") and word.partition("=")[0] not in parser._option_string_actions:
            yield word


@pages
def test_every_benchmark_exists_with_its_options(page: Path) -> None:
    for line in command_lines(page):
        if found := re.match(r"(?:python )?(benchmarks/\w+\.py)(.*)", line):
            path, rest = REPOSITORY / found[1], found[2]
            assert path.is_file(), line
            known = constants(path)
            for word in rest.split():
                is_name = re.fullmatch(r"--[\w-]+|[a-z][a-z_]*", word) is not None
                assert not is_name or word in known, f"{line}: {found[1]} knows no {word}"


@cache
def constants(file: Path) -> set[str]:
    """The texts that stand in a file by themselves, names of options and of actions among them."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree))
    texts = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return texts | {name for node in nodes if isinstance(node, ast.FunctionDef) for name in (node.name,)}


@pages
def test_every_target_of_make_exists(page: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.M))
    named = [found[1] for line in command_lines(page) if (found := re.match(r"make ([\w-]+)", line))]
    assert [name for name in named if name not in targets] == []


@pages
def test_every_test_that_is_named_is_there(page: Path) -> None:
    """`test_app.py -k "loads or written"`: the file is there, and each word is in the name of one of its tests."""
    for line in command_lines(page):
        files = [
            path
            for name in re.findall(r"\btest_\w+\.py", line)
            for path in list(REPOSITORY.glob(f"tests/**/{name}")) or pytest.fail(f"{line}: no {name}")
        ]
        if files and (found := re.search(r"-k (?:\"([^\"]+)\"|(\S+))", line)):
            tests = " ".join(
                node.name
                for file in files
                for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
                if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
            )
            words = set(re.findall(r"\w+", found[1] or found[2])) - {"and", "or", "not"}
            assert [word for word in words if word not in tests] == [], line


# ---- Keys and modules -------------------------------------------------------------------------------------------


@pages
def test_every_dotted_key_and_module_is_there(page: Path) -> None:
    dotted = [name for span in spans(page) if (name := re.split(r"[:= ]", span)[0]) and "." in name.strip(".")]
    owners = {*STAGES, *CampaignConfig.model_fields, *PACKAGES, "lora"}
    named = [name for name in dotted if name.split(".")[0] in owners and not name.endswith((".json", ".jsonl", ".py"))]
    named += [key for text in (*spans(page), *blocks(page)) for key in re.findall(r"--set ([a-z]\w*(?:\.\w+)*)=", text)]
    assert [name for name in named if not is_key(name) and not is_object(name)] == []


def is_key(name: str) -> bool:
    """Whether a dotted name is a key of a campaign file: in any algorithm's section, where there are several; one of
    `lora`, which every stage that trains has, is named without a stage."""
    stage, *keys = (f"sft.{name}" if name.startswith("lora.") else name).split(".")
    if stage not in STAGES:
        return has(CampaignConfig, [stage, *keys])
    schema = load_object(STAGES[stage].config)
    if not isinstance(schema, dict):
        return has(schema, keys)
    return has(schema[keys[0]], keys[1:]) if keys[0] in schema else any(has(one, keys) for one in schema.values())


def has(schema: type[BaseModel], keys: list[str]) -> bool:
    if not keys:
        return True
    if (field := schema.model_fields.get(keys[0])) is None:
        return False
    within = [kind for kind in kinds(field.annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)]
    # Keys of a mapping (trainer_args, others, rewards) are their owners' own.
    return (
        any(has(kind, keys[1:]) for kind in within) if within else len(keys) == 1 or dict in map_kinds(field.annotation)
    )


def kinds(annotation: object) -> Iterator[object]:
    yield annotation
    for argument in get_args(annotation):
        yield from kinds(argument)


def map_kinds(annotation: object) -> set[object]:
    return {getattr(kind, "__origin__", kind) for kind in kinds(annotation)}


def is_object(name: str) -> bool:
    """Whether a dotted name is a module of ours, or stands at the top of one."""
    path = REPOSITORY / name.replace(".", "/")
    if path.with_suffix(".py").is_file() or (path / "__init__.py").is_file():
        return True
    module, _, last = name.rpartition(".")
    file = REPOSITORY / f"{module.replace('.', '/')}.py"
    return (
        file.is_file() and re.search(rf"^(?:def |class |){last}\b", file.read_text(encoding="utf-8"), re.M) is not None
    )


def test_a_key_is_known_by_the_schemas() -> None:
    assert all(map(is_key, ["align.kl_coef", "align.dpo.beta", "model.name", "sft.lora.r", "compare.others.ppo"]))
    assert not any(map(is_key, ["align.kl_coeff", "align.dpo.kl_coef", "model.names", "sft.lora.rank", "label.r"]))
    assert all(map(is_object, ["trueup.data.rubric", "ui.labels.config.LabelConfig"]))
    assert not any(map(is_object, ["trueup.rubrics", "ui.labels.config.LabelConfigs", "ui.nothing.at_all"]))
