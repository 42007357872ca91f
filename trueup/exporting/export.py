"""`trueup export`: copy a result out of a run, with where it comes from.

The folder stands by itself: the files, `provenance.json` (the stage's manifest and those of all that it was made
from, each with its hash) and `README.md`, which says in a page what this is and how far it can be trusted. Weights are
copied byte by byte; a model's config, tokenizer and chat template are written so that the engines that people serve
with read them alike (trueup/exporting/portable.py).
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
from trueup.errors import RunError
from trueup.exporting.portable import make_portable
from trueup.provenance.contents import sha256_file
from trueup.runs import FinishedStage

WHAT = {
    "policy": ("align", "model"),
    "sft": ("sft", "model"),
    "reward": ("reward", "model"),
    "preferences": ("label", None),
}
_PREFERENCE_FILES = ("preferences.jsonl", "rankings.jsonl")
_SETTINGS = (
    *("algorithm", "beta", "rewards", "kl_coef", "kl_target", "kl_budget", "learning_rate", "num_train_epochs"),
    *("max_steps", "seed"),
)
"""Keys of a stage that the card names."""
_TITLES = {
    "policy": "a language model aligned to the preferences of a team",
    "sft": "an instruction-tuned language model (SFT policy)",
    "reward": "a reward model: it scores an answer, higher is preferred",
    "preferences": "preferences over answers of a language model",
}


def export(run_dir: Path, what: str, to: Path) -> str:
    """Copy `what` (policy, sft, reward or preferences) to the new folder `to`; returns what was done, in a sentence."""
    stage, folder = WHAT[what]
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise RunError(f"{to}: already there and not empty; name a folder that is new")
    made = runs.open_stage(run_dir, stage)
    lineage = _lineage(run_dir, made)

    # Written beside the target and renamed: an interrupted export leaves nothing that looks like one.
    working = to.with_name(f"{to.name}.partial")
    shutil.rmtree(working, ignore_errors=True)
    working.mkdir(parents=True)
    names = [name for name in _PREFERENCE_FILES if (made.dir / name).exists()] if folder is None else None
    if names is None:
        shutil.copytree(made.dir / str(folder), working, dirs_exist_ok=True)
    for name in names or []:
        shutil.copy2(made.dir / name, working / name)
    _check_copies(made, folder, working)
    if folder:
        for known in make_portable(working, reward_model=what == "reward"):
            say(f"{'export':<12} {known}")
    if what == "reward":
        _write_normalisation(made, working / "config.json")
    provenance = {
        "what": what,
        "manifest": made.manifest.plain(),
        "manifest_sha256": made.sha256,
        "made_from": [{"manifest_sha256": parent.sha256, "manifest": parent.manifest.plain()} for parent in lineage],
    }
    _write(working / "provenance.json", json.dumps(provenance, indent=2, ensure_ascii=False) + "\n")
    _write(working / "README.md", _card(run_dir, what, made, lineage))
    for path in working.rglob("*"):
        if path.is_file():
            path.chmod((working / "README.md").stat().st_mode)  # as the umask says; safetensors writes files of 0600
    if to.exists():
        to.rmdir()
    working.rename(to)
    size = sum(path.stat().st_size for path in to.rglob("*") if path.is_file())
    return f"{to}: {_TITLES[what].partition(':')[0]}, {size / 1e6:.1f} MB, with provenance.json and README.md"


def _lineage(run_dir: Path, made: FinishedStage) -> list[FinishedStage]:
    """All stages that it was made from, nearest first; a RunError where one is not the one it was made from."""
    lineage: dict[str, FinishedStage] = {}
    queue = [made]
    while queue:
        child = queue.pop(0)
        for parent in child.manifest.parents:
            found = runs.find_stage(run_dir, parent.stage)
            if found is None or found.sha256 != parent.manifest_sha256:
                raise RunError(
                    f"{runs.stage_dir(run_dir, parent.stage)}: not the {parent.stage} that {child.stage} was "
                    "made from; bring the run up to date with `trueup run CONFIG`, then export"
                )
            if found.stage not in lineage:
                lineage[found.stage] = found
                queue.append(found)
    return list(lineage.values())


def _check_copies(made: FinishedStage, folder: str | None, working: Path) -> None:
    """What is handed on must be what the manifest states."""
    stated = {entry.path: entry.sha256 for entry in made.manifest.outputs}
    for copy in sorted(path for path in working.rglob("*") if path.is_file()):
        name = str(Path(folder or "") / copy.relative_to(working))
        if stated.get(name) != sha256_file(copy):
            shutil.rmtree(working)
            raise RunError(f"{made.dir / name}: changed since {made.stage} wrote it; `trueup verify` says more")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


# ---- The card ---------------------------------------------------------------------------------------------------


def _card(run_dir: Path, what: str, made: FinishedStage, lineage: list[FinishedStage]) -> str:
    stages = {stage.stage: stage for stage in [made, *lineage]}
    base = made.manifest.identity.get("model", {}).get("name", "unknown")
    lines = [
        f"# {_TITLES[what].capitalize()}",
        "",
        f"Exported from the Trueup run `{run_dir.name}`.",
        "",
        "## Made from",
        "",
    ]
    lines.append(f"- Base model: {base}. Its licence is unknown to Trueup and holds for this copy too: check it.")
    for stage in [made, *lineage]:
        lines.append(f"- {_describe(stage)}")
    if what == "reward":
        lines += ["", "## How to score", "", *_scoring(made)]
    if "label" in stages:
        lines += ["", "## Labels", "", _labels(stages["label"])]
    if "rubric" in made.manifest.identity.get("rewards", {}):
        lines += ["", "## Rewards", "", "SIMULATED: a program's rubric paid for its answers while it was trained."]
    compared = runs.find_stage(run_dir, "compare")
    if what == "policy":
        lines += ["", "## Is it better?", "", _verdict(compared, made)]
    lines += [
        "",
        "`provenance.json` holds the manifest of every stage, with the hash of each file that it read and wrote.",
        "",
    ]
    return "\n".join(lines)


_SCORING = """```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer, model = AutoTokenizer.from_pretrained(DIR), AutoModelForSequenceClassification.from_pretrained(DIR).eval()
messages = [{"role": "user", "content": "Say red."}, {"role": "assistant", "content": "It is red."}]
score = model(**tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)).logits.item()
```"""


def _scoring(made: FinishedStage) -> list[str]:
    """The code that scores, and what a score means."""
    lines = [
        *_SCORING.split("\n"),
        "",
        "The score is read at the end token of the answer, which the chat template writes last. Pad on the right.",
    ]
    if not (known := score_units(made)):
        return [
            *lines,
            "",
            "How good it is, and how large its scores are, is not known: no labelled prompt was held out.",
        ]
    accuracy = known.heldout_accuracy
    value, low, high = (100 * (each or 0.0) for each in (accuracy.value, accuracy.ci_low, accuracy.ci_high))
    return [
        *lines,
        "",
        f"- Held-out accuracy: {value:.1f} % [{low:.1f}, {high:.1f}] of {accuracy.n} pairs.",
        f"- Scores of held-out answers: mean {known.mean:.4f}, standard deviation {known.std:.4f}. "
        "(score - mean) / std is what PPO, GRPO and RLOO of Trueup pay.",
        f"- The probability that answer A is preferred over B is sigmoid((score(A) - score(B)) / "
        f"{known.temperature:.4f}).",
        "",
        "The same numbers are in `config.json`, under `trueup_reward`.",
    ]


class ScoreUnits(Artifact):
    """What whoever reads a score needs to know, as it stands in the config.json of an exported reward model."""

    mean: float
    std: float
    temperature: float
    heldout_accuracy: Estimate


def score_units(made: FinishedStage) -> ScoreUnits | None:
    """Mean, standard deviation, temperature and held-out accuracy of a reward model, where something was held out."""
    card = made.report(RewardCard)
    if card.accuracy is None or card.normalisation is None or card.calibration is None:
        return None
    return ScoreUnits(
        mean=card.normalisation.mean,
        std=card.normalisation.std,
        temperature=card.calibration.temperature,
        heldout_accuracy=Estimate.model_validate(card.accuracy.model_dump(exclude={"prompts"})),
    )


def _write_normalisation(made: FinishedStage, config: Path) -> None:
    if config.exists() and (known := score_units(made)):
        values = json.loads(config.read_text(encoding="utf-8")) | {"trueup_reward": known.plain()}
        _write(config, json.dumps(values, indent=2, ensure_ascii=False, sort_keys=True) + "\n")


def _describe(stage: FinishedStage) -> str:
    manifest = stage.manifest
    identity = manifest.identity
    inputs = ", ".join(
        f"{Path(entry.path).name} ({entry.rows} rows)" if entry.rows else Path(entry.path).name
        for entry in manifest.inputs
    )
    # What `auto` stood for is in the report.
    schedule = stage.report(AlignSchedule).schedule if stage.stage == "align" else None
    values = {**identity, **(schedule.plain() if schedule else {})}
    settings = ", ".join(f"{key} {_shown(values[key])}" for key in _SETTINGS if values.get(key, -1) not in (-1, None))
    verdict = manifest.verdict.status
    details = "; ".join(filter(None, [inputs, settings, f"verdict {verdict}"]))
    return f"{stage.stage}, {manifest.started_utc[:10]}: {details}"


def _shown(value: Any) -> str:
    """`{rubric: 1.0}` as `1 rubric`, anything else as it is."""
    return " + ".join(f"{weight:g} {name}" for name, weight in value.items()) if isinstance(value, dict) else str(value)


def _labels(label: FinishedStage) -> str:
    counts = label.manifest.labels.by_source if label.manifest.labels else {}
    sources = ", ".join(f"{count} {source}" for source, count in counts.items()) or label.manifest.identity["source"]
    if set(counts or [label.manifest.identity["source"]]) == {"simulated"}:
        return f"{sources}. SIMULATED: a program's rubric said what is preferred, and no person did."
    return f"{sources}." + (" Some of them are SIMULATED by a program's rubric." if "simulated" in counts else "")


def _verdict(compared: FinishedStage | None, made: FinishedStage) -> str:
    if compared is None:
        return "Not known: it was exported before it was compared with the SFT policy."
    if compared.manifest.parent_sha256(made.stage) != made.sha256:
        return "Not known: the comparison in this run is about another policy."
    findings = "\n".join(f"- {finding.message}" for finding in compared.manifest.verdict.findings)
    status = compared.manifest.verdict.status
    return f"Comparison with the SFT policy on held-out prompts: {status}.\n\n{findings}".rstrip()
