"""The lineage of a result as a graph: files, the stages that read them, their parents, the verdict.

All of it is in the manifests: a stage names its parents by the hash of their manifest, and its input files. A parent
that has changed since is drawn as a broken edge. We draw the graph ourselves: nodes in layers by their longest path
from the data, lines around the nodes between, across a wide page or down a narrow one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal

from markupsafe import Markup

from trueup.runs import FinishedStage

# ---- The graph --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Node:
    id: str
    kind: Literal["file", "stage", "verdict"]
    title: str
    detail: str
    """A short hash, or the verdict."""
    status: str
    """pass, warn or fail, for a stage and for the verdict; empty for a file."""


@dataclass(frozen=True)
class Edge:
    source: str
    target: str
    broken: bool = False
    """The source has changed since `target` was made from it."""


@dataclass
class Graph:
    nodes: list[Node] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)

    def sources(self, target: str) -> list[tuple[Node, bool]]:
        """The sources of a node, and whether each has changed since."""
        nodes = {node.id: node for node in self.nodes}
        return [(nodes[edge.source], edge.broken) for edge in self.edges if edge.target == target]


def lineage(stages: Sequence[FinishedStage], verdict: tuple[str, str] | None) -> Graph:
    """The graph of the finished stages of all rounds, in their order; `verdict` is (text, tone) of the last
    comparison."""
    graph = Graph()
    shas = {stage.stage: stage.sha256 for stage in stages}
    for stage in stages:
        for file in stage.manifest.inputs:
            name = f"file {file.path} {file.sha256}"
            if all(node.id != name for node in graph.nodes):
                graph.nodes.append(Node(name, "file", Path(file.path).name, short(file.sha256), ""))
            graph.edges.append(Edge(name, stage.stage))
        status = stage.manifest.verdict.status
        graph.nodes.append(Node(stage.stage, "stage", stage.stage, short(shas[stage.stage]), status))
        for parent in stage.parents:
            if parent.stage in shas:
                broken = shas[parent.stage] != parent.manifest_sha256
                graph.edges.append(Edge(parent.stage, stage.stage, broken))
    compared = [stage.stage for stage in stages if stage.manifest.stage == "compare"]
    if verdict is not None and compared:
        graph.nodes.append(Node("verdict", "verdict", "verdict", verdict[0], verdict[1]))
        graph.edges.append(Edge(compared[-1], "verdict"))
    return graph


def short(sha256: str) -> str:
    return sha256[:10]


# ---- Layers -----------------------------------------------------------------------------------------------------


def layers(graph: Graph) -> dict[str, int]:
    """The layer of each node: stages by their longest path from the data, a file right before its first reader."""
    place: dict[str, int] = {}
    for node in graph.nodes:  # stages come after their parents
        if node.kind != "file":
            before = [place[edge.source] for edge in graph.edges if edge.target == node.id and edge.source in place]
            place[node.id] = 1 + max(before, default=0)
    for node in graph.nodes:
        if node.kind == "file":
            place[node.id] = min(place[edge.target] for edge in graph.edges if edge.source == node.id) - 1
    first = min(place.values(), default=0)
    return {name: number - first for name, number in place.items()}


@dataclass(frozen=True)
class _Place:
    """A box, or a point that a line passes through; its middle."""

    along: float
    across: float


def _rows(graph: Graph, layer: dict[str, int]) -> list[list[str]]:
    """The nodes of each layer, in order. A line over several layers has a place in each, shared by all lines from the
    same source: `source@layer`."""
    rows: list[list[str]] = [[] for _ in range(max(layer.values(), default=-1) + 1)]
    for node in graph.nodes:
        rows[layer[node.id]].append(node.id)
    reach: dict[str, int] = {}
    for edge in graph.edges:
        reach[edge.source] = max(reach.get(edge.source, 0), layer[edge.target])
    for source, last in reach.items():
        for between in range(layer[source] + 1, last):
            rows[between].append(f"{source}@{between}")
    # Each node at the mean place of its predecessors, so that few lines cross.
    for number in range(1, len(rows)):
        place = {name: i / max(1, len(rows[number - 1]) - 1) for i, name in enumerate(rows[number - 1])}
        before = {name: _leads_to(name, number, graph, layer) for name in rows[number]}

        def middle(name: str, place: dict[str, float] = place, before: dict[str, list[str]] = before) -> float:
            neighbours = [place[one] for one in before[name] if one in place]
            return sum(neighbours) / len(neighbours) if neighbours else 1.0

        rows[number].sort(key=middle)
    return rows


def _leads_to(name: str, number: int, graph: Graph, layer: dict[str, int]) -> list[str]:
    """The places of the layer before from which lines come here."""
    source, passing, _ = name.partition("@")
    sources = [source] if passing else [edge.source for edge in graph.edges if edge.target == name]
    return [one if layer[one] == number - 1 else f"{one}@{number - 1}" for one in sources]


# ---- The picture ------------------------------------------------------------------------------------------------

_BOX = {True: (126.0, 46.0), False: (124.0, 44.0)}
"""Width and height of a box, by orientation: across a page, or down it."""
_FOR_A_ROUND = 12.0
"""What is added to the width where there are names such as `round-2/compare`."""
_CHARACTERS = 17
_PASSING, _GAP, _STEP = 14.0, 14.0, 30.0


def draw(graph: Graph, across: bool) -> Markup:
    """The graph as SVG; `across`: layers from left to right, else from top to bottom. A table on the page has the same
    content for people who cannot see the graph."""
    if not graph.nodes:
        return Markup("")
    layer = layers(graph)
    rows = _rows(graph, layer)
    wide, high = _BOX[across]
    wide += _FOR_A_ROUND * any(node.kind == "stage" and "/" in node.title for node in graph.nodes)
    length, breadth = (wide, high) if across else (high, wide)
    size = {node.id: breadth for node in graph.nodes}
    extent = max(sum(size.get(name, _PASSING) + _GAP for name in row) - _GAP for row in rows)
    places: dict[str, _Place] = {}
    for number, row in enumerate(rows):
        at = (extent - sum(size.get(name, _PASSING) + _GAP for name in row) + _GAP) / 2
        for name in row:
            broad = size.get(name, _PASSING)
            places[name] = _Place(number * (length + _STEP) + length / 2, at + broad / 2)
            at += broad + _GAP
    total = len(rows) * (length + _STEP) - _STEP
    lines = [_line(edge, layer, places, length, across) for edge in graph.edges]
    boxes = [_box(node, places[node.id], wide, high, across) for node in graph.nodes]
    box = (total + 2, extent + 2) if across else (extent + 2, total + 2)
    kind = "across" if across else "down"
    marker = (
        f'<defs><marker id="arrow-{kind}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto-start-reverse"><path d="M0 0.5 L7.5 4 L0 7.5 z"/></marker></defs>'
    )
    return Markup(
        f'<svg class="lineage {kind}" viewBox="-1 -1 {box[0]:.0f} {box[1]:.0f}" width="{box[0]:.0f}" '
        f'height="{box[1]:.0f}" aria-hidden="true">{marker}{"".join(lines)}{"".join(boxes)}</svg>'
    )


def _line(edge: Edge, layer: dict[str, int], places: dict[str, _Place], length: float, across: bool) -> str:
    """The line from the end of one box to the front of another, through the places between."""
    start, end = places[edge.source], places[edge.target]
    between = [places[f"{edge.source}@{number}"] for number in range(layer[edge.source] + 1, layer[edge.target])]
    points = [(start.along + length / 2, start.across)]
    for place in between:
        points += [(place.along - length / 2, place.across), (place.along + length / 2, place.across)]
    points.append((end.along - length / 2, end.across))
    path = f"M{_xy(points[0], across)}"
    for one, other in pairwise(points):
        half = (one[0] + other[0]) / 2
        bends = one[1] != other[1]
        path += (
            f" C{_xy((half, one[1]), across)} {_xy((half, other[1]), across)} {_xy(other, across)}"
            if bends
            else f" L{_xy(other, across)}"
        )
    style = "edge broken" if edge.broken else "edge"
    return f'<path class="{style}" d="{path}" marker-end="url(#arrow-{"across" if across else "down"})"/>'


def _xy(point: tuple[float, float], across: bool) -> str:
    along, aside = point
    return f"{along:.1f} {aside:.1f}" if across else f"{aside:.1f} {along:.1f}"


def _box(node: Node, place: _Place, wide: float, high: float, across: bool) -> Markup:
    x, y = (place.along, place.across) if across else (place.across, place.along)
    title = node.title
    if len(title) > _CHARACTERS:  # its beginning, and the kind of a file
        title = f"{title[: _CHARACTERS - 7]}…{title[-6:]}"
    top = f'x="{x - wide / 2:.1f}" y="{y - high / 2:.1f}" width="{wide:.0f}" height="{high:.0f}"'
    return Markup(
        f'<g class="node {{}} {{}}"><rect {top} rx="6"/>'
        f'<text class="title" x="{x:.1f}" y="{y - 4:.1f}" text-anchor="middle">{{}}</text>'
        f'<text class="detail" x="{x:.1f}" y="{y + 13:.1f}" text-anchor="middle">{{}}</text></g>'
    ).format(node.kind, node.status, title, node.detail)
