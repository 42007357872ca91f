"""The pages through which people get in: login, invitation, the printed link, and the admins' list of people.

Plain HTML from the server, without Gradio: they are there at once, and their own policy lets them run one line of
script, which turns them dark where the system is.
"""

from __future__ import annotations

from html import escape
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from markupsafe import Markup
from starlette.concurrency import run_in_threadpool

from ui.html import PLAIN_POLICY, message_page, render
from ui.people.accounts import (
    BAD_INVITE,
    COOKIE,
    DAY_S,
    DEVICE_COOKIE,
    LOCAL,
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

OPEN_THE_LINK = (
    "Open the link that was printed where Trueup was started. It works once; the same command prints a new one."
)

# ---- HTML -------------------------------------------------------------------------------------------------------


def page(title: str, body: str, narrow: bool = False, styles: tuple[str, ...] = ()) -> str:
    """A whole page in the look of the others. `body` is HTML, `title` is text, `styles` are further style sheets."""
    more = {"narrow": True} if narrow else {}
    return render("page", title=title, body=Markup(body), styles=styles, **more)


def signed_in(name: str) -> str:
    """Who is signed in, and the way out."""
    change = "" if name == LOCAL.name else '<a href="/password">Change password</a>'
    return (
        f'<form class="tu-signed-in" method="post" action="/logout"><span>Signed in as {escape(name)}</span>{change}'
        '<button class="tu-quiet">Sign out</button></form>'
    )


def _respond(html: str, status: int = 200, retry_after_s: int | None = None) -> HTMLResponse:
    headers = {"Content-Security-Policy": PLAIN_POLICY, "Cache-Control": "no-store"}
    if retry_after_s is not None:
        headers["Retry-After"] = str(retry_after_s)
    return HTMLResponse(html, status, headers)


def _problem(text: str) -> str:
    return f'<p class="tu-problem" role="alert">{escape(text[:1].upper() + text[1:])}.</p>' if text else ""


def _field(label: str, name: str, kind: str, autocomplete: str, hint: str = "", value: str = "", more: str = "") -> str:
    described = f' aria-describedby="{name}-hint"' if hint else ""
    note = f'<small id="{name}-hint">{escape(hint)}</small>' if hint else ""
    return (
        f'<label for="{name}">{escape(label)}</label><input id="{name}" name="{name}" type="{kind}" required '
        f'autocomplete="{autocomplete}" value="{escape(value)}"{described} {more}>{note}'
    )


_NAME = f'autocapitalize="none" spellcheck="false" maxlength="{MAX_NAME}"'
_NEW = f'minlength="{MIN_PASSWORD}" maxlength="{MAX_PASSWORD}"'


def _login_page(onward: str, name: str = "", problem: str = "") -> str:
    focus = 'autofocus aria-invalid="true"' if problem else ""
    return page(
        "Sign in",
        f'{_problem(problem)}<form class="tu-form" method="post" action="/login">'
        f'<input type="hidden" name="next" value="{escape(onward)}">'
        f"{_field('Name', 'name', 'text', 'username', value=name, more=_NAME + ('' if problem else ' autofocus'))}"
        f"{_field('Password', 'password', 'password', 'current-password', more=focus)}"
        "<button>Sign in</button></form>"
        '<p class="tu-note">No account, or a forgotten password? Ask whoever runs this campaign: they can invite you '
        "by link, or set a new password.</p>",
        narrow=True,
    )


_LINK_ONLY = "Who is let in by the printed link has no password."


def _password_page(name: str, problem: str = "") -> str:
    hint = f"At least {MIN_PASSWORD} characters; a few words are easy to remember."
    return page(
        "Change password",
        f'<p class="tu-lead">Of {escape(name)}. You stay signed in here, and are signed out everywhere else.</p>'
        f'{_problem(problem)}<form class="tu-form" method="post" action="/password">'
        f"{_field('Password of now', 'old', 'password', 'current-password', more='autofocus')}"
        f"{_field('New password', 'new', 'password', 'new-password', hint, more=_NEW)}"
        "<button>Change it</button></form>" + _ALL_PAGES,
        narrow=True,
    )


def _invite_page(token: str, role: Role, name: str = "", problem: str = "") -> str:
    lead = {
        "annotator": "You are invited to say which answers are better.",
        "admin": "You are invited to run this campaign: its people, its labels, its results.",
    }[role]
    hint = "The admins of this campaign see it. Your labels carry a random pseudonym instead."
    return page(
        "Welcome",
        f'<p class="tu-lead">{lead} Choose a name and a password.</p>{_problem(problem)}'
        '<form class="tu-form" method="post" action="/invite">'
        f'<input type="hidden" name="token" value="{escape(token)}">'
        f"{_field('Name', 'name', 'text', 'username', hint, name, _NAME)}"
        + _field(
            "Password",
            "password",
            "password",
            "new-password",
            f"At least {MIN_PASSWORD} characters; a few words are easy to remember.",
            more=_NEW,
        )
        + "<button>Create account</button></form>",
        narrow=True,
    )


# ---- Getting in and out -----------------------------------------------------------------------------------------


def entry(people: People, start: str) -> APIRouter:
    """The routes that need no session, and the way out. `start`: where somebody who got in is led."""
    router = APIRouter(include_in_schema=False)

    @router.get("/login")
    def login_page(request: Request, next: str = "") -> Response:
        onward = _own_path(next, start)
        if people.who(request.cookies.get(COOKIE)):
            return RedirectResponse(onward, 303)
        if not people.any_active():
            return message_page("Not signed in", OPEN_THE_LINK, 401)
        return _respond(_login_page(onward))

    @router.post("/login")
    async def login(
        request: Request,
        name: Annotated[str, Form()] = "",
        password: Annotated[str, Form()] = "",
        next: Annotated[str, Form()] = "",
    ) -> Response:
        onward, devices = _own_path(next, start), request.cookies.get(DEVICE_COOKIE)
        shown = name[:MAX_NAME]
        known = await run_in_threadpool(people.knows_browser, name, devices)
        try:
            entered = await people.hashing(
                lambda: people.log_in(name, password, request.state.address, devices), known=known
            )
        except Throttled as error:
            return _respond(_login_page(onward, shown, str(error)), 429, error.retry_after_s)
        except AccountError as error:
            return _respond(_login_page(onward, shown, str(error)), 401)
        return await run_in_threadpool(_let_in, people, request, entered, onward)

    @router.get("/invite")
    def invite_page(token: str = "") -> Response:
        role = people.invited(token)
        if role is None:
            return message_page("No invitation", _sentence(BAD_INVITE), 404, ("/login", "Sign in"))
        return _respond(_invite_page(token, role))

    @router.post("/invite")
    async def accept(
        request: Request,
        token: Annotated[str, Form()] = "",
        name: Annotated[str, Form()] = "",
        password: Annotated[str, Form()] = "",
    ) -> Response:
        role = await run_in_threadpool(people.invited, token)
        if role is None:
            return message_page("No invitation", _sentence(BAD_INVITE), 404, ("/login", "Sign in"))
        shown = name[:MAX_NAME]
        try:
            entered = await people.hashing(lambda: people.accept(token, name, password))
        except Throttled as error:
            return _respond(_invite_page(token, role, shown, str(error)), 429, error.retry_after_s)
        except AccountError as error:
            return _respond(_invite_page(token, role, shown, str(error)), 422)
        return await run_in_threadpool(_let_in, people, request, entered, start)

    @router.get("/enter")
    def enter(request: Request, token: str = "") -> Response:
        cookie = people.enter(token)
        if cookie is not None:
            return _with_session(people, request, cookie, start)
        if people.who(request.cookies.get(COOKIE)):  # the link opened again by the browser that it let in
            return RedirectResponse(start, 303)
        used = "This link was used already, or is of an earlier start."
        return message_page("Not signed in", f"{used} {OPEN_THE_LINK}", 401)

    @router.post("/logout")
    def logout(request: Request, who: Annotator) -> Response:
        return _with_session(people, request, None, "/login")

    @router.get("/password")
    def password_page(who: Annotator) -> Response:
        if who == LOCAL:
            return message_page("No password", _LINK_ONLY, 404, ("/", "All pages"))
        return _respond(_password_page(who.name))

    @router.post("/password")
    async def change_password(
        request: Request, who: Annotator, old: Annotated[str, Form()] = "", new: Annotated[str, Form()] = ""
    ) -> Response:
        try:
            entered = await people.hashing(lambda: people.change_password(who, old, new), known=True)
        except Throttled as error:
            return _respond(_password_page(who.name, str(error)), 429, error.retry_after_s)
        except AccountError as error:
            return _respond(_password_page(who.name, str(error)), 422)
        return await run_in_threadpool(_let_in, people, request, entered, "/")

    return router


def _let_in(people: People, request: Request, entered: Entered, onward: str) -> Response:
    """Lead on with a new session, and remember that this browser was in."""
    answer = _with_session(people, request, entered.session, onward)
    others = tokens(request.cookies.get(DEVICE_COOKIE))[: MAX_TOKENS - 1]
    value = ".".join([entered.device, *(other for other in others if other)])
    _set_cookie(answer, request, DEVICE_COOKIE, value, path="/login")
    return answer


def _with_session(people: People, request: Request, token: str | None, onward: str) -> Response:
    """Lead on with this session in place of the one that the browser had here; None signs out."""
    before = tokens(request.cookies.get(COOKIE))
    elsewhere = [other for other in before if other and people.who(other) is None][: MAX_TOKENS - 1]
    people.close_session(".".join(before))
    value = ".".join(([token] if token else []) + elsewhere)
    answer = RedirectResponse(onward, 303)
    _set_cookie(answer, request, COOKIE, value)
    return answer


def _set_cookie(answer: Response, request: Request, name: str, value: str, path: str = "/") -> None:
    """The browser keeps it as long as it may; when it is good no more is the server's to say."""
    age = int(400 * DAY_S) if value else 0
    secure = _by_https(request)
    answer.set_cookie(name, value, max_age=age, path=path, httponly=True, samesite="lax", secure=secure)


def _by_https(request: Request) -> bool:
    """Whether the browser came by https, perhaps to a proxy in front; the guard has checked that the Origin is ours."""
    return request.url.scheme == "https" or request.headers.get("origin", "").startswith("https:")


def _own_path(path: str, otherwise: str) -> str:
    """`path` if it is one of this site: nobody is led elsewhere by a link to the login."""
    own = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable()
    return path if own else otherwise


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


# ---- The list of people, for admins -----------------------------------------------------------------------------


def people_page(people: People, url: str | None) -> APIRouter:
    """Invite, disable, enable. `url`: where people reach this server, if not where the admin does."""
    router = APIRouter(prefix="/people", include_in_schema=False)

    def shown(me: Admin, notice: str = "", status: int = 200) -> HTMLResponse:
        return _respond(
            page("People", notice + _people_html(people, me.pseudonym) + _ALL_PAGES + signed_in(me.name)), status
        )

    @router.get("")
    def people_list(me: Admin) -> Response:
        return shown(me)

    @router.post("/invite")
    def invite(
        request: Request, me: Admin, role: Annotated[Role, Form()], days: Annotated[float, Form()] = 7
    ) -> Response:
        try:
            token = people.invite(role, days)
        except AccountError as error:
            return shown(me, _problem(str(error)), 422)
        link = invite_url(url or request.headers.get("origin") or str(request.base_url), token)
        return shown(
            me,
            '<div class="tu-verdict pass" role="status"><label for="link">Send this link to one person. It makes one '
            f"account ({role}), within {days:g} days, and is not shown again.</label>"
            f'<input id="link" class="tu-copy" readonly value="{escape(link)}"></div>',
        )

    @router.post("/withdraw/{invitation}")
    def withdraw(me: Admin, invitation: str) -> Response:
        try:
            people.withdraw(invitation)
        except AccountError:
            return shown(me, _problem("this invitation is used, expired or withdrawn already"), 404)
        return RedirectResponse("/people", 303)

    @router.post("/{verb}/{pseudonym}")
    def change(me: Admin, verb: str, pseudonym: str) -> Response:
        name = next((row.name for row in people.accounts() if row.pseudonym == pseudonym), None)
        if name is None or verb not in ("disable", "enable"):
            return shown(me, _problem("there is no such account"), 404)
        if pseudonym == me.pseudonym:
            return shown(me, _problem("another admin has to disable you"), 422)
        people.disable(name) if verb == "disable" else people.enable(name)
        return RedirectResponse("/people", 303)

    return router


_ALL_PAGES = '<p><a href="/">All pages</a></p>'


def invite_url(base: str, token: str) -> str:
    return f"{base.rstrip('/')}/invite?token={quote(token)}"


def _people_html(people: People, me: str) -> str:
    rows = []
    for row in people.accounts():
        verb, state = ("disable", "active") if row.active else ("enable", "disabled")
        change = (
            f'<form method="post" action="/people/{verb}/{row.pseudonym}"><button class="tu-quiet" '
            f'aria-label="{verb.title()} {escape(row.name)}">{verb.title()}</button></form>'
        )
        rows.append(
            f'<tr><th scope="row">{escape(row.name)}</th><td>{row.role}</td><td>{state}</td>'
            f"<td>{'you' if row.pseudonym == me else change}</td><td>{row.pseudonym}</td>"
            f"<td>{row.created_utc[:10]}</td></tr>"
        )
    heads = "".join(
        f'<th scope="col">{head}</th>' for head in ("Name", "Role", "State", "Change", "Pseudonym", "Since")
    )
    table = (
        '<div class="tu-scroll" role="region" aria-label="Accounts" tabindex="0"><table class="tu-figures"><thead><tr>'
        f"{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
    nobody = '<p class="tu-empty">There are no accounts yet. The first should be an admin.</p>'
    return (
        '<p class="tu-lead">Labels and exports know people by their pseudonyms; names are for admins to see. '
        f"Whoever is disabled is signed out at once, and their labels stay.</p>{table if rows else nobody}"
        '<h2>Invite by link</h2><form class="tu-form tu-inline" method="post" action="/people/invite">'
        '<span><label for="role">Role</label><select id="role" name="role"><option>annotator</option>'
        '<option>admin</option></select></span><span><label for="days">Days it is good for</label>'
        '<input id="days" name="days" type="number" min="1" max="365" value="7" required></span>'
        f"<button>Make a link</button></form>{_invitations_html(people)}"
    )


def _invitations_html(people: People) -> str:
    rows = "".join(
        f'<tr><th scope="row"><code>{one.id}</code></th><td>{one.role}</td><td>{one.expires_utc[:16]}</td><td>'
        f'<form method="post" action="/people/withdraw/{one.id}"><button class="tu-quiet" '
        f'aria-label="Withdraw {one.id}">Withdraw</button></form></td></tr>'
        for one in people.invitations()
    )
    if not rows:
        return ""
    heads = "".join(f'<th scope="col">{head}</th>' for head in ("Invitation", "Role", "Good until (UTC)", "Change"))
    return (
        '<h2>Open invitations</h2><div class="tu-scroll" role="region" aria-label="Open invitations" tabindex="0">'
        f'<table class="tu-figures"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
    )
