"""HTTP API of labelling, `/api/v1`: typed, and idempotent by client UUID.

Called by the page. What it returns is all that a labelling browser ever gets to know about an answer: its text.
No commit holds up the event loop: what writes takes its turn on a thread (ui.pages.turns), and what reads is a plain
function, which FastAPI runs on another.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from functools import lru_cache
from typing import Any, Literal, TypeVar

import sqlalchemy as sa
from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field

from trueup.console import say
from trueup.data.jsonl import cut
from trueup.data.records import Message
from trueup.errors import TrueupError
from trueup.judging.votes import Policy
from ui.figures import figures as figures_module
from ui.labels.judgements import Tiers
from ui.labels.service import Answer, BadAnswer, LabelService, Settings, StaleToken, State, Task, Work
from ui.labels.votes import Votes
from ui.pages.render import as_written, conversation_html, text_html
from ui.pages.turns import Busy, Turns
from ui.people.accounts import Admin, Annotator, Person

T = TypeVar("T")
MOST_PROBLEMS = 10
"""So many problems of one request are told."""

# ---- What goes out ----------------------------------------------------------------------------------------------


class AnswerBody(BaseModel):
    html: str
    """Rendered and safe."""
    text: str


class TaskBody(BaseModel):
    token: str
    prompt: str
    """HTML, rendered and safe."""
    answers: list[AnswerBody]
    """In the order in which they are to be shown."""
    wants_rationale: bool
    practice: bool


class PracticeBody(BaseModel):
    done: int
    total: int
    right: int


class ProgressBody(BaseModel):
    mine: int
    skipped: int
    left: int
    practice: PracticeBody | None


class WorkBody(BaseModel):
    tasks: list[TaskBody]
    progress: ProgressBody
    state: State


class SettingsBody(BaseModel):
    scale: Literal["plain", "graded"]
    criteria: list[str]
    guideline_html: str
    guideline_line: str
    me: str
    campaign: str
    """A random name: what a browser could not send yet belongs to this campaign."""
    reveals: bool
    """Votes: each is final, and answered with whose answers they were."""
    sees_figures: bool
    """Of votes: whether you may ask for the running win rate."""


class TasksBody(WorkBody):
    settings: SettingsBody


class SaidBody(BaseModel):
    client_uuid: str
    kind: Literal["label", "skip", "flag", "late"]
    choice: str | None
    order: Tiers | None


class FeedbackBody(BaseModel):
    right: bool
    best: Literal["a", "b", "tie"] | Tiers
    explanation: str | None


class RevealBody(BaseModel):
    a: Policy
    b: Policy


class RecordedBody(WorkBody):
    label: SaidBody
    feedback: FeedbackBody | None
    reveal: RevealBody | None


class UndoneBody(WorkBody):
    undone: bool


class SavedBody(BaseModel):
    saved: Literal[True] = True


class Problem(BaseModel):
    detail: str


# ---- What comes in ----------------------------------------------------------------------------------------------


class Press(BaseModel):
    model_config = ConfigDict(extra="forbid")

    client_uuid: str = Field(min_length=8, max_length=64)
    """Drawn by the client for each press; the same one again is the same press."""


class LabelBody(Press):
    token: str = Field(max_length=64)
    choice: str | None = Field(None, max_length=16)
    order: Tiers | None = Field(None, max_length=100)
    note: str | None = None
    criteria: dict[str, Literal["a", "b", "tie"]] | None = None
    seconds: float | None = None
    device: Literal["key", "click", "touch", "api"] = "api"


class DemonstrationBody(Press):
    token: str = Field(max_length=64)
    text: str


# ---- Routes -----------------------------------------------------------------------------------------------------

_STALE: dict[int | str, dict[str, Any]] = {
    409: {"model": TasksBody, "description": "not a task that waits for you; nothing was recorded"},
    422: {"model": Problem, "description": "nothing was recorded"},
}


class OneLine(APIRoute):
    """Says in one line what is wrong with a request, where FastAPI would say it as a list."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as error:
                found = error.errors()
                keys = [(cut(".".join(map(str, one["loc"][1:])), 100), one["msg"]) for one in found[:MOST_PROBLEMS]]
                more = [f"and {len(found) - MOST_PROBLEMS} more problems"] if len(found) > MOST_PROBLEMS else []
                lines = [f"{key}: {message}" if key else message for key, message in keys] + more
                return _json({"detail": "; ".join(lines)}, 422)

        return handled


def label_api(service: LabelService) -> APIRouter:
    """The routes over a campaign's labels."""
    return _api("/api/v1", "labels", service.settings, lambda: service)


def vote_api(votes: Votes) -> APIRouter:
    """The same routes over the votes on a comparison, and the running win rate for admins."""
    router = APIRouter()
    router.include_router(_api("/api/v1/votes", "votes", votes.settings, votes.service))

    @router.get("/api/v1/admin/votes", tags=["admin"])
    def figures(who: Admin) -> dict[str, Any]:
        """The win rate of the aligned policy so far, with its interval over prompts."""
        try:
            return votes.figures()
        except TrueupError as error:
            raise HTTPException(503, str(error)) from None

    return router


def _api(prefix: str, tag: str, given: Settings, opened: Callable[[], LabelService]) -> APIRouter:
    """The routes over a service. `opened` gives it, or a TrueupError while there is none."""
    router, turns = APIRouter(prefix=prefix, tags=[tag], route_class=OneLine), Turns()
    guideline_html = text_html(given.guideline)
    guideline_line = next((line for line in given.guideline.splitlines() if line.strip()), "").lstrip("# ")

    def everything(who: Person, service: LabelService) -> dict[str, Any]:
        settings = {
            "scale": given.scale,
            "criteria": list(given.criteria),
            "guideline_html": guideline_html,
            "guideline_line": guideline_line,
            "me": who.name,
            "campaign": service.campaign,
            "reveals": given.reveal,
            "sees_figures": given.reveal and who.is_admin,
        }
        return {**_work(service.work(who.pseudonym)), "settings": settings}

    async def written(who: Person, work: Callable[[LabelService], dict[str, Any]]) -> Response:
        """The answer of `work` when it is its turn to write, or 503: the page sends it again by itself."""
        try:
            return await turns.run(lambda: answered(who, work))
        except Busy as error:
            return _json({"detail": str(error)}, 503, {"Retry-After": "1"})

    def answered(who: Person, work: Callable[[LabelService], dict[str, Any]]) -> Response:
        """The answer of `work`, or 409 with what does wait, or 422 with what is wrong."""
        try:
            service = opened()
        except TrueupError as error:
            say(f"{prefix}: {error}")  # it may name the run, which whoever labels is not told
            return _json({"detail": "there is nothing to do here yet; where the server was started, it says why"}, 503)
        try:
            return _json(work(service))
        except StaleToken:
            return _json(everything(who, service), 409)
        except BadAnswer as error:
            return _json({"detail": str(error)[:500]}, 422)
        except (TrueupError, sa.exc.OperationalError) as error:  # its disk is full, it is gone, others hold it
            say(f"{prefix}: {' '.join(str(getattr(error, 'orig', error)).split())}")
            detail = "nothing was saved; where the server was started, it says why"
            return _json({"detail": detail}, 503, {"Retry-After": "5"})

    @router.get("/tasks", response_model=TasksBody)
    async def tasks(who: Annotator) -> Response:
        """What waits for you. It stays yours while you answer, or send a heartbeat."""
        return await written(who, lambda service: everything(who, service))

    @router.post("/labels", response_model=RecordedBody, responses=_STALE)
    async def label(body: LabelBody, who: Annotator) -> Response:
        """Answer a task; what waits next comes with the confirmation."""

        def work(service: LabelService) -> dict[str, Any]:
            done = service.label(who.pseudonym, Answer(**dict(body)))
            feedback = None if done.feedback is None else vars(done.feedback)
            reveal = None if done.reveal is None else dict(zip("ab", done.reveal, strict=True))
            return {"label": vars(done.label), "feedback": feedback, "reveal": reveal, **_work(done.work)}

        return await written(who, work)

    @router.post("/demonstrations", response_model=SavedBody, responses=_STALE)
    async def demonstration(body: DemonstrationBody, who: Annotator) -> Response:
        """Keep an ideal answer to the prompt of a task; the task goes on waiting."""

        def work(service: LabelService) -> dict[str, Any]:
            service.demonstrate(who.pseudonym, body.client_uuid, body.token, body.text)
            return {"saved": True}

        return await written(who, work)

    @router.post("/undo", response_model=UndoneBody, responses=_STALE)
    async def undo(press: Press, who: Annotator) -> Response:
        """Take back your last answer; it is the first task again."""

        def work(service: LabelService) -> dict[str, Any]:
            done = service.undo(who.pseudonym, press.client_uuid)
            return {"undone": done.undone, **_work(done.work)}

        return await written(who, work)

    @router.post("/heartbeat")
    async def heartbeat(who: Annotator) -> Response:
        """You are still there: your tasks stay yours."""

        def work(service: LabelService) -> dict[str, Any]:
            service.renew(who.pseudonym)
            return {}

        return await written(who, work)

    @router.get("/mirror")
    def mirror(who: Annotator) -> Response:
        """Your own figures, and nobody else's."""
        return answered(who, lambda service: dict(figures_module.mirror(service.store, who.pseudonym)))

    return router


def _work(work: Work) -> dict[str, Any]:
    progress = vars(work.progress) | {"practice": work.progress.practice and vars(work.progress.practice)}
    return {"tasks": [_task(task) for task in work.tasks], "progress": progress, "state": work.state}


def _task(task: Task) -> dict[str, Any]:
    shown = [_answer_html(text) for text in task.texts]
    if len(set(shown)) < len(set(task.texts)):  # what tells two answers apart is on the page, were it one blank
        shown = [as_written(text) for text in task.texts]
    return {
        "token": task.token,
        "prompt": _prompt_html(tuple((message.role, message.content) for message in task.prompt)),
        "answers": [{"html": html, "text": text} for html, text in zip(shown, task.texts, strict=True)],
        "wants_rationale": task.wants_rationale,
        "practice": task.practice,
    }


# The same answer is shown to several people, and in several responses while it waits in a client's buffer.
_answer_html = lru_cache(maxsize=8192)(text_html)


@lru_cache(maxsize=4096)
def _prompt_html(turns: tuple[tuple[Any, str], ...]) -> str:
    return conversation_html([Message(role=role, content=content) for role, content in turns])


def _json(body: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Without a second look at every field: `response_model` documents the shape, and tests hold it."""
    content = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    return Response(content, status, {"Cache-Control": "no-store", **(headers or {})}, "application/json")
