"""The policies of a run: the base model, the SFT policy, the aligned one, and the kept steps before it. No torch.

An adapter is a stage's change: SFT's to the base model, alignment's to the policy that it started from, which is the
SFT policy or the last round's (`align.start`). So one base model in memory serves all of them. If a stage left no
adapter, its merged `model/` is loaded as a model of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trueup import runs
from trueup.config import read_yaml, validate
from trueup.errors import ConfigError
from trueup.models.config import ModelConfig
from trueup.models.sources.low_rank import SETTINGS, more_than_linear
from trueup.runs import CONFIG, FinishedStage
from trueup.stages import STAGES, is_stage, load_object, round_of

if TYPE_CHECKING:
    from trueup.models.loading import SavedPolicy

ADAPTER = "adapter"
"""Folder of a stage's adapter, beside the merged model. It lets several policies share one base in memory."""
REFERENCE = "sft"
"""The policy that every other one is compared with."""


@dataclass(frozen=True)
class PolicyInfo:
    """A policy, as weights on disk."""

    name: str
    """`base`, `sft`, `aligned`, `step-<N>`."""
    title: str
    model: Path | None
    """Directory of the weights under the adapters; None: the base model as the campaign names it."""
    adapters: tuple[Path, ...] = ()
    """All are active, and their changes add up."""
    note: str | None = None
    """Why it is not an adapter on the base model, if it is none."""


def find_policies(run_dir: Path) -> list[PolicyInfo]:
    """The policies of a run whose SFT stage is finished, in the order in which they were trained."""
    sft = runs.open_stage(run_dir, "sft")
    base = PolicyInfo("base", "Base", None)
    reference = _after(base, sft.dir, "sft", "SFT")
    first = [base, reference]
    if is_the_base(sft):
        reference = PolicyInfo("sft", "SFT", sft.dir / "model", note="the model as it came: nothing was trained")
        first = [reference]
    align = runs.find_stage(run_dir, "align")
    if align is None:
        return first
    steps = sorted((align.dir / "steps").glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))
    start = _start(align, reference)
    algorithm = str(align.manifest.identity.get("algorithm", ""))
    by = f" ({algorithm.upper()})" if algorithm and algorithm in load_object(STAGES["align"].config) else ""
    if start is None:  # nothing is left for the steps to be relative to
        note = "its own weights: the policy that it started from was made again since"
        return [*first, PolicyInfo("aligned", f"Aligned{by}", align.dir / "model", note=note)]
    on_the_way = [_adapted(start, path, path.name, path.name.replace("step-", "Step ")) for path in steps]
    return [*first, *on_the_way, _after(start, align.dir, "aligned", f"Aligned{by}")]


def _start(align: FinishedStage, reference: PolicyInfo) -> PolicyInfo | None:
    """The policy that an alignment started from: `reference`, or what the last round made of it. None where it is no
    longer what it was."""
    before = start_of(align)
    if before is None:
        return None if align.manifest.parent_sha256(start_name(align)) else reference
    if before.manifest.stage == "sft":
        return reference
    number = round_of(before.run_dir)
    name, title = f"round-{number}", f"Round {number}"
    start = _start(before, reference)
    if start is None:
        return PolicyInfo(name, title, before.dir / "model", note="its own weights: what it started from changed since")
    return _after(start, before.dir, name, title)


def start_name(align: FinishedStage) -> str:
    """The stage that made the policy that an alignment started from, as seen from its round: `sft`, or
    `round-1/align`."""
    names = (parent.stage for parent in align.manifest.parents if is_stage(parent.stage))
    return next((name for name in names if name.endswith("/align")), "sft")


def start_of(align: FinishedStage) -> FinishedStage | None:
    """This stage, or None where it is no longer what it was."""
    name = start_name(align)
    start = runs.find_stage(align.run_dir, name)
    return start if start and start.sha256 == align.manifest.parent_sha256(name) else None


def aligned(align: FinishedStage) -> SavedPolicy:
    """The policy that an alignment made, on the policy that it started from where that is still there."""
    from trueup.models.loading import SavedPolicy

    start = start_of(align)
    return SavedPolicy.of_stage(align.dir, start.dir / "model" if start else None)


def is_the_base(sft: FinishedStage) -> bool:
    """Whether the SFT policy is the base model itself, so that the two are shown and sampled once."""
    return sft.manifest.trained_parameters == 0 and not (sft.dir / ADAPTER).is_dir()


NOT_TRAINED = "not_trained"
"""Code of the finding in which an SFT stage that trained nothing says what its policy is."""


def origin(run_dir: Path) -> str | None:
    """A sentence on the SFT policy of a run in which SFT trained nothing (`sft: none`); None for any other run."""
    sft = runs.find_stage(run_dir, "sft")
    findings = sft.manifest.verdict.findings if sft else []
    return next((finding.message for finding in findings if finding.code == NOT_TRAINED), None)


def _after(before: PolicyInfo, stage: Path, name: str, title: str) -> PolicyInfo:
    """The policy that a stage trained from the one before."""
    file = stage / ADAPTER / SETTINGS
    if not file.is_file():
        return PolicyInfo(name, title, stage / "model", note="its own weights: no adapter was saved")
    more = more_than_linear(stage / ADAPTER)
    if more is None:
        return _adapted(before, stage / ADAPTER, name, title)
    what = "changes more than linear modules by low rank"
    if more.startswith("trainable_token_indices"):  # rows of the embeddings, which it replaces
        what = "trains new tokens"
    return PolicyInfo(name, title, stage / "model", note=f"its own weights: its adapter {what}")


def _adapted(before: PolicyInfo, adapter: Path, name: str, title: str) -> PolicyInfo:
    note = None if before.model is None else f"an adapter on the weights of {before.title}"
    return PolicyInfo(name, title, before.model, (*before.adapters, adapter), note)


def model_config(run_dir: Path, trust: bool) -> ModelConfig:
    """The campaign's `model` section, as the SFT stage wrote it.

    trust  the run is one's own. Otherwise it is data, and settings that would run code of the model or of a hub
           (`trust_remote_code`, an attention kernel by name) are ignored.
    """
    config = _model_section(run_dir, "sft", "model") or ModelConfig()
    return config if trust else _as_data(config)


def reward_model_config(run_dir: Path, policy: ModelConfig, trust: bool = True) -> ModelConfig:
    """How the run's reward model is loaded: as its own base's section says, if it has one, else as the policy is."""
    config = _model_section(run_dir, "reward", "base")
    if config is None:
        return policy
    return config if trust else _as_data(config)


def _model_section(run_dir: Path, stage: str, key: str) -> ModelConfig | None:
    """A section of a stage's resolved config that describes a model; None if there is none."""
    path = runs.open_stage(run_dir, stage).dir / CONFIG
    problems: list[str] = []
    values = (read_yaml(path).get(stage) or {}).get(key)
    if not values:
        return None
    config = validate(ModelConfig, values, path.parent, f"{stage}.{key}.", problems)
    if config is None:
        raise ConfigError(path, problems)
    return config if key == "model" else config.of_section(f"{stage}.{key}")


def _as_data(config: ModelConfig) -> ModelConfig:
    return config.model_copy(update={"trust_remote_code": False, "attn_implementation": "auto"})


def versions(run_dir: Path) -> tuple[str, ...]:
    """Hashes of the stages whose weights may be in memory; they change when one of them was run again."""
    stages = [runs.find_stage(run_dir, stage) for stage in ("sft", "reward", "align")]
    while (align := stages[-1]) is not None and align.manifest.stage == "align":
        stages.append(start_of(align))
    return tuple(stage.sha256 if stage else "" for stage in stages)
