"""A language model behind an OpenAI-compatible endpoint: one question, one reply, and what went wrong by name.

The key, if the endpoint wants one, is read from the environment variable OPENAI_API_KEY.
"""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from trueup.errors import ModelError

CONCURRENT = 4
RETRIES_AFTER_S = (1.0, 4.0, 15.0)
TIMEOUT_S = 120.0


class EndpointError(ModelError):
    """A question without a reply. `kind`: timeout, no connection, malformed (not a chat endpoint's words), http 500."""

    def __init__(self, kind: str, message: str):
        self.kind = kind
        super().__init__(message)

    @property
    def hopeless(self) -> bool:
        """No other question would fare better: the key is refused, or there is no such model or address."""
        return self.kind in ("http 401", "http 403", "http 404")


@dataclass(frozen=True)
class Reply:
    text: str
    refused: bool
    """The endpoint itself marks it as a refusal, or its content filter withheld it."""


@dataclass(frozen=True)
class Endpoint:
    """`base_url` is what clients of OpenAI call by that name, such as http://localhost:8000/v1."""

    base_url: str
    model: str
    timeout_s: float = TIMEOUT_S

    def __post_init__(self) -> None:
        if not self.base_url.startswith(("http://", "https://")):
            raise ModelError(f"{self.base_url!r} is not an endpoint's address: give one like http://localhost:8000/v1")

    @property
    def url(self) -> str:
        return f"{self.base_url.rstrip('/')}/chat/completions"

    def ask(self, system: str, question: str) -> Reply:
        """The reply at temperature 0."""
        messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
        answer = self._post({"model": self.model, "messages": messages, "temperature": 0})
        if answer is None:
            return Reply("", refused=True)
        try:
            choice = answer["choices"][0]
            text, refusal = choice["message"].get("content"), choice["message"].get("refusal")
            withheld = choice.get("finish_reason") == "content_filter"
        except (LookupError, TypeError, AttributeError):
            text, refusal, withheld = None, None, None
        if withheld is None or not isinstance(text, str | None):
            problem = f"answered without choices[0].message.content: {str(answer)[:200]}"
            raise EndpointError("malformed", f"{self.url}: {problem}")
        return Reply(text or str(refusal or ""), refused=bool(refusal) or withheld)

    def _post(self, body: dict[str, Any]) -> Any:
        """The answer as JSON, None where a content filter stopped the question.

        What may pass (429, 5xx, no connection, no JSON) is tried again, the rest is an error at once.
        """
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
        kind = problem = ""
        for pause_s in (*RETRIES_AFTER_S, None):
            try:
                with urllib.request.urlopen(request, timeout=self.timeout_s) as response:
                    return json.loads(response.read())
            except urllib.error.HTTPError as error:
                said = error.read(300).decode(errors="replace").strip()
                if error.code == 400 and "content_filter" in said:
                    return None
                kind, problem = f"http {error.code}", f"{error.code} {error.reason}: {said}"
                if error.code in (401, 403):
                    problem += "; the key is read from the environment variable OPENAI_API_KEY"
                if error.code != 429 and error.code < 500:
                    break
            except (OSError, http.client.HTTPException) as error:
                reason = getattr(error, "reason", None) or error
                kind = "timeout" if isinstance(reason, TimeoutError) else "no connection"
                problem = f"no answer ({reason})"
            except ValueError:
                kind, problem = "malformed", "the answer is not JSON"
            if pause_s is not None:
                time.sleep(pause_s)
        raise EndpointError(kind, f"{self.url}: {problem}")


T = TypeVar("T")
R = TypeVar("R")


def in_parallel(call: Callable[[T], R], items: Iterable[T], concurrent: int = CONCURRENT) -> Iterator[R]:
    """`call` of every item, in their order. Where one raises, or nobody asks for more, no further one is started."""
    with ThreadPoolExecutor(concurrent) as pool:
        try:
            yield from pool.map(call, items)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
