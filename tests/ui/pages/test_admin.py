"""The admin's figures: right on a log that can be counted by hand, however it is read, and for admins only."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from looking import Page
from manifests import card_of

from trueup.errors import DataError
from ui.figures.figures import figures, mirror
from ui.figures.live import Live
from ui.figures.log import Log, known_answers, newest_event
from ui.figures.over_time import step_width
from ui.figures.schema import AnnotatorFigures, Figures, ShareFigures
from ui.figures.tables import as_csv, cell_text, sheets
from ui.figures.text import stats
from ui.labels.tables import Database, event, gold, item, slot
from ui.pages.admin import summary_html
from ui.pages.admin_api import admin_api
from ui.people.accounts import LOCAL, Person

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)


class Book:
    """A store whose events are written by hand, one line each."""

    def __init__(self, url: str):
        self.db, self.events = Database(url), 0
        self.items: set[str] = set()

    def item(self, name: str) -> None:
        if name not in self.items:
            self.items.add(name)
            row = {"item_id": name, "prompt_id": name, "prompt": [], "split": "train", "completions": []}
            with self.db.write() as db:
                db.execute(item.insert().values(**row, sampler={}, created_utc=""))

    def write(self, who: str, name: str, kind: str = "label", tiers: Any = None, **values: Any) -> int:
        """Returns the event's id. `ago`: how long before NOW."""
        self.item(name)
        self.events += 1
        made = (NOW - values.pop("ago", timedelta(minutes=5))).isoformat(timespec="milliseconds")
        row = {"client_uuid": f"uuid-{self.events}", "source": "human", "kind": kind, "tiers": tiers} | values
        with self.db.write() as db:
            added = db.execute(event.insert().values(item_id=name, annotator=who, created_utc=made, **row))
            assert added.inserted_primary_key is not None
            return int(added.inserted_primary_key[0])

    def gold(self, name: str, tiers: Any) -> None:
        self.item(name)
        with self.db.write() as db:
            db.execute(gold.insert().values(item_id=name, tiers=tiers, use="check", position=len(self.items)))

    def slots(self, **states: int) -> None:
        rows = []
        for state, number in states.items():
            for n in range(number):
                self.item(f"{state}-{n}")
                taken = {
                    "annotator": None if state == "open" else "x",
                    "expires_at": 9e9 if state == "leased" else None,
                }
                common = {"slot_no": 0, "position": n, "selection": "random", "propensity": 1.0}
                rows.append({"item_id": f"{state}-{n}", "state": state} | common | taken)
        with self.db.write() as db:
            db.execute(slot.insert(), rows)

    def live(self, **values: Any) -> Live:
        return Live(self.db, clock=NOW.timestamp, **values)

    def figures(self) -> Figures:
        return self.live().figures(wait=True)


@pytest.fixture
def book(store_url: str) -> Iterator[Book]:
    made = Book(store_url)
    yield made
    made.db.close()


A, B, TIE = [[0], [1]], [[1], [0]], [[0, 1]]


def of(found: Figures, name: str) -> AnnotatorFigures:
    return next(one for one in found["annotators"] if one["annotator"] == name)


def counted(share: ShareFigures) -> tuple[int, int]:
    """Successes and trials of a share."""
    return round((share["value"] or 0) * share["n"]), share["n"]


# ---- Figures ----------------------------------------------------------------------------------------------------


def test_every_share_is_what_one_counts_by_hand(book: Book) -> None:
    read: dict[str, Any] = {"words": 150, "seconds": 20.0}
    book.write("ann", "1", tiers=A, first_shown=0, chose_longer=True, strength=3, **read)  # left
    book.write("ann", "2", tiers=B, first_shown=0, chose_longer=False, strength=1, words=150, seconds=9.9)  # too fast
    book.write("ann", "3", tiers=TIE, first_shown=1, **read)
    book.write("ann", "4", tiers=TIE, first_shown=1, both_bad=True, **read)
    book.write("bob", "1", tiers=A, first_shown=1, chose_longer=True, strength=2, **read)
    book.write("bob", "2", tiers=A, first_shown=0, chose_longer=True, strength=2, **read)
    found = book.figures()
    overall = found["overall"]
    assert counted(overall["left"]) == (2, 4)
    assert overall["left"]["p"] == pytest.approx(1.0)
    assert overall["longer"]["value"] == pytest.approx(3 / 4)
    assert [overall[key]["value"] for key in ("tie", "both_bad")] == pytest.approx([1 / 6, 1 / 6])
    assert counted(overall["too_fast"]) == (1, 6)
    ann, bob = of(found, "ann"), of(found, "bob")
    assert (ann["labels"], bob["labels"], ann["seconds"]) == (4, 2, 20.0)
    assert (counted(ann["left"]), counted(bob["left"])) == ((1, 2), (1, 2))
    assert counted(ann["agreement"]) == (1, 2)  # of the two pairs that bob labelled too
    equal = found["agreement"][0]
    assert (equal["measure"], equal["value"], equal["n"], equal["labels"]) == ("Equal labels", 0.5, 2, 4)
    assert [row["measure"] for row in found["agreement"]][-2:] == ["Cohen’s kappa", "Cohen’s kappa, quadratic weights"]
    (pair,) = found["pairs"]
    assert (pair["a"], pair["b"], pair["items"], counted(pair["equal"])) == ("ann", "bob", 2, (1, 2))


def test_an_undone_label_is_gone_and_what_follows_it_counts(book: Book) -> None:
    live = book.live()
    first = book.write("ann", "1", tiers=A, first_shown=0)
    assert counted(live.figures(wait=True)["overall"]["left"]) == (1, 1)
    book.write("ann", "1", "undo", supersedes=first)
    found = live.figures(wait=True)
    assert (found["progress"]["labels"], found["overall"]["left"]["value"]) == (0, None)
    book.write("ann", "1", tiers=B, first_shown=0)
    found = live.figures(wait=True)
    assert counted(found["overall"]["left"]) == (0, 1)
    assert of(found, "ann")["undone"] == 1
    assert {"what": "Taken back", "events": 1, "why": "undone or replaced by the annotator"} in found["excluded"]


def test_gold_repeats_qualification_late_and_machines_are_not_labels(book: Book) -> None:
    book.gold("g", A)
    book.write("ann", "1", tiers=A)
    book.write("ann", "2", tiers=TIE)
    book.write("ann", "g", tiers=A, purpose="gold")
    book.write("bob", "g", tiers=B, purpose="gold")
    book.write("ann", "g", tiers=B, purpose="qualification")
    book.write("ann", "1", tiers=A, purpose="repeat")
    book.write("ann", "2", tiers=B, purpose="repeat")
    book.write("bob", "2", tiers=A, purpose="repeat")  # bob never labelled it: nothing to compare
    book.write("ann", "3", "late", tiers=A)
    book.write("ann", "4", "skip")
    book.write("ann", "5", "flag", note="not English")
    undone = book.write("bob", "6", "flag", note="a slip")
    book.write("bob", "6", "undo", supersedes=undone)
    book.write("ann", "1", "demonstration", note="a better answer")
    book.write("rubric:says-why", "1", tiers=B, source="simulated")
    found = book.figures()
    assert found["progress"]["labels"] == 2
    assert counted(found["overall"]["gold"]) == (1, 2)
    assert counted(found["overall"]["qualification"]) == (0, 1)
    assert counted(found["overall"]["consistency"]) == (1, 2)
    assert {row["what"]: row["events"] for row in found["excluded"]} == {
        "Skipped": 1,
        "Flagged": 1,
        "Late": 1,
        "Taken back": 1,
        "Hidden repeats": 3,
        "Gold items": 2,
        "Qualification": 1,
    }
    assert found["flags"] == [{"reason": "not English", "flags": 1}]
    assert [one["annotator"] for one in found["annotators"]] == ["ann", "bob"]
    (program,) = found["programs"]
    assert (program["annotator"], program["same"]["value"], program["same"]["n"]) == ("rubric:says-why", 0.0, 1)


def test_what_was_measured_stays_whatever_is_taken_back_afterwards(book: Book) -> None:
    book.gold("g", A)
    wrong = book.write("ann", "g", tiers=B, purpose="gold")
    slip = book.write("ann", "1", tiers=B)
    book.write("ann", "1", "undo", supersedes=slip)
    first = book.write("ann", "1", tiers=A)
    other = book.write("ann", "1", tiers=B, purpose="repeat")

    def measured() -> list[tuple[int, int]]:
        return [counted(book.figures()["overall"][name]) for name in ("consistency", "gold")]

    assert measured() == [(0, 1), (0, 1)], "a repeat is held against what was last said before it"
    for row, purpose, tiers in ((other, "repeat", A), (first, "work", B), (wrong, "gold", A)):
        item = "g" if purpose == "gold" else "1"
        book.write("ann", item, "undo", purpose=purpose, supersedes=row)
        book.write("ann", item, tiers=tiers, purpose=purpose)
        assert measured() == [(0, 1), (0, 1)]
    taken_back = {row["what"]: row["events"] for row in book.figures()["excluded"]}
    assert (taken_back["Hidden repeats"], taken_back["Gold items"], taken_back["Taken back"]) == (1, 1, 2)


def test_the_first_place_of_a_ranking_is_best_by_chance_one_time_in_k(book: Book) -> None:
    book.gold("g", [[0], [1], [2], [3]])
    book.write("ann", "1", tiers=[[2], [0, 1], [3]], first_shown=2)
    book.write("ann", "g", tiers=[[0], [1], [3], [2]], purpose="gold")  # five of six pairs as known
    found = book.figures()
    assert (counted(found["overall"]["left"]), found["overall"]["left"]["chance"]) == ((1, 1), 0.25)
    assert counted(found["overall"]["gold"]) == (1, 1)


def test_pace_and_time_left_come_from_the_last_hour(book: Book) -> None:
    for number in range(4):
        book.write("ann", f"old {number}", tiers=A, ago=30 * HOUR)
    for number in range(6):
        book.write("bob", f"new {number}", tiers=A, ago=timedelta(minutes=9 * number))
    book.slots(open=9, leased=3, filled=10)
    found = book.figures()
    progress = found["progress"]
    assert (progress["labels_per_hour"], progress["eta_h"], progress["target"]) == (6.0, 2.0, 22)
    assert (progress["annotators"], progress["annotators_now"], progress["labels_per_busy_hour"]) == (2, 1, 10 / 3)
    assert [(row["hour_utc"] and row["hour_utc"][:13], row["labels"]) for row in found["hours"]] == [
        ("2026-11-22T06", 4),
        ("2026-11-23T11", 5),
        ("2026-11-23T12", 1),
    ]


def test_without_labels_in_the_last_hour_there_is_no_time_left(book: Book) -> None:
    book.write("ann", "1", tiers=A, ago=5 * HOUR)
    book.slots(open=1)
    assert book.figures()["progress"]["eta_h"] is None
    assert "nobody labelled in the last hour" in summary_html(book.figures())


def test_what_happens_beside_the_page_stands_on_it_as_text_and_nothing_is_done_before_it_ends(book: Book) -> None:
    book.write("ann", "1", tiers=A)
    book.slots(filled=1)
    figures = book.figures()
    assert "Time left done" in Page(summary_html(figures)).text
    page = Page(summary_html(figures, "3 of 16 prompts are answered; <b>/runs/a</b> stopped"))
    assert "3 of 16 prompts are answered; <b>/runs/a</b> stopped" in page.text
    assert "Time left – further pairs come" in page.text and "of 1 wanted so far" in page.text


def test_drift_is_cut_into_steps_of_equally_many_labels(book: Book) -> None:
    for number in range(60):
        book.write("ann", str(number), tiers=A if number < 25 else B, first_shown=0, seconds=10.0 + number // 25)
    steps = book.figures()["drift"]
    assert [(s["first"], s["last"], s["left"]["value"], s["seconds"]) for s in steps] == [
        (1, 25, 1.0, 10.0),
        (26, 50, 0.0, 11.0),
        (51, 60, 0.0, 12.0),
    ]
    assert [step_width(n) for n in (1, 600, 601, 10_000, 1_000_000)] == [25, 25, 50, 500, 50_000]


def test_people_whom_chance_does_not_explain_are_named(book: Book) -> None:
    for number in range(40):
        book.write("lefty", str(number), tiers=A, first_shown=0, words=150, seconds=30.0)
        book.write("hasty", str(number), tiers=A, first_shown=number % 2, words=150, seconds=1.0)
    found = {(one["annotator"], one["message"][:28]) for one in book.figures()["findings"]}
    assert found == {("lefty", "takes the left answer in 100"), ("hasty", "is faster than anybody can r")}


# ---- Worth ------------------------------------------------------------------------------------------------------


def write_card(run_dir: Path, accuracy: dict[str, float], pairs: dict[str, int]) -> None:
    """The report of a reward stage, as far as anybody outside of it reads it."""
    (run_dir / "reward").mkdir()
    (run_dir / "reward" / "report.json").write_text(json.dumps(card_of(pairs=pairs, accuracy=accuracy)))


def test_another_hundred_labels_narrow_with_the_square_root_and_cost_the_median_time(
    book: Book, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    for number in range(100):
        for who in ("ann", "bob"):
            book.write(who, str(number), tiers=A if rng.random() < 0.8 else B, seconds=36.0)
    live = book.live(run_dir=tmp_path)
    assert live.figures(wait=True)["worth"]["reward_model"] is False
    accuracy = {"value": 0.7, "ci_low": 0.6, "ci_high": 0.8, "n": 40, "prompts": 40}
    write_card(tmp_path, accuracy, {"train": 250, "heldout": 50})
    worth = book.live(run_dir=tmp_path).figures(wait=True)["worth"]
    assert (worth["labels"], worth["hours"]) == (200, 1.0)
    agree, longer, reward = worth["quantities"]
    assert agree["half_width_after"] == pytest.approx(agree["half_width"] * (200 / 300) ** 0.5)
    assert longer["half_width"] is None and longer["half_width_after"] is None  # no lengths were recorded
    assert reward["half_width"] == pytest.approx(0.1)
    assert reward["half_width_after"] == pytest.approx(0.1 * (300 / 400) ** 0.5)
    assert reward["labels_to_bar"] is not None
    assert 300 + reward["labels_to_bar"] == pytest.approx(300 * (0.1 / 0.03) ** 2, abs=1)


def test_a_reward_model_of_labels_that_nobody_gave_is_not_extrapolated_from(book: Book, tmp_path: Path) -> None:
    accuracy = {"value": 0.7, "ci_low": 0.6, "ci_high": 0.8, "n": 87, "prompts": 40}
    write_card(tmp_path, accuracy, {"train": 240, "heldout": 87})
    assert "not enough labels yet" in summary_html(book.live(run_dir=tmp_path).figures(wait=True))


# ---- Little by little -------------------------------------------------------------------------------------------


def scribble(book: Book, rng: np.random.Generator, events: int) -> Iterator[None]:
    """A random log in which everything happens that may, an event at a time."""
    standing: dict[tuple[str, str], int] = {}
    for n in range(3):
        book.gold(f"gold {n}", [A, B, TIE][n])
    for _ in range(events):
        who, name = f"annotator-{rng.integers(4)}", f"item {rng.integers(12)}"
        said: dict[str, Any] = {"tiers": [A, B, TIE][rng.integers(3)], "first_shown": int(rng.integers(2))}
        said |= {"seconds": float(rng.integers(1, 40)), "words": int(rng.integers(50, 300))}
        if len(said["tiers"]) == 2:
            said |= {"strength": int(rng.integers(1, 4)), "chose_longer": [True, False, None][rng.integers(3)]}
        draw = rng.random()
        if draw < 0.1:
            book.write(who, f"gold {rng.integers(3)}", purpose=["gold", "qualification"][rng.integers(2)], **said)
        elif draw < 0.2:
            book.write(who, name, purpose="repeat", **said)
        elif draw < 0.3:
            book.write(who, name, ["skip", "flag"][rng.integers(2)], note="reason")
        elif draw < 0.35:
            book.write(who, name, "late", **said)
        elif (who, name) in standing:
            book.write(who, name, "undo", supersedes=standing.pop((who, name)))
        else:
            standing[who, name] = book.write(who, name, ago=int(rng.integers(300)) * HOUR / 60, **said)
        yield


@pytest.mark.parametrize("seed", range(4))
def test_reading_little_by_little_gives_what_reading_at_once_gives(tmp_path: Path, seed: int) -> None:
    book, rng = Book(f"sqlite:///{tmp_path / 'labels.sqlite'}"), np.random.default_rng(seed)
    log, now = Log(), int(NOW.timestamp() * 1000)
    for _ in scribble(book, rng, 80):
        if rng.random() < 0.3:
            with book.db.read() as db:
                while log.read(db, newest_event(book.db), limit=int(rng.integers(1, 6))):
                    if rng.random() < 0.2:
                        figures(log, known_answers(db, log), now, {})
    with book.db.read() as db:
        whole = Log()
        for one in (log, whole):
            one.read(db, newest_event(book.db), limit=10_000)
        grown, read_at_once = (figures(one, known_answers(db, one), now, {}) for one in (log, whole))
    assert grown == read_at_once
    assert grown["progress"]["labels"] > 10
    book.db.close()


def test_a_long_log_is_read_beside_the_requests_and_says_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = Book(f"sqlite:///{tmp_path / 'labels.sqlite'}")
    for number in range(30):
        book.write("ann", str(number), tiers=A)
    monkeypatch.setattr("ui.figures.live.CHUNK", 10)
    read = Log.read

    def slowly(self: Log, db: Any, newest: int, limit: int = 10) -> int:
        time.sleep(0.4 if self.last else 0)
        return read(self, db, newest, 10)

    monkeypatch.setattr(Log, "read", slowly)
    live = book.live()
    found = live.figures()
    asof = found["as_of"]
    assert 10 <= asof["event"] < asof["newest"] == 30
    assert f"as of event {asof['event']} of 30" in summary_html(found)
    assert live.figures(wait=True)["as_of"]["event"] == 30
    book.db.close()


def test_a_log_of_just_so_many_events_has_its_coefficients_at_once(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ui.figures.live.FIRST", 5)
    for number in range(5):
        book.write("ann", str(number), tiers=A)
    made: list[bool] = []
    compute = Live._compute

    def computed(self: Live, now_ms: int, coefficients: bool) -> Any:
        made.append(coefficients)
        return compute(self, now_ms, coefficients)

    monkeypatch.setattr(Live, "_compute", computed)
    book.live().figures(wait=True)
    assert made == [True]


def test_the_first_figures_of_a_long_log_come_before_it_is_read(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ui.figures.live.FIRST", 2)
    for number in range(5):
        book.write("ann", str(number), tiers=A)
    log, read_on = Log.read, threading.Event()

    def held(self: Log, db: Any, newest: int, limit: int = 0) -> int:
        assert not self.last or read_on.wait(10)
        return log(self, db, newest, limit)

    monkeypatch.setattr(Log, "read", held)
    live = book.live()
    first = live.figures()
    assert (first["as_of"]["event"], first["as_of"]["newest"]) == (2, 5)
    assert [row["measure"] for row in first["agreement"]] == ["Equal labels"], "no library is waited for"
    assert "once more is read" in summary_html(first)
    read_on.set()
    whole = live.figures(wait=True)
    assert whole["progress"]["labels"] == 5 and whole["agreement"][1]["measure"].startswith("Krippendorff")
    assert "once more is read" not in summary_html(whole)


def test_after_the_libraries_are_loaded_no_figure_waits_for_another() -> None:
    script = """
import sys
import numpy as np
from ui.figures import agreement
from ui.figures.view import _binomial_p
agreement.load_libraries()
before = set(sys.modules)
item, who, value = np.arange(12) // 2, np.arange(12) % 2, np.arange(12) % 3 % 2
labels = agreement.LabelCodes(item, who, value, 2)
for found in (agreement.krippendorff, agreement.fleiss, agreement.cohen, agreement.raw):
    assert found(labels).value is not None
_binomial_p(3, 10, 0.5)
late = sorted(name for name in set(sys.modules) - before if name.partition(".")[0] not in sys.stdlib_module_names)
assert not late, late
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_labels_per_hour_are_drawn_up_to_now_and_not_into_the_future(book: Book) -> None:
    book.write("ann", "1", tiers=A, ago=2 * HOUR)
    book.write("ann", "2", tiers=A)
    chart = re.search(r'aria-label="labels per hour over hours from now.*?</svg>', summary_html(book.figures()))
    assert chart is not None
    ends = [text.replace("−", "-") for text in re.findall(r"<text [^>]*>([−\d.]+)</text>", chart[0])]
    assert ends[-3:] == ["-2", "-1", "0"]


def test_a_failed_reading_is_told_and_tried_again(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    book.write("ann", "1", tiers=A)
    live = book.live()
    with monkeypatch.context() as broken:
        broken.setattr(Log, "read", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            live.figures()
    assert live.figures(wait=True)["progress"]["labels"] == 1


# ---- Who may see what -------------------------------------------------------------------------------------------


def test_the_mirror_shows_ones_own_figures_and_nobody_elses(book: Book) -> None:
    book.gold("g", A)
    for number in range(4):
        book.write("ann", str(number), tiers=A, first_shown=0, chose_longer=number < 1, seconds=30.0)
        book.write("bob", str(number), tiers=B, first_shown=1, chose_longer=True, seconds=2.0)
    book.write("ann", "0", tiers=B, purpose="repeat")
    book.write("ann", "g", tiers=B, purpose="gold")
    mine = mirror(book.db, "ann")
    assert (mine["labels"], mine["seconds"], mine["labels_per_hour"]) == (6, 30.0, 120.0), "checks count like any pair"
    assert counted(mine["longer"]) == (1, 4)
    assert not {"gold", "qualification", "agreement", "consistency"} & set(mine)
    assert mirror(book.db, "nobody")["labels"] == 0


def asking(book: Book, who: Person | None, **values: Any) -> TestClient:
    app = FastAPI()

    @app.middleware("http")
    async def sign_in(request: Any, call_next: Any) -> Any:
        request.state.person = who
        return await call_next(request)

    app.include_router(admin_api(book.live(**values)))
    return TestClient(app)


ROUTES = ["summary", "summary.html", "table.csv?what=annotators", "events"]


@pytest.mark.parametrize("route", ROUTES)
def test_annotators_are_refused_and_so_is_who_is_not_signed_in(book: Book, route: str) -> None:
    book.write("ann", "1", tiers=A)
    for who, status in [(None, 401), (Person("ann", "annotator", "Ann"), 403), (LOCAL, 200)]:
        answer = asking(book, who).get(f"/api/v1/admin/{route}")
        assert (answer.status_code, "ann" in answer.text.replace("annot", "")) == (status, status == 200)


def test_the_csv_files_hold_what_the_page_shows(book: Book) -> None:
    rng = np.random.default_rng(5)
    for _ in scribble(book, rng, 60):
        pass
    book.slots(open=3)
    client = asking(book, LOCAL)
    found = book.figures()
    page = client.get("/api/v1/admin/summary.html").text
    shown = re.sub(r"<[^>]+>", "|", page)
    for name, sheet in sheets(found).items():
        answer = client.get(f"/api/v1/admin/table.csv?what={name}")
        assert answer.headers["content-disposition"] == f'attachment; filename="labels-{name}.csv"'
        assert f'href="/api/v1/admin/table.csv?what={name}"' in page
        rows = list(csv.DictReader(io.StringIO(answer.text)))
        assert len(rows) == len(sheet.rows)
        for row, measured in zip(rows, sheet.rows, strict=True):
            for column in sheet.columns:
                value = measured[column.key]
                plain = value["value"] if isinstance(value, dict) else value
                assert row[column.key] == ("" if plain is None else str(plain))
                if name in ("annotators", "agreement", "pairs", "drift", "worth") and plain is not None:
                    assert cell_text(measured, column).partition(" (")[0] in shown
    assert client.get("/api/v1/admin/table.csv?what=passwords").status_code == 422


def test_a_reason_that_looks_like_a_formula_is_text_in_the_csv_and_on_the_page(book: Book) -> None:
    hidden = [
        "\u200b=1",
        "\ufeff@SUM(1)",
        "\uff1d1",
        "\u00a0\u200d+1",
        "\u202e-1",
        "\uff0b1",
        "\ufe63\u00ad1",
        "\u2800=1",
    ]
    for number, note in enumerate(
        ["=cmd|' /C calc'!A0", " @SUM(1)", "+1", "\t=1", "<img src=x onerror=boom()>", "a = b", *hidden]
    ):
        book.write("-ann", str(number), "flag", note=note)
    found = book.figures()
    reasons = [row["reason"] for row in csv.DictReader(io.StringIO(as_csv(sheets(found)["flags"])))]
    harmless = [reason for reason in reasons if not reason.startswith("'")]
    assert sorted(harmless) == ["<img src=x onerror=boom()>", "a = b"] and len(reasons) == 6 + len(hidden)
    assert {"'=cmd|' /C calc'!A0", "'@SUM(1)", "'+1", "'=1"} <= set(reasons)
    assert as_csv(sheets(found)["annotators"]).splitlines()[1].startswith("'-ann,0,")
    page = summary_html(found)
    assert "<img" not in page and "&lt;img src=x onerror=boom()&gt;" in page


def test_names_are_shown_only_if_the_accounts_give_them(book: Book) -> None:
    book.write("annotator-1", "1", tiers=A)
    assert "Ann Smith" not in asking(book, LOCAL).get("/api/v1/admin/summary.html").text
    told = asking(book, LOCAL, names=lambda: {"annotator-1": "Ann Smith"})
    assert "Ann Smith" in told.get("/api/v1/admin/summary.html").text


def test_events_come_in_pages(book: Book) -> None:
    ids = [book.write("ann", str(number), tiers=A) for number in range(5)]
    client, got, after = asking(book, LOCAL), [], 0
    while after is not None:
        page = client.get(f"/api/v1/admin/events?after={after}&limit=2").json()
        got += [(one["event_id"], one["tiers"]) for one in page["events"]]
        after = page["next_after"]
    assert got == [(one, A) for one in ids]
    assert client.get("/api/v1/admin/events?limit=0").status_code == 422


# ---- The command and the page -----------------------------------------------------------------------------------


def test_the_command_prints_the_same_numbers(campaign: Any) -> None:
    config = campaign.label()
    with pytest.raises(DataError, match="no label store yet"):
        stats(config)
    book = Book(config.store_url)
    for number in range(30):
        book.write("lefty", str(number), tiers=A, first_shown=0, seconds=12.0, words=10)
    found = book.figures()
    book.db.close()
    said = stats(config)
    assert "lefty takes the left answer in 100 % of 30 labels" in said
    assert re.search(r"Labels\s+30\n", said) and re.search(r"lefty\s+30\s+12\.0 s", said)
    assert cell_text(sheets(found)["habits"].rows[0], sheets(found)["habits"].columns[1]) in said


AXE = ("serious", "critical")


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_shows_sorts_and_refreshes_and_axe_has_nothing_against_it(
    campaign: Any, serve: Callable[[Any], str], chromium: Any, scheme: str
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    from ui.app import label_app
    from ui.people.accounts import COOKIE

    config = campaign.label()
    app = label_app(config)
    url = serve(app)
    book = Book(config.store_url)
    for number in range(30):
        book.write("ann", f"i{number}", tiers=A, first_shown=number % 2, seconds=30.0, words=90, chose_longer=True)
        if number < 20:
            book.write("bob", f"i{number}", tiers=[A, B][number % 2], first_shown=0, seconds=12.0, words=90)
    context = chromium.new_context(viewport={"width": 320, "height": 800}, color_scheme=scheme)
    context.add_cookies([{"name": COOKIE, "value": app.state.people.open_session(None), "url": url}])
    page, problems = context.new_page(), []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(f"{url}/admin/")
    page.wait_for_selector(".tu-admin[data-state=ready]")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    found = [one for one in Axe().run(page).response["violations"] if one["impact"] in AXE]
    assert [(one["id"], [node["target"] for node in one["nodes"]]) for one in found] == []

    names = page.locator("[data-table=annotators] tbody th")
    assert names.all_inner_texts() == ["ann", "bob"]
    seconds = page.locator("[data-table=annotators] [data-sort=seconds]")
    seconds.focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    assert names.all_inner_texts() == ["bob", "ann"]
    assert page.locator("th[aria-sort=ascending]").inner_text().startswith("Seconds")
    page.locator("[data-open=pairs] summary").click()
    book.write("carl", "i0", tiers=A, first_shown=0, seconds=5.0, words=90)
    page.wait_for_function("document.querySelector('[data-table=annotators]').rows.length === 4", timeout=15_000)
    assert names.all_inner_texts() == ["carl", "bob", "ann"]
    assert page.locator("[data-table=pairs]").is_visible()
    assert problems == []

    context.clear_cookies()
    page.get_by_role("status").get_by_text("You are not signed in.").wait_for(timeout=15_000)
    context.close()
    book.db.close()
