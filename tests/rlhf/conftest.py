"""A judge behind an endpoint: a real local server that answers as a test wants it to."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

Say = Callable[[str, str], Any]
"""(answer A, answer B) -> the judge's words, a status, bytes as they are, or a whole reply."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    say: Say
    asked: list[dict[str, Any]]

    def handle_error(self, *_: Any) -> None:
        """A client that did not wait is what some tests are about."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        asked = body["messages"][-1]["content"]
        a, b = (re.findall(rf"<answer_{side}>\n(.*?)\n</answer_{side}>", asked, re.DOTALL)[0] for side in "AB")
        said = self.server.say(a, b)
        self.send_response(said if isinstance(said, int) else 200)
        self.end_headers()
        if isinstance(said, str):
            said = {"choices": [{"message": {"content": said}}]}
        if not isinstance(said, int):
            self.wfile.write(said if isinstance(said, bytes) else json.dumps(said).encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr("trueup.judging.endpoint.RETRIES_AFTER_S", (0.01, 0.01))
    server = Server(("127.0.0.1", 0), Handler)
    server.asked = []
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
