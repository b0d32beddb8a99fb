"""Is the dependency graph right, and valid in every format whatever the names contain?"""

import json
import os
import random
import re
import shutil
import subprocess
import time
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uno.core.monitoring.graph import DependencyGraph, Edge, Node, NodeKind

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = [
    'say "hi"',
    "back\\slash\\",
    "two\nlines\r\n",
    "nul\0bell\x07esc\x1b]0;x",
    "<b>bold</b><img onerror=alert(1)>",
    "</script><!--&amp;&lt;",
    "日本語の名前",
    "\u202eright to left \u05d0\u05d1",
    "lone \ud800 surrogate",
    "\ufffe\uffff",
    "\\N\\G\\L",
    "a:b:c -> d; [x=y] {z} % # //",
    "javascript:alert(1)",
    "",
    " ",
    "n" * 10_000,
    "n" * 9_999 + "m",
    "é" + "\u0301" * 500,
]


def shop() -> DependencyGraph:
    return DependencyGraph(
        [
            Node("GET /orders", kind="route"),
            Node("nightly", kind="task"),
            Node("main-db", "Main", "database", level="critical", endpoint="db:5432/shop"),
            Node("cache", "Cache", "cache", level="ok"),
            Node("db:5432", "db:5432", "postgresql", "server", "warning"),
            Node("loop", "Event loop", "event loop", level="ok"),
        ],
        [
            Edge("GET /orders", "main-db", "declared"),
            Edge("GET /orders", "main-db", "observed", calls=120, rate=2.04, errors=3),
            Edge("GET /orders", "cache", "observed", calls=9, rate=float("nan")),
            Edge("nightly", "main-db", "observed", calls=1, rate=0.0003),
            Edge("main-db", "db:5432", "declared"),
        ],
    )


def hostile(names: list[str]) -> DependencyGraph:
    """Every name in every place."""
    kinds: list[NodeKind] = ["route", "task", "resource", "server"]
    ids = dict.fromkeys(names)
    nodes = [Node(id, id, id, kinds[k % 4], "warning", id) for k, id in enumerate(ids)]
    return DependencyGraph(
        nodes, [Edge(a, b, "observed", 1, 1.5) for a, b in zip(ids, list(ids)[1:], strict=False)]
    )


def sized(count: int) -> DependencyGraph:
    pick = random.Random(7)
    routes = [Node(f"GET /{i}", kind="route") for i in range(count * 2 // 5)]
    pools = [Node(f"pool {i}", level="ok") for i in range(count * 2 // 5)]
    servers = [Node(f"server {i}", kind="server") for i in range(count - len(routes) - len(pools))]
    edges = [Edge(a.id, pick.choice(pools).id, "observed", 1, 9 * pick.random()) for a in routes * 3]
    edges += [Edge(a.id, pick.choice(servers).id) for a in pools]
    edges += [Edge(a.id, pick.choice(pools).id) for a in pools[::4]]
    return DependencyGraph([*routes, *pools, *servers], edges)


def boxes(svg: str) -> dict[str, tuple[float, float]]:
    """Title -> centre of each node."""
    out = {}
    for group in ElementTree.fromstring(svg).iter(f"{SVG}g"):
        if group.get("class", "").startswith("node "):
            x, y = re.findall(r"-?\d[\d.e+-]*", group.get("transform", ""))
            out[group.findtext(f"{SVG}title") or ""] = float(x), float(y)
    return out


def by_name(svg: str) -> dict[str, tuple[float, float]]:
    return {title.split(",")[0]: at for title, at in boxes(svg).items()}


# The graph itself


def test_it_tells_what_fails_with_a_node_and_what_a_node_needs():
    graph = shop()
    assert graph.upstream("db:5432") == {"GET /orders", "nightly", "main-db"}
    assert graph.downstream("GET /orders") == {"main-db", "cache", "db:5432"}
    assert graph.upstream("loop") == graph.downstream("loop") == set()
    with pytest.raises(KeyError, match="no node 'nowhere'"):
        graph.upstream("nowhere")


def test_a_cycle_ends():
    graph = DependencyGraph([], [Edge("a", "b"), Edge("b", "a"), Edge("b", "b")])
    assert graph.downstream("a") == {"b"}
    assert graph.upstream("a") == {"b"}


def test_edges_of_a_kind_are_added_up_and_missing_ends_are_added():
    graph = DependencyGraph(
        [Node("a")],
        [
            Edge("a", "b", "observed", 2, 1.0, 1),
            Edge("a", "b", "observed", 3, None),
            Edge("a", "b", "declared"),
        ],
    )
    assert graph.edges == (Edge("a", "b", "observed", 5, 1.0, 1), Edge("a", "b", "declared"))
    assert graph.nodes[1] == Node("b", "b", "", "resource", "unknown")


@pytest.mark.parametrize(
    ("nodes", "edges", "words"),
    [
        ([Node("a"), Node("a")], [], "ids in a graph are unique"),
        ([Node("a", kind="thing")], [], "route, task, resource, server"),  # type: ignore[arg-type]
        ([Node("a", level="bad")], [], "ok, warning, critical, unknown"),  # type: ignore[arg-type]
        ([], [Edge("a", "b", "guessed")], "declared or observed"),  # type: ignore[arg-type]
    ],
)
def test_misuse_is_refused(nodes, edges, words):
    with pytest.raises(ValueError, match=words):
        DependencyGraph(nodes, edges)


# JSON


def test_json_has_everything_and_nothing_that_json_has_not():
    out = shop().to_dict()
    assert out["nodes"][2] == {
        "id": "main-db",
        "name": "Main",
        "type": "database",
        "kind": "resource",
        "level": "critical",
        "endpoint": "db:5432/shop",
    }
    edge = {"source": "GET /orders", "target": "main-db", "kind": "observed"}
    assert out["edges"][1] == {
        **edge,
        "calls": 120,
        "rate": 2.04,
        "errors": 3,
        "error_rate": None,
        "latency": None,
    }
    assert out["edges"][2]["rate"] is None
    json.dumps(hostile(HOSTILE).to_dict(), allow_nan=False, ensure_ascii=False).encode("utf-8")


def test_what_failed_once_is_not_failing_for_ever():
    for error_rate, red in ((None, True), (0.0, False), (0.1, True)):
        edge = Edge("a", "b", "observed", calls=9, errors=3, error_rate=error_rate)
        graph = DependencyGraph([], [edge])
        assert ("edge--errors" in graph.to_svg()) is red
        assert ("#e5484d" in graph.to_dot()) is red
    both = DependencyGraph([], [Edge("a", "b", error_rate=0.5), Edge("a", "b")])
    assert both.edges[0].error_rate == 0.5
    slow, quick = (Edge("a", "b", rate=rate, latency=latency) for rate, latency in ((1.0, 0.4), (3.0, 0.2)))
    assert DependencyGraph([], [slow, quick]).edges[0].latency == pytest.approx(0.25)
    assert "250 ms each" in DependencyGraph([], [slow, quick]).to_svg()


def test_export_creates_directories_and_replaces_whole_files(tmp_path: Path):
    target = tmp_path / "deep" / "er" / "dependencies.json"
    assert shop().export_json(str(target)) == target
    assert json.loads(target.read_text("utf-8")) == shop().to_dict()
    assert shop().export_dot(target) == target
    assert target.read_text("utf-8") == shop().to_dot()
    assert [path.name for path in target.parent.iterdir()] == ["dependencies.json"]


def test_export_writes_through_a_link(tmp_path: Path):
    (tmp_path / "link.dot").symlink_to(tmp_path / "real.dot")
    shop().export_dot(tmp_path / "link.dot")
    assert (tmp_path / "link.dot").is_symlink()
    assert (tmp_path / "real.dot").read_text("utf-8") == shop().to_dot()


def test_export_says_what_is_wrong_and_leaves_nothing(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(IsADirectoryError, match="give the name of a file in it"):
        shop().export_json(tmp_path)
    with pytest.raises(OSError, match="file"):
        shop().export_json(tmp_path / "file" / "x.json")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_export_into_a_pipe_leaves_it_there(tmp_path: Path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    end = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        shop().export_dot(pipe)
        assert pipe.is_fifo(), "a device would be gone"
        assert os.read(end, 65_536).decode() == shop().to_dot()
    finally:
        os.close(end)


def test_an_exported_file_has_the_usual_permissions(tmp_path: Path):
    (tmp_path / "plain").touch()
    assert shop().export_dot(tmp_path / "a.dot").stat().st_mode == os.stat(tmp_path / "plain").st_mode


# Graphviz


def in_graphviz(source: str) -> dict[str, list[str]]:
    """What the real program reads: node name -> label, `a -> b` for each edge."""
    dot = shutil.which("dot")
    if dot is None:
        pytest.skip("Graphviz is not installed")
    done = subprocess.run([dot, "-Tjson0"], input=source.encode("utf-8"), capture_output=True, timeout=50)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    out = json.loads(done.stdout.decode("utf-8"), strict=False)
    objects = out.get("objects", [])
    name = [node["name"] for node in objects]
    edges = [f"{name[edge['tail']]} -> {name[edge['head']]}" for edge in out.get("edges", [])]
    return {"nodes": name, "labels": [node["label"] for node in objects], "edges": edges}


def test_graphviz_reads_the_plain_graph():
    got = in_graphviz(shop().to_dot())
    assert got["nodes"] == ["GET /orders", "nightly", "main-db", "cache", "db:5432", "loop"]
    assert "GET /orders -> main-db" in got["edges"]
    assert len(got["edges"]) == 4  # declared and observed between the same two are one line
    assert "[critical]" in shop().to_dot()
    assert 'label="2/s"' in shop().to_dot()


def test_graphviz_reads_hostile_names():
    graph = hostile(HOSTILE)
    got = in_graphviz(graph.to_dot())
    assert len(set(got["nodes"])) == len(graph.nodes)
    assert len(got["edges"]) == len(graph.edges)
    assert max(map(len, got["labels"])) < 2000


@settings(max_examples=8, deadline=None)
@given(st.lists(st.text(st.characters(codec=None), max_size=12), min_size=60, max_size=120, unique=True))
def test_graphviz_reads_any_names(names):
    got = in_graphviz(hostile(names).to_dot())
    assert len(set(got["nodes"])) == len(names)
    assert len(got["edges"]) == len(names) - 1


# Picture


def test_columns_run_from_callers_to_servers():
    at = by_name(shop().to_svg())
    assert at["GET /orders"][0] == at["nightly"][0] < at["Main"][0] < at["db:5432"][0]
    assert at["Event loop"][1] > max(y for name, (_, y) in at.items() if name != "Event loop")


def test_boxes_never_overlap():
    rings = [Edge(str(i), str((i + 1) % 7)) for i in range(7)]
    for graph in (shop(), sized(60), DependencyGraph([Node(f"q{i}") for i in range(23)], rings)):
        at = sorted(boxes(graph.to_svg()).values())
        assert len(at) == len(graph.nodes)
        for i, (x, y) in enumerate(at):
            assert all(abs(x - u) >= 196 or abs(y - v) >= 46 for u, v in at[i + 1 :])


def test_it_is_the_same_whatever_the_order():
    graph = sized(60)
    pick = random.Random(1)
    nodes, edges = list(graph.nodes), list(graph.edges)
    pick.shuffle(nodes)
    pick.shuffle(edges)
    assert DependencyGraph(nodes, edges).to_svg() == graph.to_svg()


def test_kind_and_level_are_classes_and_levels_differ_in_shape_too():
    root = ElementTree.fromstring(shop().to_svg())
    classes = [group.get("class") for group in root.iter(f"{SVG}g")]
    assert "node node--resource level--critical" in classes
    assert "node node--server level--warning" in classes
    assert "edge edge--observed edge--errors" in classes
    assert "edge edge--declared" in classes
    shapes = {
        (group.get("class", "").split("--")[-1], path.get("d"))
        for group in root.iter(f"{SVG}g")
        for path in group.findall(f"{SVG}path[@class='node__glyph']")
    }
    assert len(shapes) == len({shape for _, shape in shapes}) == 3


def test_edges_carry_their_rate_and_say_more_on_hovering():
    svg = shop().to_svg()
    assert ">2/s</text>" in svg
    assert ">1.1/h</text>" in svg
    assert "<title>GET /orders → Main: observed, 2/s, 120 calls, 3 errors</title>" in svg


def test_resources_are_links_and_a_picture_without_links_is_one_image():
    graph = DependencyGraph([Node('a/b "c"?#%é'), Node("GET /", kind="route")])
    root = ElementTree.fromstring(graph.to_svg())
    (link,) = root.iter(f"{SVG}a")
    href = link.get("href", "")
    assert re.fullmatch(r"#/resource/[\w%.~-]+", href)
    assert unquote(href.removeprefix("#/resource/")) == 'a/b "c"?#%é'
    assert root.get("role") == "group"  # what is inside an image cannot be reached by keyboard
    image = ElementTree.fromstring(graph.to_svg(links=False))
    assert image.get("role") == "img"
    assert not list(image.iter(f"{SVG}a"))


def check_svg(svg: str) -> None:
    svg.encode("utf-8")
    root = ElementTree.fromstring(svg)
    assert root.get("viewBox")
    assert root.get("role") in ("img", "group")
    assert root[0].tag == f"{SVG}title"
    assert root[1].tag == f"{SVG}desc"
    for element in root.iter():
        assert element.tag.removeprefix(SVG) in {"svg", "title", "desc", "g", "a", "rect", "path", "text"}
        for name, value in element.items():
            assert not name.startswith("on")
            assert name != "style"
            assert "url(" not in value
            if name == "href":
                assert value.startswith("#/resource/")
        assert len(element.text or "") < 1500


def test_svg_is_well_formed_and_inert_whatever_the_names():
    check_svg(hostile(HOSTILE).to_svg())
    check_svg(DependencyGraph().to_svg())
    check_svg(shop().to_svg(links=False))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(st.characters(codec=None), max_size=30), min_size=1, max_size=12, unique=True),
    st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=40),
)
def test_any_graph_is_drawn(names, pairs):
    ends = [(names[a % len(names)], names[b % len(names)]) for a, b in pairs]
    graph = DependencyGraph([Node(name) for name in names], [Edge(a, b, "observed", 1, 2.0) for a, b in ends])
    check_svg(graph.to_svg())
    assert graph.to_svg().count('class="node ') == len(names)


@pytest.mark.parametrize(("nodes", "limit_ms"), [(15, 10), (50, 50), (200, 250), (500, 1500)])
def test_drawing_is_fast(nodes, limit_ms):
    graph = sized(nodes)
    best = float("inf")
    for _ in range(3):
        start = time.thread_time()
        graph.to_svg()
        best = min(best, time.thread_time() - start)
    assert best * 1000 < limit_ms
