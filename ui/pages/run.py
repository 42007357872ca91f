"""The run page (`/run`, for admins): every stage with its verdict, the lineage of the result, the training curves.

It is plain HTML from the server under the strict policy of the other plain pages. It trusts neither names of files nor
configs. It reads the disk for each request, so it is current while a run continues.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import HTMLResponse
from markupsafe import Markup

from trueup import runs
from trueup.artifacts.manifest import Manifest
from trueup.artifacts.reports import ComparisonFigures, ComparisonVerdict
from trueup.errors import RunError, TrueupError
from trueup.pages.curves import Curve, stage_curves
from trueup.pages.wording import OUTCOMES, duration, sentence
from trueup.provenance.masking import masked
from trueup.runs import FinishedStage
from trueup.stages import campaign_dir, stages_of
from ui.html import plain_page, render
from ui.pages.lineage import draw, lineage
from ui.people.accounts import Admin

Links = Callable[[], list[tuple[str, str]]]
"""(address, title) of the server's other pages about a result."""
_STYLES = ("plots.css", "charts.css", "run.css")


def run_page(run_dir: Path, links: Links) -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.get("/run")
    def show(me: Admin) -> HTMLResponse:
        body = run_html(run_dir, links())
        return plain_page("run", title=campaign_dir(run_dir.resolve()).name, styles=_STYLES, me=me, run_body=body)

    return router


# ---- What is on disk --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StageState:
    """The state of one stage."""

    stage: str
    state: str
    """complete, out of date, unfinished, not run, unreadable."""
    why: str
    """What to do, if anything."""
    finished: FinishedStage | None
    folder: Path


def read_stages(run_dir: Path) -> list[StageState]:
    """All stages of all rounds, by their names in the campaign."""
    run_dir = campaign_dir(run_dir)
    states: list[StageState] = []
    for stage in stages_of(run_dir):
        folder = runs.stage_dir(run_dir, stage)
        try:
            finished = runs.find_stage(run_dir, stage)
        except TrueupError as error:
            states.append(StageState(stage, "unreadable", str(error), None, folder))
            continue
        if finished is None:
            is_begun = (folder / runs.BEGUN).exists()
            why = "at work, or interrupted: the same command continues" if is_begun else ""
            states.append(StageState(stage, "unfinished" if is_begun else "not run", why, None, folder))
            continue
        hashes = {state.stage: state.finished.sha256 for state in states if state.finished}
        changed = [
            parent.stage
            for parent in finished.parents
            if hashes.get(parent.stage, parent.manifest_sha256) != parent.manifest_sha256
        ]
        why = f"{' and '.join(changed)} changed since" if changed else ""
        states.append(StageState(stage, "out of date" if changed else "complete", why, finished, folder))
    return states


def read_verdict(run_dir: Path) -> ComparisonVerdict | str:
    """The verdict of the last round's comparison, or a sentence with the reason why there is none."""
    try:
        report = runs.read_report(runs.newest_round(run_dir, "compare"), "compare", ComparisonFigures)
    except RunError as error:
        return f"No verdict: {error}"
    return report.verdict if report else "No verdict yet: the comparison is not finished."


# ---- The page ---------------------------------------------------------------------------------------------------


def run_html(run_dir: Path, links: Sequence[tuple[str, str]]) -> Markup:
    """The content of the page: the verdict, all stages, the lineage, and each finished stage."""
    states, verdict = read_stages(run_dir), read_verdict(run_dir)
    finished = [state.finished for state in states if state.finished]
    return render(
        "run_body",
        links=links,
        verdict=verdict,
        states=states,
        graph=lineage(finished, None if isinstance(verdict, str) else OUTCOMES[verdict.outcome]),
        sections=[_section(state, campaign_dir(run_dir)) for state in states if state.finished],
        outcomes=OUTCOMES,
        sentence=sentence,
        duration=duration,
        size=_size,
        draw=draw,
    )


@dataclass(frozen=True)
class _Section:
    """The page's section on a finished stage."""

    state: StageState
    manifest: Manifest
    has_report: bool
    has_data: bool
    """Whether the stage wrote a page on what it read."""
    curves: Sequence[Curve]
    facts: list[tuple[str, str]]
    artifacts: list[_Artifact]
    config: str | None


@dataclass(frozen=True)
class _Artifact:
    path: str
    size: int | None
    """Bytes; None: the file is missing."""
    sha256: str


def _section(state: StageState, run_dir: Path) -> _Section:
    assert state.finished is not None
    manifest = state.finished.manifest
    paths = [state.folder / output.path for output in manifest.outputs]
    artifacts = [
        _Artifact(output.path, path.stat().st_size if path.is_file() else None, output.sha256)
        for output, path in zip(manifest.outputs, paths, strict=True)
    ]
    config = state.folder / runs.CONFIG
    return _Section(
        state=state,
        manifest=manifest,
        has_report=(state.folder / "report.html").is_file(),
        has_data=(state.folder / runs.DATA_PAGE).is_file(),
        curves=stage_curves(run_dir, state.stage),
        facts=_facts(state.finished),
        artifacts=artifacts,
        # A stage masks secrets when it writes its config, but a run may have been written by hand.
        config=str(masked(config.read_text(encoding="utf-8"))) if config.is_file() else None,
    )


_FACTS = (
    ("started_utc", "Started"),
    ("seed", "Seed"),
    ("steps", "Steps"),
    ("trained_parameters", "Trained parameters"),
    ("attention", "Attention"),
    ("git_commit", "Code"),
    ("config_sha256", "Config"),
)
_CODE = Markup("<code>{}</code>")


def _facts(finished: FinishedStage) -> list[tuple[str, str]]:
    """(title, text or HTML) of the manifest's other facts, besides the verdict and the artifacts."""
    manifest = finished.manifest
    facts: list[tuple[str, str]] = [("Manifest", _CODE.format(finished.sha256))]
    for key, title in _FACTS:
        value = getattr(manifest, key)
        if value is not None:
            text = f"{value:,}" if isinstance(value, int) and key != "seed" else str(value)
            text = text.replace("T", " ").replace("+00:00", " UTC") if key == "started_utc" else text
            code = key.endswith("sha256") or key == "git_commit"
            facts.append((title, _CODE.format(text) if code else text))
    for file in manifest.inputs:
        dropped = ", ".join(f"{count} {reason}" for reason, count in file.dropped.items())
        rows = f"{file.rows:,} rows used{f'; dropped: {dropped}' if dropped else ''}"
        facts.append(
            (f"Read {Path(file.path).name}", Markup("<code>{}</code><small>{}</small>").format(file.sha256, rows))
        )
    if versions := manifest.versions:
        facts.append(("Versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    return facts


def _size(count: int) -> str:
    """`512 B`, `1.4 MB`."""
    if count < 1000:
        return f"{count} B"
    amount = float(count)
    for unit in ("kB", "MB", "GB", "TB"):
        amount /= 1000
        if amount < 999.5 or unit == "TB":
            break
    return f"{amount:.0f} {unit}" if amount >= 99.5 else f"{amount:.1f} {unit}"
