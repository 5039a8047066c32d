"""The dense runtimes: prepared, checked, or left out by name."""

import sys
from dataclasses import replace

import pytest
import torch

from deltaconvert.bench import peers
from deltaconvert.bench.outputs import relative_rms
from deltaconvert.errors import InputError
from deltaconvert.outputs import tensors


def test_what_is_not_installed_is_named(model, frames, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "openvino", None)
    said = []
    found = peers.prepare(model, frames[0], 1, ["onnxruntime", "openvino"], said.append)
    assert [p.name for p in found.ready] == ["eager"]
    assert set(found.skipped) == {"onnxruntime", "openvino"}
    assert "onnxruntime is not installed (pip install" in found.skipped["onnxruntime"]
    assert any("openvino is left out" in line for line in said)


def test_a_runtime_that_answers_something_else_is_not_timed(model, frames, monkeypatch):
    def wrong(source):
        eager = peers._eager(source)
        return replace(eager, name="onnxruntime", run=lambda x: 1.01 * eager.run(x))

    monkeypatch.setitem(peers._BUILDERS, "onnxruntime", wrong)
    found = peers.prepare(model, frames[0], 1, ["onnxruntime"])
    assert [p.name for p in found.ready] == ["eager"]
    assert "off by 1.0e-02" in found.skipped["onnxruntime"]


def test_a_compiler_that_fails_is_left_out_with_its_words(model, frames, monkeypatch):
    def fails(*args, **kwargs):
        def run(x):
            raise RuntimeError("no compiler here\nand more")
        return run

    monkeypatch.setattr(torch, "compile", fails)
    found = peers.prepare(model, frames[0], 1, ["torch.compile"])
    assert found.skipped == {"torch.compile": "does not run the model: no compiler here"}


def test_an_unknown_name_is_refused(model, frames):
    with pytest.raises(InputError, match="no dense runtime is called tensorrt"):
        peers.prepare(model, frames[0], 1, ["tensorrt"])


def test_the_model_stays_as_it_was(model, frames):
    before = model[0].weight.stride()
    peers.prepare(model, frames[0], 1, ["eager"])
    assert model[0].weight.stride() == before


@pytest.mark.parametrize("name, library", [
    ("onnxruntime", "onnxruntime"), ("openvino", "openvino"), ("openvino-bf16", "openvino")])
def test_runtimes_that_are_installed_take_part(model, frames, name, library):
    pytest.importorskip(library)
    pytest.importorskip("onnxscript")
    found = peers.prepare(model, frames[0], 1, [name])
    if name == "openvino-bf16" and "no bf16" in found.skipped.get(name, ""):
        pytest.skip("this processor has no bf16")
    assert found.skipped == {}
    peer = found.ready[-1]
    assert peer.name == name
    assert peer.precision == ("bf16" if name.endswith("bf16") else "fp32")
    (answer,) = tensors(peer.run(peer.layout(frames[1])))
    with torch.inference_mode():
        expected = model(frames[1])
    # bf16 keeps 8 bits of a number: three layers are off by well under a percent.
    assert relative_rms(answer, expected) < (1e-2 if peer.precision == "bf16" else 1e-5)
