"""Storing and checking passwords."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import unicodedata

# scrypt with 128 * 2^15 * 8 bytes = 32 MiB and three passes: as strong as OWASP's 2^17 with one pass, which takes
# 128 MiB, so that a few people who sign in at once fit on a small machine.
_LOG2_N, _R, _P = 15, 8, 3


def hash_password(password: str) -> str:
    """`scrypt$log2(N)$r$p$salt$key`, which has all that is needed to check a password."""
    salt = secrets.token_bytes(16)
    key = _scrypt(password, salt, _LOG2_N, _R, _P)
    return f"scrypt${_LOG2_N}${_R}${_P}${base64.b64encode(salt).decode()}${base64.b64encode(key).decode()}"


def password_matches(password: str, stored: str) -> bool:
    """Whether `stored` is the hash of this password."""
    _, log2_n, r, p, salt, key = stored.split("$")
    computed = _scrypt(password, base64.b64decode(salt), int(log2_n), int(r), int(p))
    return hmac.compare_digest(computed, base64.b64decode(key))


def _scrypt(password: str, salt: bytes, log2_n: int, r: int, p: int) -> bytes:
    # NFKC, as NIST SP 800-63B asks: the same password typed on another keyboard is the same bytes.
    typed = unicodedata.normalize("NFKC", password).encode()
    return hashlib.scrypt(typed, salt=salt, n=2**log2_n, r=r, p=p, maxmem=(128 * r * 2**log2_n) * 2, dklen=32)


# The hash for unknown names, so that an unknown name takes as long as a wrong password. No password hashes to it, short
# of a preimage of zeros.
NOBODY = f"scrypt${_LOG2_N}${_R}${_P}${base64.b64encode(bytes(16)).decode()}${base64.b64encode(bytes(32)).decode()}"
