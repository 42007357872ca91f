"""A language model behind an OpenAI-compatible endpoint: one question, one reply, and errors by name.

The key, if the endpoint wants one, comes from the environment variable OPENAI_API_KEY. A name and a password in the
address (https://name:password@host/v1) are sent instead of it, and appear in no message.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx

from trueup.config import EndpointParameters
from trueup.errors import ModelError
from trueup.files import Json
from trueup.provenance.masking import masked

CONCURRENT = 4
RETRIES_AFTER_S = (1.0, 4.0, 15.0)
MOST_BYTES = 4_000_000
"""Most bytes of a response. A judge that thinks aloud for 100,000 tokens stays below it."""

ENDS = ("stop", "eos", "eos_token", "end_turn", "stop_sequence", "complete", "completed")
"""`finish_reason` of a reply that ended by itself. OpenAI says `stop`; compatible servers say the others."""
KEY = "the key is read from the environment variable OPENAI_API_KEY"


class EndpointError(ModelError):
    """A question without a reply.

    kind      timeout, no connection, malformed (not a chat endpoint's words), http 500, ...
    hopeless  every question would fail: the key or a parameter is refused, there is no such model or address
    """

    def __init__(self, kind: str, message: str, hopeless: bool = False):
        self.kind, self.hopeless = kind, hopeless
        super().__init__(message)


@dataclass(frozen=True)
class Reply:
    text: str
    refused: bool
    """The endpoint itself marks it as a refusal, or its content filter withheld it."""
    cut: bool = False
    """Something other than the reply's own end stopped it, mostly the limit on tokens."""


@dataclass(frozen=True)
class Endpoint:
    """`base_url` is the address up to `/v1`, such as http://localhost:8000/v1, as in OpenAI's clients."""

    base_url: str
    model: str
    parameters: EndpointParameters = field(default_factory=EndpointParameters)

    def __post_init__(self) -> None:
        try:
            address = httpx.URL(self.base_url)
        except httpx.InvalidURL:
            address = httpx.URL("")
        if address.scheme not in ("http", "https") or not address.host:
            raise ModelError(
                f"{masked(self.base_url)!r} is not an endpoint's address: give one like http://localhost:8000/v1"
            )

    @property
    def url(self) -> httpx.URL:
        """The address of chat completions, without name and password; a query in `base_url` stays."""
        base = httpx.URL(self.base_url)
        return base.copy_with(userinfo=b"", path=f"{base.path.rstrip('/')}/chat/completions")

    def __str__(self) -> str:
        """The address as messages show it."""
        return masked(str(self.url))

    def request(self, system: str, question: str) -> Json:
        """The body of a request."""
        messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
        return {"model": self.model, "messages": messages, **self.parameters.body()}

    def ask(self, system: str, question: str) -> Reply:
        answer = self._post(self.request(system, question))
        if answer is None:
            return Reply("", refused=True)
        try:
            choice = answer["choices"][0]
            text, refusal = choice["message"].get("content"), choice["message"].get("refusal")
            reason = choice.get("finish_reason")
        except (LookupError, TypeError, AttributeError):
            choice, text, refusal, reason = None, None, None, None
        if choice is None or not isinstance(text, str | None) or not isinstance(reason, str | None):
            problem = f"answered without choices[0].message.content: {self._without_key(str(answer)[:200])}"
            raise EndpointError("malformed", f"{self}: {problem}")
        refused = bool(refusal) or reason == "content_filter"
        ended = reason is None or reason.lower() in ENDS
        return Reply(text or str(refusal or ""), refused, cut=not refused and not ended)

    def _post(self, body: Json) -> Any:
        """The response as JSON; None if a content filter stopped the question.

        A passing error (429, 5xx, no connection, no JSON) is tried again; any other is raised at once.
        """
        error = EndpointError("no connection", f"{self}: not asked")
        for pause_s in (*RETRIES_AFTER_S, None):
            try:
                # In a thread of its own: the caller may run an event loop, and asyncio allows one per thread.
                with ThreadPoolExecutor(1) as pool:
                    response = pool.submit(asyncio.run, self._exchange(body)).result()
                if response.status_code < 300:
                    return _json(response)
                text = self._without_key(response.text[:300].strip())
                if response.status_code == 400 and "content_filter" in text:
                    return None
                error = self._refusal(response, text, body)
                if response.status_code != 429 and response.status_code < 500:
                    break
            except TimeoutError:
                problem = f"no answer within {self.parameters.timeout_s:g} s"
                error = EndpointError("timeout", f"{self}: {problem}")
            except (httpx.TransportError, OSError) as failure:
                problem = masked(str(failure)) or type(failure).__name__
                error = EndpointError("no connection", f"{self}: no answer ({problem})")
            except _Malformed as failure:
                error = EndpointError("malformed", f"{self}: {failure}")
            except (ValueError, ImportError) as failure:
                problem = f"the proxy that the environment names cannot be used ({failure})"
                raise EndpointError("no connection", f"{self}: {masked(problem)}", hopeless=True) from None
            if pause_s is not None:
                time.sleep(pause_s)
        raise error from None

    async def _exchange(self, body: Json) -> httpx.Response:
        """One request. Time and size limit it as a whole, however slowly the server sends.

        Redirects are not followed: the key and the texts would go to a host that nobody named.
        """
        base, auth = httpx.URL(self.base_url), None
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if base.userinfo:
            auth = httpx.BasicAuth(base.username, base.password)
        elif key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        # HTTP_PROXY, NO_PROXY and SSL_CERT_FILE count, but no proxy reaches what listens on this machine alone.
        direct = {f"all://{base.netloc.decode()}": None} if _is_here(base.host) else {}
        async with (
            asyncio.timeout(self.parameters.timeout_s),
            httpx.AsyncClient(timeout=None, mounts=direct, auth=auth, follow_redirects=False) as client,
            client.stream("POST", self.url, content=json.dumps(body).encode(), headers=headers) as response,
        ):
            content = b""
            async for part in response.aiter_raw():
                content += part
                if len(content) > MOST_BYTES:
                    raise _Malformed(f"the answer has over {MOST_BYTES / 1e6:g} MB")
        return httpx.Response(response.status_code, headers=response.headers, content=content)

    def _without_key(self, text: str) -> str:
        """A server's text without the key and the password, which it may repeat."""
        for secret in (os.environ.get("OPENAI_API_KEY"), httpx.URL(self.base_url).password):
            text = text.replace(secret, "***") if secret else text
        return str(masked(text))

    def _refusal(self, response: httpx.Response, text: str, body: Json) -> EndpointError:
        code = response.status_code
        problem = f"{code} {response.reason_phrase}: {text}"
        parameters = [name for name in self.parameters.body() if code in (400, 422) and name in text]
        if response.is_redirect or 300 <= code < 400:
            to = masked(response.headers.get("location", "an address that it does not name"))
            problem = f"{code}, a redirect to {to}, which is not followed: give that address, if it is the right one"
        elif code in (401, 403):
            problem += f"; {KEY}"
        elif parameters:
            problem += f"; judge_parameters.{parameters[0]} says what is sent, and null leaves it to the endpoint"
        unsupported = parameters and ("temperature" in parameters or "support" in text.lower())
        hopeless = code in (401, 403, 404) or 300 <= code < 400 or bool(unsupported)
        return EndpointError(f"http {code}", f"{self}: {problem}", hopeless)


class _Malformed(Exception):
    """The response is not a chat endpoint's."""


def _json(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        raise _Malformed("the answer is not JSON") from None


def _is_here(host: str) -> bool:
    """Whether a host is this machine."""
    host = host.rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        # inet_aton reads 127.1 too, as a connection does
        address = ipaddress.ip_address(host if ":" in host else socket.inet_ntoa(socket.inet_aton(host)))
    except (ValueError, OSError):
        return False
    return address.is_loopback or address.is_unspecified


T = TypeVar("T")
R = TypeVar("R")


def in_parallel(call: Callable[[T], R], items: Iterable[T], concurrent: int = CONCURRENT) -> Iterator[R]:
    """`call` of every item, in their order. After an error, or when the caller stops, no further call starts."""
    with ThreadPoolExecutor(concurrent) as pool:
        try:
            yield from pool.map(call, items)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
