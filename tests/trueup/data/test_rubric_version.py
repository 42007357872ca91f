"""What makes a rubric another one: its code and what that uses, and nothing that changes no result."""

from __future__ import annotations

from pathlib import Path

import pytest

from trueup.data.rubric import rubric_version
from trueup.provenance.definition import digest

CODE = '''"""A rubric."""
from trueup.data.rubric import Rubric
from trueup.data.words import count_words

LIMIT = 20

def helper(text: str) -> float:
    """How short it is."""
    return 1.0 - min(1.0, count_words(text) / LIMIT)

def unused(text):
    return 0.0

def short(prompt, text: str, finished: bool) -> float:
    """Short answers."""
    # as nobody likes long ones
    return helper(text)

MINE = Rubric("mine", ((2.0, "short", short),))
'''


def of(tmp_path: Path, code: str, name: str = "MINE") -> str | None:
    (tmp_path / "mine.py").write_text(code)
    return digest(tmp_path / "mine.py", name)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("    # as nobody likes long ones\n", ""),
        ('    """Short answers."""\n', '    """Answers that end soon."""\n'),
        ("LIMIT = 20\n", "\n\nLIMIT = (20)  # words\n"),
        ("text: str, finished: bool) -> float:", "text, finished):"),
        ("return 0.0", "return 5.0"),
        ('"""A rubric."""', ""),
    ],
)
def test_what_changes_no_result_makes_no_label_stale(tmp_path: Path, before: str, after: str) -> None:
    assert before in CODE
    assert of(tmp_path, CODE.replace(before, after)) == of(tmp_path, CODE)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("LIMIT = 20", "LIMIT = 21"),
        ("return helper(text)", "return -helper(text)"),
        ("1.0 - min", "2.0 - min"),
        ("2.0, ", "3.0, "),
        ('Rubric("mine"', 'Rubric("yours"'),
        ("count_words", "ngrams"),
    ],
)
def test_what_changes_a_score_makes_another_rubric(tmp_path: Path, before: str, after: str) -> None:
    assert before in CODE
    assert of(tmp_path, CODE.replace(before, after)) != of(tmp_path, CODE)


def test_a_rubric_depends_on_the_code_that_it_imports_from_here(tmp_path: Path) -> None:
    one, other = (CODE.replace("count_words(text)", f"{name}(text)") for name in ("count_words", "words"))
    assert of(tmp_path, one) != of(tmp_path, other.replace("import count_words", "import words"))
    assert of(tmp_path, CODE, "helper") != of(tmp_path, CODE, "short")


def test_a_file_that_is_no_python_has_no_version(tmp_path: Path) -> None:
    assert of(tmp_path, "def (") is None
    assert rubric_version(f"{tmp_path}/nowhere.py:f") is None


def test_the_rubric_of_the_demo_has_a_version_of_its_own() -> None:
    version = rubric_version("says-why")
    assert version and len(version) == 12
