"""Label: preferences over the sampled answers, from people or from a stated stand-in.

Reads   candidates/candidates.jsonl, the label store, and the files that the config names: gold, qualification, scores,
        and what `source: import` takes over
Writes  labels.sqlite         the store, append-only; it outlives this stage and is never cleared
        rankings.jsonl        current labels, whole
        preferences.jsonl     their strict pairs, in TRL's preference format
        demonstrations.jsonl  ideal answers that people wrote, in the format that `sft` reads
        report.json           who said how much, what was left out and why, how far length alone explains the choices
Source  Ouyang et al. 2022 (https://arxiv.org/abs/2203.02155), section 3.4: K answers ranked, all pairs kept together
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from trueup import runs
from trueup.console import say
from trueup.data.own_code import short_name
from trueup.data.records import CandidateSet, Dropped, pairs_of, read_rows, split_name, write_rows
from trueup.provenance.contents import sha256_file
from ui.labels.config import LabelConfig
from ui.labels.exchange import true_records
from ui.labels.proof import proof
from ui.labels.store import Store
from ui.labels.votes import promoted
from ui.sources import material, report

FEW_PAIRS = 50
LENGTH_EXPLAINS = 0.7


def run(config: LabelConfig) -> Path:
    run = runs.begin(config)

    # ---- 1. Inputs: the answers to judge ------------------------------------------------------------------------
    store = Store(config.store_url)
    try:
        candidates = read_candidates(config) if "sample" in config.parents() else []
        if candidates:  # whatever the source: the page can always be opened
            found, inputs = ask(config, store, candidates)
            for path, rows, dropped in inputs if "human" in config.sources else []:
                run.add_input(path, rows, dropped)
        else:
            found = material.material(config, [])

        # ---- 2. Labels: what the source says ----------------------------------------------------------------
        if "import" in config.sources:
            assert config.path is not None
            dropped = Dropped()
            rows = material.import_file(config, store, found, dropped)
            run.add_input(config.path, rows, dropped)
            say(f"import {config.path}: {rows} rankings, dropped: {dropped}")
        for path in config.rubric_files:
            run.add_input(path, 0)
        if config.source == "human":
            material.check_enough(config, store, found)
        elif config.source == "simulated":
            material.simulate(config, store, found)
        elif config.source == "judge":
            from ui.sources.judge import judge_pairs

            judge_pairs(config, store, found)
        elif config.source == "reward_model":
            material.score_by_model(config, store, found)

        # ---- 3. Export: current labels about the current answers --------------------------------------------
        # The digest is taken before the labels: one that arrives in between makes this stage stale, and is not lost.
        run.facts["fingerprint"] = config.fingerprint()
        run.facts["store"] = proof(store)
        rankings = [
            row
            for name in config.sources
            for row in store.rankings([name], found.item_ids(name))
            # What another rubric or judge said of the same answers stays in the store, and is not this campaign's.
            if config.programs.get(name) in (None, row.annotator)
        ]
        people = "human" in config.sources
        others = set(promoted(store)) - set(found.item_ids("human"))
        if people and (votes := store.rankings(["human"], others)):
            # The split may have changed since they were promoted.
            votes = [row.model_copy(update={"split": split_name(row.prompt, config.split)}) for row in votes]
            say(f"votes on a comparison that were promoted: {len(votes)}")
            rankings += votes
        answered = {name: store.answered(name, found.item_ids(name)) for name in config.sources}
        left, strict = store.left_choices(found.item_ids("human")) if people else (0, 0)
        gold = report.gold(store.checks(), config.gold_pass) if people else {}
        written = [row for row, _ in store.demonstrations(found.item_ids("human"))] if people else []
    finally:
        store.close()
    failed = {annotator for annotator, figures in gold.items() if figures.passed is False}
    by_failed = [row for row in rankings if row.source == "human" and row.annotator in failed]
    if config.exclude_failed_gold:
        rankings = [row for row in rankings if row.source != "human" or row.annotator not in failed]
    rankings, unsaid = true_records(rankings, config)
    if unsaid:
        say(unsaid)
        run.find("info", "tokens_left_out", unsaid)
    every_pair = [pair for ranking in rankings for pair in pairs_of(ranking)]
    differing = [pair for pair in every_pair if pair.chosen[0].content != pair.rejected[0].content]
    pairs = [pair for pair in differing if pair.chosen[0].content.strip()]
    write_rows(run.dir / "rankings.jsonl", rankings)
    write_rows(run.dir / "preferences.jsonl", pairs)
    write_rows(run.dir / "demonstrations.jsonl", written)

    # ---- 4. Report: who said it, and what else could explain it -------------------------------------------------
    dropped_labels = {"identical": len(every_pair) - len(differing)}
    if empty := len(differing) - len(pairs):  # that nothing was better is a label; it is nothing to learn to say
        dropped_labels["empty preferred answer"] = empty
    if config.exclude_failed_gold:
        dropped_labels["labels of annotators who failed gold"] = len(by_failed)
    beside = report.Beside(
        dropped_labels, gold, len(written), found.identical, report.share(left, strict) if strict else None
    )
    summary = report.summarise(config.sources, rankings, pairs, answered, beside)
    run.write_report(summary)
    run.facts["labels"] = summary.counts()
    say(f"labels: {report.line(summary)}")

    train = summary.pairs.train
    if train < FEW_PAIRS:
        noise = f"below {FEW_PAIRS} a reward model is mostly noise"
        run.find("warn", "few_labels", f"{train} strict pairs to train on; {noise}")
    if failed:
        names, kept = ", ".join(sorted(failed)), "left out" if config.exclude_failed_gold else "kept"
        keys = "label.exclude_failed_gold decides"
        said = f"{names}: below {config.gold_pass:.0%} on gold; their {len(by_failed)} labels are {kept} ({keys})"
        run.find("warn", "failed_gold", said)
    if named := summary.self_identified.labels:
        said = f"in {named} labels an answer says which model it is, so they were not blind: see report.json"
        run.find("warn", "self_identified", said)
    length = summary.length_baseline
    if length is not None and (length.value or 0.0) >= LENGTH_EXPLAINS:
        won = f"the longer answer is preferred in {length.value:.0%} of {length.n} pairs"
        run.find("warn", "length_explains", f"{won}: length alone explains most of what a reward model would learn")
    for name in config.sources:
        if name == "simulated":
            said = f"these labels are simulated by the rubric {short_name(config.rubric)}: no person said them"
            run.find("info", "simulated_labels", f"human_labels: {summary.by_source.get('human', 0)}; {said}")
    return run.finish()


# ---- What people are asked --------------------------------------------------------------------------------------

Inputs = list[tuple[Path, int, Dropped]]


def ask(config: LabelConfig, store: Store, candidates: list[CandidateSet]) -> tuple[material.Material, Inputs]:
    """Put into the store what people are asked about. Returns it, and of each file that was read its rows."""
    inputs: Inputs = []
    for use, path in (("check", config.gold), ("qualification", config.qualification)):
        dropped = Dropped()
        rows = material.set_gold(config, store, use, dropped)  # type: ignore[arg-type]  # a tuple of literals
        if path:
            inputs.append((path, rows, dropped))
            say(f"known answers {path}: {rows}, dropped: {dropped}")
    scores = None
    if config.scores:
        scores = material.read_scores(config.scores, candidates)
        inputs.append((config.scores, len(scores), Dropped()))
    found = material.material(config, candidates, scores)
    material.ask_people(config, store, found)
    store.set_note(_ASKED, _what_is_asked(config))
    return found, inputs


def prepare(config: LabelConfig, store: Store) -> None:
    """For the labelling page: put into the store what people are asked about, unless it is there."""
    if store.note(_ASKED) != _what_is_asked(config):
        ask(config, store, read_candidates(config))
    store.count_rows()


_ASKED = "asked"


def _what_is_asked(config: LabelConfig) -> str:
    """A hash of all that the queue is made of, so that a page over many pairs need not read them to start."""
    keys = "seed split task answers_per_item pairs_per_prompt labels_per_pair selection control_share".split()
    values = config.model_dump(mode="json", include=set(keys))
    values["files"] = [path and sha256_file(path) for path in (config.gold, config.qualification, config.scores)]
    values["sample"] = runs.open_stage(config.run_dir, "sample").sha256
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def read_candidates(config: LabelConfig) -> list[CandidateSet]:
    """The sampled answers of the campaign, or a RunError that says what to run first."""
    return read_rows(runs.open_stage(config.run_dir, "sample").dir / "candidates.jsonl", CandidateSet)
