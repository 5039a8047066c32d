"""Pages: one file each, right in their figures, and readable on a phone."""

import re
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from torch import nn

import deltaconvert
from deltaconvert.atomic import write_text
from deltaconvert.bench import networks, peers
from deltaconvert.checking.dense import StoredModel
from deltaconvert.cli.inspect import as_text, describe
from deltaconvert.clips import synthetic
from deltaconvert.errors import WriteError
from deltaconvert.pages.benchmark import benchmark_page
from deltaconvert.pages.graph import as_dot, as_svg, assign_lanes, boxes, graph_page
from deltaconvert.pages.page import Section, Table, Text, page
from deltaconvert.pages.plots import lines_over_frames
from deltaconvert.pages.runs import run_page
from deltaconvert.pages.validation import validation_page
from deltaconvert.running.batches import Sources
from deltaconvert.running.session import Session
from deltaconvert.running.summary import ClipSummary
from tests.pages.browser import assert_reads_on_a_phone


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.third = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        x = self.first(x).relu()
        return torch.cummax(self.third(self.second(x).relu()) + x, 1)[0]


@pytest.fixture(scope="module")
def delta():
    torch.manual_seed(0)
    return deltaconvert.convert(Residual().eval(), backend="reference", threshold=0.01)


@pytest.fixture(scope="module")
def frames():
    return [frame[None] for frame in synthetic((32, 48), 6, active_share=0.1)]


@pytest.fixture(scope="module")
def validation(delta, frames):
    report = deltaconvert.validate(None, delta, frames, tolerance=0.5)
    return report, validation_page(report, "small.delta against <itself> & others")


def test_a_page_escapes_and_is_one_file(tmp_path):
    text = page("<b>", "a & b", [Section("<i>", [Table([("<h>",), ("<td>",)]), Text("<p>")]),
                                 Section("empty", [])], ("PASSED", True))
    for harmful in ("<b>", "<i>", "<h>", "<td><", "<p><p>"):
        assert harmful not in text.replace("<td>&lt;", "")
    assert "empty" not in text
    assert re.search(r"(src|href)=", text) is None
    write_text(None, text)
    write_text(tmp_path / "a.html", text)
    assert (tmp_path / "a.html").read_text() == text
    with pytest.raises(WriteError, match="cannot be written"):
        write_text(tmp_path / "no" / "a.html", text)


def test_plots_hold_their_numbers_and_are_the_same_each_time():
    drawn = [lines_over_frames({"one": [1, 10, float("nan"), 100], "zero": [0] * 4}, "ms", log=True,
                               levels={"limit": 50.0}) for _ in range(2)]
    assert drawn[0] == drawn[1]
    root = ElementTree.fromstring(drawn[0])
    assert root.tag.endswith("svg")
    texts = "".join("".join(e.itertext()) for e in root.iter() if e.tag.endswith("text"))
    for word in ("frame", "ms", "one", "limit"):
        assert word in texts


def test_validation_page(validation):
    report, text = validation
    assert "against &lt;itself&gt; &amp; others" in text
    assert report.verdict in text
    assert f"{report.outputs[0].relative_rms:.2e}" in text
    assert text.count("<svg") == 2
    assert len(report.frame_ratio_nodes) == 6
    assert report.frame_ratio_input[0] == 1
    assert report.outputs[0].frame_frozen_rms[0] == 0


@pytest.fixture(scope="module")
def run(delta):
    clips = [synthetic((32, 48), 6, seed=seed) for seed in (0, 1)]
    session = Session(delta, dense_every=2)
    for batch in Sources(clips, lambda p: p).as_streams():
        session.finished(session.run(batch))
    return session.summary([
        ClipSummary("a-rather-long-name-of-a-clip-from-a-camera.mp4", (32, 48), 6, ["a.npz"]),
        ClipSummary("b", (32, 48), 6, [], "b breaks off after 6 frames")], "streams")


def test_run_page(run):
    text = run_page(run, "small.delta")
    assert text.count("<svg") == 2
    assert "b: b breaks off after 6 frames" in text
    assert f"p50 {run.model.p50:.1f}" in text


@pytest.fixture(scope="module")
def benchmark(delta, frames):
    dense = StoredModel(delta)
    case = networks.Case(dense, delta, frames, [], peers.prepare(dense, frames[0], 1, ["eager"],
                                                                 lambda said: None))
    return networks.measure(case, tolerance=0.5, rounds=1).to_dict()


def test_benchmark_page(benchmark):
    text = benchmark_page(benchmark | {"skipped": {"onnxruntime": "it is not <there>"}}, "small")
    assert text.count("<svg") == 2
    assert f"{benchmark['speedup_over_eager']:.2f}x over eager" in text
    assert f"{benchmark['runtimes']['eager']['ms']['median']:.2f}" in text
    assert "onnxruntime: it is not &lt;there&gt;" in text


def test_a_table_without_a_header_has_none():
    assert "<thead>" not in Table([("", ""), ("a", "b")]).html()
    assert "<thead><tr><th>x</th>" in Table([("x", ""), ("a", "b")]).html()


@pytest.fixture(scope="module")
def graph(delta, frames):
    program = delta.program(delta.signature([frames[0]]), [frames[0]])
    data = describe(program) | {"file": "small.delta", "frame": [1, 3, 32, 48]}
    return program, data


def test_dot_has_every_node_and_edge(graph):
    program, data = graph
    text = as_dot(program, data["nodes"])
    assert text.startswith("digraph deltaconvert {")
    nodes = set(re.findall(r'^  "(\w+)" \[', text, re.M))
    edges = set(re.findall(r'^  "(\w+)" -> "(\w+)";', text, re.M))
    assert nodes >= {n.about.name for n in program.nodes}
    assert {b for _, b in edges} | {a for a, _ in edges} == nodes
    assert len(edges) == sum(len(box.inputs) for box in boxes(program, data["nodes"]))
    assert "cummax is not an operator" in text  # why it runs whole


def test_the_drawing_is_well_formed_and_edges_do_not_share_a_lane(graph):
    program, data = graph
    root = ElementTree.fromstring(as_svg(boxes(program, data["nodes"])))
    rects = [e for e in root.iter() if e.tag.endswith("rect")]
    assert len(rects) == len(boxes(program, data["nodes"]))
    lanes = assign_lanes([(0, 4), (1, 3), (3, 5), (2, 8)])
    assert lanes == {(1, 3): 0, (3, 5): 0, (0, 4): 1, (2, 8): 2}


@pytest.mark.slow
def test_pages_in_a_browser_as_wide_as_a_phone(validation, run, benchmark, graph, tmp_path):
    report, text = validation
    seen = assert_reads_on_a_phone(text, tmp_path)
    assert seen["figures"] == 2
    assert report.verdict in seen["text"]
    seen = assert_reads_on_a_phone(run_page(run, "small.delta"), tmp_path)
    assert "multiply-adds" in seen["text"]
    seen = assert_reads_on_a_phone(benchmark_page(benchmark, "small.delta"), tmp_path)
    assert seen["figures"] == 2
    assert "over eager" in seen["text"]
    program, data = graph
    seen = assert_reads_on_a_phone(graph_page(program, data, as_text(data)), tmp_path)
    assert "the door out" in seen["text"]
