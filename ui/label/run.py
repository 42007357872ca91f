"""Label: preferences over the sampled answers, from people or from a stated stand-in.

Reads   candidates/candidates.jsonl, the label store, in a further round the labels of the last one, and the files that
        the config names: gold, qualification, scores, and what `source: import` takes over
Writes  labels.sqlite         the store of all rounds, append-only; it outlives this stage and is never cleared
        rankings.jsonl        current labels of this round and of all earlier ones, whole
        preferences.jsonl     their strict pairs, in TRL's preference format
        ideals.jsonl          if people wrote ideal answers: each above the answers that were shown, in the same form
        ties.jsonl            their tied pairs, in the same form: neither side is preferred
        demonstrations.jsonl  ideal answers that people wrote, in the format that `sft` reads
        report.json           counts by source, what was left out and why, how far length alone explains the choices
Source  Ouyang et al. 2022 (https://arxiv.org/abs/2203.02155), section 3.4: K answers ranked, all pairs kept together
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from trueup import runs
from trueup.artifacts.reports import Estimate
from trueup.console import say
from trueup.data.own_code import short_name
from trueup.data.pairs import pairs_of, ties_of
from trueup.data.records import (
    IDEALS,
    CandidateSet,
    Demonstration,
    Dropped,
    Message,
    Preference,
    Ranking,
    read_rows,
    write_rows,
)
from trueup.data.split import split_name
from trueup.files import sha256_file
from trueup.runs import FinishedStage, StageRun
from ui.labels.config import LabelConfig, Source
from ui.labels.exchange import true_records
from ui.labels.proof import proof
from ui.labels.store import Store
from ui.labels.votes import promoted
from ui.sources import material, report
from ui.sources.reliability import agreement, reliability

FEW_PAIRS = 50
LENGTH_EXPLAINS = 0.7


def run(config: LabelConfig) -> Path:
    stage = runs.begin(config)
    store = Store(config.store_url)
    try:
        # ---- 1. Inputs: the completions to judge ----------------------------------------------------------------
        items = read_inputs(config, store, stage)

        # ---- 2. Labels: those of each source --------------------------------------------------------------------
        collect_labels(config, store, items, stage)

        # ---- 3. Export: current labels about the current completions --------------------------------------------
        # The digest comes before the labels: one that arrives in between makes this stage stale, and is not lost.
        stage.facts["fingerprint"] = config.fingerprint()
        stage.facts["store"] = proof(store)
        labels = read_labels(config, store, items, stage)
    finally:
        store.close()
    rankings, pairs, dropped = write_labels(config, labels, stage)

    # ---- 4. Report: counts by source, and other explanations ----------------------------------------------------
    beside = report.Beside(
        dropped,
        labels.gold,
        len(labels.ideals),
        items.identical,
        labels.left_choice,
        reliability(pairs, labels.repeats, labels.gold),
        agreement(pairs),
    )
    summary = report.summarise(config.sources, rankings, pairs, labels.kinds, beside)
    stage.write_report(summary)
    stage.facts["labels"] = summary.counts()
    say(f"labels: {report.line(summary)}")
    add_findings(config, labels, summary, stage)
    return stage.finish()


# ---- 1. Inputs --------------------------------------------------------------------------------------------------


def read_inputs(config: LabelConfig, store: Store, stage: StageRun) -> material.Material:
    """The items of the sampled completions. They are for people whatever the source is, since the labelling page can
    always be opened."""
    candidates = read_candidates(config.run_dir) if "sample" in config.parents() else []
    if not candidates:
        return material.material(config, [])
    items, inputs = ask(config, store, candidates)
    for path, rows, dropped in inputs if "human" in config.sources else []:
        stage.add_input(path, rows, dropped)
    return items


# ---- 2. Labels --------------------------------------------------------------------------------------------------


def collect_labels(config: LabelConfig, store: Store, items: material.Material, stage: StageRun) -> None:
    """Have the source label the items. If people label them, check that they have labelled enough."""
    if "import" in config.sources:
        assert config.path is not None
        dropped = Dropped()
        rows = material.import_file(config, store, items, dropped)
        stage.add_input(config.path, rows, dropped)
        say(f"import {config.path}: {rows} rankings, dropped: {dropped}")
    for path in config.rubric_files:
        stage.add_input(path, 0)
    if config.source == "human":
        material.check_enough(store, items, config.labels_per_pair, config.target_labels)
    elif config.source == "simulated":
        material.simulate(config.rubric, config.programs["simulated"], store, items)
    elif config.source == "judge":
        from ui.sources.judge import judge_pairs

        judge_pairs(config, store, items)
    elif config.source == "reward_model":
        stage.facts["chat_template"] = material.score_by_model(config, store, items)


# ---- 3. Export --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CurrentLabels:
    """What the store holds about the current completions."""

    rankings: list[Ranking]
    kinds: dict[Source, dict[str, list[str]]]
    """For each source and item the kinds of its current events."""
    gold: dict[str, report.KnownAnswers]
    left_choice: Estimate | None
    ideals: list[Ranking]
    """Ideal answers that people wrote, each above the answers that were shown."""
    repeats: list[Ranking]
    """Labels that people gave again, unaware of it."""

    @cached_property
    def failed(self) -> set[str]:
        """Annotators who failed the hidden checks."""
        return {annotator for annotator, answers in self.gold.items() if answers.passed is False}

    @cached_property
    def by_failed(self) -> int:
        """Number of labels by those annotators."""
        return sum(row.source == "human" and row.annotator in self.failed for row in self.rankings)


def read_labels(config: LabelConfig, store: Store, items: material.Material, stage: StageRun) -> CurrentLabels:
    """Labels of every source that is used, behind those of earlier rounds. Labels of the same completions by another
    rubric or judge stay in the store, and do not count here."""
    rankings = read_earlier(config, stage)
    rankings += [
        row
        for name in config.sources
        for row in store.rankings([name], items.item_ids(name))
        if config.programs.get(name) in (None, row.annotator) and row.round == config.round
    ]
    kinds = {name: store.answered(name, items.item_ids(name)) for name in config.sources}
    if "human" not in config.sources:
        return CurrentLabels(rankings, kinds, {}, None, [], [])
    item_ids = items.item_ids("human")
    promotions = store.rankings(["human"], set(promoted(store)) - set(item_ids))
    if votes := [row for row in promotions if row.round == config.round]:
        # The split may have changed since they were promoted.
        rankings += [row.model_copy(update={"split": split_name(row.prompt, config.split)}) for row in votes]
        say(f"votes on a comparison that were promoted: {len(votes)}")
    left, strict = store.left_choices(item_ids)
    left_choice = report.share(left, strict) if strict else None
    gold = report.gold(store.checks(), config.gold_pass)
    ideals = [*store.ideals(rounds=range(config.round)), *store.ideals(item_ids, [config.round])]
    repeats = [row for row in store.rankings(["human"], purpose="repeat") if row.round <= config.round]
    return CurrentLabels(rankings, kinds, gold, left_choice, ideals, repeats)


def read_earlier(config: LabelConfig, stage: StageRun) -> list[Ranking]:
    """The rankings of all earlier rounds, which the last one's file holds."""
    if config.round == 1:
        return []
    before = next(parent.dir for parent in stage.parents if parent.stage == f"round-{config.round - 1}/label")
    rankings = list(read_rows(before / "rankings.jsonl", Ranking))
    say(f"labels of earlier rounds: {len(rankings)}")
    return rankings


def write_labels(
    config: LabelConfig, labels: CurrentLabels, stage: StageRun
) -> tuple[list[Ranking], list[Preference], dict[str, int]]:
    """Write the files that other stages read. Returns the rankings and the pairs in them, and the number of pairs and
    labels that were left out, by reason."""
    counted = [*labels.rankings, *labels.ideals]
    if config.exclude_failed_gold:
        counted = [row for row in counted if row.source != "human" or row.annotator not in labels.failed]
    counted, left_out = true_records(counted, config.run_dir, config.model)
    by_people = {row.label_id for row in labels.ideals}
    rankings = [row for row in counted if row.label_id not in by_people]
    ideals = [row for row in counted if row.label_id in by_people]
    if left_out:
        say(left_out)
        stage.find("info", "tokens_left_out", left_out)
    every_pair = [pair for ranking in rankings for pair in pairs_of(ranking)]
    differing = [pair for pair in every_pair if len(set(pair.texts)) == 2]
    pairs = [pair for pair in differing if pair.chosen[0].content.strip()]
    write_rows(stage.dir / "rankings.jsonl", rankings)
    write_rows(stage.dir / "preferences.jsonl", pairs)
    every_tie = [tie for ranking in rankings for tie in ties_of(ranking)]
    differing_ties = [tie for tie in every_tie if len(set(tie.texts)) == 2]
    # An empty answer must not rise to the level of a good one.
    ties = [tie for tie in differing_ties if tie.both_bad or all(text.strip() for text in tie.texts)]
    write_rows(stage.dir / "ties.jsonl", ties)
    write_ideals(ideals, stage)
    dropped = {"identical": len(every_pair) - len(differing)}
    if empty := len(differing) - len(pairs):  # a person may prefer an empty answer; a policy must not learn to give one
        dropped["empty preferred answer"] = empty
    if identical := len(every_tie) - len(differing_ties):
        dropped["identical ties"] = identical
    if empty := len(differing_ties) - len(ties):
        dropped["ties with an empty answer"] = empty
    if config.exclude_failed_gold:
        dropped["labels of annotators who failed gold"] = labels.by_failed
    return rankings, pairs, dropped


def write_ideals(ideals: list[Ranking], stage: StageRun) -> None:
    """Write ideal answers as demonstrations, and above the answers that were shown, unless those say the same."""
    write_rows(
        stage.dir / "demonstrations.jsonl",
        (
            Demonstration(
                messages=[*row.prompt, Message(role="assistant", content=row.completions[0])], category=row.category
            )
            for row in ideals
        ),
    )
    pairs = [pair.model_copy(update={"ideal": True}) for row in ideals for pair in pairs_of(row)]
    if pairs:
        differing = [pair for pair in pairs if len(set(pair.texts)) == 2]
        write_rows(stage.dir / IDEALS, differing)
        heldout = sum(pair.split == "heldout" for pair in differing)
        same = f"; {rest} say what was shown" if (rest := len(pairs) - len(differing)) else ""
        say(f"ideal answers: {len(ideals)}, in {len(differing)} pairs above what was shown ({heldout} held out){same}")


# ---- 4. Report --------------------------------------------------------------------------------------------------


def add_findings(config: LabelConfig, labels: CurrentLabels, summary: report.LabelReport, stage: StageRun) -> None:
    """Add the findings that matter to training on these labels."""
    train = summary.pairs.train
    if train < FEW_PAIRS:
        noise = f"below {FEW_PAIRS} a reward model is mostly noise"
        stage.find("warn", "few_labels", f"{train} strict pairs to train on; {noise}")
    if labels.failed:
        names, kept = ", ".join(sorted(labels.failed)), "left out" if config.exclude_failed_gold else "kept"
        theirs = f"their {labels.by_failed} labels are {kept} (label.exclude_failed_gold decides)"
        stage.find("warn", "failed_gold", f"{names}: below {config.gold_pass:.0%} on gold; {theirs}")
    if named := summary.self_identified.labels:
        not_blind = "an answer says which model it is, so they were not blind: see report.json"
        stage.find("warn", "self_identified", f"in {named} labels {not_blind}")
    length = summary.length_baseline
    if length is not None and (length.value or 0.0) >= LENGTH_EXPLAINS:
        won = f"the longer answer is preferred in {length.value:.0%} of {length.n} pairs"
        stage.find("warn", "length_explains", f"{won}: length alone explains most of what a reward model would learn")
    if "simulated" in config.sources:
        nobody = f"these labels are simulated by the rubric {short_name(config.rubric)}: no person gave them"
        stage.find("info", "simulated_labels", f"human_labels: {summary.by_source.get('human', 0)}; {nobody}")


# ---- The items for people ---------------------------------------------------------------------------------------

Inputs = list[tuple[Path, int, Dropped]]


def ask(config: LabelConfig, store: Store, candidates: list[CandidateSet]) -> tuple[material.Material, Inputs]:
    """Put the items for people into the store. Returns them, and each file that was read with its rows."""
    inputs = ask_known(config, store)
    scores = None
    if config.round > 1:
        scores = material.read_scores(sampled(config.run_dir).dir / "candidate_scores.jsonl", candidates)
    elif config.scores:
        scores = material.read_scores(config.scores, candidates)
        inputs.append((config.scores, len(scores), Dropped()))
    items = material.material(config, candidates, scores, store.labelled_elsewhere(config.round))
    material.ask_people(config, store, items)
    store.set_note(_ASKED, _what_is_asked(config))
    return items, inputs


def ask_known(config: LabelConfig, store: Store) -> Inputs:
    """Put the pairs with known answers into the store. Returns each file of them with its rows."""
    inputs: Inputs = []
    for use, path in (("check", config.gold), ("qualification", config.qualification)):
        dropped = Dropped()
        rows = material.set_gold(config, store, use, dropped)  # type: ignore[arg-type]  # a tuple of literals
        if path:
            inputs.append((path, rows, dropped))
            say(f"known answers {path}: {rows}, dropped: {dropped}")
    return inputs


def prepare(config: LabelConfig, store: Store) -> None:
    """Put the items that the labelling page needs into the store, unless they are there."""
    if store.note(_ASKED) != _what_is_asked(config):
        ask(config, store, read_candidates(config.run_dir))
    store.count_rows()


_ASKED = "asked"


def _what_is_asked(config: LabelConfig) -> str:
    """A hash of everything that the queue depends on. It lets a page over many pairs start without reading them."""
    keys = "seed split task answers_per_item pairs_per_prompt labels_per_pair selection control_share".split()
    values = config.model_dump(mode="json", include=set(keys))
    values["files"] = [path and sha256_file(path) for path in (config.gold, config.qualification, config.scores)]
    values["sample"] = sampled(config.run_dir).sha256
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def read_candidates(run_dir: Path) -> list[CandidateSet]:
    """The sampled completions of the campaign, or a RunError that says what to run first."""
    return read_rows(sampled(run_dir).dir / "candidates.jsonl", CandidateSet)


def sampled(run_dir: Path) -> FinishedStage:
    return runs.open_stage(run_dir, "sample")
