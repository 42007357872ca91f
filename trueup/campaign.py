"""A campaign: one file, its stages, what is up to date and what must run.

Which stages there are stands in `trueup.stages`. A stage is stale when its resolved config, an input file, a parent's
result or an output has changed since its manifest was written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator

from trueup import runs
from trueup.config import (
    ModelConfig,
    RunDirectory,
    Section,
    Seed,
    SplitConfig,
    StageConfig,
    read_yaml,
    set_key,
    validate,
)
from trueup.errors import ConfigError, did_you_mean
from trueup.provenance import contents
from trueup.provenance.contents import sha256_file
from trueup.stages import STAGES, load_object

AT_THE_TOP = ("model", "split", "run_dir")
"""Keys that all stages share: they stand at the top of the file, and in no stage's section."""


class CampaignConfig(Section):
    """The keys at the top of a campaign file, beside its stages."""

    name: str
    """Name of the campaign."""
    run_dir: RunDirectory | None = None
    """Folder of the results, relative to the working directory. Empty: `runs/<name>`."""
    seed: Seed = 0
    """Seed of every stage that sets none of its own."""
    model: ModelConfig = ModelConfig()
    """The base model, for all stages."""
    split: SplitConfig = SplitConfig()
    """Which prompts are held out, for all stages."""

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, value: str) -> str:
        if not value.strip() or value.startswith(("/", "~")) or ".." in Path(value).parts or not value.isprintable():
            raise ValueError(f"{value!r} cannot name a folder in runs/; write a plain name, and a path as run_dir")
        return value


@dataclass(frozen=True)
class Campaign:
    """A campaign file, resolved: every stage knows its whole configuration."""

    source: Path
    values: dict[str, Any]
    """The file's content with `--set` applied; enough to load the campaign again in a stage's process."""
    config: CampaignConfig
    run_dir: Path
    stages: Mapping[str, StageConfig]

    def needed(self, target: str | None = None) -> list[str]:
        """`target` and the stages that it needs, in order; without a target, all that lead to the verdict.

        Where labels lead to it, so does a reward model, even if nothing asks it: its report says what they are worth.
        """
        wanted = self._with_parents({target or "compare"})
        if target is None and "label" in wanted:
            wanted = self._with_parents({*wanted, "reward"})
        return [stage for stage in STAGES if stage in wanted]

    def _with_parents(self, wanted: set[str]) -> set[str]:
        for stage in reversed(STAGES):
            if stage in wanted:
                wanted = wanted.union(self.stages[stage].parents())
        return wanted


def load_campaign(path: Path, overrides: list[str] | None = None) -> Campaign:
    """Read and check a campaign file; a ConfigError lists all of its problems."""
    values = read_yaml(path)
    for assignment in overrides or []:
        set_key(values, assignment)
    return resolve(path, values)


def resolve(source: Path, values: dict[str, Any]) -> Campaign:
    """A campaign from the content of its file."""
    problems: list[str] = []
    base = source.parent
    sections = {stage: values.get(stage) or {} for stage in STAGES}
    shared = {key: value for key, value in values.items() if key not in STAGES}
    for key in [key for key in shared if key not in CampaignConfig.model_fields]:
        problems.append(f"{key}: unknown key{did_you_mean(str(key), [*CampaignConfig.model_fields, *STAGES])}")
        del shared[key]
    config = validate(CampaignConfig, shared, base, "", problems)
    # With a broken top, the stages are still checked, with what a sound top would give them.
    top = config or CampaignConfig(name="unnamed")
    run_dir = top.run_dir or Path("runs") / top.name

    stages: dict[str, StageConfig] = {}
    for stage, section in sections.items():
        if not isinstance(section, dict):
            problems.append(f"{stage}: a section of keys is wanted, found {section!r}")
            continue
        shared_keys = {key: getattr(top, key) for key in ("model", "split", "seed")}
        schema, section = _schema(stage, section, {**shared_keys, "run_dir": run_dir}, base, problems)
        if schema is None:
            continue
        given: dict[str, Any] = {key: value for key, value in shared_keys.items() if key in schema.model_fields}
        misplaced = [key for key in AT_THE_TOP if key in section]
        for key in misplaced:
            problems.append(f"{stage}.{key}: belongs at the top of the file, where all stages share it")
        section = {key: value for key, value in section.items() if key not in misplaced}
        stage_config = validate(schema, {**given, **section, "run_dir": run_dir}, base, f"{stage}.", problems)
        if stage_config is not None:
            stages[stage] = stage_config
    if problems or config is None:
        raise ConfigError(source, problems)
    stages = {stage: stage_config.completed(stages) for stage, stage_config in stages.items()}
    return Campaign(source, values, config, run_dir, stages)


def _schema(
    stage: str, section: dict[str, Any], given: dict[str, Any], base: Path, problems: list[str]
) -> tuple[type[StageConfig] | None, dict[str, Any]]:
    """The stage's schema, and its keys. Where the schema is a choice, a section within the section may hold the keys of
    one algorithm: they count where that is chosen, and are checked either way, so that one file serves several. A key
    that stands in both places is an error, or `--set` of the outer one would be without effect."""
    schema = load_object(STAGES[stage].config)
    if not isinstance(schema, dict):
        return schema, section
    chosen = section.get("algorithm", next(iter(schema)))
    own = {name: section[name] or {} for name in schema if name in section}
    keys = {key: value for key, value in section.items() if key not in own}
    sound = True
    for name, within in own.items():
        if not isinstance(within, dict):
            problems.append(f"{stage}.{name}: a section of keys is wanted, found {within!r}")
            sound = False
            continue
        shared = {key: value for key, value in keys.items() if key in schema[name].model_fields and key != "algorithm"}
        for key in within.keys() & shared.keys():
            problems.append(f"{stage}.{key}: stands in {stage}.{name} too; keep one of them")
        found: list[str] = []
        validate(schema[name], {**given, **shared, **within}, base, f"{stage}.{name}.", found)
        # What is wrong with a shared key is told once, as what it is.
        found = [line for line in found if not any(line.startswith(f"{stage}.{name}.{key}") for key in shared)]
        problems += found
        sound &= not found
    if chosen not in schema:
        problems.append(f"{stage}.algorithm: unknown {chosen!r}{did_you_mean(str(chosen), list(schema))}")
        return None, keys
    return (schema[chosen], {**keys, **own.get(chosen, {})}) if sound else (None, keys)


# ---- Plan -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlannedStage:
    """What a run will do with a stage, and why."""

    stage: str
    action: Literal["keep", "run", "resume"]
    reason: str


def plan(
    campaign: Campaign, target: str | None = None, force: tuple[str, ...] = (), only: tuple[str, ...] | None = None
) -> list[PlannedStage]:
    """What `trueup run` will do for each stage that `target` needs, and why; with `only`, for no others than these."""
    steps: list[PlannedStage] = []
    will_run: set[str] = set()
    for stage in only or campaign.needed(target):
        config = campaign.stages[stage]
        redone = [parent for parent in config.parents() if parent in will_run]
        reason = why_stale(config)
        if stage in force:
            steps.append(PlannedStage(stage, "run", "asked for"))
        elif reason is None and redone:
            steps.append(PlannedStage(stage, "run", f"{' and '.join(redone)} will be new"))
        elif reason is None:
            found = runs.open_stage(config.run_dir, stage)
            steps.append(
                PlannedStage(
                    stage,
                    "keep",
                    f"up to date ({found.manifest.duration_s:.0f} s, {found.manifest.started_utc[:16]} UTC)",
                )
            )
            continue
        else:
            resumable = not redone and runs.resumable(config)
            steps.append(
                PlannedStage(stage, "resume" if resumable else "run", "interrupted, continues" if resumable else reason)
            )
        will_run.add(stage)
    return steps


def why_stale(config: StageConfig) -> str | None:
    """Why a stage's result does not stand, or None if it does."""
    found = runs.find_stage(config.run_dir, config.stage)
    if found is None:
        return "not run yet" if not runs.stage_dir(config.run_dir, config.stage).exists() else "unfinished"
    manifest = found.manifest
    if changed := changed_keys(manifest.identity, config.identity()):
        # Another algorithm has other keys; that it is another one says it all.
        return next((line for line in changed if line.startswith("algorithm: ")), "; ".join(changed))
    recorded = [entry.sha256 for entry in manifest.inputs]
    for path, before in zip(config.input_paths(), recorded, strict=False):
        if not path.is_file():
            return f"{path} is missing"
        if sha256_file(path) != before:
            return f"{path} has changed"
    if len(config.input_paths()) != len(recorded):
        return "other input files are named"
    for parent in manifest.parents:
        made = runs.find_stage(config.run_dir, parent.stage)
        if made is None or made.sha256 != parent.manifest_sha256:
            return f"{parent.stage} has changed"
    for output in manifest.outputs:
        try:
            if contents.sha256_remembered(found.dir / output.path) != output.sha256:
                return f"its {output.path} has changed since"
        except OSError:
            return f"its {output.path} is missing"
    if changed := contents.changed(manifest.contents, config.contents()):
        return "; ".join(changed)
    if changed := changed_keys(manifest.fingerprint, config.fingerprint()):
        return "; ".join(changed)
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
