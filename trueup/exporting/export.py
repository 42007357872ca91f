"""`trueup export`: copy a result out of a run, together with its provenance.

The folder is complete by itself: the result's files, `provenance.json` (the stage's manifest and those of all its
ancestors, each with its hash) and `README.md`, which says in a page what this is and how far it can be trusted. Weights
are copied byte by byte. A model's config, tokenizer and chat template are written so that all serving engines read the
same (trueup/exporting/portable.py).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from trueup import runs
from trueup.artifacts.artifact import Artifact
from trueup.artifacts.reports import AlignSchedule, Estimate, RewardCard
from trueup.console import say
from trueup.data.records import IDEALS
from trueup.errors import RunError, writing
from trueup.exporting.portable import make_portable
from trueup.files import sha256_file
from trueup.models.heads import POOLING
from trueup.provenance.commits import in_words
from trueup.runs import FinishedStage
from trueup.stages import campaign_dir, round_of

WHAT = {
    "policy": ("align", "model"),
    "sft": ("sft", "model"),
    "reward": ("reward", "model"),
    "preferences": ("label", None),
}
_PREFERENCE_FILES = ("preferences.jsonl", "ties.jsonl", IDEALS, "rankings.jsonl")
_SETTINGS = (
    *("algorithm", "start", "beta", "rewards", "reward_caution", "ensemble", "kl_coef", "kl_target", "kl_budget"),
    *("learning_rate", "num_train_epochs", "max_steps", "seed"),
)
"""Keys of a stage that the card shows."""
_NOT_ASKED = {"start": ("sft", "random"), "reward_caution": (0.0,), "ensemble": (1,)}
"""Values of some of them that say what every reader takes for granted."""
_TITLES = {
    "policy": "a language model aligned to the preferences of a team",
    "sft": "an instruction-tuned language model (SFT policy)",
    "reward": "a reward model: it scores an answer, higher is preferred",
    "preferences": "preferences over answers of a language model",
}


def export(run_dir: Path, what: str, to: Path, number: int | None = None) -> str:
    """Copy `what` (policy, sft, reward or preferences) to the new folder `to`; returns a sentence on the result.

    number  the round; None: the last that has it
    """
    stage, folder = WHAT[what]
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise RunError(f"{to}: already there and not empty; name a new folder")
    result = runs.open_stage(runs.chosen_round(run_dir, number, stage), stage)
    lineage = _lineage(run_dir, result)

    # Written beside the target and renamed, so that an interrupted export does not look like a whole one.
    working = to.with_name(f"{to.name}.partial")
    shutil.rmtree(working, ignore_errors=True)
    with writing(to):
        working.mkdir(parents=True)
    names = [name for name in _PREFERENCE_FILES if (result.dir / name).exists()] if folder is None else None
    if names is None:
        shutil.copytree(result.dir / str(folder), working, dirs_exist_ok=True)
    for name in names or []:
        shutil.copy2(result.dir / name, working / name)
    _check_copies(result, folder, working)
    if folder:
        for remark in make_portable(working, reward_model=what == "reward"):
            say(f"{'export':<12} {remark}")
    if what == "reward":
        _write_normalisation(result, working / "config.json")
    provenance = {
        "what": what,
        "manifest": result.manifest.plain(),
        "manifest_sha256": result.sha256,
        "made_from": [{"manifest_sha256": parent.sha256, "manifest": parent.manifest.plain()} for parent in lineage],
    }
    _write(working / "provenance.json", json.dumps(provenance, indent=2, ensure_ascii=False) + "\n")
    _write(working / "README.md", _card(run_dir, what, result, lineage))
    for path in working.rglob("*"):
        if path.is_file():
            path.chmod((working / "README.md").stat().st_mode)  # by the umask; safetensors writes files of 0600
    if to.exists():
        to.rmdir()
    working.rename(to)
    size = sum(path.stat().st_size for path in to.rglob("*") if path.is_file())
    return f"{to}: {_title(what, result).partition(':')[0]}, {size / 1e6:.1f} MB, with provenance.json and README.md"


def _title(what: str, result: FinishedStage) -> str:
    untrained = what == "sft" and result.manifest.trained_parameters == 0
    return "a language model that nothing was trained in here (SFT policy)" if untrained else _TITLES[what]


def _lineage(run_dir: Path, result: FinishedStage) -> list[FinishedStage]:
    """All ancestors of a result, nearest first; a RunError if one has changed since."""
    lineage: dict[str, FinishedStage] = {}
    run_dir = campaign_dir(run_dir)
    queue = [result]
    while queue:
        child = queue.pop(0)
        for parent in child.parents:
            stage = runs.find_stage(run_dir, parent.stage)
            if stage is None or stage.sha256 != parent.manifest_sha256:
                raise RunError(
                    f"{runs.stage_dir(run_dir, parent.stage)}: not the {parent.stage} that {child.stage} was "
                    "made from; bring the run up to date with `trueup run CONFIG`, then export"
                )
            if stage.stage not in lineage:
                lineage[stage.stage] = stage
                queue.append(stage)
    return list(lineage.values())


def _check_copies(result: FinishedStage, folder: str | None, working: Path) -> None:
    """A RunError unless every copy has the hash in the manifest."""
    hashes = {entry.path: entry.sha256 for entry in result.manifest.outputs}
    for copy in sorted(path for path in working.rglob("*") if path.is_file()):
        name = str(Path(folder or "") / copy.relative_to(working))
        if hashes.get(name) != sha256_file(copy):
            shutil.rmtree(working)
            raise RunError(f"{result.dir / name}: changed since {result.stage} wrote it; `trueup verify` says more")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


# ---- The card ---------------------------------------------------------------------------------------------------


def _card(run_dir: Path, what: str, result: FinishedStage, lineage: list[FinishedStage]) -> str:
    label = next((stage for stage in [result, *lineage] if stage.manifest.stage == "label"), None)  # all labels so far
    identity = result.manifest.identity
    model = identity.get("base") or identity.get("model")
    base = in_words(model) if model else "unknown"
    of_round = f", round {number}" if (number := round_of(result.run_dir)) > 1 else ""
    lines = [
        f"# {_title(what, result).capitalize()}",
        "",
        f"Exported from the Trueup run `{campaign_dir(run_dir).name}`{of_round}.",
        "",
        "## Made from",
        "",
    ]
    if model and model.get("adapter"):
        base += f" with the adapter {in_words(model, 'adapter', 'adapter_revision')}"
    lines.append(f"- Base model: {base}. Its licence is unknown to Trueup and holds for this copy too: check it.")
    for stage in [result, *lineage]:
        lines.append(f"- {_describe(stage)}")
    if what == "reward":
        lines += ["", "## How to score", "", *_scoring(result)]
    if label:
        lines += ["", "## Labels", "", _labels(label)]
    if "rubric" in result.manifest.identity.get("rewards", {}):
        lines += ["", "## Rewards", "", "SIMULATED: a program's rubric rewarded its answers in training."]
    comparison = runs.find_stage(result.run_dir, "compare")
    if what == "policy":
        lines += ["", "## Is it better?", "", _verdict(comparison, result)]
    lines += [
        "",
        "`provenance.json` has the manifest of every stage, with the hash of each file that it read and wrote.",
        "",
    ]
    return "\n".join(lines)


_SCORING = """```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer, model = AutoTokenizer.from_pretrained(DIR), AutoModelForSequenceClassification.from_pretrained(DIR).eval()
messages = [{"role": "user", "content": "Say red."}, {"role": "assistant", "content": "It is red."}]
score = model(**tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)).logits.item()
```"""


_SCORING_MEAN = """```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer, model = AutoTokenizer.from_pretrained(DIR), AutoModelForSequenceClassification.from_pretrained(DIR).eval()
messages = [{"role": "user", "content": "Say red."}, {"role": "assistant", "content": "It is red."}]
prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=True)["input_ids"]
ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)
hidden = model.base_model(**ids).last_hidden_state[0, len(prompt):]  # of the answer's tokens
score = model.score(hidden.mean(dim=0)).item()
```"""


def _scoring(reward: FinishedStage) -> list[str]:
    """Code that scores an answer, and the meaning of a score."""
    config = reward.dir / "model" / "config.json"
    if config.exists() and POOLING in json.loads(config.read_text(encoding="utf-8")):
        where = (
            "The score is the head on the mean of the answer's hidden states, its end token among them. The output of "
            "`model(...)` reads the last token alone: it is another number, which means nothing."
        )
        lines = [*_SCORING_MEAN.split("\n"), "", where]
    else:
        where = (
            "The score is read at the end token of the answer, which the chat template writes last. Pad on the right."
        )
        lines = [*_SCORING.split("\n"), "", where]
    if not (units := score_units(reward)):
        return [*lines, "", "Its accuracy and the scale of its scores are not known: no labelled prompt was held out."]
    accuracy = units.heldout_accuracy
    value, low, high = (100 * (each or 0.0) for each in (accuracy.value, accuracy.ci_low, accuracy.ci_high))
    return [
        *lines,
        "",
        f"- Held-out accuracy: {value:.1f} % [{low:.1f}, {high:.1f}] of {accuracy.n} pairs.",
        f"- Scores of held-out answers: mean {units.mean:.4f}, standard deviation {units.std:.4f}. "
        "The reward of Trueup's PPO, GRPO and RLOO is (score - mean) / std, less `align.reward_caution` standard "
        "deviations over the heads of an ensemble.",
        f"- The probability that answer A is preferred over B is sigmoid((score(A) - score(B)) / "
        f"{units.temperature:.4f}).",
        "",
        "The same numbers are in `config.json`, under `trueup_reward`.",
    ]


class ScoreUnits(Artifact):
    """Figures for reading a score, in the config.json of an exported reward model."""

    mean: float
    std: float
    temperature: float
    heldout_accuracy: Estimate


def score_units(reward: FinishedStage) -> ScoreUnits | None:
    """Mean, standard deviation, temperature and held-out accuracy of a reward model; None if nothing was held out."""
    card = reward.report(RewardCard)
    if card.accuracy is None or card.normalisation is None or card.calibration is None:
        return None
    return ScoreUnits(
        mean=card.normalisation.mean,
        std=card.normalisation.std,
        temperature=card.calibration.temperature,
        heldout_accuracy=Estimate.model_validate(card.accuracy.model_dump(exclude={"prompts"})),
    )


def _write_normalisation(reward: FinishedStage, config: Path) -> None:
    if config.exists() and (units := score_units(reward)):
        values = json.loads(config.read_text(encoding="utf-8")) | {"trueup_reward": units.plain()}
        _write(config, json.dumps(values, indent=2, ensure_ascii=False, sort_keys=True) + "\n")


def _describe(stage: FinishedStage) -> str:
    manifest = stage.manifest
    identity = manifest.identity
    inputs = ", ".join(
        f"{Path(entry.path).name} ({entry.rows} rows)" if entry.rows else Path(entry.path).name
        for entry in manifest.inputs
    )
    # The report has the values of `auto`.
    schedule = stage.report(AlignSchedule).schedule if manifest.stage == "align" else None
    values = {**identity, **(schedule.plain() if schedule else {})}
    shown = [key for key in _SETTINGS if values.get(key, -1) not in (-1, None, *_NOT_ASKED.get(key, ()))]
    settings = ", ".join(f"{key} {_setting(values[key])}" for key in shown)
    verdict = manifest.verdict.status
    untrained = "nothing was trained" if manifest.trained_parameters == 0 else ""
    details = "; ".join(filter(None, [inputs, settings, untrained, f"verdict {verdict}"]))
    return f"{stage.stage}, {manifest.started_utc[:10]}: {details}"


def _setting(value: Any) -> str:
    """`{rubric: 1.0}` as `1 rubric`, anything else as it is."""
    return " + ".join(f"{weight:g} {name}" for name, weight in value.items()) if isinstance(value, dict) else str(value)


def _labels(label: FinishedStage) -> str:
    counts = label.manifest.labels.by_source if label.manifest.labels else {}
    sources = ", ".join(f"{count} {source}" for source, count in counts.items()) or label.manifest.identity["source"]
    if set(counts or [label.manifest.identity["source"]]) == {"simulated"}:
        return f"{sources}. SIMULATED: a program's rubric made these labels, and no person did."
    return f"{sources}." + (" Some of them are SIMULATED by a program's rubric." if "simulated" in counts else "")


def _verdict(comparison: FinishedStage | None, result: FinishedStage) -> str:
    if comparison is None:
        return "Not known: this run has no comparison with the SFT policy."
    if comparison.manifest.parent_sha256(result.stage) != result.sha256:
        return "Not known: the comparison in this run is about another policy."
    findings = "\n".join(f"- {finding.message}" for finding in comparison.manifest.verdict.findings)
    status = comparison.manifest.verdict.status
    return f"Comparison with the SFT policy on held-out prompts: {status}.\n\n{findings}".rstrip()
