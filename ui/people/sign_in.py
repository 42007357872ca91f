"""The pages of sign-in: login, invitation, the printed link, and the admins' list of people.

They are plain pages (ui.html), without Gradio, so they load at once.
"""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.concurrency import run_in_threadpool

from ui.html import message_page, plain_page, sentence
from ui.people.accounts import (
    BAD_INVITE,
    COOKIE,
    DAY_S,
    DEVICE_COOKIE,
    MAX_PASSWORD,
    MAX_TOKENS,
    MIN_PASSWORD,
    Admin,
    Annotator,
    Entered,
    People,
    Role,
    tokens,
)
from ui.people.names import MAX_NAME, AccountError
from ui.people.throttle import Throttled

Typed = Annotated[str, Form()]
"""A field of a form."""
OPEN_THE_LINK = (
    "Open the link that was printed where Trueup was started. It works once; the same command prints a new one."
)

# ---- Getting in and out -----------------------------------------------------------------------------------------


def entry(people: People, start: str) -> APIRouter:
    """The routes that need no session, and sign-out. `start` is the page after sign-in."""
    router = APIRouter(include_in_schema=False)
    router.include_router(_login(people, start))
    router.include_router(_invitation(people, start))
    router.include_router(_password(people))

    @router.get("/enter")
    def enter(request: Request, token: str = "") -> Response:
        cookie = people.enter(token)
        if cookie is not None:
            return _with_session(people, request, cookie, start)
        if people.who(request.cookies.get(COOKIE)):  # the link opened again by the browser that it let in
            return RedirectResponse(start, 303)
        used = "This link was used already, or belongs to an earlier start."
        return message_page("Not signed in", f"{used} {OPEN_THE_LINK}", 401)

    @router.post("/logout")
    def logout(request: Request, who: Annotator) -> Response:
        return _with_session(people, request, None, "/login")

    return router


def _login(people: People, start: str) -> APIRouter:
    router = APIRouter()

    @router.get("/login")
    def login_page(request: Request, next: str = "") -> Response:
        onward = _own_path(next, start)
        if people.who(request.cookies.get(COOKIE)):
            return RedirectResponse(onward, 303)
        if not people.any_active():
            return message_page("Not signed in", OPEN_THE_LINK, 401)
        return _form("login", onward=onward, name="")

    @router.post("/login")
    async def login(request: Request, name: Typed = "", password: Typed = "", next: Typed = "") -> Response:
        onward, devices = _own_path(next, start), request.cookies.get(DEVICE_COOKIE)
        known = await run_in_threadpool(people.knows_browser, name, devices)
        try:
            entered = await people.hashing(
                lambda: people.log_in(name, password, request.state.address, devices), known=known
            )
        except (Throttled, AccountError) as error:
            return _form("login", error, 401, onward=onward, name=name[:MAX_NAME])
        return await run_in_threadpool(_let_in, people, request, entered, onward)

    return router


def _invitation(people: People, start: str) -> APIRouter:
    router = APIRouter()

    @router.get("/invite")
    def invite_page(token: str = "") -> Response:
        role = people.invited(token)
        return _no_invitation() if role is None else _form("invite", token=token, role=role, name="")

    @router.post("/invite")
    async def accept(request: Request, token: Typed = "", name: Typed = "", password: Typed = "") -> Response:
        role = await run_in_threadpool(people.invited, token)
        if role is None:
            return _no_invitation()
        try:
            entered = await people.hashing(lambda: people.accept(token, name, password))
        except (Throttled, AccountError) as error:
            return _form("invite", error, token=token, role=role, name=name[:MAX_NAME])
        return await run_in_threadpool(_let_in, people, request, entered, start)

    return router


def _password(people: People) -> APIRouter:
    router = APIRouter()

    @router.get("/password")
    def password_page(who: Annotator) -> Response:
        if who.is_local:
            return message_page("No password", _LINK_ONLY, 404, ("/", "All pages"))
        return _form("password", name=who.name)

    @router.post("/password")
    async def change_password(request: Request, who: Annotator, old: Typed = "", new: Typed = "") -> Response:
        try:
            entered = await people.hashing(lambda: people.change_password(who, old, new), known=True)
        except (Throttled, AccountError) as error:
            return _form("password", error, name=who.name)
        return await run_in_threadpool(_let_in, people, request, entered, "/")

    return router


_LINK_ONLY = "A person who uses the printed link has no password."


def _no_invitation() -> Response:
    return message_page("No invitation", sentence(BAD_INVITE), 404, ("/login", "Sign in"))


def _form(template: str, error: Throttled | AccountError | None = None, refused: int = 422, **values: Any) -> Response:
    """A page with a form, and the error of the last attempt; `refused` is its status, if not 429."""
    limits = {"max_name": MAX_NAME, "min_password": MIN_PASSWORD, "max_password": MAX_PASSWORD}
    status, retry_after_s = (200 if error is None else refused), None
    if isinstance(error, Throttled):
        status, retry_after_s = 429, error.retry_after_s
    return plain_page(template, status, retry_after_s, problem=str(error or ""), **limits, **values)


def _let_in(people: People, request: Request, entered: Entered, onward: str) -> Response:
    """Go to the next page with a new session, and mark this browser as known."""
    answer = _with_session(people, request, entered.session, onward)
    others = tokens(request.cookies.get(DEVICE_COOKIE))[: MAX_TOKENS - 1]
    value = ".".join([entered.device, *(other for other in others if other)])
    _set_cookie(answer, request, DEVICE_COOKIE, value, path="/login")
    return answer


def _with_session(people: People, request: Request, token: str | None, onward: str) -> Response:
    """Go to the next page with this session in place of the browser's former one; None signs out."""
    before = tokens(request.cookies.get(COOKIE))
    elsewhere = [other for other in before if other and people.who(other) is None][: MAX_TOKENS - 1]
    people.close_session(".".join(before))
    value = ".".join(([token] if token else []) + elsewhere)
    answer = RedirectResponse(onward, 303)
    _set_cookie(answer, request, COOKIE, value)
    return answer


def _set_cookie(answer: Response, request: Request, name: str, value: str, path: str = "/") -> None:
    """Set a cookie that the browser keeps as long as possible. The server decides when it expires."""
    age = int(400 * DAY_S) if value else 0
    secure = _by_https(request)
    answer.set_cookie(name, value, max_age=age, path=path, httponly=True, samesite="lax", secure=secure)


def _by_https(request: Request) -> bool:
    """Whether the browser uses https, perhaps to a proxy in front; the guard has checked that the Origin is ours."""
    return request.url.scheme == "https" or request.headers.get("origin", "").startswith("https:")


def _own_path(path: str, otherwise: str) -> str:
    """`path` if it belongs to this site, so that a link to the login cannot lead elsewhere."""
    own = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable()
    return path if own else otherwise


# ---- The list of people, for admins -----------------------------------------------------------------------------


def people_page(people: People, url: str | None) -> APIRouter:
    """The page to invite, disable and enable. `url` is the address for people, if it differs from the admin's."""
    router = APIRouter(prefix="/people", include_in_schema=False)

    def show(me: Admin, problem: str = "", status: int = 200, link: dict[str, str] | None = None) -> HTMLResponse:
        accounts, invitations = people.accounts(), people.invitations()
        return plain_page(
            "people", status, me=me, problem=problem, link=link, accounts=accounts, invitations=invitations
        )

    @router.get("")
    def people_list(me: Admin) -> Response:
        return show(me)

    @router.post("/invite")
    def invite(
        request: Request, me: Admin, role: Annotated[Role, Form()], days: Annotated[float, Form()] = 7
    ) -> Response:
        try:
            token = people.invite(role, days)
        except AccountError as error:
            return show(me, str(error), 422)
        address = invite_url(url or request.headers.get("origin") or str(request.base_url), token)
        return show(me, link={"url": address, "role": role, "days": f"{days:g}"})

    @router.post("/withdraw/{invitation}")
    def withdraw(me: Admin, invitation: str) -> Response:
        try:
            people.withdraw(invitation)
        except AccountError:
            return show(me, "this invitation is used, expired or withdrawn already", 404)
        return RedirectResponse("/people", 303)

    @router.post("/{verb}/{pseudonym}")
    def change(me: Admin, verb: str, pseudonym: str) -> Response:
        name = next((row.name for row in people.accounts() if row.pseudonym == pseudonym), None)
        if name is None or verb not in ("disable", "enable"):
            return show(me, "there is no such account", 404)
        if pseudonym == me.pseudonym:
            return show(me, "another admin has to disable you", 422)
        people.disable(name) if verb == "disable" else people.enable(name)
        return RedirectResponse("/people", 303)

    return router


def invite_url(base: str, token: str) -> str:
    return f"{base.rstrip('/')}/invite?token={quote(token)}"
