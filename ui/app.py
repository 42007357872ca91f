"""The web application: labelling, comparison, reports, people. `trueup label CONFIG` and `trueup serve RUN` start it.

    /          the list of pages
    /label     blind comparison of answers (the page talks to /api/v1)
    /vote      the same page over the run's comparison: SFT against aligned, revealed after each vote (/api/v1/votes)
    /compare   the verdict and both policies' answers side by side
    /open      any policy of a run answers any prompt (the page talks to /api/v1/open)
    /admin     the figures of the labels so far, and of annotators
    /run       the stages, where the result comes from, training curves
    /people    accounts and invitations
    /reports/  the report page of each finished stage

ui.people.access has the role for each page. No torch: annotators need none, and the page is there within seconds.
"""

from __future__ import annotations

import socket
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException, Request
from fastapi.exception_handlers import http_exception_handler
from fastapi.responses import FileResponse, HTMLResponse, Response
from fastapi.staticfiles import StaticFiles

from trueup import runs
from trueup.config import read_yaml, validate
from trueup.console import say
from trueup.errors import ConfigError, DataError, RunError, TrueupError
from trueup.files import is_writable
from trueup.stages import address, campaign_dir, is_stage, round_dirs, round_of, stages_of
from ui.figures.agreement import load_libraries
from ui.figures.live import Live
from ui.html import STATIC, not_found, plain_page
from ui.label.run import prepare
from ui.label.sampling import Sampling
from ui.labels.config import LabelConfig
from ui.labels.service import LabelService
from ui.labels.store import Store
from ui.labels.tables import Database
from ui.labels.tasks import Settings
from ui.labels.votes import Votes
from ui.pages.admin import admin_blocks
from ui.pages.admin_api import News, admin_api
from ui.pages.compare import Comparison, compare_blocks
from ui.pages.gradio_shell import mount, scripted
from ui.pages.label_api import label_api, vote_api
from ui.pages.open_api import open_api
from ui.pages.run import run_page
from ui.pages.worker import Worker
from ui.people.accounts import Annotator, People, Person, current
from ui.people.connections import server
from ui.people.guard import REPORT_POLICY, Guard
from ui.people.sign_in import entry, people_page
from ui.people.sites import Site, site

LOAD_AFTER_S = 3.0
"""Seconds after the start, when the first page is there, until the libraries of the admin's page are loaded."""

# ---- Commands ---------------------------------------------------------------------------------------------------


def serve_label(
    config: LabelConfig,
    sampling: Sampling | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    url: str | None = None,
    proxies: Sequence[str] = (),
) -> None:
    """Open the labelling page over the campaign's store, and serve it until interrupted.

    sampling  the sampler that is at work on the answers: the page opens with the first of them
    """
    app = label_app(config, host, url, proxies, sampling)
    _serve(app, host, port, sampling.wait_for_first if sampling else None)


def serve_run(
    run_dir: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    url: str | None = None,
    trust: bool = False,
    proxies: Sequence[str] = (),
    number: int | None = None,
) -> None:
    """Show a run: its comparison, its reports, and its labels if it has a store; serves until interrupted.

    number  the round; None: the last that was compared
    """
    if not any(runs.stage_dir(run_dir, stage).is_dir() for stage in runs.DIRECTORIES):
        raise RunError(f"{run_dir}: not a run directory (no stage folder in it)")
    run_dir = runs.chosen_round(run_dir, number, "compare")
    if not run_dir.is_dir():
        raise RunError(f"{run_dir}: there is no such round")
    if round_of(run_dir) > 1:
        say(f"round {round_of(run_dir)} of {campaign_dir(run_dir)}; --round shows another")
    _serve(run_app(run_dir, host, url, trust, proxies), host, port)


# ---- Applications -----------------------------------------------------------------------------------------------


def label_app(
    config: LabelConfig,
    host: str = "127.0.0.1",
    url: str | None = None,
    proxies: Sequence[str] = (),
    sampling: Sampling | None = None,
) -> FastAPI:
    """The pages over a campaign. They, or the sampling, write its pairs to the store; the labelling page shows them."""
    store = sampling.store if sampling else Store(config.store_url)
    if store.is_copy:
        raise DataError(f"{config.store_url}: is on a medium that cannot be written, so no label could be saved")
    people = People(store)
    where = site(host, url, people, proxies)
    if sampling is None:
        prepare(config, store)
    service = LabelService(store, Settings.of(config))
    if sampling is not None:
        sampling.serve(service)
    return _app(config.run_dir, people, where, service, start="/label", news=sampling.news if sampling else None)


def run_app(
    run_dir: Path,
    host: str = "127.0.0.1",
    url: str | None = None,
    trust: bool = False,
    proxies: Sequence[str] = (),
) -> FastAPI:
    """The pages over a run directory. Its label store, if there is one, has the accounts.

    A run directory is data, which may come from somebody else. Only with `trust` is a database that its config names
    opened, and Python of its model run.
    """
    config = _label_config(run_dir)
    store = _store_of(run_dir, config, trust)
    writable = is_writable(run_dir)
    votes = Votes(run_dir, config) if writable else None
    if not writable:
        say(f"{run_dir} cannot be written: it is shown, and nobody can label or vote on it")
    if store is None:  # sessions need a store; without accounts they may end with the server
        folder = tempfile.TemporaryDirectory(prefix="trueup-")
        people = People(Database(f"sqlite:///{folder.name}/sessions.sqlite"))
        app = _app(run_dir, people, site(host, url, people, proxies), None, start="/", votes=votes)
        app.state.folder = folder
    else:
        people = People(store)
        service = LabelService(store, Settings.of(config)) if config else None
        labels, where = not store.is_copy, site(host, url, people, proxies)
        app = _app(run_dir, people, where, service, start="/", votes=votes, labels=labels)
    if runs.find_stage(run_dir, "sft") is not None:
        app.state.worker = Worker(run_dir, trust)
        app.include_router(open_api(run_dir, app.state.worker))
        mount(app, scripted("open", "Ask the policies"), "/open", ("gradio.css", "open.css"), _pseudonym_of_admin)
    return app


def _label_config(run_dir: Path) -> LabelConfig | None:
    """The label stage's configuration, as the stage wrote it when it last began, in the last round that it is in."""
    folders = [folder for folder in round_dirs(run_dir) if (runs.stage_dir(folder, "label") / runs.CONFIG).is_file()]
    if not folders:
        return None
    run_dir = folders[-1]
    path = runs.stage_dir(run_dir, "label") / runs.CONFIG
    problems: list[str] = []
    values = {**(read_yaml(path).get("label") or {}), "run_dir": run_dir}
    config = validate(LabelConfig, values, path.parent, "label.", problems)
    if config is None:
        raise ConfigError(path, problems)
    return config


def _store_of(run_dir: Path, config: LabelConfig | None, trust: bool) -> Store | None:
    own = runs.stage_dir(campaign_dir(run_dir), "label") / runs.STORE
    if config is not None and config.store is not None:
        if trust:
            return Store(config.store_url)
        say(f"label.store of this run, {config.store}, is not opened: add --trust if the run is your own")
    return Store(f"sqlite:///{own}") if own.is_file() else None


def _app(
    run_dir: Path,
    people: People,
    where: Site,
    service: LabelService | None,
    start: str,
    votes: Votes | None = None,
    labels: bool = True,
    news: News | None = None,
) -> FastAPI:
    """The application; with `labels` off it shows the labels, and nobody can label. Admins see the `news`."""
    app = FastAPI(title="Trueup", openapi_url="/api/v1/openapi.json", docs_url=None, redoc_url=None)
    app.add_middleware(Guard, people=people, site=where)
    app.state.people, app.state.site, app.state.service, app.state.start = people, where, service, start
    app.state.votes, app.state.worker = votes, None
    comparison = Comparison(runs.stage_dir(run_dir, "compare"))
    app.include_router(entry(people, start))
    app.include_router(people_page(people, where.url))
    app.include_router(run_page(run_dir, lambda: _result_pages(app, run_dir, "/run")))
    app.mount("/static", _Static(directory=STATIC))

    @app.get("/", include_in_schema=False)
    def index(who: Annotator) -> HTMLResponse:
        votable = votes is not None and votes.exist
        asks = app.state.worker is not None
        links = _links(
            run_dir,
            who,
            labels=service is not None and labels,
            figures=service is not None,
            votable=votable,
            compares=comparison.exists,
            asks=asks,
        )
        # The name of a run may reveal its model, so annotators do not see it.
        return plain_page(
            "index", title=campaign_dir(run_dir).name if who.is_admin else "Labelling", links=links, me=who
        )

    @app.exception_handler(404)
    async def missing(request: Request, error: HTTPException) -> Response:
        reads = "text/html" in request.headers.get("accept", "")
        return not_found() if reads else await http_exception_handler(request, error)

    @app.get("/favicon.ico", include_in_schema=False)
    def icon() -> FileResponse:
        return FileResponse(STATIC / "icon.svg", media_type="image/svg+xml")

    app.include_router(_written_pages(run_dir))
    if service is not None and labels:
        app.include_router(label_api(service))
        mount(app, scripted("label", "Label"), "/label", ("label.css",), _pseudonym)
    if service is not None:
        live = Live(service.store, run_dir, names=people.names)
        app.include_router(admin_api(live, news))
        mount(
            app, admin_blocks(), "/admin", ("gradio.css", "plots.css", "charts.css", "admin.css"), _pseudonym_of_admin
        )
    if votes is not None:
        app.include_router(vote_api(votes))
        mount(app, scripted("label", "Vote", "votes/"), "/vote", ("label.css",), _pseudonym)
    comparing = compare_blocks(comparison, lambda: _result_pages(app, run_dir, "/compare"))
    mount(app, comparing, "/compare", ("gradio.css", "plots.css", "charts.css", "compare.css"), _pseudonym_of_admin)
    return app


def _written_pages(run_dir: Path) -> APIRouter:
    """The pages that stages wrote into their folders."""
    router = APIRouter(include_in_schema=False)

    def page(stage: str, name: str) -> Response:
        path = runs.stage_dir(campaign_dir(run_dir), stage) / name if is_stage(stage) else None
        if path is None or not path.is_file():
            raise HTTPException(404, "no such report")
        return FileResponse(path, headers={"Content-Security-Policy": REPORT_POLICY})

    @router.get("/reports/{stage:path}/data")
    def data(stage: str) -> Response:
        return page(stage, runs.DATA_PAGE)

    @router.get("/reports/{stage:path}")
    def report(stage: str) -> Response:
        return page(stage, "report.html")

    return router


def _result_pages(app: FastAPI, run_dir: Path, without: str) -> list[tuple[str, str]]:
    """(address, title) of each page about the result, for an admin on the page `without`."""
    mounted = {getattr(route, "path", "") for route in app.routes}
    compared = runs.stage_dir(run_dir, "compare")
    pages = {
        "/compare": ("Comparison", (compared / "report.json").is_file()),
        "/vote": ("Vote blind", "/vote" in mounted),
        "/open": ("Ask the policies", "/open" in mounted),
        "/run": ("Run", True),
        f"/reports/{address(round_of(run_dir), 'compare')}": ("Report", (compared / "report.html").is_file()),
    }
    return [(path, title) for path, (title, there) in pages.items() if there and path != without]


class _Static(StaticFiles):
    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """The file, which browsers check again at each load, so that no page runs scripts of an older version."""
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


def _pseudonym(request: Request) -> str | None:
    person = current(request)
    return person.pseudonym if person else None


def _pseudonym_of_admin(request: Request) -> str | None:
    person = current(request)
    return person.pseudonym if person and person.is_admin else None


# ---- The index --------------------------------------------------------------------------------------------------


def _links(
    run_dir: Path, who: Person, *, labels: bool, figures: bool, votable: bool, compares: bool, asks: bool
) -> list[tuple[str, str, str]]:
    """Address, title and purpose of each page for this person."""
    text = "Before and after alignment: choose the better answer blind, and see its policy after each vote."
    links = [
        (labels, "/label", "Label", "Say which of two answers is better. One key, one label."),
        (votable, "/vote", "Vote", text),
    ]
    if who.is_admin:
        text = "Type a prompt; every policy of the run answers it, side by side, and you see where they depart."
        links += [
            (compares, "/compare/", "Comparison", "Is the aligned policy better, and what do its answers look like?"),
            (asks, "/open/", "Ask the policies", text),
            (
                figures,
                "/admin/",
                "Labels so far",
                "The progress of labelling, people's agreement, and whether more labels are worth their price.",
            ),
            (True, "/run", "Run", "Stages and their verdicts, where the result comes from, training curves."),
            (True, "/people", "People", "Accounts and invitations."),
        ]
        for stage in stages_of(run_dir):
            is_written = (runs.stage_dir(campaign_dir(run_dir), stage) / "report.html").is_file()
            links.append((is_written, f"/reports/{stage}", f"Report of {stage}", "As the stage wrote it."))
            has_data = (runs.stage_dir(campaign_dir(run_dir), stage) / runs.DATA_PAGE).is_file()
            text = "What went in: sources, lengths, kinds, and rows as the model sees them."
            links.append((has_data, f"/reports/{stage}/data", f"Data of {stage}", text))
    return [(address, title, text) for is_there, address, title, text in links if is_there]


# ---- Server -----------------------------------------------------------------------------------------------------


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 takes a free port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Without the protocol's number asyncio leaves Nagle's algorithm on, and every answer waits 40 ms for an ACK.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host.strip("[]"), port))
        bound.listen(128)  # browsers that open the address now wait a moment, and are not refused
    except OverflowError:
        bound.close()
        raise TrueupError(f"--port {port}: expected 0 to 65535") from None
    except OSError as error:
        bound.close()
        raise TrueupError(f"{host}:{port} cannot be bound ({error.strerror}); take another with --port") from None
    return bound


def _serve(app: FastAPI, host: str, port: int, until_ready: Callable[[], None] | None = None) -> None:
    bound = listen(host, port)
    if until_ready is not None:
        until_ready()
    people, where, service = app.state.people, app.state.site, app.state.service
    shown_host = "127.0.0.1" if host in ("localhost", "127.0.0.1") else f"[{host.strip('[]')}]" if ":" in host else host
    here = f"http://{shown_host}:{bound.getsockname()[1]}"
    saved = "; every label is saved the moment it is given" if service is not None else ""
    if people.any_active():
        say(f"people sign in at {where.url or here}{app.state.start}")
    if where.url is None and not where.any_address:
        say(f"open {here}/enter?token={people.link_token()}")
        say(f"this link lets one browser in, once, as the person at this machine (Ctrl-C stops{saved})")
    elif not (where.url or "").startswith("https:"):
        say(
            "warning: passwords cross the network unencrypted; put a proxy with TLS in front, and add --url https://NAME"
        )
    if where.url is not None and not where.proxies:
        say(
            "failed logins through the proxy in front are counted by name alone, because no proxy is named: add "
            "--proxy ADDRESS if it sends X-Forwarded-For (docs/security.md)"
        )
    if service is not None:
        later = threading.Timer(LOAD_AFTER_S, load_libraries)
        later.daemon = True  # Ctrl-C does not wait for it
        later.start()
    try:
        server(app).run(sockets=[bound])
    except KeyboardInterrupt:
        pass
    finally:
        if app.state.worker is not None:
            app.state.worker.close()
        people.store.close()
        if app.state.votes is not None:
            app.state.votes.close()
