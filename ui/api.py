"""HTTP API of labelling, `/api/v1`: typed, and idempotent by client UUID.

Called by the page. What it returns is all that a labelling browser ever gets to know about an answer: its text.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from ui.render import conversation_html, text_html
from ui.service import Choice, LabelService, StaleToken, Task


class ProgressBody(BaseModel):
    labelled: int
    skipped: int
    total: int


class TaskBody(BaseModel):
    """What to show: everything rendered to safe HTML."""

    token: str | None
    prompt: str
    answers: list[str]
    progress: ProgressBody
    guideline: str
    changed: bool = True
    """False: there was nothing to undo."""


class Press(BaseModel):
    model_config = ConfigDict(extra="forbid")

    client_uuid: str = Field(min_length=8, max_length=64)
    """Drawn by the client for each press; the same one again is the same press."""


class LabelBody(Press):
    token: str = Field(max_length=64)
    choice: Choice


def _annotator(request: Request) -> str:
    """Who is asking. On a machine of one's own that is given at the start; with accounts it will be the session's."""
    return str(request.app.state.annotator)


Who = Annotated[str, Depends(_annotator)]


def label_api(service: LabelService) -> APIRouter:
    """The routes over a service."""
    router = APIRouter(prefix="/api/v1", tags=["labels"])

    def body(task: Task, changed: bool = True) -> TaskBody:
        return TaskBody(
            token=task.token,
            prompt=conversation_html(task.prompt) if task.token else "",
            answers=[text_html(text) for text in task.texts],
            progress=ProgressBody(**vars(task.progress)),
            guideline=service.guideline,
            changed=changed,
        )

    @router.get("/task")
    def task(who: Who) -> TaskBody:
        """The pair that waits for you."""
        return body(service.task(who))

    @router.post("/labels", responses={409: {"model": TaskBody, "description": "not the pair that waits for you"}})
    def label(label: LabelBody, who: Who) -> Any:
        """Answer it, and get the next. A stale token is refused with what does wait for you, and changes nothing."""
        try:
            return body(service.answer(who, label.token, label.choice, label.client_uuid))
        except StaleToken:
            return JSONResponse(body(service.task(who)).model_dump(), status_code=409)

    @router.post("/undo")
    def undo(press: Press, who: Who) -> TaskBody:
        """Take back your last answer; it is shown again."""
        changed, shown = service.undo(who, press.client_uuid)
        return body(shown, changed)

    return router
