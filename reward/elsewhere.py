"""A reward model on preferences from elsewhere: the score of each answer, and how often the better one scores higher.

No campaign and no run are needed: any model that scores, and any file of preferences in the formats of docs/formats.md.
The command: `trueup reward score MODEL FILE`, `trueup reward eval MODEL FILE`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from reward.card.baselines import longer
from reward.card.evaluate import ScoredPairs, which_length
from reward.card.shares import (
    by_slice,
    difference_over_prompts,
    half_for_ties,
    interval_of,
    over_prompts,
    percent,
    points,
    share_of,
)
from reward.report import AnswerScore, FileReport
from trueup.config import set_key, validate
from trueup.data.formats import ImportedRanking, read_preferences
from trueup.data.pairs import pairs_of
from trueup.data.records import Candidate, Dropped, Preference, prompt_id
from trueup.data.row_rules import BadRows
from trueup.errors import ConfigError, DataError
from trueup.files import Json
from trueup.models.config import A_REWARD_MODEL, ModelConfig
from trueup.models.loading import Loaded, load_scorer
from trueup.models.scoring import HeadScores, score_answers_by_heads
from trueup.provenance.inputs import sha256_of
from trueup.statistics.intervals import Interval

UNREAD = "the reward model cannot read an answer"


@dataclass(frozen=True)
class ScoredFile:
    """The rows of a file of which every answer has a score."""

    rows: list[ImportedRanking]
    scores: list[list[HeadScores]]
    """Of each row, in the order of its completions."""
    dropped: Dropped


def load_model(name: str, assignments: Sequence[str]) -> Loaded:
    """The reward model, frozen.

    name         a folder or a hub id
    assignments  `KEY=VALUE` for keys of `model`: revision, chat_template, dtype, ...
    """
    values: Json = {}
    for assignment in assignments:
        set_key(values, assignment)
    problems: list[str] = []
    config = validate(ModelConfig, {**values, "name": name}, Path.cwd(), "", problems)
    if config is None:
        raise ConfigError(name, problems)
    model, _ = load_scorer(config, f"name {A_REWARD_MODEL}, such as the model of a reward stage (RUN/reward/model)")
    model.model.eval().requires_grad_(False)
    return model


def score_file(model: Loaded, file: Path, on_bad_rows: BadRows, ignore_columns: Sequence[str]) -> ScoredFile:
    """Read and score every answer of a file. A row with an answer that the model cannot read is a bad row."""
    dropped = Dropped()
    rows = read_preferences(file, dropped, on_bad_rows, ignore_columns)
    prompts = [row.prompt for row in rows for _ in row.completions]
    flat = iter(score_answers_by_heads(model, prompts, [answer for row in rows for answer in answers_of(row)]))
    scored, scores = [], []
    for row in rows:
        its_scores = [next(flat) for _ in row.completions]
        read = [score for score in its_scores if score is not None]
        if len(read) == len(its_scores):
            scored.append(row)
            scores.append(read)
        elif on_bad_rows == "refuse":
            raise DataError(f"{row.where}: {UNREAD} of it (above is why); leave such rows out with --on-bad-rows drop")
        else:
            dropped.leave_out(row.where, UNREAD, row.model_dump(mode="json"))
    if not scored:
        raise DataError(f"{file}: no row of it can be scored (dropped: {dropped})")
    return ScoredFile(scored, scores, dropped)


def answers_of(row: ImportedRanking) -> list[Candidate]:
    """The answers as a reward model reads them: by their recorded tokens, and without the reasoning before them, which
    recorded tokens hold too."""
    count = len(row.completions)
    finished, reasonings = row.finished or [True] * count, row.reasonings or [""] * count
    tokens = row.completion_token_ids or [None] * count
    return [
        Candidate(text=text, token_ids=[] if reasoning else ids or [], finished=ended)
        for text, ids, reasoning, ended in zip(row.completions, tokens, reasonings, finished, strict=True)
    ]


def answer_scores(file: ScoredFile) -> list[AnswerScore]:
    """A line for each answer, in the order of the file."""
    return [
        AnswerScore(
            where=row.where,
            prompt_id=prompt_id(row.prompt),
            category=row.category,
            completion=text,
            tier=next((rank for rank, tier in enumerate(row.tiers) if i in tier), None),
            score=scores[i].score,
            spread=scores[i].spread if scores[i].deviations else None,
        )
        for row, scores in zip(file.rows, file.scores, strict=True)
        for i, text in enumerate(row.completions)
    ]


# ---- Accuracy ---------------------------------------------------------------------------------------------------


def evaluate(file: ScoredFile, model: str, path: Path) -> FileReport:
    """Accuracy on all strict pairs of the file, beside the rule that longer answers are better or the rule that shorter
    ones are, whichever is right more often here. The file itself chooses, so the rule is given an advantage."""
    pairs = scored_pairs(file)
    if not pairs.pairs:
        raise DataError(f"{path}: all {len(file.rows)} rows are ties, so there is no better answer to find")
    right = pairs.right
    by_longer = [half_for_ties(longer(pair)) for pair in pairs.pairs]
    is_longer = over_prompts(pairs.pairs, by_longer).value >= 0.5
    by_rule = by_longer if is_longer else [1 - value for value in by_longer]
    return FileReport(
        model=model,
        file=str(path),
        file_sha256=sha256_of(path),
        rows=len(file.rows),
        ties=sum(len(row.tiers) == 1 for row in file.rows),
        dropped=dict(file.dropped.counts),
        columns_not_read=file.dropped.most_ignored(100),
        accuracy=share_of(pairs.pairs, over_prompts(pairs.pairs, right)),
        length_rule="longer" if is_longer else "shorter",
        by_length_rule=share_of(pairs.pairs, over_prompts(pairs.pairs, by_rule)),
        ahead=difference_over_prompts(pairs.pairs, right, by_rule).estimate(),
        by_category=by_slice(pairs.pairs, right, lambda pair: pair.category or "none"),
        by_length=by_slice(pairs.pairs, right, which_length),
    )


def scored_pairs(file: ScoredFile) -> ScoredPairs:
    """All strict pairs of the rows, with the scores of their answers."""
    pairs: list[Preference] = []
    chosen: list[float] = []
    rejected: list[float] = []
    for row, scores in zip(file.rows, file.scores, strict=True):
        finished = row.finished or [True] * len(row.completions)
        score_of = dict(zip(zip(row.completions, finished, strict=True), scores, strict=True))
        for pair in pairs_of(row.ranking()):
            pairs.append(pair)
            chosen.append(score_of[pair.texts[0], pair.chosen_finished].score)
            rejected.append(score_of[pair.texts[1], pair.rejected_finished].score)
    return ScoredPairs(pairs, chosen, rejected)


def report_text(report: FileReport) -> str:
    """What `trueup reward eval` prints."""
    accuracy, rule, ahead = interval_of(report.accuracy), interval_of(report.by_length_rule), report.ahead
    lines = [
        f"{'accuracy':<12} {percent(accuracy)} on {report.accuracy.n} pairs of {accuracy.n} prompts",
        f"{'length rule':<12} {percent(rule)} by '{report.length_rule} is better', which is the better rule here",
    ]
    if ahead.value is not None and ahead.ci_low is not None and ahead.ci_high is not None:
        gain = points(Interval(ahead.value, ahead.ci_low, ahead.ci_high, ahead.n))
        lines.append(f"{'ahead':<12} by {gain} of this rule")
    for what, slices in (("category", report.by_category), ("chosen is", report.by_length)):
        if len(slices) > 1:
            lines += [
                f"{what:<12} {percent(interval_of(share)):<18} {name} ({share.n} pairs, {share.prompts} prompts)"
                for name, share in slices.items()
            ]
    if report.ties:
        lines.append(f"{'ties':<12} {report.ties} rows prefer no answer, and count for nothing")
    if report.dropped:
        lines.append(f"{'dropped':<12} {', '.join(f'{count} {reason}' for reason, count in report.dropped.items())}")
    if report.columns_not_read:
        lines.append(f"{'not read':<12} columns {', '.join(report.columns_not_read)}")
    return "\n".join(lines)
