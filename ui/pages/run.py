"""The run page (`/run`, for admins): every stage with its verdict, where the result comes from, how training went.

Plain HTML from the server under the strict policy of the other plain pages; nothing on it is trusted, neither names of
files nor what a config says. It reads what is on disk at each look, so a run that goes on is shown as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from trueup import runs
from trueup.artifacts.manifest import Manifest
from trueup.artifacts.reports import ComparisonFigures, ComparisonVerdict
from trueup.errors import RunError, TrueupError
from trueup.pages.curves import Curve, stage_curves
from trueup.pages.wording import OUTCOMES, duration, sentence
from trueup.provenance.masking import masked
from trueup.runs import FinishedStage
from ui.html import PLAIN_POLICY
from ui.pages.lineage import Graph, draw, lineage
from ui.people.accounts import Admin
from ui.people.sign_in import page, signed_in

Links = Callable[[], list[tuple[str, str]]]
"""(address, title) of the other pages that this server has for a result."""


def run_page(run_dir: Path, links: Links) -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.get("/run")
    def show(me: Admin) -> HTMLResponse:
        body = run_html(run_dir, links()) + signed_in(me.name)
        headers = {"Content-Security-Policy": PLAIN_POLICY, "Cache-Control": "no-store"}
        return HTMLResponse(page(run_dir.resolve().name, body, styles=("run.css",)), headers=headers)

    return router


# ---- What is on disk --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StageState:
    """A stage of the sequence as it stands."""

    stage: str
    state: str
    """complete, out of date, unfinished, not run, unreadable."""
    why: str
    """What to do, where something is to be done."""
    found: FinishedStage | None
    folder: Path


def read_stages(run_dir: Path) -> list[StageState]:
    states: list[StageState] = []
    for stage in runs.DIRECTORIES:
        folder = runs.stage_dir(run_dir, stage)
        try:
            found = runs.find_stage(run_dir, stage)
        except TrueupError as error:
            states.append(StageState(stage, "unreadable", str(error), None, folder))
            continue
        if found is None:
            begun = (folder / runs.BEGUN).exists()
            why = "at work, or interrupted: the same command goes on" if begun else ""
            states.append(StageState(stage, "unfinished" if begun else "not run", why, None, folder))
            continue
        known = {state.stage: state.found.sha256 for state in states if state.found}
        changed = [
            parent.stage
            for parent in found.manifest.parents
            if known.get(parent.stage, parent.manifest_sha256) != parent.manifest_sha256
        ]
        why = f"{' and '.join(changed)} made anew since" if changed else ""
        states.append(StageState(stage, "out of date" if changed else "complete", why, found, folder))
    return states


def read_verdict(run_dir: Path) -> ComparisonVerdict | str:
    """The verdict of the comparison, or a sentence on why there is none."""
    try:
        report = runs.read_report(run_dir, "compare", ComparisonFigures)
    except RunError as error:
        return f"No verdict: {error}"
    return report.verdict if report else "No verdict yet: the comparison is not finished."


# ---- The page ---------------------------------------------------------------------------------------------------


def run_html(run_dir: Path, links: Sequence[tuple[str, str]]) -> str:
    states, verdict = read_stages(run_dir), read_verdict(run_dir)
    finished = [state.found for state in states if state.found]
    graph = lineage(finished, None if isinstance(verdict, str) else OUTCOMES[verdict.outcome])
    parts = [
        _nav(links),
        _verdict(verdict),
        f'<section aria-labelledby="stages"><h2 id="stages">Stages</h2>{_stages_table(states)}</section>',
        _lineage(graph) if graph.nodes else "",
        *(_stage(state, run_dir) for state in states if state.found),
    ]
    return "".join(parts)


def _nav(links: Sequence[tuple[str, str]]) -> str:
    others = "".join(f'<li><a href="{escape(href)}">{escape(title)}</a></li>' for href, title in links)
    return f'<nav class="tu-nav" aria-label="Pages"><ul><li><a href="/">Start</a></li>{others}</ul></nav>'


def _verdict(verdict: ComparisonVerdict | str) -> str:
    if isinstance(verdict, str):
        return f'<div class="tu-verdict"><p class="tu-message">{escape(verdict)}</p></div>'
    label, tone = OUTCOMES[verdict.outcome]
    prices = "".join(f"<li>{escape(price)}</li>" for price in verdict.prices)
    return (
        f'<div class="tu-verdict {escape(tone)}"><span class="tu-eyebrow">Verdict</span>'
        f'<p class="tu-outcome">{escape(label)}</p><p class="tu-message">'
        f"{escape(sentence(verdict))}</p>{f'<ul>{prices}</ul>' if prices else ''}</div>"
    )


def _stages_table(states: Sequence[StageState]) -> str:
    rows = []
    for state in states:
        if state.found is None:
            rows.append(
                f'<tr class="absent"><th scope="row">{state.stage}</th><td>{state.state}'
                f"{_small(state.why)}</td><td></td><td></td><td></td><td></td></tr>"
            )
            continue
        manifest = state.found.manifest
        status = manifest.verdict.status
        count = len(manifest.verdict.findings)
        told = _small(f"{count} {'finding' if count == 1 else 'findings'}" if count else "")
        rate = manifest.tokens_per_s
        rows.append(
            f'<tr><th scope="row"><a href="#stage-{state.stage}">{state.stage}</a></th>'
            f"<td>{state.state}{_small(state.why)}</td><td>{_badge(status)}{told}</td>"
            f'<td class="number">{duration(manifest.duration_s)}</td>'
            f'<td class="number">{f"{rate:,.0f}" if rate else "–"}</td><td>{escape(_device(manifest))}</td></tr>'
        )
    heads = '<th scope="col">Stage</th><th scope="col">State</th><th scope="col">Verdict</th>'
    heads += '<th scope="col" class="number">Time</th><th scope="col" class="number">Tokens/s</th>'
    return _table("Table of stages", f'{heads}<th scope="col">Device</th>', "".join(rows))


def _lineage(graph: Graph) -> str:
    rows = []
    for node in graph.nodes:
        if node.kind == "file":
            continue
        made_from = "<br>".join(
            f"{escape(source.title)} <code>{escape(source.detail)}</code>{' <b>changed since</b>' if broken else ''}"
            for source, broken in graph.sources(node.id)
        )
        mark = escape(node.detail) if node.kind == "verdict" else f"<code>{escape(node.detail)}</code>"
        rows.append(f'<tr><th scope="row">{escape(node.title)}</th><td>{mark}</td><td>{made_from or "–"}</td></tr>')
    heads = '<th scope="col">Result</th><th scope="col">SHA-256</th><th scope="col">Made from</th>'
    return (
        '<section aria-labelledby="lineage"><h2 id="lineage">From data to verdict</h2>'
        '<p class="tu-lead">Each result names what it was made from by SHA-256, shortened here; <code>trueup verify'
        "</code> recomputes them all.</p>"
        f'<div class="tu-lineage">{draw(graph, True)}{draw(graph, False)}</div>'
        f'<details class="tu-more"><summary>As a table</summary>{_table("Lineage", heads, "".join(rows))}</details>'
        "</section>"
    )


def _stage(state: StageState, run_dir: Path) -> str:
    assert state.found is not None
    manifest = state.found.manifest
    findings = "".join(
        f"<li>{_badge(finding.level)} <span>{escape(finding.message)}</span></li>"
        for finding in manifest.verdict.findings
    )
    found = f'<ul class="tu-findings">{findings}</ul>' if findings else ""
    stale = f'<p class="tu-note">{escape(state.why)}</p>' if state.why else ""
    has_report = (state.folder / "report.html").is_file()
    report = f'<p><a href="/reports/{state.stage}">Report of {state.stage}</a></p>' if has_report else ""
    return (
        f'<section aria-labelledby="stage-{state.stage}"><h2 id="stage-{state.stage}">{state.stage} '
        f"{_badge(manifest.verdict.status)}</h2>{stale}{found}{report}"
        f"{_curves(stage_curves(run_dir, state.stage))}{_facts(state.found)}{_artifacts(state.found)}{_config(state)}"
        "</section>"
    )


def _curves(curves: Sequence[Curve]) -> str:
    figures = []
    for curve in curves:
        keys = "".join(
            f'<span class="key {escape(line.style)}">{escape(line.name)}</span>'
            for line in (curve.series if len(curve.series) > 1 else [])
        )
        notes = "".join(
            f'<li class="{note.level}"><b>{note.level.title()}.</b> {escape(note.text)}'
            f"{f' <cite>{escape(note.source)}</cite>' if note.source else ''}</li>"
            for note in curve.notes
        )
        figures.append(
            f"<figure><figcaption><b>{escape(curve.title)}</b>{keys}</figcaption>{curve.svg}"
            f'<p class="tu-how">{escape(curve.how)}</p>{f"<ul class=tu-notes>{notes}</ul>" if notes else ""}</figure>'
        )
    return f'<div class="tu-curves">{"".join(figures)}</div>' if figures else ""


_FACTS = (
    ("started_utc", "Started"),
    ("seed", "Seed"),
    ("steps", "Steps"),
    ("trained_parameters", "Trained parameters"),
    ("attention", "Attention"),
    ("git_commit", "Code"),
    ("config_sha256", "Config"),
)


def _facts(found: FinishedStage) -> str:
    manifest = found.manifest
    facts = [("Manifest", f"<code>{found.sha256}</code>")]
    for key, title in _FACTS:
        value = getattr(manifest, key)
        if value is not None:
            text = f"{value:,}" if isinstance(value, int) and key != "seed" else str(value)
            text = text.replace("T", " ").replace("+00:00", " UTC") if key == "started_utc" else text
            code = key.endswith("sha256") or key == "git_commit"
            facts.append((title, f"<code>{escape(text)}</code>" if code else escape(text)))
    for read in manifest.inputs:
        dropped = ", ".join(f"{count} {reason}" for reason, count in read.dropped.items())
        told = f"{read.rows:,} rows used{f'; dropped: {dropped}' if dropped else ''}"
        facts.append((f"Read {Path(read.path).name}", f"<code>{escape(read.sha256)}</code>{_small(told)}"))
    if versions := manifest.versions:
        facts.append(("Versions", escape(", ".join(f"{name} {version}" for name, version in versions.items()))))
    rows = "".join(f"<div><dt>{escape(title)}</dt><dd>{value}</dd></div>" for title, value in facts)
    return f'<details class="tu-more"><summary>Facts</summary><dl class="tu-facts">{rows}</dl></details>'


def _artifacts(found: FinishedStage) -> str:
    rows, total = [], 0
    outputs = found.manifest.outputs
    for output in outputs:
        path = found.dir / output.path
        size = path.stat().st_size if path.is_file() else None
        total += size or 0
        shown = _size(size) if size is not None else '<span class="tu-badge fail">missing</span>'
        rows.append(
            f'<tr><th scope="row">{escape(output.path)}</th><td class="number">{shown}</td>'
            f"<td><code>{escape(output.sha256)}</code></td></tr>"
        )
    heads = '<th scope="col">File</th><th scope="col" class="number">Size</th><th scope="col">SHA-256</th>'
    count = f"{len(outputs)} {'artifact' if len(outputs) == 1 else 'artifacts'}, {_size(total)}"
    table = _table(f"Artifacts of {found.stage}", heads, "".join(rows))
    return f'<details class="tu-more"><summary>{count}</summary>{table}</details>'


def _config(state: StageState) -> str:
    path = state.folder / runs.CONFIG
    if not path.is_file():
        return ""
    text = str(masked(path.read_text(encoding="utf-8")))  # a run may have been written by hand
    return (
        '<details class="tu-more"><summary>Config</summary>'
        f'<pre tabindex="0" aria-label="Config of {state.stage}"><code>{escape(text)}</code></pre></details>'
    )


# ---- Small parts ------------------------------------------------------------------------------------------------


def _table(label: str, heads: str, rows: str) -> str:
    return (
        f'<div class="tu-scroll" role="region" aria-label="{escape(label)}" tabindex="0"><table class="tu-figures">'
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _badge(status: str) -> str:
    return f'<span class="tu-badge {escape(status)}">{escape(status)}</span>'


def _small(text: str) -> str:
    return f"<small>{escape(text)}</small>" if text else ""


def _device(manifest: Manifest) -> str:
    return ", ".join(filter(None, (manifest.device, manifest.dtype)))


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
