"""Labels in and out of a campaign's store: `trueup labels import` and `export`.

A file goes in whole, or the error says where it stopped, and the next import goes on from there. An exported row names
its annotator, its time and strength, the sides of the answers, the guideline, and the origin of the answers.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import sqlalchemy as sa

from trueup.config import SplitConfig
from trueup.data.formats import ImportedRanking, read_preferences
from trueup.data.jsonl import cut
from trueup.data.pairs import pairs_of
from trueup.data.records import LEFT_OUT_FOLDER, Dropped, Preference, Ranking, write_rows
from trueup.data.row_rules import BadRows
from trueup.data.split import split_name
from trueup.errors import DataError, TrueupError, writing
from trueup.models.config import ModelConfig
from ui.labels.config import LabelConfig, Source
from ui.labels.items import Item, Text
from ui.labels.judgements import Tiers
from ui.labels.store import Store, superseded
from ui.labels.tables import TableRow, event, item, now, shown, url_of_existing, view

SOURCE = "import"
_AT_ONCE = 500
"""Ids in one query: SQLite takes some tens of thousands, PostgreSQL is quicker with fewer."""

# ---- In ---------------------------------------------------------------------------------------------------------


@dataclass
class Imported:
    """The result of an import."""

    item_ids: list[str]
    """Items that the file is about."""
    labels: int
    ties: int
    added: int = 0
    replaced: int = 0
    """How many of those added supersede a label by the same annotator of the same answers in an earlier import."""

    @property
    def known(self) -> int:
        return self.labels - self.added


def import_labels(
    config: LabelConfig, file: Path, on_bad_rows: BadRows | None = None, ignore_columns: Sequence[str] | None = None
) -> str:
    """Put the preferences of a file in any format of docs/formats.md into the campaign's store; says what was done.

    A file that is there already adds nothing. Raises DataError with file and line, and changes nothing, if any row
    contradicts a label of the store, or is broken and bad rows are not dropped (else they are kept in the run).
    """
    dropped = Dropped()
    ignored = config.ignore_columns if ignore_columns is None else ignore_columns
    choice = config.choice(config.seed) if file == config.path else None
    rows = read_preferences(file, dropped, on_bad_rows or config.on_bad_rows, ignored, choice)  # before the store
    store = Store(config.store_url)
    try:
        done = take_over(store, file, rows, dropped, config.split, config.round)
    finally:
        store.close()
    earlier = f", {done.replaced} of them in place of earlier labels by the same annotator" if done.replaced else ""
    aside = f"; the rows left out are in {_keep_aside(config.run_dir, file, dropped)}" if dropped.left_out else ""
    unread = f"; columns not read: {dropped.columns}" if dropped.ignored else ""
    unread += "" if choice else config.idle_elsewhere("label", "label.path")
    return (
        f"{file}: {done.added} labels imported{earlier}; {done.known} were in the store already; "
        f"{done.labels} labels of {len(done.item_ids)} items in the file, {done.ties} of them ties; dropped: {dropped}"
        f"{aside}{unread}"
    )


def _keep_aside(run_dir: Path, file: Path, dropped: Dropped) -> Path:
    """Written under a name that no other file's rows have: of two called rows.jsonl, the path tells which is which."""
    path = file.absolute()
    name = f"{path.stem[:100]}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}.jsonl"
    folder = run_dir / LEFT_OUT_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / name, dropped.left_out)
    return folder / name


def take_over(
    store: Store, file: Path, rows: Iterable[ImportedRanking], dropped: Dropped, split: SplitConfig, number: int
) -> Imported:
    """Make these rows labels of the store, some hundred at a time, so that nobody who labels has to wait for all.

    A row of our own is known by its label id. Any other is known by its annotator and its answers: the n-th label of
    them in the file is the n-th in the store, so the same file again adds nothing and a corrected one supersedes. For
    the same reason an import that was interrupted goes on where it stopped.

    number  the campaign's round that the labels belong to
    """
    labels = [(row, _item_of(row, file, split).row()) for row in rows]
    if not labels:
        raise DataError(f"{file}: no preference in it can be used (dropped: {dropped})")
    with store.read() as db:  # what contradicts the store is found before anything is written
        own = _by_label_id(db, [row.provenance.label_id for row, _ in labels if row.provenance])
    for row, _ in labels:
        if row.provenance is not None and (old := own.get(row.provenance.label_id)) is not None:
            _check_same(row, old)
    done = Imported([], len(labels), sum(len(row.tiers) == 1 for row, _ in labels))
    judged: Counter[tuple[str, str]] = Counter()
    about: dict[str, None] = {}
    for start in range(0, len(labels), _AT_ONCE):
        if start:
            time.sleep(_PAUSE)
        try:
            with store.write() as db:
                added, replaced = _write(db, labels[start : start + _AT_ONCE], judged, about, number)
        except (sa.exc.DBAPIError, DataError) as error:
            problem = str(error) if isinstance(error, DataError) else f"nothing was saved: {_first_line(error.orig)}"
            raise DataError(
                f"{shown(store.url)}: {problem} ({done.added} labels of {file} were imported before, and stay)"
            ) from None
        done.added, done.replaced = done.added + added, done.replaced + replaced
    done.item_ids = list(about)
    return done


_PAUSE = 0.12
"""Seconds between two transactions of an import. Who waits to write looks every tenth of a second, and so gets in."""


def _first_line(error: BaseException | None) -> str:
    """What a database says is wrong, without the values that it adds."""
    return cut((str(error).splitlines() or ["no reason given"])[0], 160)


def _write(
    db: sa.Connection,
    rows: list[tuple[ImportedRanking, TableRow]],
    judged: Counter[tuple[str, str]],
    about: dict[str, None],
    number: int,
) -> tuple[int, int]:
    """Put rows in; returns how many labels were added, and how many of them supersede another.

    judged  how many labels of the file came before, by annotator and item; added to
    about   items that the file is about; added to
    """
    own = _by_label_id(db, [row.provenance.label_id for row, _ in rows if row.provenance])
    imported = _imported(db, {columns["item_id"] for row, columns in rows if row.provenance is None})
    fresh: dict[str, TableRow] = {}
    events: list[TableRow] = []
    views: list[TableRow] = []
    for row, columns in rows:
        name = columns["item_id"]
        if row.provenance is not None:
            old = own.get(row.provenance.label_id)
            if old is not None:
                _check_same(row, old)
                about[old.item_id] = None
                continue
            label_id, supersedes = row.provenance.label_id, None
        else:
            key = (row.annotator, name)
            turn, before = judged[key], imported.get(key, [])
            judged[key] += 1
            old = before[turn] if turn < len(before) else None
            if old is not None and all(getattr(old, key) == value for key, value in _judgement(row).items()):
                about[name] = None
                continue
            supersedes = None if old is None else old.event_id
            label_id = _label_id(row, name, turn, None if old is None else old.client_uuid)
        about[name] = None
        fresh[name] = columns
        events.append(_event(row, name, label_id, supersedes) | {"round": number})
        if row.display_order is not None:
            events[-1]["view_token"] = secrets.token_urlsafe(18)
            views.append(_view(row, events[-1]))
    _put_items(db, fresh)
    for table, values in ((view, views), (event, events)):
        if values:
            db.execute(table.insert(), values)
    return len(events), sum(row["supersedes"] is not None for row in events)


def _item_of(row: ImportedRanking, file: Path, split: SplitConfig) -> Item:
    count = len(row.completions)
    answers = zip(
        row.completions,
        row.completion_token_ids or [None] * count,
        row.finished or [True] * count,
        row.logps or [None] * count,
        row.reasonings or [""] * count,
        strict=True,
    )
    sampler = row.provenance.sampler if row.provenance else {"file": file.name}
    part = split_name(row.prompt, split)
    return Item(row.prompt, [Text(*answer).kept_apart() for answer in answers], row.category, part, sampler)


def _by_label_id(db: sa.Connection, label_ids: Collection[str]) -> dict[str, Any]:
    columns = (event.c.client_uuid, event.c.item_id, event.c.annotator, event.c.tiers, event.c.kind, item.c.completions)
    query = sa.select(*columns).join(item, item.c.item_id == event.c.item_id)
    return {
        row.client_uuid: row
        for ids in _parts(label_ids)
        for row in db.execute(query.where(event.c.client_uuid.in_(ids)))
    }


def _imported(db: sa.Connection, item_ids: Collection[str]) -> dict[tuple[str, str], list[Any]]:
    """The labels that were imported for these items, in the order in which they came first."""
    later = event.alias("later")
    labels: dict[tuple[str, str], list[Any]] = {}
    for ids in _parts(item_ids):
        of_these = (event.c.source == SOURCE, event.c.item_id.in_(ids))
        query = sa.select(event, sa.exists().where(later.c.supersedes == event.c.event_id).label("is_old"))
        first = dict[int, int]()  # what replaces a label takes its turn
        current = []
        for row in db.execute(query.where(*of_these).order_by(event.c.event_id)):
            first[row.event_id] = first.get(row.supersedes, row.event_id)
            if row.kind == "label" and not row.is_old:
                current.append(row)
        for row in sorted(current, key=lambda row: first[row.event_id]):
            labels.setdefault((row.annotator, row.item_id), []).append(row)
    return labels


def _check_same(row: ImportedRanking, old: Any) -> None:
    """Raise if the store's label of this id says something else. The order of the answers may differ."""
    assert row.provenance is not None
    says = _texts(row.completions, row.tiers), row.annotator
    if old.kind not in ("label", "late") or says != (
        _texts([a["text"] for a in old.completions], old.tiers),
        old.annotator,
    ):
        raise DataError(
            f"{row.where}: the store has a label {row.provenance.label_id} already, with another content; "
            "nothing was imported"
        )


def _texts(completions: list[str], tiers: Tiers) -> list[list[str]]:
    return [sorted(completions[index] for index in tier) for tier in tiers]


def _label_id(row: ImportedRanking, item_id: str, turn: int, replaces: str | None) -> str:
    """The same history gives the same label ids."""
    key = [SOURCE, row.annotator, item_id, row.tiers, row.strength, replaces, *([turn] if turn else [])]
    return str(uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(key)))


def _judgement(row: ImportedRanking) -> TableRow:
    """What the row says of the answers: a file that says otherwise later corrects it."""
    judgement = {key: getattr(row, key) for key in ("tiers", "strength", "criteria", "row_id")}
    if (origin := row.provenance) is not None:
        return {**judgement, "both_bad": origin.both_bad, "note": origin.note}
    return {**judgement, "both_bad": row.both_bad, "note": row.explanation}


def _event(row: ImportedRanking, item_id: str, label_id: str, supersedes: int | None) -> TableRow:
    origin = row.provenance
    return {
        "item_id": item_id,
        "client_uuid": label_id,
        "annotator": row.annotator,
        "source": SOURCE,
        "kind": "label",
        **_judgement(row),
        "created_utc": origin.created_utc if origin else now(),
        **{key: getattr(origin, key, None) for key in ("seconds", "guideline_sha256")},
        "first_shown": row.display_order[0] if row.display_order else None,
        "view_token": None,
        "supersedes": supersedes,
    }


def _view(row: ImportedRanking, label: TableRow) -> TableRow:
    """How the completions stood when the label was given; closed: nobody is shown it here."""
    same = {key: label[key] for key in ("item_id", "annotator", "guideline_sha256", "created_utc")}
    return {**same, "token": label["view_token"], "drawn": row.display_order, "closed": True}


def _put_items(db: sa.Connection, rows: dict[str, TableRow]) -> None:
    """Put in those that are new. Of the others only the split follows the config: an import knows no more of them."""
    columns, known = (item.c.item_id, item.c.split), dict[str, str]()
    for ids in _parts(rows):
        known |= {name: split for name, split in db.execute(sa.select(*columns).where(item.c.item_id.in_(ids)))}
    if fresh := [row for name, row in rows.items() if name not in known]:
        db.execute(item.insert(), fresh)
    for name, split in known.items():
        if split != rows[name]["split"]:
            db.execute(item.update().where(item.c.item_id == name).values(split=rows[name]["split"]))


def _parts(ids: Collection[str]) -> Iterator[list[str]]:
    rest = list(ids)
    for start in range(0, len(rest), _AT_ONCE):
        yield rest[start : start + _AT_ONCE]


# ---- Out --------------------------------------------------------------------------------------------------------

ExportFormat = Literal["jsonl", "datasets"]
Whole = Literal["pairs", "whole"]


def export_labels(config: LabelConfig, to: Path, format: ExportFormat = "jsonl", rankings: Whole = "pairs") -> str:
    """Write every current label of the store, whoever made it, to the new file or folder `to`; says what was written.

    pairs: TRL's conversational prompt, chosen, rejected, a row for each strict pair of a ranking. whole: a row for each
    label, ties included. jsonl: one file; datasets: a folder for `datasets.load_from_disk`, with splits train and
    heldout (those that have rows). Hidden checks, repeats and practice measure annotators.
    """
    if to.exists():
        raise TrueupError(f"{to}: already there, and never written over; name one that is new")
    store = Store(url_of_existing(config.store_url))
    try:
        labels = store.rankings(get_args(Source))
        left_out = _left_out(store)
    finally:
        store.close()
    if not labels:
        raise DataError(f"{shown(config.store_url)}: holds no labels (left out: {left_out})")
    labels, unsaid = true_records(labels, config.run_dir, config.model)
    rows: list[Any] = [pair for label in labels for pair in pairs_of(label)] if rankings == "pairs" else list(labels)
    if not rows:
        raise DataError(
            f"{shown(config.store_url)}: all {len(labels)} labels are ties, which give no pairs; take --rankings whole"
        )
    partial = to.with_name(f"{to.name}.{secrets.token_hex(4)}")
    with writing(to):
        to.parent.mkdir(parents=True, exist_ok=True)
        try:
            if format == "datasets":
                _save_dataset(partial, rows)
            else:
                write_rows(partial, rows)
            if to.exists():
                raise TrueupError(f"{to}: appeared while it was made, and was left as it is; name one that is new")
            partial.rename(to)
        finally:
            shutil.rmtree(partial, ignore_errors=True) if partial.is_dir() else partial.unlink(missing_ok=True)
    return f"{to}: {_summary(labels, rows, rankings)}{'; ' if unsaid else ''}{unsaid}; left out: {left_out}"


def true_records(labels: list[Ranking], run_dir: Path, model: ModelConfig) -> tuple[list[Ranking], str]:
    """`trueup.training.pairs.true_records`; without the packages for training, no recorded tokens are handed on."""
    if not any(ids for row in labels for ids in row.completion_token_ids):
        return labels, ""
    try:
        from trueup.training.pairs import true_records as checked
    except ModuleNotFoundError:
        none = [
            row.model_copy(update={"completion_token_ids": [None] * len(row.completions), "logps": None})
            for row in labels
        ]
        return none, "recorded tokens of all answers are left out: they cannot be checked without transformers"
    return checked(labels, run_dir, model)


def _summary(labels: list[Ranking], rows: list[Any], rankings: Whole) -> str:
    by_source = ", ".join(f"{count} {name}" for name, count in Counter(label.source for label in labels).items())
    annotators = len({(label.source, label.annotator) for label in labels})
    ties = sum(len(label.tiers) == 1 for label in labels)
    of = f"{len(labels)} labels ({by_source}) of {annotators} annotators"
    if rankings == "whole":
        return f"{of}, {ties} of them ties"
    empty = sum(not pair.chosen[0].content.strip() for pair in rows)
    same = sum(pair.chosen == pair.rejected for pair in rows)
    odd = [f"{empty} prefer an empty answer"] * bool(empty) + [f"{same} are of equal answers"] * bool(same)
    return f"{len(rows)} pairs of {of}; {ties} are ties and give none" + "".join(f"; {one}" for one in odd)


def _left_out(store: Store) -> Dropped:
    """Judgements in the store that are no preferences, by their kind."""
    left_out = Dropped()
    query = sa.select(event.c.purpose, event.c.kind, sa.func.count()).where(
        event.c.kind.in_(("label", "skip", "flag", "late")), ~superseded()
    )
    with store.read() as db:
        for purpose, kind, count in db.execute(query.group_by(event.c.purpose, event.c.kind)):
            if (purpose, kind) != ("work", "label"):
                left_out.add(kind if purpose == "work" else f"{purpose} {kind}", count)
    return left_out


_MESSAGES = [{"role": "string", "content": "string"}]
_TYPES: dict[str, Any] = {
    "prompt": _MESSAGES,
    "chosen": _MESSAGES,
    "rejected": _MESSAGES,
    "completions": ["string"],
    "reasonings": ["string"],
    "completion_token_ids": [["int64"]],
    "chosen_token_ids": ["int64"],
    "rejected_token_ids": ["int64"],
    "finished": ["bool"],
    "logps": ["float64"],
    "tiers": [["int64"]],
    "display_order": ["int64"],
    **dict.fromkeys(("chosen_logp", "rejected_logp", "seconds", "propensity"), "float64"),
    **dict.fromkeys(("chosen_finished", "rejected_finished", "both_bad", "ideal"), "bool"),
    **dict.fromkeys(("chosen_rank", "rejected_rank", "num_tiers", "strength", "round"), "int64"),
}
"""Arrow types of columns, nested as their values are; the others are text. They are stated, because a column of nothing
but nulls has no type to infer."""
_AS_JSON = ("sampler", "criteria", "better_by")
"""Objects whose keys differ from row to row: Arrow would give every row the keys of all."""


def _save_dataset(folder: Path, rows: list[Ranking] | list[Preference]) -> None:
    try:
        import datasets
    except ModuleNotFoundError:
        raise TrueupError(
            "the package datasets is needed for this: pip install 'trueup[train]', or take --format jsonl"
        ) from None

    def typed(kind: Any) -> Any:
        if isinstance(kind, list):
            return [typed(kind[0])]
        return {key: typed(value) for key, value in kind.items()} if isinstance(kind, dict) else datasets.Value(kind)

    values = [row.model_dump(mode="json") for row in rows]
    for row in values:
        row |= {key: json.dumps(row[key], ensure_ascii=False) for key in _AS_JSON if key in row}
    names = [name for name in type(rows[0]).model_fields if any(name in row for row in values)]
    features = datasets.Features({name: typed(_TYPES.get(name, "string")) for name in names})
    by_split = {}
    for split in ("train", "heldout"):
        if part := [row for row in values if row["split"] == split]:  # `load_from_disk` cannot read one without rows
            by_split[split] = datasets.Dataset.from_dict(
                {name: [row.get(name) for row in part] for name in names}, features
            )
    datasets.disable_progress_bars()
    try:
        datasets.DatasetDict(by_split).save_to_disk(folder)
    finally:
        datasets.enable_progress_bars()
