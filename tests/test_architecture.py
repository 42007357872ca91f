"""Who may name whom, by an import or by a string; no circles; how large a piece may be; and what stays light."""

from __future__ import annotations

import ast
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
STAGES = {"sft", "reward", "rlhf", "ui"}
PACKAGES = {"trueup", *STAGES}
TABLE = REPOSITORY / "trueup/stages.py"
"""The one module of `trueup` that names stages' packages, by one string for each schema and each package's commands."""
HEAVY = "torch transformers trl peft datasets accelerate gradio matplotlib scipy numpy pandas".split()

# ---- Arrows -----------------------------------------------------------------------------------------------------


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of every import, wherever in the file it stands."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import, which the tests here do not follow"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def strings(file: Path) -> Iterator[tuple[int, str]]:
    """Line and text of every string that names an object of ours as `load_object` takes it, and of every name that is
    given to `import_module`. A dotted name alone may be a key of the campaign file, such as sft.data."""
    named = re.compile(rf"({'|'.join(sorted(PACKAGES))})(\.\w+)*:\w+")
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            given = [text.value for text in node.args if isinstance(text, ast.Constant)]
            yield from ((node.lineno, name) for name in given if isinstance(name, str))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and named.fullmatch(node.value):
            yield node.lineno, node.value


def arrows(package: str, to: set[str]) -> list[str]:
    """`file:line name` for all that the files of a package say of the packages `to`."""
    files = sorted((REPOSITORY / package).rglob("*.py"))
    assert files
    return [
        f"{file.relative_to(REPOSITORY)}:{line} {name}"
        for file in files
        if file != TABLE
        for line, name in (*imports(file), *strings(file))
        if re.split(r"[.:]", name)[0] in to
    ]


@pytest.mark.parametrize("package", sorted(STAGES))
def test_a_stage_names_only_itself_and_trueup(package: str) -> None:
    assert arrows(package, STAGES - {package}) == []


def test_trueup_names_no_stage_outside_of_its_table() -> None:
    assert arrows("trueup", STAGES) == []
    assert [name for _, name in imports(TABLE) if name.partition(".")[0] in STAGES] == []
    named = Counter(name.partition(".")[0] for _, name in strings(TABLE) if not name.endswith("Config"))
    assert named == {"reward": 1, "rlhf": 1, "ui": 1}, "each package's commands, and the choice of algorithms"


def test_a_string_is_seen_as_an_arrow(tmp_path: Path) -> None:
    file = tmp_path / "file.py"
    file.write_text(
        'load_object("ui.app:serve")\nimportlib.import_module("rlhf.align.ppo.stage")\nsay("ui is a word, rlhf: too")\n'
    )
    assert sorted(strings(file)) == [(1, "ui.app:serve"), (2, "rlhf.align.ppo.stage")]


# ---- Circles ----------------------------------------------------------------------------------------------------


def modules() -> dict[str, Path]:
    files = [file for package in PACKAGES for file in (REPOSITORY / package).rglob("*.py")]
    return {
        ".".join(file.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): file for file in files
    }


def graph() -> dict[str, set[str]]:
    """The modules that each module imports, within its functions too. The strings by which a schema names the code of
    its stage are none of them: they are followed when that code is run."""
    known = modules()

    def module(name: str) -> str:
        return name if name in known else name.rpartition(".")[0]

    found = {name: {module(imported) for _, imported in imports(file)} & known.keys() for name, file in known.items()}
    return {name: others - {name} for name, others in found.items()}


def rooms(modules: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The same with every folder within a package as one; a package's own files stand for themselves."""

    def room(name: str) -> str:
        parts = name.split(".")
        is_folder = len(parts) > 2 or any(other.startswith(f"{name}.") for other in modules)
        return ".".join(parts[:2]) if is_folder and len(parts) > 1 else name

    found: dict[str, set[str]] = {}
    for name, others in modules.items():
        found.setdefault(room(name), set()).update(room(other) for other in others)
    return {name: others - {name} for name, others in found.items()}


def circles(arrows: Mapping[str, set[str]]) -> list[str]:
    """What is left when all that leads nowhere, or that nothing leads to, is taken away again and again."""
    left = {name: set(others) for name, others in arrows.items()}
    while ends := {
        name for name, others in left.items() if not others or not any(name in more for more in left.values())
    }:
        left = {name: others - ends for name, others in left.items() if name not in ends}
    return sorted(left)


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circles(graph()) == []


def test_no_folders_of_a_package_import_each_other_in_a_circle() -> None:
    assert circles(rooms(graph())) == []


MOST_ARROWS = {"ui": 30, "rlhf": 8}
"""How many arrows there may be between the rooms of a package. Who reads a room must know each room that it imports."""


def room_arrows(package: str) -> list[tuple[str, str]]:
    """The pairs of a package's rooms of which the first imports the second."""
    inside = f"{package}."
    return sorted(
        (room, other)
        for room, others in rooms(graph()).items()
        for other in others
        if room.startswith(inside) and other.startswith(inside)
    )


@pytest.mark.parametrize("package", MOST_ARROWS)
def test_few_rooms_of_a_package_import_one_another(package: str) -> None:
    assert len(arrows := room_arrows(package)) <= MOST_ARROWS[package], arrows


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == ["b", "c"]
    assert rooms(
        {"ui.app": {"ui.pages.run"}, "ui.pages.run": {"ui.html"}, "ui.pages": set(), "ui.html": {"ui.pages"}}
    ) == {
        "ui.app": {"ui.pages"},
        "ui.pages": {"ui.html"},
        "ui.html": {"ui.pages"},
    }


# ---- Rooms ------------------------------------------------------------------------------------------------------


LONGEST_FUNCTION, LONGEST_FILE, MOST_FILES = 70, 450, 14
OVER_A_BAR = {"ui/static/label.js"}
"""Files and functions that are larger, each only while it is. The labelling page is to be restructured as a whole."""
MOST_UNTYPED = 40
"""How often the product says `dict[str, Any]`. What is ours has a type, and an object whose keys are not ours is a
`trueup.files.Json`."""


def files_by_folder() -> Counter[str]:
    """How many Python files each folder of the product holds; `python tests/test_architecture.py` prints them."""
    return Counter(str(file.parent.relative_to(REPOSITORY)) for file in modules().values())


def larger(sizes: Mapping[str, int], bar: int) -> dict[str, int]:
    return {name: size for name, size in sizes.items() if size > bar and name not in OVER_A_BAR}


Defined = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def definitions() -> Iterator[tuple[str, Defined]]:
    """Module and node of every class and function of the product, those within others too."""
    for module, file in sorted(modules().items()):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, Defined):
                yield module, node


def test_a_function_is_at_most_70_lines_long() -> None:
    lengths = {
        f"{module}:{node.name}": (node.end_lineno or 0) - node.lineno + 1
        for module, node in definitions()
        if not isinstance(node, ast.ClassDef)
    }
    assert larger(lengths, LONGEST_FUNCTION) == {}


def test_a_file_is_at_most_450_lines_long() -> None:
    scripts = [file for package in PACKAGES for file in (REPOSITORY / package).rglob("*.js")]
    lengths = {
        str(file.relative_to(REPOSITORY)): len(file.read_text(encoding="utf-8").splitlines())
        for file in (*modules().values(), *scripts)
    }
    assert larger(lengths, LONGEST_FILE) == {}


def test_a_folder_holds_at_most_14_files() -> None:
    assert larger(files_by_folder(), MOST_FILES) == {}


def test_what_is_ours_has_a_type() -> None:
    texts = [file.read_text(encoding="utf-8") for file in modules().values()]
    assert sum(text.count("dict[str, Any]") for text in texts) < MOST_UNTYPED


def test_the_name_of_a_class_has_one_meaning() -> None:
    homes: dict[str, set[str]] = {}
    for module, node in definitions():
        if isinstance(node, ast.ClassDef):
            homes.setdefault(node.name, set()).add(module)
    assert {name: where for name, where in homes.items() if len(where) > 1} == {}


ESCAPE_BY_HAND = {"ui/pages/render.py", "ui/blindcheck/secrets.py"}
"""Markdown is rendered by its own rules, and the search for secrets knows both ways to write a quote."""


STAGE_COMMAND = re.compile(r"`trueup ([{]|(sample|label|reward|align|compare)( CONFIG)?`)")
ANY_ROUND = ("there is no label store yet", "Open the labelling page with ")
"""Messages whose command needs no round: all rounds have one store, and labels that are missing are the first ones."""


def messages(file: Path) -> Iterator[tuple[int, str]]:
    """The texts of a file that may be told, each f-string as a whole with `{}` for its values."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    notes = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield (
                node.lineno,
                "".join(
                    str(getattr(part, "value", "")) if isinstance(part, ast.Constant) else "{}" for part in node.values
                ),
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner | notes:
            yield node.lineno, node.value


def test_the_command_of_a_stage_is_written_in_one_place_which_knows_its_round() -> None:
    """`trueup.stages.command`; a sentence of its own would name the first round's in every round."""
    elsewhere = [
        f"{file.relative_to(REPOSITORY)}:{line}: {text}"
        for file in modules().values()
        if file.relative_to(REPOSITORY).parts[:2] not in (("trueup", "stages.py"), ("trueup", "cli.py"))
        for line, text in messages(file)
        if STAGE_COMMAND.search(text) and not any(known in text for known in ANY_ROUND)
    ]
    assert elsewhere == []


def test_html_is_escaped_by_templates_and_markup_not_by_hand() -> None:
    by_hand = re.compile(r"^(from (html|markupsafe) import .*\bescape\b|import (html|markupsafe)$)", re.MULTILINE)
    files = {str(file.relative_to(REPOSITORY)): file.read_text(encoding="utf-8") for file in modules().values()}
    assert {name for name, text in files.items() if by_hand.search(text)} == ESCAPE_BY_HAND


# ---- Weight -----------------------------------------------------------------------------------------------------

Python = Callable[..., subprocess.CompletedProcess[str]]
LOADED = "import sys; print(' '.join(sorted({name.split('.')[0] for name in sys.modules} & set(sys.argv[1:]))))"


def test_help_loads_nothing_that_costs_time(python: Python) -> None:
    code = (
        "import contextlib, io, trueup.cli\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as said:\n"
        "    trueup.cli.main(['--help'])\n"
        "assert 'align' in said.getvalue()\n"
    )
    assert python(code + LOADED, *HEAVY, "pydantic", "yaml", "rich", "sqlalchemy").stdout == "\n"


def test_the_keys_of_a_campaign_are_told_without_torch(python: Python) -> None:
    code = (
        "import contextlib, io, trueup.cli\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        "    assert trueup.cli.main(['keys', 'align.ppo']) == 0\n"
    )
    assert python(code + LOADED, *HEAVY, "sqlalchemy").stdout == "\n"


def test_a_campaign_is_loaded_and_planned_without_torch(python: Python) -> None:
    code = (
        "import pathlib, trueup.cli, sft.config, reward.config, rlhf.config, ui.labels.config\n"
        "from trueup.campaign import load_campaign, plan\n"
        "assert len(plan(load_campaign(pathlib.Path('configs/demo.yaml')))) == 6\n"
    )
    answer = python(code + LOADED, *HEAVY)
    assert (answer.stderr, answer.stdout) == ("", "\n")


if __name__ == "__main__":
    for folder, count in files_by_folder().most_common():
        print(f"{count:4} {folder}")
    for package in sorted(PACKAGES):
        print(f"{len(room_arrows(package)):4} arrows between the rooms of {package}")
