"""Trees of Open Assistant: whole in a row, or a message a row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from trueup.data.formats.columns import Columns, Values
from trueup.data.formats.format import Convert, Skipped
from trueup.data.formats.turns import message
from trueup.data.formats.verdicts import tiers_of_scores, whole
from trueup.data.jsonl import cut, excerpt


def convert_by(walk: Callable[[Values, list[Values]], Iterable[Values]], empty_reason: str) -> Convert:
    """Converter of trees, by a walk that starts at the root with no messages before it."""

    def convert(row: Columns, path: Path) -> list[Values | Skipped]:
        state = row.get("tree_state")
        if state not in (None, "ready_for_export"):
            return [Skipped(f"tree that is not ready for export ({cut(str(state), 40)})")]
        row.names_read.add("message_tree_id")
        skips: list[Values | Skipped] = []
        root = _tree(row.object("prompt"), skips)
        values: list[Values | Skipped] = [*walk(root, [])] if root else []
        return skips + (values or [Skipped(empty_reason)])

    return convert


def _tree(node: Columns, skips: list[Values | Skipped]) -> Values | None:
    """An OASST message as ours, with its rank and replies, without what was deleted or not approved in review."""
    node.within = f"message {cut(str(node.get('message_id')), 40)}: "
    if node.get("deleted") or not (node.get("review_result") if "review_result" in node else True):
        node.read_all()
        skips.append(Skipped("deleted or unreviewed message"))
        return None
    if (rank := whole(node.get("rank"))) is None and node.there("rank"):
        raise ValueError(f"{node.at('rank')}: expected a whole number, found {excerpt(node.get('rank'))}")
    replies = [_tree(reply, skips) for reply in (node.objects("replies") if node.get("replies") else [])]
    node.names_read.add("parent_id")
    return message(node) | {"rank": rank, "replies": [reply for reply in replies if reply]}


def best_paths(user_turn: Values, before: list[Values]) -> list[Values]:
    """At each user turn the best-ranked answer; where people went on from it, one conversation for each of them."""
    if not user_turn["replies"]:
        return []
    best = min(user_turn["replies"], key=lambda reply: (reply["rank"] is None, reply["rank"]))
    here = [*before, user_turn, best]
    return [longer for reply in best["replies"] for longer in best_paths(reply, here)] or [{"messages": here}]


def rankings(node: Values, before: list[Values]) -> Iterator[Values]:
    """The ranked answers to each user turn, whatever the rank of the answers that led there."""
    here = [*before, node]
    answers = [reply for reply in node["replies"] if reply["role"] == "assistant" and reply["rank"] is not None]
    if len(answers) > 1:
        ranks = [answer["rank"] for answer in answers]
        tiers = tiers_of_scores(ranks, higher=False)
        yield {"prompt": here, "completions": [answer["content"] for answer in answers], "tiers": tiers}
    for reply in node["replies"]:
        yield from rankings(reply, here)


def is_message(row: Any) -> bool:
    """Whether a row is one message of a tree."""
    return (
        isinstance(row, dict)
        and {"message_id", "parent_id", "role", "text"} <= row.keys()
        and isinstance(row["message_id"], str)
    )


def trees(rows: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Rows that are one message each, as trees, each where its root stands; other rows as they are."""
    flat = {row["message_id"]: (where, {**row, "replies": []}) for where, row in rows if is_message(row)}
    if not flat:
        return rows
    entries: list[tuple[str, Any]] = []
    for where, row in rows:
        one = flat.get(row["message_id"]) if isinstance(row, dict) and isinstance(row.get("message_id"), str) else None
        if one is None or one[0] != where:
            entries.append((where, row))
        elif (parent := row["parent_id"]) is None:
            tree = {key: row[key] for key in ("message_tree_id", "tree_state") if key in row}
            entries.append((where, {"message_tree_id": row["message_id"], **tree, "prompt": one[1]}))
        elif isinstance(parent, str) and parent in flat:
            flat[parent][1]["replies"].append(one[1])
        else:
            entries.append((where, ValueError(f"parent_id: no row has the message_id {excerpt(parent)}; add it")))
    return entries
