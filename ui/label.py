"""Label: preferences over the sampled answers, from people or from a stated stand-in.

Reads   candidates/candidates.jsonl, the label store, and with `source: import` the file that the config names
Writes  labels.sqlite      the store, append-only; it outlives this stage and is never cleared
        rankings.jsonl     current labels, whole
        preferences.jsonl  their strict pairs, in TRL's preference format
        report.json        who said how much, ties, skips, and how far length alone explains the choices
Source  Ouyang et al. 2022 (https://arxiv.org/abs/2203.02155), section 3.4: K answers ranked, all pairs kept together
"""

from __future__ import annotations

from pathlib import Path

from trueup import runs
from trueup.console import say
from trueup.records import CandidateSet, Dropped, pairs_of, read_rows, write_rows
from ui import report, sources
from ui.config import LabelConfig
from ui.store import Store

FEW_PAIRS = 50
LENGTH_EXPLAINS = 0.7


def run(config: LabelConfig) -> Path:
    run = runs.begin(config)

    # ---- 1. Inputs: the answers to judge ------------------------------------------------------------------------
    store = Store(config.store_url)
    try:
        candidates = read_candidates(config) if "sample" in config.parents() else []
        found = sources.material(config, candidates)
        if candidates:
            sources.ask_people(store, found)  # whatever the source: the page can always be opened

        # ---- 2. Labels: what the source says ----------------------------------------------------------------
        if "import" in config.sources:
            assert config.path is not None
            dropped = Dropped()
            rows = sources.import_file(config, store, found, dropped)
            run.add_input(config.path, rows, dropped)
            say(f"import {config.path}: {rows} rankings, dropped: {dropped}")
        if config.source == "human":
            sources.check_enough(config, store, found)
        elif config.source == "simulated":
            sources.simulate(config, store, found)
        elif config.source == "judge":
            from ui.judge import judge_pairs

            judge_pairs(config, store, found)
        elif config.source == "reward_model":
            sources.score_by_model(config, store, found)

        # ---- 3. Export: current labels about the current answers --------------------------------------------
        # The digest is taken before the labels: one that arrives in between makes this stage stale, and is not lost.
        run.facts["fingerprint"] = config.fingerprint()
        rankings = [
            row
            for name in config.sources
            for row in store.rankings([name], found.item_ids(name))
            # What another rubric or judge said of the same answers stays in the store, and is not this campaign's.
            if config.programs.get(name) in (None, row.annotator)
        ]
        skipped = sources.skips(store, found, config.sources)
        left, strict = store.left_choices(found.item_ids("human")) if "human" in config.sources else (0, 0)
    finally:
        store.close()
    every_pair = [pair for ranking in rankings for pair in pairs_of(ranking)]
    pairs = [pair for pair in every_pair if pair.chosen[0].content != pair.rejected[0].content]
    write_rows(run.dir / "rankings.jsonl", rankings)
    write_rows(run.dir / "preferences.jsonl", pairs)

    # ---- 4. Report: who said it, and what else could explain it -------------------------------------------------
    summary = report.summarise(config.sources, rankings, pairs, skipped)
    summary["dropped"] = {"identical": len(every_pair) - len(pairs)}
    summary["identical_pairs_not_shown"] = found.identical
    summary["left_choice"] = report.share(left, strict) if strict else None
    run.write_json("report.json", summary)
    run.facts["labels"] = {key: summary[key] for key in ("by_source", "by_split", "pairs", "ties", "skips")}
    say(f"labels: {report.line(summary)}")

    train = summary["pairs"]["train"]
    if train < FEW_PAIRS:
        noise = f"below {FEW_PAIRS} a reward model is mostly noise"
        run.find("warn", "few_labels", f"{train} strict pairs to train on; {noise}")
    length = summary["length_baseline"]
    if length is not None and length["value"] >= LENGTH_EXPLAINS:
        won = f"the longer answer is preferred in {length['value']:.0%} of {length['n']} pairs"
        run.find("warn", "length_explains", f"{won}: length alone explains most of what a reward model would learn")
    for name in config.sources:
        if name == "simulated":
            said = f"these labels are simulated by the rubric {config.rubric}: no person said them"
            run.find("info", "simulated_labels", f"human_labels: {summary['by_source'].get('human', 0)}; {said}")
    return run.finish()


def read_candidates(config: LabelConfig) -> list[CandidateSet]:
    """The sampled answers of the campaign, or a RunError that says what to run first."""
    return read_rows(runs.open_stage(config.run_dir, "sample").dir / "candidates.jsonl", CandidateSet)
