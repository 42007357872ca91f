"""The run page: stages as they stand, where the result comes from, training curves. For admins; it trusts no text."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from looking import Page
from manifests import comparison_of, manifest_of, verdict_of

from trueup import runs
from trueup.data.records import write_rows
from ui.app import run_app
from ui.html import PLAIN_POLICY
from ui.pages.lineage import Edge, Graph, Node, draw, layers, lineage
from ui.pages.run import _size, read_stages, run_html
from ui.people.accounts import COOKIE

URL = "http://127.0.0.1:7860"
HOSTILE = "<script>document.title='owned'</script><img src=x onerror=boom()>"
PARENTS = {
    "sft": [],
    "sample": ["sft"],
    "label": ["sample"],
    "reward": ["sft", "label"],
    "align": ["sft", "label"],
    "compare": ["sft", "sample", "align", "reward"],
}
MESSAGE = "The aligned policy learnt this preference: it wins 68.0 % [62.3, 73.5] of comparisons."


def write_stage(run_dir: Path, stage: str, **more: Any) -> None:
    """A finished stage, made from what its parents are now, that read one file."""
    folder = runs.stage_dir(run_dir, stage)
    folder.mkdir(parents=True, exist_ok=True)
    if stage != "label":  # the application reads this one
        (folder / "config.yaml").write_text(f"{stage}:\n  name: '{HOSTILE}'\n", encoding="utf-8")
    (folder / "report.json").write_text("{}", encoding="utf-8")
    parents = [runs.open_stage(run_dir, parent) for parent in PARENTS[stage]]
    read = {"path": f"/data/{stage}.jsonl", "sha256": hashlib.sha256(stage.encode()).hexdigest(), "rows": 352}
    read |= {"dropped": {"too long": 3}, "columns_not_read": {}}
    finding = {"level": "warn", "code": "x", "message": f"of {stage} {HOSTILE}"}
    facts = {
        "tokens_per_s": 257.5,
        "parents": [{"stage": parent.stage, "manifest_sha256": parent.sha256} for parent in parents],
        "inputs": [read] if stage in ("sft", "sample") else [],
        "outputs": [{"path": "report.json", "sha256": "ab" * 32}, {"path": "gone.bin", "sha256": "cd" * 32}],
        "verdict": {"status": "warn", "findings": [finding]},
    }
    manifest = manifest_of(stage, **{**facts, **more})
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A finished run whose alignment learnt by making chosen answers less probable."""
    made = tmp_path / "run"
    for stage in runs.DIRECTORIES:
        write_stage(made, stage)
    rows = [
        {
            "step": i + 1,
            "loss": 0.69 - i / 200,
            "rewards/chosen": -i / 50 + 0.01 * (-1) ** i,
            "rewards/rejected": -i / 10 + 0.01 * (-1) ** i,
            "rewards/margins": i / 12,
        }
        for i in range(60)
    ]
    write_rows(made / "align" / runs.METRICS, rows)
    verdict = verdict_of(outcome="improved_at_a_price", message=MESSAGE, prices=[HOSTILE])
    (made / "compare" / "report.json").write_text(json.dumps(comparison_of(verdict=verdict)), encoding="utf-8")
    return made


def text_of(run_dir: Path) -> str:
    return Page(run_html(run_dir, [])).text


def test_a_finished_run_shows_its_verdict_and_every_stage_with_time_device_and_speed(run_dir: Path) -> None:
    text = text_of(run_dir)
    assert text.startswith(f"Start Verdict Improved, at a price {MESSAGE}")
    for stage in runs.DIRECTORIES:
        assert f"{stage} complete warn 1 finding 2 min 5 s 258 cpu, float32" in text
        assert f"of {stage} {HOSTILE}" in text


def test_every_artifact_stands_with_its_hash_and_its_size_and_a_missing_one_is_called_so(run_dir: Path) -> None:
    text = text_of(run_dir)
    assert f"2 artifacts, 2 B File Size SHA-256 report.json 2 B {'ab' * 32} gone.bin missing {'cd' * 32}" in text
    assert f"Read sft.jsonl {hashlib.sha256(b'sft').hexdigest()} 352 rows used; dropped: 3 too long" in text


def test_the_report_of_a_stage_is_linked_where_the_stage_wrote_one(run_dir: Path) -> None:
    (run_dir / "align" / "report.html").write_text("<p>", encoding="utf-8")
    links = [attributes["href"] for tag, attributes in Page(run_html(run_dir, [])).tags if tag == "a"]
    assert [link for link in links if str(link).startswith("/reports/")] == ["/reports/align"]


def test_the_page_on_what_a_stage_read_is_linked_where_the_stage_wrote_one(run_dir: Path) -> None:
    (run_dir / "sft" / runs.DATA_PAGE).write_text("<p>", encoding="utf-8")
    links = [attributes["href"] for tag, attributes in Page(run_html(run_dir, [])).tags if tag == "a"]
    assert [link for link in links if str(link).startswith("/reports/")] == ["/reports/sft/data"]


def test_what_is_not_finished_says_so_and_what_to_do(run_dir: Path) -> None:
    for stage in ("compare", "align"):
        (runs.stage_dir(run_dir, stage) / "manifest.json").unlink()
    (run_dir / "align" / runs.BEGUN).write_text("{}")
    (run_dir / "reward" / "manifest.json").write_text("not json")
    text = text_of(run_dir)
    assert "align unfinished at work, or interrupted: the same command continues" in text
    assert "compare not run" in text
    assert "reward unreadable" in text and "delete it to make the stage run again" in text


def test_a_comparison_without_a_report_has_no_verdict_yet(run_dir: Path) -> None:
    (run_dir / "compare" / "report.json").unlink()
    assert "No verdict yet" in text_of(run_dir)


def test_a_stage_whose_parent_was_made_anew_is_out_of_date_and_its_line_is_broken(run_dir: Path) -> None:
    write_stage(run_dir, "label", seed=1)
    states = {state.stage: (state.state, state.why) for state in read_stages(run_dir)}
    assert states["align"] == ("out of date", "label changed since")
    assert states["sample"] == ("complete", "")
    html = run_html(run_dir, [])
    assert "changed since" in html and 'class="edge broken"' in html


def test_curves_stand_with_how_to_read_them_and_what_this_one_does(run_dir: Path) -> None:
    text = text_of(run_dir)
    assert "Starts at ln 2 = 0.693" in text
    assert "Normal. The chosen answers become less probable than under the reference" in text
    assert "arXiv:2410.08847" in text


def test_nothing_of_a_run_becomes_markup(run_dir: Path) -> None:
    parsed = Page(run_html(run_dir, [("/compare", HOSTILE)]))
    assert {tag for tag, _ in parsed.tags} & {"script", "img", "iframe", "object", "form", "base"} == set()
    assert not [name for _, attributes in parsed.tags for name in attributes if name.startswith("on")]
    assert HOSTILE in parsed.text


def test_the_password_of_a_database_is_not_shown_even_of_a_config_that_no_stage_wrote(run_dir: Path) -> None:
    (run_dir / "sft/config.yaml").write_text("store: postgresql://ann:s3cr:et@db/labels\n")
    html = run_html(run_dir, [])
    assert "postgresql://ann:***@db/labels" in html and "s3cr" not in html


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (99_400, "99.4 kB"), (542e6, "542 MB")]
)
def test_sizes_are_as_people_say_them(count: float, shown: str) -> None:
    assert _size(int(count)) == shown


# ---- Lineage ----------------------------------------------------------------------------------------------------


def graph_of(run_dir: Path) -> Graph:
    return lineage([runs.open_stage(run_dir, stage) for stage in runs.DIRECTORIES], ("Improved", "pass"))


def test_lineage_leads_from_files_through_stages_to_the_verdict(run_dir: Path) -> None:
    graph = graph_of(run_dir)
    made_from = {node.id: [source.title for source, _ in graph.sources(node.id)] for node in graph.nodes}
    assert made_from["sft"] == ["sft.jsonl"]
    assert made_from["sample"] == ["sample.jsonl", "sft"]
    assert made_from["compare"] == PARENTS["compare"]
    assert made_from["verdict"] == ["compare"]
    sha = runs.open_stage(run_dir, "align").sha256
    assert next(node.detail for node in graph.nodes if node.id == "align") == sha[:10]


def test_a_layer_lies_after_all_that_it_is_made_from_and_a_file_right_before_its_reader(run_dir: Path) -> None:
    graph = graph_of(run_dir)
    layer = layers(graph)
    assert all(layer[edge.source] < layer[edge.target] for edge in graph.edges)
    files = [node.id for node in graph.nodes if node.kind == "file"]
    assert [layer[name] for name in files] == [layer["sft"] - 1, layer["sample"] - 1]
    assert layer["reward"] == layer["align"] == layer["label"] + 1


@pytest.mark.parametrize("across", [True, False])
def test_the_picture_has_each_node_once_within_its_frame_and_no_two_overlap(run_dir: Path, across: bool) -> None:
    graph = graph_of(run_dir)
    parsed = Page(str(draw(graph, across)))
    [frame] = [attributes for tag, attributes in parsed.tags if tag == "svg"]
    left, top, wide, high = (float(value) for value in (frame["viewbox"] or "").split())
    boxes = [
        tuple(float(attributes[name] or 0) for name in ("x", "y", "width", "height"))
        for tag, attributes in parsed.tags
        if tag == "rect"
    ]
    assert len(boxes) == len(graph.nodes)
    assert len([tag for tag, attributes in parsed.tags if tag == "path" and "marker-end" in attributes]) == len(
        graph.edges
    )
    for x, y, w, h in boxes:
        assert left <= x and x + w <= left + wide and top <= y and y + h <= top + high
    for i, (x, y, w, h) in enumerate(boxes):
        for x2, y2, w2, h2 in boxes[i + 1 :]:
            assert x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y


@pytest.mark.parametrize("across", [True, False])
def test_boxes_are_wider_only_where_names_of_further_rounds_need_it(run_dir: Path, across: bool) -> None:
    one = graph_of(run_dir)
    two = Graph([*one.nodes, Node("round-2/compare", "stage", "round-2/compare", "", "pass")], one.edges)
    widths = [
        {attributes["width"] for tag, attributes in Page(str(draw(graph, across))).tags if tag == "rect"}
        for graph in (one, two)
    ]
    assert widths == ([{"126"}, {"138"}] if across else [{"124"}, {"136"}])


def test_names_in_the_picture_are_text_and_long_ones_keep_their_ends() -> None:
    graph = Graph(
        [Node("a", "file", "<b>" + "long" * 20 + ".jsonl", "<i>", ""), Node("b", "stage", "sft", "", "pass")],
        [Edge("a", "b")],
    )
    made = str(draw(graph, True))
    assert "<b>" not in made and "<i>" not in made and ".jsonl</text>" in made
    assert draw(Graph(), True) == ""


# ---- Served -----------------------------------------------------------------------------------------------------


@pytest.fixture
def app(run_dir: Path) -> Any:
    made = run_app(run_dir)
    yield made
    made.state.people.store.close()


def test_only_admins_may_look_and_the_page_may_load_nothing(app: Any) -> None:
    people, client = app.state.people, TestClient(app, base_url=URL, follow_redirects=False)
    assert client.get("/run").status_code == 401
    people.add("Root", "admin", "four words are enough")
    people.add("Ann", "annotator", "four words are enough")
    accounts = {row.name: row.account_id for row in people.accounts()}
    client.cookies.set(COOKIE, people.open_session(accounts["Ann"]))
    assert client.get("/run").status_code == 403
    client.cookies.set(COOKIE, people.open_session(accounts["Root"]))
    answer = client.get("/run")
    assert answer.status_code == 200
    assert answer.headers["content-security-policy"] == PLAIN_POLICY
    assert answer.headers["cache-control"] == "no-store"
    assert '<a href="/compare">Comparison</a>' in answer.text
    assert "/run" in client.get("/").text


@pytest.mark.browser
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 320)])
def test_it_is_accessible_at_any_width_without_an_error_or_a_sideways_scroll(
    app: Any, serve: Any, chromium: Any, scheme: Any, width: int
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    url = serve(app)
    context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    context.add_cookies([{"name": COOKIE, "value": app.state.people.open_session(None), "url": url}])
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(f"{url}/run")
    for summary in page.locator("summary").all():
        summary.click()
    assert page.locator(f"svg.lineage.{'across' if width > 900 else 'down'}").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert (said, page.title()) == ([], "run · Trueup")
    with_axe = context.new_page()  # axe is a script, which the page's own policy forbids
    with_axe.route("**/run", lambda route: route.fulfill(body=page.content(), content_type="text/html"))
    with_axe.goto(f"{url}/run")
    found = axe.Axe().run(with_axe)
    assert found.violations_count == 0, found.generate_report()
    context.close()
