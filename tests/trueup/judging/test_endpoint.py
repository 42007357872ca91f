"""What is sent to a judge's endpoint, to whom, and for how long it is waited for: real servers on this machine."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import looping
import pytest

from trueup.config import EndpointParameters
from trueup.errors import ConfigError, ModelError
from trueup.judging.endpoint import Endpoint, EndpointError
from trueup.judging.question import read_mark, verdict
from trueup.provenance.masking import masked

ANSWER = json.dumps({"choices": [{"message": {"content": "[[A]]"}, "finish_reason": "stop"}]}).encode()


class Server(ThreadingHTTPServer):
    daemon_threads = True
    answer: Callable[[BaseHTTPRequestHandler], None]
    seen: list[tuple[str, dict[str, str], dict[str, Any]]]
    """(path, headers, body) of each request."""

    def handle_error(self, *_: Any) -> None:
        """A client that does not wait is what some tests are about."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, dict(self.headers), body))
        self.server.answer(self)

    do_GET = do_POST

    def log_message(self, *_: Any) -> None:
        pass


def says(content: bytes = ANSWER, status: int = 200, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(content)

    return answer


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Server]]:
    monkeypatch.setattr("trueup.judging.endpoint.RETRIES_AFTER_S", ())
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    started: list[Server] = []

    def start(answer: Callable[[BaseHTTPRequestHandler], None] = says()) -> Server:  # noqa: B008
        server = Server(("127.0.0.1", 0), Handler)
        server.answer, server.seen = answer, []
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def parameters(**keys: Any) -> EndpointParameters:
    return EndpointParameters(**keys)


# ---- What is sent -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "sent"),
    [
        ({}, {"temperature": 0}),
        ({"temperature": None}, {}),
        ({"temperature": 1.0, "max_tokens": 64}, {"temperature": 1, "max_tokens": 64}),
        ({"temperature": None, "max_completion_tokens": 2048}, {"max_completion_tokens": 2048}),
        ({"extra_body": {"reasoning_effort": "low"}}, {"temperature": 0, "reasoning_effort": "low"}),
    ],
)
def test_the_request_has_the_parameters_of_the_config_and_no_other(
    servers: Callable[..., Server], keys: dict[str, Any], sent: dict[str, Any]
) -> None:
    server = servers()
    Endpoint(server.url, "m", parameters(**keys)).ask("system", "question")
    ((path, _, body),) = server.seen
    assert path == "/v1/chat/completions"
    assert {key: value for key, value in body.items() if key not in ("model", "messages")} == sent


def test_a_caller_may_have_an_event_loop_running(servers: Callable[..., Server]) -> None:
    url = servers().url

    async def asks() -> str:
        return Endpoint(url, "m").ask("", "").text

    assert looping.run(asks()) == "[[A]]"


@pytest.mark.parametrize("key", ["model", "messages", "stream", "n", "temperature"])
def test_a_key_that_is_ours_is_refused_by_name(key: str) -> None:
    with pytest.raises(ValueError, match=rf"extra_body\.{key}"):
        parameters(extra_body={key: 1})


def test_an_endpoint_that_allows_one_temperature_says_how_to_leave_it_out(servers: Callable[..., Server]) -> None:
    server = servers(says(b"'temperature' does not support 0 with this model. Only the default (1) is supported.", 400))
    with pytest.raises(EndpointError, match=r"judge_parameters\.temperature .* null leaves it") as caught:
        Endpoint(server.url, "m").ask("", "")
    assert caught.value.hopeless


def test_a_query_of_the_address_stays_where_it_belongs(servers: Callable[..., Server]) -> None:
    server = servers()
    Endpoint(f"{server.url}/?api-version=2", "m").ask("", "")
    assert server.seen[0][0] == "/v1/chat/completions?api-version=2"


# ---- To whom ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy"])
@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "localhost", "LocalHost", "localhost.", "judge.localhost"])
def test_no_proxy_sees_what_goes_to_this_machine(
    servers: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, variable: str, host: str
) -> None:
    judge, proxy = servers(), servers()
    monkeypatch.setenv(variable, f"http://127.0.0.1:{proxy.server_port}")
    try:
        Endpoint(f"http://{host}:{judge.server_port}/v1", "m").ask("", "")
    except EndpointError:
        assert host in ("judge.localhost", "localhost."), "not every resolver knows it"
    assert proxy.seen == []


def test_no_proxy_sees_what_goes_to_this_machine_by_its_newer_address(
    servers: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = servers()
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.server_port}")
    with pytest.raises(EndpointError, match="no answer"):
        Endpoint("http://[::1]:9/v1", "m").ask("", "")
    assert proxy.seen == []


def test_a_server_that_repeats_the_key_does_not_bring_it_into_a_message(
    servers: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    for status, said in ((401, b"Incorrect API key provided: sk-secret"), (200, b'{"echo": "Bearer sk-secret"}')):
        with pytest.raises(EndpointError) as caught:
            Endpoint(servers(says(said, status)).url, "m").ask("", "")
        assert "sk-secret" not in str(caught.value) and "***" in str(caught.value)


def test_a_proxy_is_used_for_other_hosts_unless_no_proxy_names_them(
    servers: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = servers()
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.server_port}")
    Endpoint("http://judge.invalid/v1", "m").ask("", "")
    assert proxy.seen[0][0] == "http://judge.invalid/v1/chat/completions"
    monkeypatch.setenv("no_proxy", "judge.invalid")
    with pytest.raises(EndpointError, match="no answer"):
        Endpoint("http://judge.invalid/v1", "m").ask("", "")
    assert len(proxy.seen) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_neither_key_nor_texts_follow_a_redirect(
    servers: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    other = servers()
    server = servers(says(b"", status, Location=f"http://me:hunter2@127.0.0.1:{other.server_port}/v1"))
    with pytest.raises(EndpointError, match=r"a redirect to http://me:\*\*\*@.* not followed") as caught:
        Endpoint(server.url, "m").ask("", "")
    assert caught.value.hopeless and other.seen == []
    assert server.seen[0][1]["Authorization"] == "Bearer sk-secret"


def test_name_and_password_of_the_address_are_sent_in_place_of_the_key_and_are_in_no_message(
    servers: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    server = servers(says(b"no", 401))
    url = server.url.replace("://", "://me:hunter2@")
    with pytest.raises(EndpointError) as caught:
        Endpoint(url, "m").ask("", "")
    assert "hunter2" not in str(caught.value) and "401" in str(caught.value)
    assert server.seen[0][1]["Authorization"] == "Basic " + base64.b64encode(b"me:hunter2").decode()
    with pytest.raises(ModelError) as refused:
        Endpoint("ftp://me:hunter2@host/v1", "m")
    assert "hunter2" not in str(refused.value)


# ---- For how long -----------------------------------------------------------------------------------------------


def drips_head(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for number in range(100):
        handler.wfile.write(f"X-{number}: x\r\n".encode())
        handler.wfile.flush()
        time.sleep(0.05)


def drips_body(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(100):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


def hangs(handler: BaseHTTPRequestHandler) -> None:
    time.sleep(5)


@pytest.mark.parametrize("answer", [drips_head, drips_body, hangs])
def test_a_request_has_one_time_limit_however_its_answer_drips(
    servers: Callable[..., Server], answer: Callable[[BaseHTTPRequestHandler], None]
) -> None:
    began = time.monotonic()
    with pytest.raises(EndpointError, match=r"no answer within 0\.3 s") as caught:
        Endpoint(servers(answer).url, "m", parameters(timeout_s=0.3)).ask("", "")
    assert caught.value.kind == "timeout" and time.monotonic() - began < 3


def test_an_answer_without_an_end_is_not_taken_into_memory(servers: Callable[..., Server]) -> None:
    def pours(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while True:
            handler.wfile.write(b" " * 100_000)

    with pytest.raises(EndpointError, match="over 4 MB"):
        Endpoint(servers(pours).url, "m").ask("", "")


def test_a_proxy_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "nonsense://me:hunter2@host")
    with pytest.raises(EndpointError, match="proxy") as caught:
        Endpoint("http://judge.invalid/v1", "m").ask("", "")
    assert "hunter2" not in str(caught.value)


# ---- What a reply says ------------------------------------------------------------------------------------------


def reply_of(servers: Callable[..., Server], message: Any, reason: str | None) -> Any:
    answer = {"choices": [{"message": message, "finish_reason": reason}]}
    return Endpoint(servers(says(json.dumps(answer).encode())).url, "m").ask("", "")


@pytest.mark.parametrize("reason", [None, "stop", "eos", "eos_token", "end_turn", "STOP"])
def test_a_reply_that_ended_is_read(servers: Callable[..., Server], reason: str | None) -> None:
    assert verdict(reply_of(servers, {"content": "[[B]]"}, reason)) == ("B", None)


@pytest.mark.parametrize("reason", ["length", "max_tokens", "tool_calls", "abort", "error"])
@pytest.mark.parametrize("content", ["[[A]] is right where it", "<think>[[A]]", None, ""])
def test_a_reply_that_was_stopped_has_no_verdict(
    servers: Callable[..., Server], reason: str, content: str | None
) -> None:
    assert verdict(reply_of(servers, {"content": content, "reasoning_content": "[[A]]"}, reason)) == (None, "cut")


TAGS = [
    ("<think>", "</think>"),
    ("<THINK>", "</THINK>"),
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
]


@pytest.mark.parametrize(("start", "end"), TAGS)
def test_the_mark_is_read_behind_the_thinking_and_never_in_it(start: str, end: str) -> None:
    assert read_mark(f"{start}[[A]] no, wait{end}\n[[B]]") == "B"
    assert read_mark(f"it begins in the prompt [[A]]{end}[[C]]") == "C"
    assert read_mark(f"{start}one{end}{start}[[A]]{end}[[B]]") == "B"
    assert read_mark(f"[[C]]{start}[[A]]{end}") == "C"
    for unclosed in (f"{start}[[A]]", f"[[A]]{start}hm", f"{start}one{end}{start}[[A]]", f"{start}[[A]] and so [[B]]"):
        assert read_mark(unclosed) is None
    assert read_mark(f"{start}[[A]]{end}") is None


def test_thinking_is_parted_in_linear_time() -> None:
    began = time.perf_counter()
    assert read_mark("<think>" * 200_000) is None
    assert read_mark("</think>" * 200_000 + "[[A]]") == "A"
    assert time.perf_counter() - began < 2


# ---- Masks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://localhost:8000/v1", "http://localhost:8000/v1"),
        ("https://api.example.org/v1?api-version=2", "https://api.example.org/v1?api-version=2"),
        ("https://me:hunter2@host/v1", "https://me:***@host/v1"),
        ("https://hunter2@host/v1", "https://***@host/v1"),
        ("https://me:hunt@hunter2@host/v1", "https://me:***@host/v1"),
        ("https://host/v1?api_key=hunter2&x=1", "https://host/v1?api_key=***&x=1"),
        ("https://host/v1?x=1&access_token=hunter2", "https://host/v1?x=1&access_token=***"),
        ("postgresql+psycopg://me:hunter2@host:5432/db", "postgresql+psycopg://me:***@host:5432/db"),
        ("postgresql://me:a/hunter2@host/db", "postgresql://me:***@host/db"),
        ("postgresql://:hunter2@host/db", "postgresql://:***@host/db"),
        ("postgresql://me@host/db", "postgresql://me@host/db"),
        ("sqlite:////tmp/a@b.sqlite", "sqlite:////tmp/a@b.sqlite"),
        ("no answer from https://me:hunter2@host/v1, sorry", "no answer from https://me:***@host/v1, sorry"),
        ("a http://a:hunter2@b/ and c http://d:hunter2@e/", "a http://a:***@b/ and c http://d:***@e/"),
    ],
)
def test_secrets_in_addresses_are_masked_and_nothing_else_is(text: str, shown: str) -> None:
    assert masked(text) == shown
    assert masked(shown) == shown


@pytest.mark.parametrize(
    ("section", "keys"),
    [
        ("label", {"source": "judge", "judge_url": "${JUDGE}", "judge_model": "m"}),
        ("compare", {"judges": ["endpoint"], "judge_url": "${JUDGE}", "judge_model": "m"}),
    ],
)
def test_an_address_comes_from_the_environment_and_what_is_written_down_is_masked(
    campaign: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, section: str, keys: dict[str, Any]
) -> None:
    monkeypatch.setenv("JUDGE", "https://me:hunter2@host/v1?key=hunter3")
    made = campaign(tmp_path, **{section: keys}).stages[section]
    assert made.judge_url == "https://me:hunter2@host/v1?key=hunter3"
    written = json.dumps([made.model_dump(mode="json"), made.identity()])
    assert "hunter" not in written and written.count("https://me:***@host/v1?key=***") == 2
    before = made.sha256()
    monkeypatch.setenv("JUDGE", "https://me:hunter9@host/v1?key=hunter8")
    assert campaign(tmp_path, **{section: keys}).stages[section].sha256() == before, "a new password is no new judge"
    monkeypatch.delenv("JUDGE")
    with pytest.raises(ConfigError, match=rf"{section}\.judge_url: names the environment variable JUDGE"):
        campaign(tmp_path, **{section: keys})
