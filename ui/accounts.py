"""Who is asking: accounts, passwords, invitations, sessions.

An account has a name, which stays in its table, and a pseudonym, which is all that labels and exports ever say. It is
drawn at random, never derived from the name. Whoever is alone at this machine needs no account: a link with a one-time
token, printed where the server was started, opens a session of the person `local`.

Sessions and invitations are stored as hashes of their tokens, and outlive a restart; the count of failed logins is
held in memory, so a restart forgets it.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import secrets
import threading
import time
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import sqlalchemy as sa
from fastapi import Depends, HTTPException, Request

from trueup.errors import TrueupError
from ui.tables import Database, account, invite, session

Role = Literal["admin", "annotator"]
T = TypeVar("T")

COOKIE = "trueup_session"
DAY_S = 86_400.0
SESSION_S = 14 * DAY_S
"""A session ends this long after it was last used."""
MAX_TOKENS = 8
MIN_PASSWORD = 10
MAX_PASSWORD = 1024
MAX_NAME = 64

# ---- Passwords --------------------------------------------------------------------------------------------------

# scrypt with 128 * 2^15 * 8 bytes = 32 MiB and three passes: as strong as OWASP's 2^17 with one pass, which takes
# 128 MiB, so that a few people who sign in at once fit on a small machine.
_LOG2_N, _R, _P = 15, 8, 3


def hash_password(password: str) -> str:
    """`scrypt$log2(N)$r$p$salt$key`: whatever is needed to check it stands in it."""
    salt = secrets.token_bytes(16)
    key = _scrypt(password, salt, _LOG2_N, _R, _P)
    return f"scrypt${_LOG2_N}${_R}${_P}${base64.b64encode(salt).decode()}${base64.b64encode(key).decode()}"


def password_matches(password: str, stored: str) -> bool:
    """Whether `stored` was made of this password."""
    _, log2_n, r, p, salt, key = stored.split("$")
    computed = _scrypt(password, base64.b64decode(salt), int(log2_n), int(r), int(p))
    return hmac.compare_digest(computed, base64.b64decode(key))


def _scrypt(password: str, salt: bytes, log2_n: int, r: int, p: int) -> bytes:
    # NFKC, as NIST SP 800-63B asks: the same password typed on another keyboard is the same bytes.
    typed = unicodedata.normalize("NFKC", password).encode()
    return hashlib.scrypt(typed, salt=salt, n=2**log2_n, r=r, p=p, maxmem=(128 * r * 2**log2_n) * 2, dklen=32)


# Checked against when a name is unknown, so that an unknown name takes as long as a wrong password. Nobody's password
# hashes to it, short of a preimage of zeros.
_NOBODY = f"scrypt${_LOG2_N}${_R}${_P}${base64.b64encode(bytes(16)).decode()}${base64.b64encode(bytes(32)).decode()}"


# ---- What can be refused ----------------------------------------------------------------------------------------


class Refused(TrueupError):
    """A name, password, role or invitation that cannot be used; the text says why."""


class Throttled(TrueupError):
    """Too many failed logins, or too many at once."""

    def __init__(self, message: str, retry_after_s: int):
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Throttle:
    """Failures per key: `free` of them cost nothing, then each one doubles the wait, from one second to `longest_s`.

    An attempt is counted before it is checked, so that many at once are not all free; success takes it back.
    """

    def __init__(self, free: int, longest_s: float = 900, clock: Callable[[], float] = time.monotonic):
        self.free, self.longest_s, self.clock = free, longest_s, clock
        self._failures: dict[str, tuple[int, float]] = {}  # key: failures, and when the next attempt is allowed
        self._lock = threading.Lock()

    def attempt(self, key: str) -> float:
        """Seconds to wait; 0: go on, and the attempt is counted."""
        now = self.clock()
        with self._lock:
            if len(self._failures) > 10_000:
                self._failures = {k: v for k, v in self._failures.items() if v[1] + self.longest_s > now}
            failures, allowed_at = self._failures.get(key, (0, now))
            if now > allowed_at + self.longest_s:
                failures = 0
            elif now < allowed_at:
                return allowed_at - now
            over = failures + 1 - self.free
            wait = min(2.0 ** min(over, 30), self.longest_s) if over >= 0 else 0.0
            self._failures[key] = (failures + 1, now + wait)
            return 0.0

    def forgive(self, key: str, *, all_of_them: bool) -> None:
        """The attempt was right: take it back, or forget the key."""
        with self._lock:
            failures, _ = self._failures.pop(key, (0, 0.0))
            if failures > 1 and not all_of_them:
                self._failures[key] = (failures - 1, self.clock())


# ---- People -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Person:
    """Who is asking."""

    pseudonym: str
    """What events, exports and statistics call them."""
    role: Role
    name: str

    @property
    def is_admin(self) -> bool:
        return self.role == "admin"


LOCAL = Person("local", "admin", "local")
"""Alone at this machine: whoever opened the link that the server printed."""


class Account(NamedTuple):
    account_id: int
    name: str
    pseudonym: str
    role: Role
    active: bool
    created_utc: str


class People:
    """The accounts of a store, and who holds a session."""

    def __init__(self, store: Database):
        self.store = store
        self._by_name = Throttle(free=5)
        self._by_address = Throttle(free=20)  # a whole team may sit behind one address
        self._links: set[str] = set()
        # Two at a time, on threads of their own: a burst of logins takes 64 MiB, and no thread that labels need.
        self._hashing = ThreadPoolExecutor(max_workers=2, thread_name_prefix="password")
        self._queued = 0

    # ---- Accounts

    def add(self, name: str, role: Role, password: str) -> Person:
        """A new account with a pseudonym of its own; Refused if the name is taken or the password too short."""
        name, hashed = _checked_name(name), hash_password(_checked_password(password))
        with self.store.write() as db:
            return self._insert(db, name, role, hashed)

    def accounts(self) -> list[Account]:
        """Everybody, in the order in which they came; the disabled too."""
        columns = [account.c[key] for key in Account._fields]
        with self.store.read() as db:
            return [Account(*row) for row in db.execute(sa.select(*columns).order_by(account.c.account_id))]

    def names(self) -> dict[str, str]:
        """Names by pseudonym: for the eyes of admins alone."""
        return {row.pseudonym: row.name for row in self.accounts()}

    def any_active(self) -> bool:
        """Whether somebody could sign in; if not, these pages are for the person at this machine."""
        with self.store.read() as db:
            return db.scalar(sa.select(account.c.account_id).where(account.c.active).limit(1)) is not None

    def set_password(self, name: str, password: str) -> Account:
        """A new password; whoever was signed in with the old one is not any more."""
        return self._change(name, password_hash=hash_password(_checked_password(password)))

    def disable(self, name: str) -> Account:
        """Their labels stay; their sessions end now."""
        return self._change(name, active=False)

    def enable(self, name: str) -> Account:
        """Let a disabled account in again."""
        return self._change(name, active=True)

    def _change(self, name: str, **values: Any) -> Account:
        with self.store.write() as db:
            found = _find(db, name)
            if found is None:
                names = ", ".join(sorted(db.scalars(sa.select(account.c.name)))) or "there are none"
                raise Refused(f"no account is named {name!r}; known: {names}")
            db.execute(account.update().where(account.c.account_id == found.account_id).values(**values))
            db.execute(session.delete().where(session.c.account_id == found.account_id))
        return Account(*(values.get(key, getattr(found, key)) for key in Account._fields))

    def _insert(self, db: sa.Connection, name: str, role: Role, password_hash: str) -> Person:
        if role not in ("admin", "annotator"):
            raise Refused(f"{role!r} is not a role; known: admin, annotator")
        if _find(db, name) is not None:
            raise Refused(f"the name {name!r} is taken; take another")
        taken = set(db.scalars(sa.select(account.c.pseudonym)))
        pseudonym = next(p for p in iter(lambda: f"annotator-{secrets.token_hex(3)}", "") if p not in taken)
        values = {"name": name, "pseudonym": pseudonym, "role": role, "password_hash": password_hash, "active": True}
        db.execute(account.insert().values(**values, created_utc=_utc()))
        return Person(pseudonym, role, name)

    # ---- Invitations

    def invite(self, role: Role, days: float = 7) -> str:
        """A token that makes one account of this role, until it expires. Only its hash is stored."""
        if role not in ("admin", "annotator"):
            raise Refused(f"{role!r} is not a role; known: admin, annotator")
        if not 0 < days <= 365:
            raise Refused(f"an invitation is good for more than 0 and at most 365 days, not {days:g}")
        token = secrets.token_urlsafe(24)
        with self.store.write() as db:
            db.execute(
                invite.insert().values(token_sha256=_sha256(token), role=role, expires_at=time.time() + days * DAY_S)
            )
        return token

    def invited(self, token: str) -> Role | None:
        """The role that this invitation gives; None: unknown, used or expired."""
        with self.store.read() as db:
            return _open_invite(db, token)

    def accept(self, token: str, name: str, password: str) -> str:
        """Make the account that the invitation stands for, and open its session; returns the cookie's value."""
        if self.invited(token) is None:
            raise Refused(BAD_INVITE)
        name, hashed = _checked_name(name), hash_password(_checked_password(password))
        with self.store.write() as db:
            role = _open_invite(db, token)  # again: somebody else may have used it while the password was hashed
            if role is None:
                raise Refused(BAD_INVITE)
            made = self._insert(db, name, role, hashed)
            db.execute(invite.update().where(invite.c.token_sha256 == _sha256(token)).values(used_at=time.time()))
            account_id = db.scalar(sa.select(account.c.account_id).where(account.c.pseudonym == made.pseudonym))
        return self.open_session(account_id)

    # ---- Sessions

    def log_in(self, name: str, password: str, address: str) -> str:
        """Open a session; returns the cookie's value. Refused says the same of a wrong name and a wrong password."""
        key = _folded(name)
        wait = max(self._by_address.attempt(address), self._by_name.attempt(key))
        if wait:
            seconds = int(wait) + 1
            raise Throttled(f"too many failed attempts; try again in {_duration(seconds)}", seconds)
        with self.store.read() as db:
            found = _find(db, name)
        right = password_matches(password[:MAX_PASSWORD], found.password_hash if found else _NOBODY)
        if found is None or not right or not found.active:
            raise Refused("that name and password do not belong together")
        self._by_name.forgive(key, all_of_them=True)
        self._by_address.forgive(address, all_of_them=False)  # one's own account does not pay for guesses at others
        return self.open_session(found.account_id)

    def open_session(self, account_id: int | None) -> str:
        """The value of a new session's cookie; without an account it is that of the person at this machine."""
        token, now = secrets.token_urlsafe(32), time.time()
        row = {"token_sha256": _sha256(token), "account_id": account_id, "created_at": now}
        with self.store.write() as db:
            db.execute(session.delete().where(session.c.expires_at < now))
            db.execute(session.insert().values(**row, expires_at=now + SESSION_S))
        return token

    def who(self, cookie: str | None) -> Person | None:
        """Whose session this is. One that is used goes on; it is written at most once a day."""
        if not cookie:
            return None
        now, key = time.time(), session.c.token_sha256.in_(map(_sha256, tokens(cookie)))
        columns = (session.c.account_id, session.c.expires_at, account.c.pseudonym, account.c.role, account.c.name)
        with self.store.read() as db:
            row = db.execute(
                sa.select(*columns, account.c.active)
                .select_from(session.outerjoin(account, session.c.account_id == account.c.account_id))
                .where(key, session.c.expires_at > now)
            ).first()
        if row is None or (row.account_id is not None and not row.active):
            return None
        if row.expires_at < now + SESSION_S - DAY_S:
            with self.store.write() as db:
                db.execute(session.update().where(key).values(expires_at=now + SESSION_S))
        return LOCAL if row.account_id is None else Person(row.pseudonym, row.role, row.name)

    def close_session(self, cookie: str | None) -> None:
        with self.store.write() as db:
            db.execute(session.delete().where(session.c.token_sha256.in_(map(_sha256, tokens(cookie)))))

    # ---- Alone at this machine

    def link_token(self) -> str:
        """A token that opens one session of the person at this machine. In memory: a new server prints a new one."""
        token = secrets.token_urlsafe(24)
        self._links.add(_sha256(token))
        return token

    def enter(self, token: str) -> str | None:
        """Trade the token for a session's cookie; None: unknown, or used already."""
        try:
            self._links.remove(_sha256(token))
        except KeyError:
            return None
        return self.open_session(None)

    # ---- Off the event loop

    async def hashing(self, work: Callable[[], T]) -> T:
        """Run what hashes a password on a thread of its own, two at a time; Throttled when fifty wait already."""
        if self._queued >= 50:
            raise Throttled("too many people are signing in at this moment; try again in 10 seconds", 10)
        self._queued += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._hashing, work)
        finally:
            self._queued -= 1


def tokens(cookie: str | None) -> list[str]:
    """The sessions that a cookie names. Browsers share cookies among the ports of a machine, so that two campaigns
    which are open at the same time keep their sessions in the same one."""
    return (cookie or "").split(".")[:MAX_TOKENS]


BAD_INVITE = "this invitation is unknown, used or expired; ask whoever sent it for a new one"


def _find(db: sa.Connection, name: str) -> Any:
    """The account of this name, however its letters are cased."""
    return next((row for row in db.execute(sa.select(account)) if _folded(row.name) == _folded(name)), None)


def _open_invite(db: sa.Connection, token: str) -> Role | None:
    unused = (invite.c.used_at.is_(None), invite.c.expires_at > time.time())
    return db.scalar(sa.select(invite.c.role).where(invite.c.token_sha256 == _sha256(token), *unused))


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", name).strip().casefold()


def _checked_name(name: str) -> str:
    name = unicodedata.normalize("NFKC", name).strip()
    if not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise Refused(f"a name has 1 to {MAX_NAME} printable characters")
    return name


def _checked_password(password: str) -> str:
    if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
        raise Refused(f"a password has {MIN_PASSWORD} to {MAX_PASSWORD} characters, this one has {len(password)}")
    return password


def _sha256(token: str) -> str:
    """Tokens are random, so a plain hash of them cannot be searched for."""
    return hashlib.sha256(token.encode()).hexdigest()


def _utc() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _duration(seconds: int) -> str:
    return f"{seconds} seconds" if seconds < 120 else f"{-(-seconds // 60)} minutes"


# ---- For the routes ---------------------------------------------------------------------------------------------


def current(request: Request) -> Person | None:
    """Who is asking, as ui.guard found out before any route was reached."""
    return getattr(request.state, "person", None)


def annotator(request: Request) -> Person:
    """Anybody with a session; 401 without one."""
    person = current(request)
    if person is None:
        raise HTTPException(401, "sign in first")
    return person


def admin(request: Request) -> Person:
    """An admin; 401 without a session, 403 with another role."""
    person = annotator(request)
    if not person.is_admin:
        raise HTTPException(403, "this is for admins of the campaign")
    return person


Annotator = Annotated[Person, Depends(annotator)]
Admin = Annotated[Person, Depends(admin)]
