"""What was tried against the pages and the API, in numbers: docs/security.md states them.

    python benchmarks/attacks.py fuzz              odd bodies, queries and paths to every route of the API
    python benchmarks/attacks.py scripts           texts that would run a script, on the pages that show them (Chromium)

Everything is sent to a server of this process, on this machine, over a campaign made for it.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "tests" / "lib"))
from looking import launched

import chaos
from ui.app import label_app, listen
from ui.people.accounts import COOKIE
from ui.people.connections import server
from ui.people.names import MAX_NAME, AccountError

PASSWORD = "four words are enough"

# ---- Odd values -------------------------------------------------------------------------------------------------

ODD: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    10**400,
    0.5,
    -0.0,
    1e308,
    "",
    " ",
    "a",
    "A" * 300,
    "a" * 70_000,
    "\0",
    "\ud800",
    "\u202e",
    "\u0344" * 2000,
    "a\n\x1b[31mb",
    "%00",
    "../../etc/passwd",
    "' OR 1=1 --",
    "{{7*7}}",
    "${7*7}",
    "<script>",
    "NaN",
    "Infinity",
    "1e999",
    "12345678",
    "12345678-1234",
    [],
    {},
    [[]],
    [[0], [1]],
    [[1, 0]],
    [[0, 0], [1]],
    [["0"]],
    [None],
    [{"role": "user", "content": "x"}],
    [{"role": "system"}],
    {"a": 1},
    {"kind": "left"},
    ["\0"],
    [[10**400]],
    "a",
    "b",
    "tie",
    "both_bad",
    "skip",
    "a_much",
    "key",
    "aligned",
    "sft",
]
RAW = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'"x"',
    b"\xff\xfe",
    b"[" * 50_000,
    b'{"a":' * 5_000,
    b'{"token": 1e999}',
    b"NaN",
    b"\xef\xbb\xbf{}",
]


def cases(api: dict[str, Any], number: int, odd: list[Any], seed: int = 0) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Method, path and options of so many requests, drawn over all operations of an OpenAPI description."""
    draw = random.Random(seed)
    operations = [(path, *one) for path, methods in sorted(api["paths"].items()) for one in methods.items()]
    schemas = api["components"]["schemas"]
    for count in range(number):
        path, method, said = operations[count % len(operations)]
        where = path
        query = {}
        for parameter in said.get("parameters", ()):
            value = draw.choice([value for value in odd if isinstance(value, str | int | float)])
            if parameter["in"] == "path":
                text = str(value).encode("utf-8", "replace").decode()[:200] or "x"
                where = where.replace(f"{{{parameter['name']}}}", "".join(c if c.isalnum() else "-" for c in text))
            elif parameter["in"] == "query" and draw.random() < 0.8:
                query[parameter["name"]] = str(value).encode("utf-8", "replace").decode()[:500]
        options: dict[str, Any] = {"params": query}
        body = said.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {}).get("$ref")
        if body and draw.random() < 0.15:
            options |= {"content": draw.choice(RAW), "headers": {"Content-Type": "application/json"}}
        elif body:
            fields = list(schemas[body.rpartition("/")[2]]["properties"])
            kept = [field for field in fields if draw.random() < 0.8]
            values = {field: draw.choice(odd) for field in [*kept, *(["other"] if draw.random() < 0.1 else [])]}
            options |= {"content": json.dumps(values).encode(), "headers": {"Content-Type": "application/json"}}
        yield method.upper(), where, options


def fuzz(folder: Path, number: int) -> Counter[int]:
    """Statuses of so many odd requests of an annotator and an admin to the API of a campaign with all its pages."""
    from fastapi.testclient import TestClient

    config = chaos.campaign(folder, 40)
    app = label_app(config)
    found: Counter[int] = Counter()
    with redirect_stderr(log := io.StringIO()):
        for name, role in (("Ann", "annotator"), ("Root", "admin")):
            app.state.people.add(name, role, PASSWORD)
            account = next(row.account_id for row in app.state.people.accounts() if row.name == name)
            client = TestClient(app, base_url="http://127.0.0.1", follow_redirects=False)
            client.cookies.set(COOKIE, app.state.people.open_session(account))
            tokens = [task["token"] for task in client.get("/api/v1/tasks").json()["tasks"]]
            values = [*ODD, *tokens * 10]  # some that are real, so that some requests are carried out
            for method, path, options in cases(app.openapi(), number // 2, values, seed=len(name)):
                found[client.request(method, path, **options).status_code] += 1
    app.state.people.store.close()
    for line in log.getvalue().splitlines()[:20]:
        print(line, file=sys.stderr)
    return found


# ---- Scripts ----------------------------------------------------------------------------------------------------


def payloads() -> list[str]:
    """Texts that set `window.hacked` on a page that trusts them, each in one way: 67 of them."""
    run = "window.hacked=1"
    on = [
        f"<{tag} {rest} {event}={run}>"
        for tag, rest, event in (
            ("img", "src=x", "onerror"),
            ("img", "src=data:, srcset=x", "onerror"),
            ("svg", "", "onload"),
            ("body", "", "onload"),
            ("video", "src=x", "onerror"),
            ("audio", "src=x", "onerror"),
            ("details", "open", "ontoggle"),
            ("input", "autofocus", "onfocus"),
            ("select", "autofocus", "onfocus"),
            ("textarea", "autofocus", "onfocus"),
            ("marquee", "", "onstart"),
            ("object", "data=x", "onerror"),
            ("embed", "src=x", "onerror"),
            ("iframe", "src=/", "onload"),
            ("link", "rel=stylesheet href=x", "onerror"),
            ("script", "src=x", "onerror"),
            ("style", "", "onload"),
            ("div", "style=animation:x", "onanimationstart"),
            ("p", "contenteditable autofocus", "onfocus"),
            ("a", "href=# autofocus", "onfocus"),
            ("image", "src=x", "onerror"),
            ("track", "src=x", "onerror"),
            ("form", "", "onformdata"),
            ("button", "autofocus", "onfocus"),
            ("x", "tabindex=1 autofocus", "onfocus"),
            ("meter", "autofocus tabindex=1", "onfocus"),
        )
    ]
    schemes = [
        "javascript",
        "JaVaScRiPt",
        "java\tscript",
        "&#106;avascript",
        "javascript&colon;",
        "\x01javascript",
        "vbscript",
        "data:text/html,<script>",
    ]
    links = [link for scheme in schemes for link in (f"[click]({scheme}:{run})", f"<a href='{scheme}:{run}'>click</a>")]
    others = [
        f"<script>{run}</script>",
        f"<scr<script>ipt>{run}</script>",
        f"<SCRIPT>{run}</SCRIPT >",
        f"<svg><script>{run}</script></svg>",
        f"<!--><script>{run}</script>-->",
        f"<iframe srcdoc='<script>parent.{run}</script>'></iframe>",
        f'![x](x" onerror="{run})',
        f"![x](x 'y\" onerror=\"{run}')",
        f"`</code><img src=x onerror={run}>`",
        f"```html\n</code></pre><script>{run}</script>\n```",
        f'```x" onmouseover="{run}\nx\n```',
        rf"$\text{{<img src=x onerror={run}>}}$",
        rf"\(\href{{javascript:{run}}}{{x}}\)",
        f"<math><mi xlink:href='javascript:{run}'>x</mi></math>",
        f"[a]: javascript:{run}\n\n[a]",
        f"<javascript:{run}>",
        f"${{{run}}} {{{{constructor.constructor('{run}')()}}}}",
        f"<template><script>{run}</script></template>",
        f"<base href='javascript:{run}//'>",
        f"<meta http-equiv=refresh content='0;url=javascript:{run}'>",
        f"<style>@import 'javascript:{run}'</style>",
        f"</textarea><script>{run}</script>",
        f"</title><script>{run}</script>",
        f'"><script>{run}</script>',
        f"'-{run}-'",
    ]
    return [*on, *links, *others]


@contextmanager
def serving(app: Any) -> Iterator[str]:
    bound = listen("127.0.0.1", 0)
    running = server(app)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    running.should_exit = True
    thread.join(10)


def scripts(folder: Path, texts: list[str]) -> tuple[Counter[str], list[str], int]:
    """Texts that were shown, by page; what ran in the browser or left it for another address; and how many of them run
    on a page that trusts them."""
    config = chaos.campaign(folder, len(texts), text=lambda number: texts[number])
    app = label_app(config)
    for text in texts:
        with suppress(AccountError):  # not every one of them is a name
            app.state.people.add(text[:MAX_NAME], "annotator", PASSWORD)
    shown: Counter[str] = Counter()
    problems: list[str] = []
    with serving(app) as address, contextmanager(launched)() as browser:
        context = browser.new_context()
        context.add_cookies([{"name": COOKIE, "value": app.state.people.open_session(None), "url": address}])

        def look(page: Any, where: str) -> None:
            if page.evaluate("window.hacked !== undefined"):
                problems.append(f"{where}: ran")
            shown[where] += 1

        def on_request(request: Any) -> None:
            if not request.url.startswith(address):
                problems.append(f"asked for {request.url[:80]}")

        def on_dialog(dialog: Any) -> None:
            problems.append("dialog")
            dialog.dismiss()

        page = context.new_page()
        page.on("request", on_request)
        page.on("dialog", on_dialog)
        page.goto(f"{address}/label")
        for _ in texts:  # each is the prompt and both answers of one pair
            page.wait_for_selector(".tu-label[data-state=ready]")
            for link in page.locator(".tu-text a").all()[:4]:
                link.click(force=True, no_wait_after=True, modifiers=["Control"])
            page.wait_for_timeout(50)
            look(page, "/label")
            page.keyboard.press("4")
        for path, names in (("/people", len(app.state.people.accounts())), ("/admin/", 1)):
            page.goto(address + path)
            page.wait_for_timeout(1500)
            look(page, path)
            shown[path] = names
        context.close()
        trusting = 0
        for text in texts:
            page = browser.new_page()
            page.route("**/*", lambda route: route.abort())
            page.set_content(f"<div>{text}</div>", wait_until="commit")
            page.wait_for_timeout(50)
            trusting += page.evaluate("window.hacked !== undefined")
            page.close()
    app.state.people.store.close()
    return shown, problems, trusting


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("fuzz", "scripts"))
    parser.add_argument("--cases", type=int, default=2604, help="odd requests (2604)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.what == "fuzz":
            statuses = fuzz(Path(folder), options.cases)
            errors = sum(count for status, count in statuses.items() if status >= 500)
            print(f"{statuses.total()} odd requests to the API: {errors} server errors; statuses {dict(statuses)}")
            return int(errors > 0)
        texts = payloads()
        shown, problems, trusting = scripts(Path(folder), texts)
        print(f"{len(texts)} texts with a script, of which {trusting} run as they stand on a page that trusts them")
        print(f"shown on {dict(shown)}: {len(problems)} ran or asked elsewhere")
        print(*problems, sep="\n")
        return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
