"""How varied rows are, and what moved since another version: figures that do not depend on the size of a set, and rows
that are counted one by one."""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from looking import launched

from trueup.cli import main
from trueup.data.formats import read_prompts
from trueup.data.records import Demonstration, Dropped, Message, Prompt
from trueup.inspecting.diversity import diversity, neighbours, vocabulary
from trueup.inspecting.instructions import instruction_of
from trueup.inspecting.kinds import KINDS, OTHER, named_kind, told_kind
from trueup.inspecting.look import inspect
from trueup.inspecting.page import page_of
from trueup.inspecting.text import lines

STARTER = Path(__file__).parents[3] / "trueup/data/starter"
Jsonl = Callable[[Path, list[Any]], Path]


def asked(text: str, category: str | None = None) -> Prompt:
    return Prompt(prompt=[Message(role="user", content=text)], category=category)


# ---- Kinds ------------------------------------------------------------------------------------------------------


def test_cue_words_tell_most_of_the_starter_prompts_and_some_of_every_kind() -> None:
    rows = read_prompts(STARTER / "prompts.jsonl", Dropped())
    right = Counter(row.category for row in rows if told_kind(row.prompt[0].content).kind == row.category)
    print(f"cue words name the kind of {sum(right.values())} of {len(rows)} starter prompts: {dict(right)}")
    assert sum(right.values()) > 0.65 * len(rows)
    assert all(right[kind] > 15 for kind in KINDS), "of 46 each"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Write a Python function that reverses a list.", "code"),
        ("Translate 'good morning' into French.", "translation"),
        ("Summarize the following article: ...", "summarisation"),
        ("Write a poem about the sea.", "creative_writing"),
        ("If 3 pens cost 6 dollars, how much do 5 pens cost?", "mathematics"),
        ("Compare cats and dogs as pets.", "analysis"),
        ("Hello! I feel a bit lonely today.", "conversation"),
        ("Who wrote Hamlet?", "question_answering"),
        ("Quelle heure", OTHER),
        ("", OTHER),
    ],
)
def test_a_plain_case_of_each_kind_is_told_with_the_words_that_decided(text: str, kind: str) -> None:
    told = told_kind(text)
    assert told.kind == kind and bool(told.cues) == (kind != OTHER)
    assert all(cue in text.lower() or cue.endswith("...") for cue in told.cues)


@pytest.mark.parametrize(
    ("category", "kind"),
    [("Closed QA", "question_answering"), ("creative-writing", "creative_writing"), ("coding", "code")]
    + [(kind, kind) for kind in KINDS]
    + [("cats", None), ("", None), (None, None)],
)
def test_a_category_names_a_kind_however_it_is_spelt(category: str | None, kind: str | None) -> None:
    assert named_kind(category) == kind


def test_the_category_of_a_row_goes_before_its_words_and_tells_what_the_words_are_worth() -> None:
    poem, question = "Write a poem about rain.", "Who wrote Hamlet?"
    found = diversity([asked(poem, "code"), asked(question, "qa"), asked(poem, "cats"), asked(question)]).kinds
    assert found.rows == {"question_answering": 2, "creative_writing": 1, "code": 1}
    assert (found.by_category, found.agreement and found.agreement.value) == (2, 0.5)
    assert found.cues.keys() == {"creative_writing", "question_answering"}


@pytest.mark.parametrize("text", ["5 6 7 ", "what French ", "two how many ", "a(", "'", "write a ", ". x sentences\n"])
def test_no_text_takes_long(text: str) -> None:
    started = time.process_time()
    told_kind(text * 20_000)
    instruction_of(text * 20_000)
    assert time.process_time() - started < 2


# ---- Instructions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "verb", "noun"),
    [
        ("Write a short poem about rain.", "write", "poem"),
        ("Please translate the following sentence into French: Hi", "translate", "sentence"),
        ("Could you please give me three healthy recipes?", "give", "recipe"),
        ("I have a dog. Suggest two names for him.", "suggest", "name"),
        ("Explain why the sky is blue.", "explain", None),
        ("Compute 6 + 4.", "compute", None),
        ("Write a C++ program to find primes.", "write", "program"),
        ("List the main causes of the two stories' success.", "list", "cause"),
    ],
)
def test_an_instruction_is_its_verb_and_what_it_is_about(text: str, verb: str, noun: str | None) -> None:
    assert instruction_of(text) == (verb, noun)


@pytest.mark.parametrize("text", ["Why is the sky blue?", "Rain again today.", "", "为什么天是蓝的?", "!!!"])
def test_what_is_no_english_instruction_has_none(text: str) -> None:
    assert instruction_of(text) is None


# ---- Words and neighbours ---------------------------------------------------------------------------------------


def test_vocabulary_depends_neither_on_the_number_of_texts_nor_on_their_length() -> None:
    draw = random.Random(0)
    names = [f"word{i}" for i in range(5_000)]
    texts = [" ".join(draw.choices(names, k=100)) for _ in range(1_000)]
    few, many = vocabulary(texts[:60]), vocabulary(texts)
    longer = vocabulary([f"{text} {text}" for text in texts])
    assert few and many and longer
    assert many.windows > 10 * few.windows
    assert few.type_token == pytest.approx(many.type_token, abs=0.02)
    assert longer.type_token == pytest.approx(many.type_token, abs=0.02)
    same = vocabulary([texts[0]] * 100)
    assert same and same.type_token < 0.2 < many.type_token
    assert vocabulary(texts[:10]) is None, "fewer words than a window has"


def test_the_pair_that_is_most_alike_is_found_among_others() -> None:
    texts = [f"Tell me about {name}{i} and its {name}." for i, name in enumerate("river lake hill town farm".split())]
    planted = ["How do I boil an egg for four minutes?", "How do I boil eggs for four minutes?"]
    found = neighbours([asked(text) for text in [*texts, *planted, planted[0]]])
    assert found and found.rows == 8 and found.closest[0].alike == pytest.approx(1)
    assert {found.closest[0].first.content, found.closest[0].second.content} == {planted[0]}
    assert found.near == 2 / 8 and sum(found.alike.counts) == 8


@pytest.mark.parametrize("texts", [[], ["Alone?"], ["!?", "..."], ["Alone?", "!!"]])
def test_where_there_are_no_two_prompts_with_words_there_are_no_neighbours(texts: list[str]) -> None:
    found = diversity([asked(text) for text in texts])
    assert found.neighbours is None and found.rows == len(texts)


# ---- Another version --------------------------------------------------------------------------------------------


def row(prompt: str, answer: str) -> dict[str, str]:
    return {"prompt": prompt, "completion": answer}


def test_every_row_that_came_or_went_is_counted_and_the_figures_move(tmp_path: Path, jsonl: Jsonl) -> None:
    kept = [row(f"Who was person {i}?", f"Somebody of {i}.") for i in range(20)]
    before = jsonl(tmp_path / "before.jsonl", [*kept, row("Who went?", "I.")])
    anew = [row("Who went?", "You."), *(row(f"Write a poem about {i}.", "Roses.") for i in range(5))]
    after = jsonl(tmp_path / "after.jsonl", [*reversed(kept), *anew])
    report = inspect(after, None, [], None, samples=0, other=before)
    found = report.against
    assert found and (found.rows, found.added, found.removed, found.same_prompt) == (21, 6, 1, 1)
    assert [place.content for place in found.removed_rows] == ["Who went?"]
    figures = {one.name: (one.before, one.after) for one in found.figures}
    assert figures["rows"] == (21, 26) and figures["kind creative writing"] == (0, 5 / 26)
    assert report.diversity.neighbours and found.diversity.neighbours
    assert report.diversity.neighbours.rows == found.diversity.neighbours.rows == 21, "or the two would not compare"
    page, told = page_of(report), "\n".join(lines(report, colour=False))
    assert "kind creative writing: 0.0 % -> 19.2 %" in told.replace("\N{NO-BREAK SPACE}", " ")
    assert "6 rows came, 1 of them" in page and "the other version" in page


def test_against_itself_nothing_moves(tmp_path: Path, capsys: Any) -> None:
    path = STARTER / "demonstrations.jsonl"
    report = inspect(path, None, [], None, samples=0, other=path)
    assert report.against and (report.against.added, report.against.removed) == (0, 0)
    assert [one.name for one in report.against.figures if one.before != one.after] == []


def test_the_command_says_what_came_and_refuses_what_is_something_else(
    tmp_path: Path, jsonl: Jsonl, capsys: Any
) -> None:
    new = jsonl(tmp_path / "new.jsonl", [row("Who?", "I."), row("When?", "Now.")])
    old = jsonl(tmp_path / "old.jsonl", [row("Who?", "I.")])
    page = tmp_path / "page.html"
    assert main(["data", "inspect", str(new), "--against", str(old), "--html", str(page)]) == 0
    assert "1 row came, " not in (said := capsys.readouterr().out) and "added          1 row" in said and page.exists()
    empty = jsonl(tmp_path / "other.jsonl", [{"text": 5}])
    assert main(["data", "inspect", str(new), "--against", str(empty)]) == 2
    assert str(empty) in capsys.readouterr().err


def test_no_text_of_either_version_is_markup(tmp_path: Path, jsonl: Jsonl) -> None:
    evil = "<script>alert(1)</script>\x1b[2J\u202e translate ```"
    new = jsonl(tmp_path / "new.jsonl", [row(f"{evil} {i}", evil) for i in range(3)])
    old = jsonl(tmp_path / "old.jsonl", [row(f"{evil} {i}?", evil) for i in range(3)])
    report = inspect(new, None, [], None, samples=0, other=old)
    page = page_of(report)
    assert "<script>alert" not in page and report.diversity.kinds.cues
    assert not re.search("[\x1b\u202e]", "\n".join(lines(report, colour=False)) + page)


browser = pytest.fixture(launched, scope="module")


@pytest.mark.browser
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 320)])
def test_the_page_fits_a_narrow_and_a_wide_screen_and_is_accessible(
    tmp_path: Path, browser: Any, scheme: str, width: int
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    path = tmp_path / "page.html"
    rows = STARTER / "demonstrations.jsonl"
    path.write_text(page_of(inspect(rows, None, [], None, samples=3, other=rows)))
    opened = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True)
    opened.goto(path.as_uri())
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.locator("svg.chart").count() == 3
    problems = Axe().run(opened).response["violations"]
    assert [(one["id"], one["nodes"][0]["target"]) for one in problems] == []
    opened.close()


def test_answers_that_are_read_alone_are_no_vocabulary_and_files_are_told_apart(tmp_path: Path, jsonl: Jsonl) -> None:
    said = [Message(role="user", content="a"), Message(role="assistant", content="b", trained=False)]
    learnt = [Message(role="user", content="c"), Message(role="assistant", content="one two three")]
    found = diversity([Demonstration(messages=said + learnt)])
    assert sum(found.lengths["answer"].counts) == 1
    folder = tmp_path / "rows"
    folder.mkdir()
    for name, count in (("a.jsonl", 1), ("b.jsonl", 3)):
        jsonl(folder / name, [row(f"{name} {i}?", "x") for i in range(count)])
    files = inspect(folder, None, [], None, samples=0).diversity.files
    assert {Path(path).name: rows for path, rows in files.items()} == {"b.jsonl": 3, "a.jsonl": 1}


@pytest.mark.timeout(20)
def test_a_list_of_numbers_takes_no_time() -> None:
    numbers = ",".join(str(n % 10) for n in range(2000))
    told_kind(f"Sort: {numbers}")
