"""Sampling: the SFT policy answers each prompt K times, for people to choose among; in a further round, the policy that
the last one aligned does.

Reads   sft/model and a file of prompts; in a further round also the last one's align/ and reward/.
Writes  candidates/: candidates.jsonl (one prompt a row, with provenance), report.json, manifest.json; in the first
        round data.json and data.html (the prompts), in a further one candidate_scores.jsonl.
Resume  answered.partial has the finished prompts; an answer depends on prompt, index and seed alone. People may label
        them meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from sft import further
from sft.config import SampleConfig
from sft.report import SampleReport
from trueup import runs
from trueup.console import progress, say
from trueup.data.containers.appended import append_rows, read_appended
from trueup.data.containers.spool import rows_at
from trueup.data.duplicates.rows import NEAR_HELDOUT
from trueup.data.duplicates.training import across_split, near_heldout, too_many
from trueup.data.formats import read_prompts
from trueup.data.records import Candidate, CandidateSet, Dropped, Prompt, random_rows, shuffled, write_rows
from trueup.data.split import split_name
from trueup.errors import DataError
from trueup.files import Json
from trueup.inspecting.stage import ReadRow, ReadSource, write_data_page
from trueup.models.chat import IGNORED, Encoded, encode_prompt
from trueup.models.encoding import RefusedRows, encode_rows
from trueup.models.loading import SavedPolicy, read_tokenizer
from trueup.models.placement import place
from trueup.models.sampling import Decoding, forget_unfinished, sample_saved
from trueup.models.scoring import candidate_scores
from trueup.runs import Finding, StageRun


def run(config: SampleConfig) -> Path:
    stage = runs.begin(config)
    sft = stage.parents[0]

    # 1. Inputs -------------------------------------------------------------------------------------------------------
    prompts = choose_prompts(config, stage, read_tokenizer(sft.dir / "model", config.model))
    say(f"{'prompts':<12} {len(prompts)}, {config.num_candidates} answers each")

    # 2. Sample -------------------------------------------------------------------------------------------------------
    rows = (sample_first_round if config.round == 1 else sample_further_round)(config, stage, prompts)

    # 3. Report and save ----------------------------------------------------------------------------------------------
    report = describe(rows)
    say(f"{'answers':<12} {report.eos_rate:.0%} end by themselves, {report.mean_tokens:.0f} tokens on average")
    if report.eos_rate < 0.5:
        stage.find(
            "warn", "rarely_stops", f"{report.eos_rate:.0%} of answers end within {config.max_new_tokens} tokens"
        )
    if report.all_alike > 0.2:
        stage.find(
            "warn", "no_choice", f"in {report.all_alike:.0%} of prompts all answers are alike: raise the temperature"
        )
    stage.findings += findings_on_reasoning(rows, config)
    write_rows(stage.dir / "candidates.jsonl", rows)
    (stage.dir / runs.ANSWERED).unlink(missing_ok=True)
    forget_unfinished(stage.dir)
    stage.write_report(report)
    stage.facts.update(place(config.model).facts)
    return stage.finish()


def sample_first_round(config: SampleConfig, stage: StageRun, prompts: Sequence[Prompt]) -> list[CandidateSet]:
    """The SFT policy's answers. People may label them while others are sampled, so each batch is written at once."""
    (sft,) = stage.parents
    decoding = decoding_of(config)
    partial = stage.dir / runs.ANSWERED
    by_prompt = {row.prompt_id: row for row in read_appended(partial, CandidateSet)}
    if by_prompt:
        say(f"{'resume':<12} {len(by_prompt)} prompts are answered already")
    todo = [prompt for prompt in prompts if prompt.prompt_id not in by_prompt]
    if config.for_people:  # who may label while this goes on: whatever they see first is no special kind
        todo = shuffled(todo, config.seed)
    sampler = sampler_of(config, "sft", sft.sha256)
    progress(len(by_prompt), len(prompts))
    started, tokens = time.time(), 0
    for batch in sample_saved(
        SavedPolicy(sft.dir / "model"),
        config.model,
        [prompt.prompt for prompt in todo],
        decoding,
        config.num_candidates,
        config.batch_size,
        config.num_workers,
        config.for_people,
    ):
        answered = [answered_row(config, todo[i], candidates, sampler) for i, candidates in batch]
        by_prompt |= {row.prompt_id: row for row in answered}
        tokens += sum(len(candidate.token_ids) for row in answered for candidate in row.candidates)
        append_rows(partial, answered)
        progress(len(by_prompt), len(prompts), tokens_per_s=tokens / (time.time() - started))
    if todo:
        stage.facts["tokens_per_s"] = round(tokens / (time.time() - started), 1)
    return [by_prompt[prompt.prompt_id] for prompt in prompts]


def sample_further_round(config: SampleConfig, stage: StageRun, prompts: Sequence[Prompt]) -> list[CandidateSet]:
    """Answers of the last round's policy with anchors among them (sft/further.py), and the last reward model's scores
    of all, by which the label stage chooses what people are asked."""
    answers, scores = further.answer(config, stage, [prompt.prompt for prompt in prompts], decoding_of(config))
    write_rows(
        stage.dir / "candidate_scores.jsonl",
        (candidate_scores(prompt.prompt_id, row) for prompt, row in zip(prompts, scores, strict=True)),
    )
    sampler = sampler_of(config, f"round-{config.round - 1} and anchors", None)
    return [answered_row(config, prompt, row, sampler) for prompt, row in zip(prompts, answers, strict=True)]


def sampler_of(config: SampleConfig, policy: str, sha256: str | None) -> Json:
    """What a row says of how its answers were sampled."""
    dtype = place(config.model).facts["dtype"]  # log-probabilities of one text depend on the precision
    return {"policy": policy, "policy_sha256": sha256, "dtype": dtype, **decoding_of(config).facts}


def answered_row(config: SampleConfig, prompt: Prompt, candidates: list[Candidate], sampler: Json) -> CandidateSet:
    return CandidateSet(
        prompt_id=prompt.prompt_id,
        prompt=prompt.prompt,
        category=prompt.category,
        split=split_name(prompt.prompt, config.split),
        candidates=candidates,
        sampler=sampler,
    )


def decoding_of(config: SampleConfig) -> Decoding:
    """How the stage draws tokens."""
    thinking = config.model.thinking_budget(config.max_thinking_tokens)
    return Decoding(config.max_new_tokens, config.temperature, config.top_k, config.top_p, config.seed, thinking)


def choose_prompts(config: SampleConfig, stage: StageRun, tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    """The prompts to answer: distinct, of the split in `only`, at most `max_prompts`, and all can be encoded. One that
    may be trained on and nearly repeats a held-out one is left out, since a label on it would train nothing."""
    dropped = Dropped()
    prompts: Sequence[Prompt] = read_prompts(
        config.prompts_path, dropped, config.on_bad_rows, config.ignore_columns, config.choice(config.seed)
    )
    near = {}
    if not config.only and config.split.near_duplicates == "drop":
        if message := too_many(len(prompts), "prompts"):
            say(f"{'data':<12} {message}")
            stage.find("info", "near_duplicates", message)
        else:
            near = near_heldout(prompts, config.split)
    if near:
        stage.leave_out_near(list(near.values()), "prompts")
        dropped.add(NEAR_HELDOUT, len(near))
        prompts = rows_at(prompts, [i for i in range(len(prompts)) if i not in near])
    if config.split.near_duplicates == "keep" and (
        sentence := across_split(dropped.places, config.split, dropped.not_placed)
    ):
        stage.find("info", "near_duplicates", sentence)
    if config.only:
        selection = [prompt for prompt in prompts if split_name(prompt.prompt, config.split) == config.only]
        dropped.add(f"not {config.only}", len(prompts) - len(selection))
        prompts = selection
    drawn = random_rows(prompts, config.max_prompts, config.seed)
    dropped.add("over max_prompts", len(prompts) - len(drawn))
    prompts = drawn
    refused = RefusedRows()
    encoded = encode_rows(
        prompts,
        lambda row, changes: encode_prompt(tokenizer, row.prompt, changes),
        refused,
        config.on_bad_rows,
        dropped,
    )
    refused.stop()
    prompts = [prompt for prompt, _ in encoded]
    stage.add_input(config.prompts_path, len(prompts), dropped)
    if prompts and config.round == 1:  # later rounds answer the same ones
        source = ReadSource.of(config.prompts_path, len(prompts), dropped)
        sides: dict[bool, list[ReadRow]] = {False: [], True: []}
        for prompt, ids in encoded:
            heldout = split_name(prompt.prompt, config.split) == "heldout"
            sides[heldout].append((prompt, [Encoded(ids, [IGNORED] * len(ids))]))
        write_data_page(stage, "prompts", [source], sides[False], sides[True], tokenizer)
    if not prompts:
        raise DataError(f"{config.prompts_path}: no prompt is left to answer ({dropped})")
    for what, count in refused.changes.items():
        text = f"{count} of {len(prompts)} prompts are {what}"
        say(f"{'tokens':<12} {text}")
        stage.find("info", "texts_in_tokens", text)
    return prompts


def findings_on_reasoning(rows: Sequence[CandidateSet], config: SampleConfig) -> list[Finding]:
    """What to know of the reasoning before answers: it ran out of its budget, or nobody asked for it."""
    candidates = [candidate for row in rows for candidate in row.candidates]
    reasoned = sum(bool(candidate.reasoning) for candidate in candidates) / len(candidates)
    closed = sum(candidate.closed_at is not None for candidate in candidates) / len(candidates)
    if reasoned and not config.model.thinking:
        message = (
            f"{reasoned:.0%} of answers begin with a block of reasoning, though model.thinking is off: it is neither "
            "judged nor measured, and its tokens count in sample.max_new_tokens"
        )
        return [Finding("warn", "reasons_unasked", message)]
    if closed > 0.2:
        message = f"{closed:.0%} of answers had their reasoning closed by force: raise sample.max_thinking_tokens"
        return [Finding("warn", "reasoning_cut", message)]
    return []


def describe(rows: list[CandidateSet]) -> SampleReport:
    """Figures of the answers: share that end, mean length, share of prompts whose answers are all the same text."""
    candidates = [candidate for row in rows for candidate in row.candidates]
    return SampleReport(
        prompts=len(rows),
        heldout=sum(row.split == "heldout" for row in rows),
        eos_rate=sum(candidate.finished for candidate in candidates) / len(candidates),
        mean_tokens=sum(candidate.num_tokens for candidate in candidates) / len(candidates),
        all_alike=sum(len({candidate.text for candidate in row.candidates}) == 1 for row in rows) / len(rows),
    )
