"""HTTP API of the open mode, `/api/v1/open`, for admins: any policy of the run answers any prompt, in sight.

GET   policies             who can answer, and the comparison's own decoding
GET   prompts              held-out prompts to pick from
POST  jobs                 have a prompt answered; gives the job's id
GET   jobs/{id}/events     what happens, as server-sent events (`ui.pages.worker.Event`); resumable by Last-Event-ID
POST  jobs/{id}/stop
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Header, HTTPException, Query
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field, ValidationError

from trueup import runs
from trueup.artifacts.reports import ComparisonFigures
from trueup.data.records import Message, Prompt, read_jsonl
from trueup.errors import RunError
from trueup.models.policies import PolicyInfo, find_policies
from ui.pages.label_api import OneLine, Problem
from ui.pages.worker import Full, Job, Work, Worker
from ui.people.accounts import Admin

MAX_POLICIES = 8
MAX_NEW_TOKENS = 4096
THINKING_TOKENS = 512
"""Of reasoning, before there is a comparison whose budget could be taken."""
PING_S = 15.0
"""A proxy closes a connection on which nothing is said for long."""
RETRY_MS = 1000
"""So long a page waits before it connects again."""

# ---- What goes in and out ---------------------------------------------------------------------------------------


class PolicyBody(BaseModel):
    name: str
    title: str
    note: str | None
    """Why it is not an adapter on the shared base model, where that is so."""


class DecodingBody(BaseModel, extra="forbid"):
    """Temperature 0 is greedy decoding: always the likeliest token."""

    temperature: float = Field(1.0, ge=0, le=10, allow_inf_nan=False)
    top_k: int = Field(0, ge=0, le=2**31 - 1)
    """0: of all tokens."""
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int = Field(0, ge=0, le=2**31 - 1)
    max_new_tokens: int = Field(128, ge=1, le=MAX_NEW_TOKENS)
    max_thinking_tokens: int = Field(0, ge=0, le=MAX_NEW_TOKENS)
    """Of the reasoning before an answer, in a run whose model reasons."""


class PoliciesBody(BaseModel):
    policies: list[PolicyBody]
    decoding: DecodingBody
    """As in the comparison, where there was one."""
    reasons: bool
    """Whether the model of this run reasons before it answers."""
    context: int | None
    """Tokens that a prompt and its answer may have together."""


class PromptBody(BaseModel):
    prompt_id: str
    category: str | None
    messages: list[Message]


class PromptsBody(BaseModel):
    total: int
    """Prompts that fit the search; at most `limit` of them are here."""
    prompts: list[PromptBody]


class StartBody(DecodingBody):
    """One of `prompt` (what a person says), `prompt_id` (a held-out one), `conversation` (turns, the last a user's)."""

    prompt: str | None = None
    prompt_id: str | None = None
    conversation: list[Message] | None = None
    policies: list[str]


class JobBody(BaseModel):
    job: str


# ---- Routes -----------------------------------------------------------------------------------------------------

_PROBLEM: dict[int | str, dict[str, Any]] = {422: {"model": Problem, "description": "nothing was started"}}


def open_api(run_dir: Path, worker: Worker) -> APIRouter:
    """The routes over a run. Plain functions but the stream: FastAPI runs them on threads."""
    router = APIRouter(prefix="/api/v1/open", tags=["open"], route_class=OneLine)
    _add_choices(router, run_dir)
    _add_jobs(router, run_dir, worker)
    return router


def _add_choices(router: APIRouter, run_dir: Path) -> None:
    """What a request can name: policies and prompts."""

    @router.get("/policies")
    def policies(who: Admin) -> PoliciesBody:
        """The policies of this run as it stands."""
        return PoliciesBody(
            policies=[
                PolicyBody(name=policy.name, title=policy.title, note=policy.note) for policy in _policies(run_dir)
            ],
            decoding=_decoding(run_dir),
            reasons=_reasons(run_dir),
            context=_context(run_dir),
        )

    @router.get("/prompts")
    def prompts(
        who: Admin, search: Annotated[str, Query(max_length=200)] = "", limit: Annotated[int, Query(ge=1, le=500)] = 50
    ) -> PromptsBody:
        """Held-out prompts, in which every word of the search stands."""
        words = search.casefold().split()
        fitting = [
            prompt
            for prompt in _heldout(run_dir)
            if all(any(word in turn.content.casefold() for turn in prompt.messages) for word in words)
        ]
        return PromptsBody(total=len(fitting), prompts=fitting[:limit])


def _add_jobs(router: APIRouter, run_dir: Path, worker: Worker) -> None:
    """A prompt that policies answer: its start, its events, its end."""

    def known_job(job_id: str) -> Job:
        job = worker.job(job_id)
        if job is None:
            raise HTTPException(404, "this server knows no such request; it keeps the last ones, until it is restarted")
        return job

    @router.post("/jobs", responses={**_PROBLEM, 429: {"model": Problem, "description": "too many wait"}})
    def start(body: StartBody, who: Admin) -> JobBody:
        """Have a prompt answered by some of the policies, in lockstep."""
        prompt = _prompt(body, run_dir)
        _check_policies(body.policies, _policies(run_dir))
        _check_length(prompt, body.max_thinking_tokens + body.max_new_tokens, run_dir)
        decoding = {key: getattr(body, key) for key in DecodingBody.model_fields}
        try:
            return JobBody(job=worker.submit(Work(prompt=prompt, policies=body.policies, **decoding)).id)
        except Full as error:
            raise HTTPException(429, str(error), {"Retry-After": "10"}) from None

    @router.get("/jobs/{job_id}/events", response_class=StreamingResponse)
    async def events(
        job_id: str, who: Admin, last_event_id: Annotated[int, Header(ge=0)] = 0, after: Annotated[int, Query(ge=0)] = 0
    ) -> StreamingResponse:
        """Everything after the last event that was seen, and then what comes, until the job has ended."""
        job = known_job(job_id)

        async def lines() -> AsyncIterator[str]:
            yield f"retry: {RETRY_MS}\n\n"
            async for news in job.follow(max(last_event_id, after), PING_S):
                yield "".join(f"id: {n}\ndata: {event.model_dump_json()}\n\n" for n, event in news) or ": here\n\n"

        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(lines(), media_type="text/event-stream", headers=headers)

    @router.post("/jobs/{job_id}/stop")
    def stop(job_id: str, who: Admin) -> JobBody:
        """Stop between two tokens; the events say when it has."""
        worker.stop(job := known_job(job_id))
        return JobBody(job=job.id)


# ---- What a request must be -------------------------------------------------------------------------------------


def _refuse(problem: str) -> HTTPException:
    return HTTPException(422, problem)


def _prompt(body: StartBody, run_dir: Path) -> list[Message]:
    keys = [key for key in ("prompt", "prompt_id", "conversation") if getattr(body, key) is not None]
    if len(keys) != 1:
        raise _refuse(f"give one of prompt, prompt_id and conversation (found {', '.join(keys) or 'none'})")
    if body.prompt_id is not None:
        for one in _heldout(run_dir):
            if one.prompt_id == body.prompt_id:
                return one.messages
        raise _refuse(f"prompt_id: {body.prompt_id!r} is not one of this run's held-out prompts")
    if body.prompt is not None and not body.prompt.strip():
        raise _refuse("prompt: is empty; write what a person would say")
    try:
        return Prompt.model_validate({"prompt": body.conversation if body.prompt is None else body.prompt}).prompt
    except ValidationError as error:
        raise _refuse(f"conversation: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None


def _check_policies(names: list[str], policies: list[PolicyInfo]) -> None:
    of_run = [policy.name for policy in policies]
    unknown = [name for name in names if name not in of_run]
    if unknown:
        raise _refuse(f"policies: {', '.join(map(repr, unknown))} is not of this run; known are {', '.join(of_run)}")
    if not 0 < len(names) <= MAX_POLICIES or len(set(names)) < len(names):
        raise _refuse(f"policies: choose 1 to {MAX_POLICIES} different ones (found {len(names)})")


def _check_length(prompt: list[Message], new_tokens: int, run_dir: Path) -> None:
    """Before anything waits for it. The chat template adds a few tokens, so the model's process counts them again."""
    context, tokenizer = _context(run_dir), runs.stage_dir(run_dir, "sft") / "model" / "tokenizer.json"
    if context is None or not tokenizer.is_file():
        return
    count = sum(_count_tokens(tokenizer, tokenizer.stat().st_mtime_ns, message.content) for message in prompt)
    if count + new_tokens > context:
        raise _refuse(
            f"the prompt has {count} tokens and max_new_tokens is {new_tokens}, more than this model's context of "
            f"{context}: shorten the prompt, or ask for fewer tokens"
        )


def _count_tokens(file: Path, changed_ns: int, text: str) -> int:
    return len(_tokenizer(file, changed_ns).encode(text, add_special_tokens=False).ids)


@lru_cache(maxsize=4)
def _tokenizer(file: Path, changed_ns: int) -> Any:
    from tokenizers import Tokenizer  # comes with the train extra, without which there is nothing to ask

    return Tokenizer.from_file(str(file))


# ---- What the run says ------------------------------------------------------------------------------------------


def _policies(run_dir: Path) -> list[PolicyInfo]:
    try:
        return find_policies(run_dir)
    except RunError as error:  # the SFT stage is being run again
        raise HTTPException(409, str(error)) from None


def _context(run_dir: Path) -> int | None:
    config = _json(runs.stage_dir(run_dir, "sft") / "model" / "config.json")
    return (config.get("text_config") or config).get("max_position_embeddings")


def _reasons(run_dir: Path) -> bool:
    return "reasoning_block" in _json(runs.stage_dir(run_dir, "sft") / "model" / "tokenizer_config.json")


def _decoding(run_dir: Path) -> DecodingBody:
    """As the policies were compared; a comparison that cannot be read has nothing to say about it."""
    try:
        report = runs.read_report(run_dir, "compare", ComparisonFigures)
        if report:
            return DecodingBody(**vars(report.decoding))
    except (RunError, ValidationError):
        pass
    return DecodingBody(max_thinking_tokens=THINKING_TOKENS if _reasons(run_dir) else 0)


def _heldout(run_dir: Path) -> list[PromptBody]:
    """The comparison's prompts; before there is one, the held-out prompts that were sampled."""
    for stage, file in (("compare", "samples.jsonl"), ("sample", "candidates.jsonl")):
        path = runs.stage_dir(run_dir, stage) / file
        if path.is_file():
            return _prompts_in(path, path.stat().st_mtime_ns)
    return []


@lru_cache(maxsize=4)
def _prompts_in(path: Path, changed_ns: int) -> list[PromptBody]:
    return [
        PromptBody(prompt_id=row["prompt_id"], category=row.get("category"), messages=row["prompt"])
        for _, row in read_jsonl(path)
        if row.get("split", "heldout") == "heldout"
    ]


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
