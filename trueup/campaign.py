"""A campaign: one file, its stages, and the plan of what must run.

The stages are listed in `trueup.stages`. With `rounds: 3` all but SFT are there three times: a further round samples
the policy that the one before it aligned, and its labels are all labels so far. A stage is stale when its resolved
config, an input file, a parent's result or an output has changed since its manifest was written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from trueup import runs
from trueup.config import (
    Problems,
    RunDirectory,
    Section,
    Seed,
    SplitConfig,
    StageConfig,
    Stages,
    read_yaml,
    set_key,
    validate,
)
from trueup.errors import ConfigError, did_you_mean
from trueup.files import Json
from trueup.models.config import ModelConfig
from trueup.provenance import commits, contents, inputs
from trueup.provenance.commits import HubId
from trueup.stages import OF_EVERY_ROUND, ROUNDS, STAGES, address, campaign_dir, load_object, round_of

AT_THE_TOP = ("model", "split", "run_dir")
"""Keys that all stages share. They stand at the top of the file, never in a stage's section."""


class CampaignConfig(Section):
    """The keys at the top of a campaign file, beside its stages."""

    name: str
    """Name of the campaign."""
    run_dir: RunDirectory | None = None
    """Folder of the results, relative to the working directory. Empty: `runs/<name>`."""
    seed: Seed = 0
    """Seed of every stage that sets none of its own."""
    rounds: int = Field(1, ge=1, le=ROUNDS)
    """Rounds of labels and alignment. A further round samples the policy that the last one aligned, asks about the
    pairs that its reward model leaves open, and trains on all labels so far. To add a round later, raise this
    number."""
    labels_per_round: int | None = Field(None, ge=1)
    """Labels of each round, in place of `label.target_labels`. Empty: as that key says."""
    launch: Literal["ddp"] | None = None
    """How the stages that train run on several processes: `ddp` gives each a whole copy of the model and a share of
    every batch, and adds up their gradients (torch's DistributedDataParallel, started by accelerate). Empty: on one."""
    processes: int | None = Field(None, ge=2)
    """Number of processes that `launch` starts on this machine. Empty: one for each GPU."""
    model: ModelConfig = ModelConfig()
    """The base model, for all stages."""
    split: SplitConfig = SplitConfig()
    """Which prompts are held out, for all stages."""

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, value: str) -> str:
        if not value.strip() or value.startswith(("/", "~")) or ".." in Path(value).parts or not value.isprintable():
            raise ValueError(f"{value!r} cannot name a folder in runs/; write a plain name, and give a path as run_dir")
        return value

    @model_validator(mode="after")
    def _launches_processes(self) -> CampaignConfig:
        if self.processes and not self.launch:
            raise Problems(["processes: only launch reads it, and launch is empty: write launch: ddp, or leave it out"])
        return self

    @model_validator(mode="after")
    def _is_no_round(self) -> CampaignConfig:
        if round_of(self.run_dir or Path(self.name)) > 1:
            raise ValueError(f"{self.run_dir or self.name}: names like round-2 are those of rounds within a run")
        return self


@dataclass(frozen=True)
class Campaign:
    """A campaign file, resolved: every stage knows its whole configuration."""

    source: Path
    values: Json
    """The file's content with `--set` applied; enough to load the campaign again in a stage's process."""
    config: CampaignConfig
    run_dir: Path
    stages: Stages
    """By their names: those of further rounds are `round-2/sample`, ... In the order in which they can run."""
    hub_ids_by_stage: Mapping[str, list[HubId]]
    """The hub ids that each stage reads, at the branches or tags that the file names. In `stages` they are at the
    commits that the run stays at."""

    @property
    def width(self) -> int:
        """Characters of the longest name of a stage, for columns."""
        return max(8, *map(len, self.stages))

    def not_shared(self, number: int, stages: Iterable[str]) -> list[str]:
        """What keeps so many processes from training these of its stages."""
        return not_shared({stage: self.stages[stage] for stage in stages}, number)

    def launched(self, stage: str) -> str:
        """What the plan says of the processes that a stage runs on; empty for a stage that runs on one."""
        if not self.config.launch or not self.stages[stage].trains:
            return ""
        number = self.config.processes or "as many"
        return f"{self.config.launch} on {number} processes{'' if self.config.processes else ' as there are GPUs'}"

    def needed(self, target: str | None = None) -> list[str]:
        """`target` and the stages that it needs, in order; without a target, all that lead to the verdicts of all
        rounds.

        target  its name, such as `round-2/align`
        A campaign with labels always has a reward model, since its report measures the labels.
        """
        rounds = range(1, self.config.rounds + 1)
        stages = self._with_parents({target} if target else {address(number, "compare") for number in rounds})
        labelled = [number for number in rounds if address(number, "label") in stages]
        if target is None:
            stages = self._with_parents({*stages, *(address(number, "reward") for number in labelled)})
        return [stage for stage in self.stages if stage in stages]

    def in_round(self, stage: str, number: int | None) -> StageConfig:
        """A stage of a round, by default of the last."""
        if (number or 1) > self.config.rounds:
            raise ConfigError(self.source, [f"rounds: there is no round {number} (found {self.config.rounds})"])
        return self.stages[address(number or self.config.rounds, stage)]

    def at_work(self, stage: str, number: int | None = None) -> StageConfig:
        """A stage of a round, by default of the first in which it is not finished, or else of the last."""
        rounds = [number] if number else range(1, self.config.rounds + 1)
        every = [self.in_round(stage, one) for one in rounds]
        return next((one for one in every if runs.find_stage(one.run_dir, stage) is None), every[-1])

    def hub_ids(self, stages: Iterable[str]) -> list[HubId]:
        """The hub ids that these stages read, as the file names them."""
        hub_ids = [hub_id for stage in stages for hub_id in self.hub_ids_by_stage[stage]]
        return [replace(hub_id, beside=self.source.parent) for hub_id in dict.fromkeys(hub_ids)]

    def at(self, hub_id: HubId, commit: str) -> Campaign:
        """The same campaign with a hub id at this commit."""
        return resolve(self.source, _at(self.values, {hub_id: commit}))

    def _with_parents(self, stages: set[str]) -> set[str]:
        for stage in reversed(list(self.stages)):
            if stage in stages:
                stages = stages.union(self.stages[stage].parent_names())
        return stages


def load_campaign(path: Path, overrides: list[str] | None = None) -> Campaign:
    """Read and check a campaign file; a ConfigError lists all of its problems."""
    values = read_yaml(path)
    for assignment in overrides or []:
        set_key(values, assignment)
    return resolve(path, values)


def resolve(source: Path, values: Json) -> Campaign:
    """A campaign from the content of its file, with each hub id at the commit that the run stays at, if it has one."""
    campaign = _as_written(source, values)
    hub_ids = campaign.hub_ids(campaign.stages)
    kept = {hub_id: commit for hub_id in hub_ids if (commit := commits.of_run(campaign.run_dir, hub_id))}
    if not kept:
        return campaign
    return replace(_as_written(source, _at(values, kept)), values=values, hub_ids_by_stage=campaign.hub_ids_by_stage)


def _at(values: Json, kept: Mapping[HubId, str]) -> Json:
    """The content of a campaign file with hub ids at these commits."""
    values = dict(values)
    for hub_id, commit in kept.items():
        set_key(values, f"{_where(values, hub_id.revision_key)}='{hub_id.at(commit).revision_text}'")
    return values


def _where(values: Json, key: str) -> str:
    """A key as the campaign file has it: within the section of the chosen algorithm, if it stands there."""
    stage, _, within = key.partition(".")
    section = values.get(stage)
    schema = load_object(STAGES[stage].config) if stage in STAGES else None
    if not isinstance(schema, dict) or not isinstance(section, dict):
        return key
    algorithm = section.get("algorithm", next(iter(schema)))
    own = section.get(algorithm)
    return f"{stage}.{algorithm}.{within}" if isinstance(own, dict) and within.partition(".")[0] in own else key


def _as_written(source: Path, values: Json) -> Campaign:
    """A campaign from the content of its file, with the branches and tags that stand there."""
    problems: list[str] = []
    base = source.parent
    sections = {stage: values.get(stage) for stage in STAGES}
    shared = {key: value for key, value in values.items() if key not in STAGES}
    for key in [key for key in shared if key not in CampaignConfig.model_fields]:
        problems.append(f"{key}: unknown key{did_you_mean(str(key), [*CampaignConfig.model_fields, *STAGES])}")
        del shared[key]
    config = validate(CampaignConfig, shared, base, "", problems)
    # If the top of the file is broken, the stages are still checked, with default values for it.
    top = config or CampaignConfig(name="unnamed")
    run_dir = top.run_dir or Path("runs") / top.name

    stages: dict[str, StageConfig] = {}
    for stage, section in sections.items():
        shared_keys = {key: getattr(top, key) for key in ("model", "split", "seed")}
        schema, section = _schema(stage, section, {**shared_keys, "run_dir": run_dir}, base, problems)
        if schema is None:
            continue
        misplaced = [key for key in AT_THE_TOP if key in section]
        for key in misplaced:
            instead = (
                f"; a base of this stage's own is {stage}.base"
                if key == "model" and "base" in schema.model_fields
                else ""
            )
            problems.append(f"{stage}.{key}: belongs at the top of the file, where all stages share it{instead}")
        section = {key: value for key, value in section.items() if key not in misplaced}
        if stage == "label" and top.labels_per_round:
            if "target_labels" in section:
                problems.append(
                    "label.target_labels: labels_per_round, at the top of the file, says it; keep one of them"
                )
            section["target_labels"] = top.labels_per_round
        stage_config = validate(schema, {**shared_keys, **section, "run_dir": run_dir}, base, f"{stage}.", problems)
        if stage_config is not None:
            stages[stage] = stage_config
    if problems or config is None:
        raise ConfigError(source, problems)
    stages = {stage: stage_config.completed(stages) for stage, stage_config in stages.items()}
    problems = [line for stage_config in stages.values() for line in stage_config.conflicts(stages)]
    if top.rounds > 1 and getattr(stages["label"], "source", None) == "import":
        problems.append(
            "rounds: a further round asks about answers of the aligned policy, and label.source asks nobody"
        )
    if top.rounds == 1:
        problems += [
            f"{stage}.{key}: only further rounds read it, and rounds is 1: leave it out, or raise rounds"
            for stage, stage_config in stages.items()
            for key in sorted(stage_config.further_keys & stage_config.model_fields_set)
        ]
    if top.launch and top.processes:
        problems += not_shared(stages, top.processes)
    if top.labels_per_round and getattr(stages["label"], "source", None) == "import":
        problems.append("labels_per_round: all labels of the file count, and label.source asks nobody: leave it out")
    if problems:
        raise ConfigError(source, problems)
    stages |= {
        address(number, stage): stages[stage].in_round(number)
        for number in range(2, top.rounds + 1)
        for stage in OF_EVERY_ROUND
    }
    hub_ids_by_stage = {stage: stage_config.hub_ids() for stage, stage_config in stages.items()}
    return Campaign(source, values, top, run_dir, stages, hub_ids_by_stage)


def not_shared(stages: Stages, number: int) -> list[str]:
    """What keeps so many processes from training these stages together, each with its key."""
    return [
        f"{config.stage}.{key}: {problem}"
        for config in stages.values()
        for key, problem in config.not_shared(number).items()
    ]


def _schema(
    stage: str, section: object, defaults: Mapping[str, object], base: Path, problems: list[str]
) -> tuple[type[StageConfig] | None, Json]:
    """The stage's schema, and its keys. If the schema is a choice of algorithms, a section within the section may hold
    the keys of one. They count if that algorithm is chosen, and are always checked, so that one file serves several. A
    key in both places is an error, since `--set` of the outer one would have no effect."""
    none = STAGES[stage].none
    if none and section in (None, "none"):
        return load_object(none), {}
    section = {} if section is None else section
    if not isinstance(section, dict):
        problems.append(f"{stage}: must be a section of keys{', or none' if none else ''} (found {section!r})")
        return None, {}
    schema = load_object(STAGES[stage].config)
    if not isinstance(schema, dict):
        return schema, section
    algorithm = section.get("algorithm", next(iter(schema)))
    own = {name: section[name] or {} for name in schema if name in section}
    keys = {key: value for key, value in section.items() if key not in own}
    sound = True
    for name, within in own.items():
        if not isinstance(within, dict):
            problems.append(f"{stage}.{name}: must be a section of keys (found {within!r})")
            sound = False
            continue
        shared = {key: value for key, value in keys.items() if key in schema[name].model_fields and key != "algorithm"}
        for key in within.keys() & shared.keys():
            problems.append(f"{stage}.{key}: is also in {stage}.{name}; keep one of them")
        lines: list[str] = []
        validate(schema[name], {**defaults, **shared, **within}, base, f"{stage}.{name}.", lines)
        # A problem of a shared key is reported once, under the shared key.
        lines = [line for line in lines if not any(line.startswith(f"{stage}.{name}.{key}") for key in shared)]
        problems += lines
        sound &= not lines
    if algorithm not in schema:
        problems.append(f"{stage}.algorithm: unknown {algorithm!r}{did_you_mean(str(algorithm), list(schema))}")
        return None, keys
    return (schema[algorithm], {**keys, **own.get(algorithm, {})}) if sound else (None, keys)


# ---- Plan -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlannedStage:
    """The plan for one stage, with the reason."""

    stage: str
    action: Literal["keep", "run", "resume"]
    reason: str


def plan(
    campaign: Campaign, target: str | None = None, force: tuple[str, ...] = (), only: tuple[str, ...] | None = None
) -> list[PlannedStage]:
    """The plan of `trueup run` for each stage that `target` needs; with `only`, for these stages alone."""
    steps: list[PlannedStage] = []
    will_run: set[str] = set()
    for stage in only or campaign.needed(target):
        config = campaign.stages[stage]
        rerun_parents = [parent for parent in config.parent_names() if parent in will_run]
        reason = why_stale(config)
        if stage in force:
            steps.append(PlannedStage(stage, "run", "asked for"))
        elif reason is None and rerun_parents:
            steps.append(PlannedStage(stage, "run", f"{' and '.join(rerun_parents)} will be new"))
        elif reason is None:
            result = runs.open_stage(config.run_dir, config.stage)
            steps.append(
                PlannedStage(
                    stage,
                    "keep",
                    f"up to date ({result.manifest.duration_s:.0f} s, {result.manifest.started_utc[:16]} UTC)",
                )
            )
            continue
        else:
            resumable = not rerun_parents and runs.resumable(config)
            steps.append(
                PlannedStage(stage, "resume" if resumable else "run", "interrupted, continues" if resumable else reason)
            )
        will_run.add(stage)
    return steps


def why_stale(config: StageConfig) -> str | None:
    """The reason why a stage's result is stale; None if it is up to date."""
    result = runs.find_stage(config.run_dir, config.stage)
    if result is None:
        return "not run yet" if not runs.stage_dir(config.run_dir, config.stage).exists() else "unfinished"
    manifest = result.manifest
    if lines := changed_keys(manifest.identity, config.identity()):
        # Another algorithm has other keys, and so has `none`, so its name is reason enough.
        return next((line for line in lines if line.startswith(("algorithm: ", "none: "))), "; ".join(lines))
    for path, before in zip(config.input_paths(), manifest.inputs, strict=False):
        if reason := inputs.why_changed(path, before.sha256, before.files):
            return reason
    if len(config.input_paths()) != len(manifest.inputs):
        return "the config names other input files"
    for parent in result.parents:
        parent_result = runs.find_stage(campaign_dir(config.run_dir), parent.stage)
        if parent_result is None or parent_result.sha256 != parent.manifest_sha256:
            return f"{parent.stage} has changed"
    if lines := contents.changed(manifest.contents, config.contents()):  # before outputs, which may be links to them
        return "; ".join(lines)
    for output in manifest.outputs:
        try:
            if contents.sha256_remembered(result.dir / output.path) != output.sha256:
                return f"its {output.path} has changed since"
        except OSError:
            return f"its {output.path} is missing"
    if lines := changed_keys(manifest.fingerprint, config.fingerprint()):
        return "; ".join(lines)
    return None


def changed_keys(before: Any, now: Any, prefix: str = "") -> list[str]:
    """`key: old -> new` for every difference between two plain configurations."""
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            line
            for key in sorted({*before, *now})
            for line in changed_keys(before.get(key), now.get(key), f"{prefix}.{key}" if prefix else key)
        ]
    return [] if before == now else [f"{prefix}: {before!r} -> {now!r}"]
