"""The comparison page: the verdict, the win rates, and both policies' answers side by side.

Reads compare/report.json and compare/samples.jsonl of a run. Not blind: it is for whoever looks at the result.
"""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from trueup.errors import RunError
from trueup.records import Message, read_jsonl
from ui.render import conversation_html, text_html

ALL = "All categories"


class Comparison:
    """What the page shows, read at each look, so that a run which goes on is shown as it is."""

    def __init__(self, folder: Path):
        self.folder = folder

    @property
    def exists(self) -> bool:
        return (self.folder / "report.json").is_file()

    def report(self) -> dict[str, Any]:
        try:
            values = json.loads((self.folder / "report.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"{self.folder / 'report.json'}: cannot be read ({error})") from None
        return values if isinstance(values, dict) else {}

    def findings(self) -> list[dict[str, Any]]:
        """What the stage found, the verdict among it; in its manifest, and so there only when it is finished."""
        try:
            manifest = json.loads((self.folder / "manifest.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return []
        return list(manifest["verdict"]["findings"])

    def samples(self, category: str = ALL) -> list[dict[str, Any]]:
        path = self.folder / "samples.jsonl"
        rows = [row for _, row in read_jsonl(path)] if path.is_file() else []
        return [row for row in rows if category == ALL or (row.get("category") or "none") == category]


# ---- Parts of the page ------------------------------------------------------------------------------------------


def summary_html(report: dict[str, Any], findings: list[dict[str, Any]]) -> str:
    """The verdict line, what else was found, and one row per judge."""
    verdict = report.get("verdict") or {}
    status, line = str(verdict.get("status", "unknown")), str(verdict.get("message", ""))
    others = "".join(
        f"<li>{escape(str(finding['message']))}</li>" for finding in findings if finding["message"] != line
    )
    confidence = f"{100 * float(report.get('confidence', 0.95)):.0f}% interval"
    heads = ("Judge", "Aligned preferred", confidence, "At equal length", "Wins / ties / losses")
    columns = "".join(f'<th scope="col">{head}</th>' for head in heads)
    judges = "".join(_judge_row(name, figures) for name, figures in (report.get("judges") or {}).items())
    return (
        f'<div class="tu tu-page tu-head"><h1>Comparison</h1><div class="tu-verdict {escape(status)}">'
        f"<strong>Verdict: {escape(status)}.</strong> {escape(line)}{f'<ul>{others}</ul>' if others else ''}</div>"
        '<div class="tu-scroll" role="region" aria-label="Win rates" tabindex="0"><table class="tu-figures"><thead><tr>'
        f'{columns}<th scope="col"><span class="tu-hide">Interval drawn</span></th></tr>'
        f"</thead><tbody>{judges}</tbody></table></div></div>"
    )


def _judge_row(name: str, figures: dict[str, Any]) -> str:
    rate = figures.get("win_rate") or {}
    value, low, high = (_percent(rate.get(key)) for key in ("value", "ci_low", "ci_high"))
    if value is None:
        return f'<tr><th scope="row">{escape(name)}</th><td colspan="5">no figures</td></tr>'
    counts = " / ".join(str(rate.get(key, "?")) for key in ("wins", "ties", "losses"))
    controlled = _percent((figures.get("length_controlled_win_rate") or {}).get("value"))
    interval, drawn = "unknown", ""
    if low is not None and high is not None:
        interval = f"{low:.1f}% to {high:.1f}%"
        drawn = (
            '<svg viewBox="0 0 100 10" preserveAspectRatio="none" width="100%" height="14" aria-hidden="true">'
            '<line x1="50" x2="50" y1="0" y2="10" stroke="currentColor" stroke-dasharray="1 1" stroke-width=".5"/>'
            f'<rect x="{low:.2f}" width="{max(high - low, 0.5):.2f}" y="3.5" height="3" rx="1" fill="var(--tu-accent)" '
            f'opacity=".45"/><rect x="{value - 0.5:.2f}" width="1" y="1.5" height="7" fill="var(--tu-accent)"/></svg>'
        )
    return (
        f'<tr><th scope="row">{escape(name)}</th><td>{value:.1f}%</td><td>{interval}</td>'
        f"<td>{'unknown' if controlled is None else f'{controlled:.1f}%'}</td>"
        f'<td>{escape(counts)}</td><td class="tu-bar-cell">{drawn}</td></tr>'
    )


def _percent(share: Any) -> float | None:
    """A report writes null for what is not finite."""
    return None if share is None else 100 * float(share)


def sample_html(samples: list[dict[str, Any]], index: int) -> str:
    """One prompt with the first answer of each policy; further samples below."""
    if not samples:
        return '<div class="tu tu-page tu-body"><p class="tu-empty">No samples to look at.</p></div>'
    row = samples[index]
    prompt = conversation_html([Message(**message) for message in row["prompt"]])
    pairs = "".join(
        f'<div class="tu-pair">{_answer("Reference (SFT)", before)}{_answer("Aligned", after)}</div>'
        for before, after in zip(row.get("reference") or [], row.get("aligned") or [], strict=False)
    )
    return f'<div class="tu tu-page tu-body"><div class="tu-card tu-prompt-card">{prompt}</div>{pairs}</div>'


def _answer(title: str, answer: dict[str, Any]) -> str:
    scores = (answer.get("scores") or {}).items()
    notes = [f"{escape(name)} {float(score):.2f}" for name, score in scores if score is not None]
    if answer.get("finished") is False:
        notes.append("cut at the limit")
    meta = f'<p class="tu-meta">{" · ".join(notes)}</p>' if notes else ""
    text = text_html(str(answer.get("text", "")))
    return f'<article class="tu-card"><h3>{title}</h3><div class="tu-text">{text}</div>{meta}</article>'


# ---- The page ---------------------------------------------------------------------------------------------------


def compare_blocks(comparison: Comparison) -> gr.Blocks:
    """Everything is filled by handlers: what stands in a component at build time is in the page's /config."""

    def look() -> tuple[Any, ...]:
        names = sorted({row.get("category") or "none" for row in comparison.samples()})
        return (
            summary_html(comparison.report(), comparison.findings()),
            gr.Dropdown(choices=[ALL, *names], value=ALL),
            *move(0, ALL),
        )

    def move(index: int, category: str) -> tuple[int, str, str]:
        samples = comparison.samples(category)
        index = index % len(samples) if samples else 0
        position = f"{index + 1} of {len(samples)}" if samples else "0 of 0"
        return index, sample_html(samples, index), f'<p class="tu tu-position" role="status">{position}</p>'

    with gr.Blocks(analytics_enabled=False, title="Comparison · Trueup", fill_width=True) as blocks:
        at = gr.State(0)
        summary = gr.HTML(elem_id="summary")
        with gr.Row(elem_classes="tu-controls", equal_height=True):
            category = gr.Dropdown(choices=[ALL], value=ALL, label="Category", min_width=160, elem_id="category")
            back = gr.Button("Previous", elem_id="previous", min_width=90)
            position = gr.HTML(elem_id="position", min_width=72)
            on = gr.Button("Next", elem_id="next", min_width=90)
        pair = gr.HTML(elem_id="pair")
        shown = [at, pair, position]
        quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        blocks.load(look, None, [summary, category, *shown], **quiet)
        category.input(lambda name: move(0, name), category, shown, **quiet)
        back.click(lambda index, name: move(index - 1, name), [at, category], shown, **quiet)
        on.click(lambda index, name: move(index + 1, name), [at, category], shown, **quiet)
    return blocks


CSS = """
.gradio-container { background: var(--tu-bg); }
.gradio-container .main.fillable { max-width: none !important; padding: 0 !important; }
.gradio-container .html-container { padding: 0 !important; }
.tu-head { padding-bottom: 0.25rem; }
.tu-body { padding-top: 0.25rem; }
.tu-pair + .tu-pair { margin-top: 1rem; }
.tu-hide { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
.tu-controls {
  align-items: end !important; gap: 0.6rem; width: 100%; max-width: 72rem;
  margin: 0 auto; padding: 0 clamp(1rem, 4vw, 2.5rem);
}
.tu-controls > * { flex: 0 0 auto !important; }
.tu-controls > .form { flex: 0 1 15rem !important; border: 0; background: none; box-shadow: none; }
#category { padding: 0 !important; border: 0 !important; background: none !important; }
#category span { color: var(--tu-muted); }
#category .container > .wrap { border: 1px solid var(--tu-edge); background: var(--tu-card); }
.tu-controls > #position { width: auto; min-width: 4.5rem !important; }
.tu-controls button {
  min-height: 44px; padding-inline: 0.8rem;
  border: 1px solid var(--tu-edge); background: var(--tu-card); color: var(--tu-ink);
}
@media (max-width: 480px) { .tu-controls > .form { flex-basis: 100% !important; } }
.tu-position { margin: 0; line-height: 44px !important; text-align: center; font-variant-numeric: tabular-nums; }
"""
