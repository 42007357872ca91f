"""Accounts, passwords, invitations and sessions.

An account has a name, which stays in its table, and a pseudonym, the only identity in labels and exports. The pseudonym
is random, never derived from the name. A person alone at this machine needs no account: a link with a one-time token,
printed where the server was started, opens a session of the person `local`.

Sessions and invitations are stored as hashes of their tokens, and survive a restart. One that has ended is deleted when
it is first seen, so that setting back the clock does not revive it. ui.people.throttle decides who may try a password,
and when; ui.people.names, which names are valid.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import sqlalchemy as sa
from fastapi import Depends, HTTPException, Request

from trueup.errors import DataError
from ui.labels.tables import Database, account, invite, session
from ui.people import passwords
from ui.people.devices import Devices
from ui.people.names import AccountError, checked_name, folded, is_name_length, skeleton
from ui.people.throttle import Attempts, Throttled

Role = Literal["admin", "annotator"]
T = TypeVar("T")

COOKIE = "trueup_session"
DEVICE_COOKIE = "trueup_device"
"""The cookie of a known browser. It opens nothing, but other people's attempts at its name do not stop it."""
DAY_S = 86_400.0
SESSION_S = 14 * DAY_S
"""A session ends this long after it was last used."""
MAX_TOKENS = 8
MIN_PASSWORD = 10
MAX_PASSWORD = 256
QUEUE = 50
"""Most strangers, and most known browsers, that may wait for their password to be hashed."""
SWEEP_S = 60.0
"""Seconds between two deletions of sessions and invitations that have ended."""

# ---- People -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Person:
    """The person behind a request."""

    pseudonym: str
    """The identity in events, exports and statistics."""
    role: Role
    name: str

    @property
    def is_admin(self) -> bool:
        return self.role == "admin"

    @property
    def is_local(self) -> bool:
        """Whether this is the person at this machine, who used the printed link and has no password."""
        return self.pseudonym == LOCAL.pseudonym


LOCAL = Person("local", "admin", "local")
"""The person at this machine, who opened the link that the server printed."""


class Entered(NamedTuple):
    """The values of the two cookies that a browser gets at sign-in."""

    session: str
    device: str


class Invitation(NamedTuple):
    """An open invitation."""

    id: str
    """The first digits of its hash. They do not open an account."""
    role: Role
    expires_utc: str


class Account(NamedTuple):
    account_id: int
    name: str
    pseudonym: str
    role: Role
    active: bool
    created_utc: str


class People:
    """The accounts of a store, and their sessions."""

    def __init__(self, store: Database):
        self.store = store
        self.attempts = Attempts()
        self.devices = Devices(store)
        self._links: set[str] = set()
        # One thread for strangers and one for known browsers: a burst of logins takes 64 MiB and no thread that labels
        # need, and strangers do not delay known browsers.
        self._hashing = {known: ThreadPoolExecutor(1, thread_name_prefix="password") for known in (False, True)}
        self._queued = {False: 0, True: 0}
        self._swept_at = 0.0

    # ---- Accounts

    def add(self, name: str, role: Role, password: str) -> Person:
        """A new account with a pseudonym of its own; AccountError if the name is taken or the password too short."""
        name, hashed = checked_name(name), passwords.hash_password(_checked_password(password))
        with self.store.write() as db:
            return self._insert(db, name, role, hashed)

    def accounts(self) -> list[Account]:
        """All accounts, the disabled too, in the order in which they came."""
        columns = [account.c[key] for key in Account._fields]
        with self.store.read() as db:
            return [Account(*row) for row in db.execute(sa.select(*columns).order_by(account.c.account_id))]

    def names(self) -> dict[str, str]:
        """Names by pseudonym. Only admins may see them."""
        return {row.pseudonym: row.name for row in self.accounts()}

    def any_active(self) -> bool:
        """Whether anybody can sign in; if not, these pages are for the person at this machine."""
        with self.store.read() as db:
            return db.scalar(sa.select(account.c.account_id).where(account.c.active).limit(1)) is not None

    def set_password(self, name: str, password: str) -> Account:
        """Set a new password. All sessions of the old one end."""
        return self._change(name, password_hash=passwords.hash_password(_checked_password(password)))

    def change_password(self, who: Person, old: str, new: str) -> Entered:
        """Set a person's own new password. Every session of the old one ends, and this browser gets a new one."""
        with self.store.read() as db:
            row = db.execute(sa.select(account).where(account.c.pseudonym == who.pseudonym)).first()
        if row is None:
            raise AccountError("the person at this machine has no password; nothing was changed")
        key = f"own password of {who.pseudonym}"
        self.attempts.begin(row.folded, None, key)
        if not passwords.password_matches(old, row.password_hash):
            raise AccountError("that is not your current password; nothing was changed")
        self.attempts.succeeded(row.folded, None, key)
        hashed = passwords.hash_password(_checked_password(new))
        one = account.c.account_id == row.account_id
        with self.store.write() as db:
            still = account.update().where(one, account.c.password_hash == row.password_hash)
            if db.execute(still.values(password_hash=hashed)).rowcount == 0:
                raise AccountError("your password was changed elsewhere at the same moment; nothing was changed here")
            db.execute(session.delete().where(session.c.account_id == row.account_id))
        return Entered(self._open(row.account_id, hashed), self.devices.new(row.pseudonym, hashed))

    def disable(self, name: str) -> Account:
        """Disable an account. Its labels stay; its sessions end now."""
        return self._change(name, active=False)

    def enable(self, name: str) -> Account:
        """Enable a disabled account again."""
        return self._change(name, active=True)

    def _change(self, name: str, **values: Any) -> Account:
        with self.store.write() as db:
            row = _find(db, name)
            if row is None:
                names = ", ".join(sorted(db.scalars(sa.select(account.c.name)))) or "there are none"
                raise AccountError(f"no account is named {name!r}; known: {names}")
            db.execute(account.update().where(account.c.account_id == row.account_id).values(**values))
            db.execute(session.delete().where(session.c.account_id == row.account_id))
        return Account(*(values.get(key, getattr(row, key)) for key in Account._fields))

    def _insert(self, db: sa.Connection, name: str, role: Role, password_hash: str) -> Person:
        if role not in ("admin", "annotator"):
            raise AccountError(f"{role!r} is not a role; known: admin, annotator")
        forms = {"folded": folded(name), "skeleton": skeleton(name)}
        if db.scalar(sa.select(account.c.name).where(account.c.folded == forms["folded"])) is not None:
            raise AccountError(f"the name {name!r} is taken; take another")
        if db.scalar(sa.select(account.c.name).where(account.c.skeleton == forms["skeleton"])) is not None:
            raise AccountError(f"the name {name!r} looks like one that is taken; take another")
        pseudonyms = set(db.scalars(sa.select(account.c.pseudonym)))
        pseudonym = next(p for p in iter(lambda: f"annotator-{secrets.token_hex(3)}", "") if p not in pseudonyms)
        values = {"name": name, "pseudonym": pseudonym, "role": role, "password_hash": password_hash, "active": True}
        db.execute(account.insert().values(**values, **forms, created_utc=_utc()))
        return Person(pseudonym, role, name)

    # ---- Invitations

    def invite(self, role: Role, days: float = 7) -> str:
        """A token that makes one account of this role, until it expires. Only its hash is stored."""
        if role not in ("admin", "annotator"):
            raise AccountError(f"{role!r} is not a role; known: admin, annotator")
        if not 0 < days <= 365:
            raise AccountError(f"an invitation is good for more than 0 and at most 365 days, not {days:g}")
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

    def invitations(self) -> list[Invitation]:
        """The invitations that are neither used nor expired, the next to expire first."""
        query = sa.select(invite).where(*_open_invites()).order_by(invite.c.expires_at)
        with self.store.read() as db:
            return [Invitation(row.token_sha256[:12], row.role, _utc(row.expires_at)) for row in db.execute(query)]

    def withdraw(self, invitation: str) -> Invitation:
        """Withdraw the open invitation whose id begins like this."""
        matches = [one for one in self.invitations() if invitation and one.id.startswith(invitation)]
        if len(matches) != 1:
            open_ids = ", ".join(one.id for one in self.invitations()) or "there are none"
            count = f"{len(matches)} open invitations" if matches else "no open invitation"
            raise AccountError(f"{invitation[:20]!r} names {count}; open are: {open_ids}")
        with self.store.write() as db:
            db.execute(invite.delete().where(invite.c.token_sha256.startswith(matches[0].id), *_open_invites()))
        return matches[0]

    def accept(self, token: str, name: str, password: str) -> Entered:
        """Make the account of the invitation, and open its session."""
        if self.invited(token) is None:
            raise AccountError(BAD_INVITE)
        name, hashed = checked_name(name), passwords.hash_password(_checked_password(password))
        with self.store.write() as db:
            role = _open_invite(db, token)  # again: somebody else may have used it while the password was hashed
            if role is None:
                raise AccountError(BAD_INVITE)
            person = self._insert(db, name, role, hashed)
            db.execute(invite.update().where(invite.c.token_sha256 == _sha256(token)).values(used_at=time.time()))
            account_id = db.scalar(sa.select(account.c.account_id).where(account.c.pseudonym == person.pseudonym))
        return Entered(self._open(account_id, hashed), self.devices.new(person.pseudonym, hashed))

    # ---- Sessions

    def log_in(self, name: str, password: str, address: str | None, devices: str | None = None) -> Entered:
        """Open a session. AccountError has the same text for a wrong name and a wrong password.

        address  the address of the request; None if it is not known to be one person's (see ui.people.sites.address_of)
        devices  value of the browser's device cookie
        """
        if not is_name_length(name) or not 0 < len(password) <= MAX_PASSWORD:
            raise AccountError(_NO_MATCH)  # it can be nobody's name, so it costs no work
        key = folded(name)
        with self.store.read() as db:
            row = db.execute(sa.select(account).where(account.c.folded == key)).first()
        device = self.devices.known(row.pseudonym, row.password_hash, tokens(devices)) if row else None
        self.attempts.begin(key, address, device)
        right = passwords.password_matches(password, row.password_hash if row else passwords.NOBODY)
        if row is None or not right or not row.active:
            raise AccountError(_NO_MATCH)
        self.attempts.succeeded(key, address, device)
        session_token = self._open(row.account_id, row.password_hash)
        return Entered(session_token, self.devices.new(row.pseudonym, row.password_hash))

    def open_session(self, account_id: int | None) -> str:
        """The value of a new session's cookie; without an account, for the person at this machine."""
        with self.store.write() as db:
            return self._open_in(db, account_id)

    def _open(self, account_id: int | None, password_hash: str) -> str:
        """A session of this account, unless it was changed or disabled while the password was checked."""
        still = (account.c.account_id == account_id, account.c.password_hash == password_hash, account.c.active)
        with self.store.write() as db:
            if db.scalar(sa.select(account.c.account_id).where(*still)) is None:
                raise AccountError(_NO_MATCH)
            return self._open_in(db, account_id)

    def _open_in(self, db: sa.Connection, account_id: int | None) -> str:
        token, now = secrets.token_urlsafe(32), time.time()
        row = {"token_sha256": _sha256(token), "account_id": account_id, "created_at": now}
        db.execute(session.insert().values(**row, expires_at=now + SESSION_S))
        return token

    def who(self, cookie: str | None) -> Person | None:
        """The person of this session. Use extends a session; that is written at most once a day."""
        if not cookie:
            return None
        now = time.time()
        self._sweep(now)
        key = session.c.token_sha256.in_(map(_sha256, tokens(cookie)))
        columns = (session.c.account_id, session.c.expires_at, account.c.pseudonym, account.c.role, account.c.name)
        with self.store.read() as db:
            rows = db.execute(
                sa.select(*columns, account.c.active)
                .select_from(session.outerjoin(account, session.c.account_id == account.c.account_id))
                .where(key)
            ).all()
        row = next((row for row in rows if row.expires_at > now), None)
        if rows and row is None:
            self._sweep(now, at_once=True)
        if row is None or (row.account_id is not None and not row.active):
            return None
        if not now + SESSION_S - DAY_S <= row.expires_at <= now + SESSION_S:  # above: the clock was set back
            still = session.update().where(key, session.c.expires_at > now)
            self._tidy(still.values(expires_at=now + SESSION_S))
        return LOCAL if row.account_id is None else Person(row.pseudonym, row.role, row.name)

    def _sweep(self, now: float, at_once: bool = False) -> None:
        """Delete the sessions and invitations that have ended, so that a changed clock does not revive them."""
        if 0 <= now - self._swept_at < (1.0 if at_once else SWEEP_S):
            return
        self._swept_at = now
        ended = (session.c.expires_at <= now, invite.c.expires_at <= now)
        with self.store.read() as db:
            some = db.scalar(sa.select(sa.or_(*(sa.exists().where(one) for one in ended))))
        if some:
            self._tidy(session.delete().where(ended[0]), invite.delete().where(ended[1], invite.c.used_at.is_(None)))

    def _tidy(self, *statements: Any) -> None:
        """Write changes for which nobody waits. If the store cannot be written now, the next call writes them."""
        try:
            with self.store.write() as db:
                for statement in statements:
                    db.execute(statement)
        except (sa.exc.OperationalError, DataError):
            return

    def close_session(self, cookie: str | None) -> None:
        with self.store.write() as db:
            db.execute(session.delete().where(session.c.token_sha256.in_(map(_sha256, tokens(cookie)))))

    # ---- Alone at this machine

    def link_token(self) -> str:
        """A token that opens one session of the person at this machine. It is in memory: a new server has a new one."""
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

    # ---- Browsers that were in before

    def knows_browser(self, name: str, cookie: str | None) -> bool:
        """Whether a browser was signed in before under this name, by a cookie with our signature."""
        if not cookie:
            return False
        with self.store.read() as db:
            row = _find(db, name)
        return row is not None and self.devices.known(row.pseudonym, row.password_hash, tokens(cookie)) is not None

    # ---- Off the event loop

    async def hashing(self, work: Callable[[], T], known: bool = False) -> T:
        """Run `work`, which hashes a password, on a thread of its own. Throttled if QUEUE of its kind wait already.

        known  the browser is known (`knows_browser`) or signed in: it does not wait for strangers
        """
        if self._queued[known] >= QUEUE:
            raise Throttled("too many people are signing in at this moment; try again in 10 seconds", 10)
        self._queued[known] += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._hashing[known], work)
        finally:
            self._queued[known] -= 1


def tokens(cookie: str | None) -> list[str]:
    """The sessions that a cookie names. Browsers share cookies among the ports of a machine, so two campaigns that are
    open at the same time keep their sessions in one cookie."""
    return (cookie or "").split(".")[:MAX_TOKENS]


BAD_INVITE = "this invitation is unknown, used or expired; ask whoever sent it for a new one"


_NO_MATCH = "that name and password do not belong together"


def _find(db: sa.Connection, name: str) -> Any:
    """The account of this name, in any case of its letters."""
    if not is_name_length(name):
        return None
    return db.execute(sa.select(account).where(account.c.folded == folded(name))).first()


def _open_invites() -> tuple[Any, ...]:
    return invite.c.used_at.is_(None), invite.c.expires_at > time.time()


def _open_invite(db: sa.Connection, token: str) -> Role | None:
    return db.scalar(sa.select(invite.c.role).where(invite.c.token_sha256 == _sha256(token), *_open_invites()))


def _checked_password(password: str) -> str:
    if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
        raise AccountError(f"a password has {MIN_PASSWORD} to {MAX_PASSWORD} characters, this one has {len(password)}")
    return password


def _sha256(token: str) -> str:
    """A plain hash is enough, because tokens are random."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _utc(moment: float | None = None) -> str:
    when = datetime.now(UTC) if moment is None else datetime.fromtimestamp(moment, UTC)
    return when.isoformat(timespec="seconds")


# ---- For the routes ---------------------------------------------------------------------------------------------


def current(request: Request) -> Person | None:
    """The person of a request, which ui.people.guard set before any route was reached."""
    return getattr(request.state, "person", None)


def annotator(request: Request) -> Person:
    """The person of the request, in any role; 401 without a session."""
    person = current(request)
    if person is None:
        raise HTTPException(401, "sign in first")
    return person


def admin(request: Request) -> Person:
    """The admin of the request; 401 without a session, 403 with another role."""
    person = annotator(request)
    if not person.is_admin:
        raise HTTPException(403, "this is for admins of the campaign")
    return person


Annotator = Annotated[Person, Depends(annotator)]
Admin = Annotated[Person, Depends(admin)]
