"""HTTP API of labelling, `/api/v1`: typed, and idempotent by client UUID.

The page calls it. A labelling browser gets nothing about an answer but its text. No commit blocks the event loop:
writes take turns on a thread (ui.pages.turns), and reads are plain functions, which FastAPI runs on another.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, lru_cache
from typing import Any, Literal

import sqlalchemy as sa
from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import TypeAdapter

from trueup.console import say
from trueup.data.jsonl import cut
from trueup.data.records import Message
from trueup.errors import TrueupError
from trueup.models.templates.block import inside
from ui.figures import figures as figures_module
from ui.labels.judgements import Scale
from ui.labels.service import LabelService
from ui.labels.tasks import (
    BadJudgement,
    IdealCompletion,
    Judgement,
    Press,
    Recorded,
    Settings,
    StaleToken,
    Task,
    TaskHead,
    Undone,
    Worklist,
)
from ui.labels.votes import VoteFigures, Votes
from ui.pages.render import as_written, conversation_html, text_html
from ui.pages.turns import Busy, Turns
from ui.people.accounts import Admin, Annotator, Person

MOST_PROBLEMS = 10
"""Most problems in the response to one request."""

# ---- What a page adds to the service's own classes --------------------------------------------------------------


@dataclass(frozen=True)
class RenderedText:
    """One completion."""

    html: str
    """Safe HTML."""
    text: str
    reasoning: str
    """What stands before it, in words of a model that reasons; the page shows it folded."""


@dataclass(frozen=True)
class RenderedTask(TaskHead):
    """A task as a page shows it."""

    prompt: str
    """Safe HTML."""
    answers: list[RenderedText]
    """The answers in the order on the page."""


@dataclass(frozen=True)
class PageSettings:
    """The settings of a page over these tasks."""

    scale: Scale
    criteria: tuple[str, ...]
    guideline_html: str
    guideline_line: str
    me: str
    campaign: str
    """A random name, under which a browser stores what it could not send yet."""
    reveals: bool
    """Votes only: each is final, and the response names the policies of its completions."""
    sees_figures: bool
    """Whether this person may see the running win rate of the votes."""


@dataclass(frozen=True)
class Opening(Worklist[RenderedTask]):
    """The first tasks and the settings of a page."""

    settings: PageSettings


@dataclass(frozen=True)
class Saved:
    """A completion was saved."""

    saved: Literal[True] = True


@dataclass(frozen=True)
class Problem:
    """A problem, in a sentence."""

    detail: str


# ---- Routes -----------------------------------------------------------------------------------------------------

_STALE: dict[int | str, dict[str, Any]] = {
    409: {"model": Opening, "description": "not a task that waits for you; nothing was recorded"},
    422: {"model": Problem, "description": "nothing was recorded"},
}


class OneLine(APIRoute):
    """Reports the problems of a request in one line, where FastAPI would send a list."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as error:
                problems = error.errors()
                first_problems, more = problems[:MOST_PROBLEMS], len(problems) - MOST_PROBLEMS
                keys = [(cut(".".join(map(str, one["loc"][1:])), 100), one["msg"]) for one in first_problems]
                lines = [f"{key}: {message}" if key else message for key, message in keys]
                lines += [f"and {more} more problems"] if more > 0 else []
                return _json(Problem("; ".join(lines)), 422)

        return handled


def label_api(service: LabelService) -> APIRouter:
    """The routes over a campaign's labels."""
    return _api("/api/v1", "labels", service.settings, lambda: service)


def vote_api(votes: Votes) -> APIRouter:
    """The same routes over the votes on a comparison, and the running win rate for admins."""
    router = APIRouter()
    router.include_router(_api("/api/v1/votes", "votes", votes.settings, votes.service))

    @router.get("/api/v1/admin/votes", tags=["admin"])
    def figures(who: Admin) -> VoteFigures:
        """The win rate of the aligned policy so far, with its interval over prompts."""
        try:
            return votes.figures()
        except TrueupError as error:
            raise HTTPException(503, str(error)) from None

    return router


@dataclass
class _Desk:
    """The path from a request to the service and back: turns at writing, and responses to failures."""

    prefix: str
    settings: Settings
    open_service: Callable[[], LabelService]
    """Returns the service, or raises a TrueupError while there is none."""
    turns: Turns = field(default_factory=Turns)

    @cached_property
    def guideline_html(self) -> str:
        return text_html(self.settings.guideline)

    def opening(self, who: Person, service: LabelService) -> Opening:
        """The waiting tasks, and the settings of the page."""
        campaign = self.settings
        settings = PageSettings(
            scale=campaign.scale,
            criteria=campaign.criteria,
            guideline_html=self.guideline_html,
            guideline_line=next((line for line in campaign.guideline.splitlines() if line.strip()), "").lstrip("# "),
            me=who.name,
            campaign=service.campaign,
            reveals=campaign.reveal,
            sees_figures=campaign.reveal and who.is_admin,
        )
        return Opening(**vars(_rendered(service.work(who.pseudonym))), settings=settings)

    async def write(self, who: Person, work: Callable[[LabelService], Any]) -> Response:
        """The result of `work` when it is its turn to write, or 503, after which the page sends it again."""
        try:
            return await self.turns.run(lambda: self.answer(who, work))
        except Busy as error:
            return _json(Problem(str(error)), 503, {"Retry-After": "1"})

    def answer(self, who: Person, work: Callable[[LabelService], Any]) -> Response:
        """The result of `work`, or 409 with the waiting tasks, or 422 with the problem."""
        try:
            service = self.open_service()
        except TrueupError as error:
            say(f"{self.prefix}: {error}")  # it may name the run, which annotators must not see
            return _json(Problem("there is nothing to do here yet; where the server was started, it says why"), 503)
        try:
            return _json(work(service))
        except StaleToken:
            return _json(self.opening(who, service), 409)
        except BadJudgement as error:
            return _json(Problem(str(error)[:500]), 422)
        except (TrueupError, sa.exc.OperationalError) as error:  # its disk is full, it is gone, others hold it
            say(f"{self.prefix}: {' '.join(str(getattr(error, 'orig', error)).split())}")
            problem = Problem("nothing was saved; where the server was started, it says why")
            return _json(problem, 503, {"Retry-After": "5"})


def _api(prefix: str, tag: str, settings: Settings, open_service: Callable[[], LabelService]) -> APIRouter:
    """The routes over a service."""
    router, desk = APIRouter(prefix=prefix, tags=[tag], route_class=OneLine), _Desk(prefix, settings, open_service)

    @router.get("/tasks", response_model=Opening)
    async def tasks(who: Annotator) -> Response:
        """Your waiting tasks. They stay yours while you answer, or send a heartbeat."""
        return await desk.write(who, lambda service: desk.opening(who, service))

    @router.post("/labels", response_model=Recorded[RenderedTask], responses=_STALE)
    async def label(judgement: Judgement, who: Annotator) -> Response:
        """Answer a task. The response has the next tasks."""
        return await desk.write(who, lambda service: _rendered(service.label(who.pseudonym, judgement)))

    @router.post("/demonstrations", response_model=Saved, responses=_STALE)
    async def demonstration(ideal: IdealCompletion, who: Annotator) -> Response:
        """Save an ideal answer to the prompt of a task. The task still waits for its label."""

        def work(service: LabelService) -> Saved:
            service.demonstrate(who.pseudonym, ideal)
            return Saved()

        return await desk.write(who, work)

    @router.post("/undo", response_model=Undone[RenderedTask], responses=_STALE)
    async def undo(press: Press, who: Annotator) -> Response:
        """Take back your last answer; it is the first task again."""
        return await desk.write(who, lambda service: _rendered(service.undo(who.pseudonym, press.client_uuid)))

    @router.post("/heartbeat")
    async def heartbeat(who: Annotator) -> Response:
        """Keep your tasks while you read."""

        def work(service: LabelService) -> dict[str, str]:
            service.renew(who.pseudonym)
            return {}

        return await desk.write(who, work)

    @router.get("/mirror")
    def mirror(who: Annotator) -> Response:
        """Your own figures."""
        return desk.answer(who, lambda service: dict(figures_module.mirror(service.store, who.pseudonym)))

    return router


def _rendered(work: Worklist[Task]) -> Worklist[Any]:
    """The worklist with every task rendered."""
    tasks: list[Any] = [_rendered_task(task) for task in work.tasks]
    return replace(work, tasks=tasks)


def _rendered_task(task: Task) -> RenderedTask:
    htmls = [_answer_html(text) for text in task.texts]
    if len(set(htmls)) < len(set(task.texts)):  # the page must show any difference, even one blank
        htmls = [as_written(text) for text in task.texts]
    return RenderedTask(
        **{head.name: getattr(task, head.name) for head in fields(TaskHead)},
        prompt=_prompt_html(tuple((message.role, message.content) for message in task.prompt)),
        answers=[
            RenderedText(html, text, inside(reasoning))
            for html, text, reasoning in zip(htmls, task.texts, task.reasonings, strict=True)
        ],
    )


# Cached: several people see the same answer, and several responses contain it while it waits in a client's buffer.
_answer_html = lru_cache(maxsize=8192)(text_html)


@lru_cache(maxsize=4096)
def _prompt_html(turns: tuple[tuple[Any, str], ...]) -> str:
    return conversation_html([Message(role=role, content=content) for role, content in turns])


_AS_IT_IS = TypeAdapter(Any)


def _json(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON response without validation of every field: `response_model` documents the shape, and tests check it."""
    headers = {"Cache-Control": "no-store", **(headers or {})}
    return Response(_AS_IT_IS.dump_json(body), status, headers, "application/json")
