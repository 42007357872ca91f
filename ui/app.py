"""The web application: labelling, comparison, reports. `trueup label CONFIG` and `trueup serve RUN` start it.

    /          what there is
    /label     blind comparison of two answers (the pages talk to /api/v1)
    /compare   the verdict and both policies' answers side by side
    /reports/  the report page of each finished stage

No torch: annotators need none, and the page is there within seconds.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import webbrowser
from html import escape
from pathlib import Path

# Before gradio is imported: it would look for a newer version of itself, and count who uses it.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
import uvicorn
from fastapi import FastAPI
from fastapi.responses import FileResponse, HTMLResponse, Response

from trueup import runs
from trueup.console import say
from trueup.errors import RunError, TrueupError
from ui import sources
from ui.api import label_api
from ui.compare_page import CSS as COMPARE_CSS
from ui.compare_page import Comparison, compare_blocks
from ui.config import LabelConfig
from ui.guard import REPORT_POLICY, Guard, require_loopback
from ui.label import read_candidates
from ui.service import LabelService
from ui.store import Store

STATIC = Path(__file__).parent / "static"
SYSTEM_FONT = ["ui-sans-serif", "system-ui", "sans-serif"]
SYSTEM_MONO = ["ui-monospace", "monospace"]

# ---- Commands ---------------------------------------------------------------------------------------------------


def serve_label(
    config: LabelConfig,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    open_browser: bool = False,
    annotator: str = "local",
) -> None:
    """Open the labelling page over the campaign's store, and serve it until interrupted."""
    require_loopback(host)
    app = label_app(config, annotator=annotator)
    progress = app.state.service.store.progress(annotator)
    say(f"label store {config.store_url}: {progress.labelled} of {progress.total} pairs labelled")
    _serve(app, host, port, "/label", open_browser)


def serve_run(run_dir: Path, *, host: str = "127.0.0.1", port: int = 7860, open_browser: bool = False) -> None:
    """Show a run: its comparison and its reports; serves until interrupted."""
    require_loopback(host)
    if not any(runs.stage_dir(run_dir, stage).is_dir() for stage in runs.DIRECTORIES):
        raise RunError(f"{run_dir}: not a run directory (no stage folder in it)")
    _serve(run_app(run_dir), host, port, "/", open_browser)


# ---- Applications -----------------------------------------------------------------------------------------------


def label_app(config: LabelConfig, annotator: str = "local") -> FastAPI:
    """The pages over a campaign: its pairs are put into the store, and the labelling page works through them."""
    store = Store(config.store_url)
    sources.ask_people(store, sources.material(config, read_candidates(config)))
    app = run_app(config.run_dir, LabelService(store, config.guideline))
    app.state.annotator = annotator
    return app


def run_app(run_dir: Path, service: LabelService | None = None) -> FastAPI:
    """The pages over a run directory; with a service, the labelling page among them."""
    app = FastAPI(title="Trueup", docs_url=None, redoc_url=None)
    app.add_middleware(Guard)
    comparison = Comparison(runs.stage_dir(run_dir, "compare"))
    app.state.service = service

    @app.get("/", include_in_schema=False)
    def index() -> HTMLResponse:
        return HTMLResponse(_index_html(run_dir, service is not None, comparison.exists))

    @app.get("/favicon.ico", include_in_schema=False)
    def icon() -> FileResponse:
        return FileResponse(STATIC / "icon.svg", media_type="image/svg+xml")

    @app.get("/reports/{stage}", include_in_schema=False)
    def report(stage: str) -> Response:
        path = runs.stage_dir(run_dir, stage) / "report.html" if stage in runs.DIRECTORIES else None
        if path is None or not path.is_file():
            return HTMLResponse("No such report.", status_code=404)
        return FileResponse(path, headers={"Content-Security-Policy": REPORT_POLICY})

    if service is not None:
        app.include_router(label_api(service))
        _mount(app, _label_blocks(), "/label", _css("trueup.css", "label.css"))
    _mount(app, compare_blocks(comparison), "/compare", _css("trueup.css") + COMPARE_CSS)
    return app


def _mount(app: FastAPI, blocks: gr.Blocks, path: str, css: str) -> None:
    theme = gr.themes.Base(font=SYSTEM_FONT, font_mono=SYSTEM_MONO, primary_hue="blue", neutral_hue="stone")
    gr.mount_gradio_app(
        app,
        blocks,
        path,
        theme=theme,
        css=css,
        run_history=False,
        footer_links=[],
        ssr_mode=False,
        show_error=False,
        pwa=False,
        enable_monitoring=False,
        mcp_server=False,
    )


def _label_blocks() -> gr.Blocks:
    """One component without a value: what it shows comes over the API, never in the page's /config."""
    with gr.Blocks(analytics_enabled=False, title="Label · Trueup", fill_width=True) as blocks:
        gr.HTML(
            html_template=(STATIC / "label.html").read_text(encoding="utf-8"),
            js_on_load=(STATIC / "label.js").read_text(encoding="utf-8"),
            apply_default_css=False,
        )
    return blocks


def _css(*names: str) -> str:
    return "\n".join((STATIC / name).read_text(encoding="utf-8") for name in names)


def _index_html(run_dir: Path, labels: bool, compares: bool) -> str:
    links = []
    if labels:
        links.append(("/label", "Label", "Say which of two answers is better. One key, one label."))
    if compares:
        links.append(("/compare/", "Comparison", "Is the aligned policy better, and what do its answers look like?"))
    for stage in runs.DIRECTORIES:
        if (runs.stage_dir(run_dir, stage) / "report.html").is_file():
            links.append((f"/reports/{stage}", f"Report of {stage}", "As the stage wrote it."))
    items = "".join(
        f'<li><a href="{href}"><strong>{escape(title)}</strong><span>{escape(text)}</span></a></li>'
        for href, title, text in links
    )
    found = f'<ul class="tu-links">{items}</ul>' if items else '<p class="tu-empty">Nothing is finished yet.</p>'
    dark = "matchMedia('(prefers-color-scheme: dark)').matches && document.body.classList.add('dark')"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width, initial-scale=1"><title>{escape(run_dir.name)} · Trueup</title>'
        f"<style>body {{ margin: 0 }} {_css('trueup.css')}</style></head><body><script>{dark}</script>"
        f'<main class="tu tu-page"><h1>{escape(run_dir.name)}</h1><p class="tu-lead">A Trueup campaign.</p>{found}'
        "</main></body></html>"
    )


# ---- Server -----------------------------------------------------------------------------------------------------


def listen(host: str, port: int) -> socket.socket:
    """A bound socket, before anything is announced; port 0 takes a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host.strip("[]"), port))
        bound.listen(128)  # whoever opens the address now waits a moment, and is not turned away
    except OSError as error:
        bound.close()
        raise TrueupError(f"{host}:{port} cannot be bound ({error.strerror}); take another with --port") from None
    return bound


def server(app: FastAPI) -> uvicorn.Server:
    """One process: Gradio keeps its sessions in memory, and SQLite has one writer."""
    logging.getLogger("uvicorn.error").addFilter(_not_a_closed_page)
    return uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))


def _not_a_closed_page(record: logging.LogRecord) -> bool:
    """Leaves out of the server's log that Ctrl-C ended the heartbeat of a page which is still open."""
    cancelled = record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not (cancelled or "timeout graceful shutdown exceeded" in str(record.msg))


def _serve(app: FastAPI, host: str, port: int, path: str, open_browser: bool) -> None:
    bound = listen(host, port)
    shown = "127.0.0.1" if host in ("localhost", "127.0.0.1") else f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{bound.getsockname()[1]}{path}"
    saved = "; every label is saved the moment it is given" if app.state.service is not None else ""
    say(f"open {url}   (Ctrl-C stops{saved})")
    if open_browser:
        threading.Timer(1.0, webbrowser.open, [url]).start()
    try:
        server(app).run(sockets=[bound])
    except KeyboardInterrupt:
        pass
    finally:
        if app.state.service is not None:
            app.state.service.store.close()
