"""Known browsers: a token proves that this browser was signed in with this account's password.

It opens nothing. It is signed with a secret of the store, and valid until the password is changed.
"""

from __future__ import annotations

import base64
import hmac
import secrets
from collections.abc import Iterable
from functools import cached_property

import sqlalchemy as sa

from ui.labels.tables import Database, meta

_KEY = "device_key"


class Devices:
    """The tokens that this store gives to browsers."""

    def __init__(self, store: Database):
        self.store = store

    def new(self, pseudonym: str, password_hash: str) -> str:
        """A token for a browser that signed in with this password."""
        nonce = secrets.token_urlsafe(12)
        return f"{nonce}~{self._sign(nonce, pseudonym, password_hash)}"

    def known(self, pseudonym: str, password_hash: str, tokens: Iterable[str]) -> str | None:
        """The name of the token that belongs to this account; None if none of them does."""
        for token in tokens:
            nonce, _, signature = token.partition("~")
            expected = self._sign(nonce, pseudonym, password_hash)
            if hmac.compare_digest(signature.encode(), expected.encode()):
                return nonce
        return None

    def _sign(self, nonce: str, pseudonym: str, password_hash: str) -> str:
        text = "\0".join((nonce, pseudonym, password_hash)).encode()
        return base64.urlsafe_b64encode(hmac.digest(self._secret, text, "sha256")[:18]).decode()

    @cached_property
    def _secret(self) -> bytes:
        """The secret of the signature. It is in the store, so that browsers stay known after a restart."""
        query = sa.select(meta.c.value).where(meta.c.key == _KEY)
        with self.store.read() as db:
            secret = db.scalar(query)
        if secret is None:
            with self.store.write() as db:
                secret = db.scalar(query)
                if secret is None:
                    secret = secrets.token_hex(32)
                    db.execute(meta.insert().values(key=_KEY, value=secret))
        return bytes.fromhex(secret)
