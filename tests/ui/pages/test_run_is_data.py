"""A run directory is data: whoever serves, verifies or reads one that somebody sent runs none of it, and what stands on
a medium that cannot be written is read all the same."""

from __future__ import annotations

import ctypes
import json
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from manifests import manifest_of

from trueup import runs
from trueup.cli import main
from trueup.data.records import read_jsonl, write_rows
from trueup.errors import DataError
from trueup.models.policies import model_config
from trueup.verify import verify
from ui.app import label_app, run_app
from ui.label.run import run
from ui.labels.store import Store
from ui.labels.tables import Database, event, item
from ui.labels.tasks import Judgement
from ui.pages.compare import Comparison, guarded, sample_html
from ui.pages.run import run_html
from ui.people.accounts import COOKIE

# ---- The store --------------------------------------------------------------------------------------------------


@pytest.fixture
def labelled(campaign: Any) -> Any:
    """The campaign with a finished label stage, simulated."""
    run(campaign.label(source="simulated"))
    return campaign


def edit(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as db:
        for trigger in ("event_no_update", "event_no_delete"):
            db.execute(f"DROP TRIGGER {trigger}")
        for statement in statements:
            db.execute(statement)
        db.commit()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE event SET tiers = '[[1], [0]]' WHERE event_id = 1",
        "UPDATE event SET annotator = 'somebody' WHERE event_id = 2",
        "DELETE FROM event WHERE event_id = 3",
        "UPDATE item SET completions = replace(completions, 'loaf', 'roll')",
        "UPDATE item SET prompt = replace(prompt, '?', '!')",
    ],
)
def test_a_store_that_was_edited_is_found_however_many_labels_came_after(labelled: Any, statement: str) -> None:
    path = labelled.dir / "labels" / "labels.sqlite"
    assert verify(labelled.dir).problems == []
    store = Store(labelled.label().store_url)
    last = store.rankings(["simulated"])[0]
    assert last and verify(labelled.dir).problems == [], "while it is open"
    store.close()
    edit(path, statement)
    [problem] = verify(labelled.dir).problems
    assert problem.startswith(f"{path}: labels or texts up to event ") and problem.endswith(" were changed")


def test_labels_that_come_later_are_no_edit_and_a_store_that_is_gone_is_one(labelled: Any) -> None:
    path = labelled.dir / "labels" / "labels.sqlite"
    app = label_app(labelled.label())
    service = app.state.service
    task = service.tasks("ann-0")[0]
    service.label("ann-0", Judgement("later-label-1", task.token, "a"))
    service.store.close()
    assert verify(labelled.dir).problems == []
    path.rename(path.with_name("elsewhere"))
    assert f"{path}: missing" in verify(labelled.dir).problems


@pytest.mark.parametrize("content", [b"", b"no database", b"SQLite format 3\0" + bytes(2000)])
def test_a_store_that_is_none_is_a_problem_and_no_traceback(labelled: Any, content: bytes) -> None:
    (labelled.dir / "labels" / "labels.sqlite").write_bytes(content)
    assert len(verify(labelled.dir).problems) == 1


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_press_on_a_store_that_is_no_longer_there_is_not_called_saved(campaign: Any, client: Any, how: str) -> None:
    task = client.get("/api/v1/tasks").json()["tasks"][0]
    path = campaign.dir / "labels" / "labels.sqlite"
    for end in ("", "-wal", "-shm"):
        (path.with_name(path.name + end)).unlink()
    if how == "replaced":
        Database(campaign.label().store_url).close()
    body = {"token": task["token"], "client_uuid": "lost-press-1", "choice": "a", "seconds": 1.0, "device": "key"}
    answer = client.post("/api/v1/labels", json=body)
    assert (answer.status_code, "nothing was saved" in answer.text) == (503, True)


def test_a_press_that_finds_the_disk_full_is_not_called_saved_and_the_next_one_is(campaign: Any, client: Any) -> None:
    engine = client.app.state.service.store.engine
    room: list[int] = [1]
    sa.event.listen(engine, "begin", lambda db: db.exec_driver_sql(f"PRAGMA max_page_count={room[0]}"))
    client.app.state.service.store.engine.dispose()

    def press(number: int) -> Any:
        task = client.get("/api/v1/tasks").json()["tasks"][0]
        note = "a reason of some length " * 300  # more than a page that is there may have room for
        body = {"token": task["token"], "client_uuid": f"full-disk-{number}", "choice": "a", "note": note}
        return client.post("/api/v1/labels", json={**body, "seconds": 1.0, "device": "key"})

    refused = press(1)
    assert (refused.status_code, refused.json()["detail"][:17]) == (503, "nothing was saved")
    room[0] = 100_000
    assert press(2).status_code == 200


def test_only_its_owner_reads_the_store(campaign: Any) -> None:
    before = os.umask(0)
    try:
        store = Store(campaign.label().store_url)
        store.set_note("one", "write, so that the log is there")
        for path in (campaign.dir / "labels").glob("labels.sqlite*"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name
        store.close()
    finally:
        os.umask(before)


def test_a_store_of_another_name_inside_the_folder_outlives_the_next_label_stage(campaign: Any) -> None:
    path = campaign.dir / "labels" / "ours.sqlite"
    config = campaign.label(source="simulated", store=f"sqlite:///{path}")
    run(config)
    with Database(config.store_url).read() as db:
        count = db.execute(sa.select(sa.func.count()).select_from(event)).scalar_one()
    run(campaign.label(source="simulated", store=f"sqlite:///{path}", seed=1))
    run(campaign.label(source="simulated", seed=2))
    with Database(config.store_url).read() as db:
        assert db.execute(sa.select(sa.func.count()).select_from(event)).scalar_one() >= count > 0


# ---- A medium that cannot be written ----------------------------------------------------------------------------


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Set(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


_OVERRIDE = 0b110
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: what lets root write where nobody may."""


@contextmanager
def bound_by_modes() -> Iterator[None]:
    """The modes of files count for this thread, and for those that it starts, also as root."""
    libc, header, sets = ctypes.CDLL(None, use_errno=True), _Header(0x20080522, 0), (_Set * 2)()
    assert libc.capget(ctypes.byref(header), sets) == 0
    before = sets[0].effective
    sets[0].effective = before & ~_OVERRIDE
    assert libc.capset(ctypes.byref(header), sets) == 0
    try:
        yield
    finally:
        sets[0].effective = before
        assert libc.capset(ctypes.byref(header), sets) == 0


@pytest.fixture
def medium(labelled: Any, compared: Any) -> Iterator[Any]:
    """The run, where one may look and not write."""
    store = Store(labelled.label().store_url)  # open, so that there is a log beside it
    store.set_note("one", "more")
    paths = [labelled.dir, *labelled.dir.rglob("*")]
    modes = {path: path.stat().st_mode for path in paths}
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    with bound_by_modes():
        yield labelled
    for path, mode in modes.items():
        path.chmod(mode)
    store.close()


def test_a_run_on_such_a_medium_is_served_without_labelling_and_its_labels_are_counted(
    medium: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    app = run_app(medium.dir)
    assert "cannot be written: it is shown, and nobody can label or vote on it" in capsys.readouterr().out
    with TestClient(app, base_url="http://127.0.0.1") as client:
        client.cookies.set(COOKIE, app.state.people.open_session(None))
        assert "Labels so far" in client.get("/").text
        assert client.get("/compare/").status_code == client.get("/run").status_code == 200
        assert client.get("/api/v1/admin/table.csv?what=progress").status_code == 200
        assert client.get("/api/v1/tasks").status_code == client.get("/vote").status_code == 404


def test_labelling_on_such_a_medium_is_refused_in_a_sentence(medium: Any) -> None:
    with pytest.raises(DataError, match="cannot be written, so no label could be saved"):
        label_app(medium.label())


def test_statistics_are_printed_from_such_a_medium(medium: Any) -> None:
    from ui.figures.text import stats

    assert stats(medium.label()).startswith("Progress")


def test_a_command_that_writes_to_such_a_medium_ends_in_a_sentence(
    medium: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    config = medium.dir.parent / "campaign.yaml"
    config.write_text(f"name: read\nrun_dir: {medium.dir}\nsft: {{data: [starter]}}\nsample: {{prompts: starter}}\n")
    assert main(["run", str(config)]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"{medium.dir}/.lock: Permission denied.") and len(told.splitlines()) == 1


# ---- Trust is said by whoever serves ----------------------------------------------------------------------------


def test_no_database_that_a_run_names_is_opened_unless_the_run_is_trusted(
    labelled: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = tmp_path / "somebodys" / "other.sqlite"
    config = labelled.dir / "labels" / "config.yaml"
    config.write_text(config.read_text().replace("store: null", f"store: sqlite:///{elsewhere}"))
    run_app(labelled.dir)
    assert not elsewhere.exists() and "add --trust if the run is your own" in capsys.readouterr().out
    run_app(labelled.dir, trust=True)
    assert elsewhere.exists()


def test_no_code_of_a_runs_model_is_run_unless_the_run_is_trusted(campaign: Any) -> None:
    config = campaign.dir / "sft" / "config.yaml"
    text = config.read_text().replace("trust_remote_code: false", "trust_remote_code: true")
    config.write_text(text.replace("attn_implementation: auto", "attn_implementation: somebody/kernel"))
    assert model_config(campaign.dir, trust=True).trust_remote_code
    untrusted = model_config(campaign.dir, trust=False)
    assert not untrusted.trust_remote_code and untrusted.attn_implementation == "auto"
    app = run_app(campaign.dir)
    assert app.state.worker.trust is False


PAYLOAD = "<img src=x onerror=boom()>"


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of everything in nested data that is no container, and of every container too."""
    if path:
        yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from leaves(child, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    copy = json.loads(json.dumps(value))
    target = copy
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = new
    return copy


Pages = Callable[[Any], str]


@pytest.mark.parametrize("hostile", [PAYLOAD, {PAYLOAD: PAYLOAD}, [PAYLOAD], [{PAYLOAD: PAYLOAD}]])
def test_whatever_stands_anywhere_in_a_comparison_no_page_makes_markup_of_it(compared: Any, hostile: Any) -> None:
    folder = compared.dir / "compare"
    report = json.loads((folder / "report.json").read_text())
    report["noise_floor"] = {"rubric": report["judges"]["rubric"]["win_rate"]}
    manifest = json.loads((folder / "manifest.json").read_text())
    row = next(iter(read_jsonl(folder / "samples.jsonl")))[1]
    row |= {"win_share": {"rubric": 0.25}, "others": {"base": [{"text": "a", "num_tokens": 4, "scores": {"r": 1.0}}]}}
    for side in ("sft", "aligned"):
        row[side][0] |= {"num_tokens": 3, "scores": {"rubric": 0.5}}

    def samples(value: Any) -> str:
        return guarded(sample_html, [value], 0, False) + guarded(sample_html, [value], 0, True)

    def findings(value: Any) -> str:
        (folder / "manifest.json").write_text(json.dumps(value))
        try:
            return guarded(Comparison(folder).summary_html) + run_html(compared.dir, [])
        finally:
            (folder / "manifest.json").write_text(json.dumps(manifest))

    def summary(value: Any) -> str:
        (folder / "report.json").write_text(json.dumps(value))
        return guarded(Comparison(folder).summary_html) + run_html(compared.dir, [])

    pages: list[tuple[Any, Pages]] = [(row, samples), (report, summary), (manifest, findings)]
    for sound, page in pages:
        assert "cannot be shown" not in page(sound)
        for path in leaves(sound):
            html = page(replaced(sound, path, hostile))
            assert "<img" not in html and "onerror=boom()>" not in html, path


def test_a_run_page_of_manifests_with_any_hostile_fact_makes_no_markup(campaign: Any) -> None:
    folder = campaign.dir / "sft"
    sound = manifest_of("sft", git_commit="abc", steps=3, trained_parameters=4, attention="sdpa", tokens_per_s=1.5)
    read = {"path": "a", "sha256": "b", "rows": 1, "dropped": {"long": 1}, "columns_not_read": {"c": 1}}
    sound |= {"versions": {"torch": "2"}, "inputs": [read]}
    sound |= {"outputs": [{"path": "report.json", "sha256": "c"}]}
    for path in leaves(sound):
        (folder / "manifest.json").write_text(json.dumps(replaced(sound, path, PAYLOAD)))
        assert "<img" not in run_html(campaign.dir, []), path


def test_an_item_or_event_that_a_test_needs_is_there(labelled: Any) -> None:
    """The edits above change something: the simulated store holds events and their items."""
    with Database(labelled.label().store_url).read() as db:
        assert db.execute(sa.select(sa.func.count()).select_from(event)).scalar_one() >= 3
        assert "loaf" in json.dumps(db.execute(sa.select(item.c.completions)).scalars().all())


def test_a_run_directory_with_a_link_to_elsewhere_names_it(labelled: Any, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("theirs")
    (labelled.dir / "labels" / "note").symlink_to(tmp_path / "secret.txt")
    assert verify(labelled.dir).problems == [f"{labelled.dir}/labels/note: not in the manifest of label"]
    write_rows(tmp_path / "x.jsonl", [])
    assert runs.find_stage(labelled.dir, "label") is not None
