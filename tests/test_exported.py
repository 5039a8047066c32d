"""Programs of ``torch.export``: read as data, converted to the same operators as the source."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, export

import deltaconvert
from deltaconvert.errors import CheckpointError, FrameError, UnsupportedError
from tests.passes.graphs import Model, frames_like, trained_norm

FRAME = torch.randn(1, 3, 8, 10, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """In-place activations, a tied weight, a buffer that is not saved, a plain tensor."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), trained_norm(4),
                                  nn.ReLU(inplace=True))
        self.again = nn.Conv2d(4, 4, 1, bias=False)
        self.tied = nn.Conv2d(4, 4, 1, bias=False)
        self.tied.weight = self.again.weight
        self.register_buffer("gate", torch.rand(4, 1, 1), persistent=False)
        self.plain = torch.rand(4, 1, 1)
        self.eval()

    def forward(self, x: Tensor) -> dict[str, Any]:
        x = self.stem(x)
        x += self.again(x) * self.gate
        left, right = F.silu(self.tied(x), inplace=True).chunk(2, 1)
        x = torch.cat([right, left], 1)[:, :, 1:, :-1]
        x[:, 0] = 2
        return {"map": x, "rest": (x.mean((2, 3)) + self.plain.flatten(), None)}


def saved(model: nn.Module, path: Path, frame: Tensor = FRAME, decompose: bool = False,
          **how: Any) -> Path:
    program = export(model, (frame,), **how)
    torch.export.save(program.run_decompositions() if decompose else program, path)
    return path


def changed(path: Path, member: str, change: Any) -> Path:
    """Rewrite one member of the file by a function of its bytes."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            new = change(data) if name.endswith(member) else data
            archive.writestr(name, new)
    return path


def with_json(path: Path, member: str, change: Any) -> Path:
    def rewrite(data: bytes) -> bytes:
        told = json.loads(data)
        change(told)
        return json.dumps(told).encode()
    return changed(path, member, rewrite)


@pytest.mark.parametrize("decompose", [False, True])
def test_a_program_computes_what_its_source_does(tmp_path, decompose):
    path = saved(Net(), tmp_path / "net.pt2", decompose=decompose)
    model = deltaconvert.read_program(path)
    with torch.no_grad():
        wanted, found = Net()(FRAME), model(FRAME)
    assert found["rest"][1] is None
    torch.testing.assert_close(found["map"], wanted["map"])
    torch.testing.assert_close(found["rest"][0], wanted["rest"][0])
    report = deltaconvert.validate(Net(), deltaconvert.convert(model), clip())
    assert report.passed, report


def clip() -> list[Tensor]:
    return [frame.float() for frame in frames_like(1, 3, 8, 10)]


def test_names_of_weights_are_the_models_own(tmp_path):
    model = deltaconvert.read_program(saved(Net(), tmp_path / "net.pt2"))
    wanted = Net().state_dict()
    assert set(model.state_dict()) == set(wanted)
    assert all(torch.equal(value, wanted[name]) for name, value in model.state_dict().items())
    assert model.again.weight is model.tied.weight
    assert {name for name, _ in model.named_parameters()} == {
        name for name, _ in Net().named_parameters()}


def test_modules_and_lines_are_those_of_the_source(tmp_path):
    delta = deltaconvert.convert(deltaconvert.read_program(saved(Net(), tmp_path / "net.pt2")))
    convolution = next(n for n in delta.graph.nodes if n.name == "conv2d_1")
    assert convolution.meta["path"] == "again"
    assert convolution.meta["source"].startswith(f"{__file__}:")
    assert "self.again(x) * self.gate" in convolution.meta["source"]


def test_a_program_in_memory_is_converted_as_it_is():
    delta = deltaconvert.convert(export(Net(), (FRAME,)))
    report = deltaconvert.validate(Net(), delta, clip())
    assert report.passed, report


def test_a_program_becomes_a_file_without_it(tmp_path):
    delta = deltaconvert.convert(deltaconvert.read_program(saved(Net(), tmp_path / "net.pt2")))
    deltaconvert.save(delta, tmp_path / "net.delta")
    (tmp_path / "net.pt2").unlink()
    loaded = deltaconvert.load(tmp_path / "net.delta")
    for frame in clip():
        torch.testing.assert_close(loaded(frame)["map"], Net()(frame)["map"].detach())


def test_fixed_sizes_are_held_to_and_dynamic_ones_are_free(tmp_path):
    fixed = deltaconvert.convert(deltaconvert.read_program(saved(Net(), tmp_path / "fixed.pt2")))
    with pytest.raises(FrameError, match=r"converted for frames of \[\(1, 3, 8, 10\)\]"):
        fixed(torch.zeros(1, 3, 8, 11))
    up = Model(lambda self, x: F.interpolate(F.interpolate(self.conv(x), scale_factor=2),
                                             x.shape[2:]), conv=nn.Conv2d(3, 2, 3))
    sizes = ({2: Dim("h", min=5, max=99), 3: Dim("w", min=5, max=99)},)
    path = saved(up, tmp_path / "free.pt2", dynamic_shapes=sizes)
    free = deltaconvert.convert(deltaconvert.read_program(path))
    assert free.traced.traced_for == [(1, 3, -1, -1)]
    for size in ((8, 10), (7, 13)):
        frame = torch.randn(1, 3, *size)
        torch.testing.assert_close(free(frame), up(frame).detach())
    with pytest.raises(FrameError, match=r"\(1, 3, -1, -1\)"):
        free(torch.zeros(2, 3, 8, 10))
    with torch.autocast("cpu", torch.bfloat16):
        assert free(torch.randn(1, 3, 8, 10)).dtype == torch.bfloat16
    with pytest.raises(FrameError, match=r"float32\]; these are .*uint8"):
        free(torch.zeros(1, 3, 8, 10, dtype=torch.uint8))
    deltaconvert.save(free, tmp_path / "free.delta")
    assert deltaconvert.load(tmp_path / "free.delta").traced.traced_for == [(1, 3, -1, -1)]


# --- nothing in a file is executed ------------------------------------------------------


class Writes:
    """Unpickling this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


def test_an_object_in_the_place_of_a_weight_is_not_unpickled(tmp_path):
    path, trace = saved(Net(), tmp_path / "net.pt2"), tmp_path / "executed"

    def pickled(told: Any) -> None:
        told["config"]["again.weight"]["use_pickle"] = True
    with_json(path, "model_weights_config.json", pickled)
    payload = io.BytesIO()
    torch.save(Writes(trace), payload)
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("net/data/weights/model_weights_config.json"))["config"]
    changed(path, config["again.weight"]["path_name"], lambda _: payload.getvalue())
    with pytest.raises(CheckpointError, match=r"holds more than weights.* runs code"):
        deltaconvert.read_program(path)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Writes(trace)))
    assert trace.exists()  # it would have


def test_sample_inputs_and_expressions_are_not_looked_at(tmp_path):
    up = Model(lambda self, x: F.interpolate(self.conv(x), x.shape[2:]), conv=nn.Conv2d(3, 2, 3))
    path = saved(up, tmp_path / "net.pt2", dynamic_shapes=({2: Dim("h", min=5, max=99)},))
    trace = tmp_path / "executed"
    changed(path, "sample_inputs/model.pt", lambda _: pickle.dumps(Writes(trace)))

    def evil(value: Any) -> None:
        for key, part in list(value.items() if isinstance(value, dict) else enumerate(value)):
            if key == "expr_str":
                value[key] = f"open({str(trace)!r}, 'w')"
            elif isinstance(part, (dict, list)):
                evil(part)
    with_json(path, "models/model.json", evil)
    frame = torch.randn(1, 3, 9, 10)
    torch.testing.assert_close(deltaconvert.convert(deltaconvert.read_program(path))(frame),
                               up(frame).detach())
    assert not trace.exists()


@pytest.mark.parametrize("target, reason", [
    ("torch.ops.aten.from_file.default", "not among the pure tensor functions"),
    ("torch.ops.aten.rand_like.default", "not among the pure tensor functions"),
    ("torch.ops.other.thing.default", "an operator of an extension"),
    ("torch.ops.aten.no_such_thing.default", "this PyTorch has no such operator"),
    ("torch.ops.aten.conv2d.__class__", "this PyTorch has no such operator"),
    ("torch.hub.load", "no operator on tensors or numbers"),
    ("_operator.attrgetter", "no operator on tensors or numbers"),
    ("os.system", "no operator on tensors or numbers"),
])
def test_what_a_file_may_name_is_a_closed_list(tmp_path, target, reason):
    path = saved(Net(), tmp_path / "net.pt2")

    def renamed(told: Any) -> None:
        told["graph_module"]["graph"]["nodes"][3]["target"] = target
        told["graph_module"]["graph"]["nodes"][5]["target"] = target
    with_json(path, "models/model.json", renamed)
    with pytest.raises(UnsupportedError) as refused:
        deltaconvert.read_program(path)
    assert "2 calls that cannot be converted" in str(refused.value)
    assert f"{target}: " in str(refused.value)
    assert reason in str(refused.value)
    assert f"{__file__}:" in str(refused.value)


def test_control_flow_is_refused_by_its_name(tmp_path):
    branch = Model(lambda self, x: torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,)))
    path = saved(branch, tmp_path / "net.pt2")
    with pytest.raises(UnsupportedError, match=r"torch\.ops\.higher_order\.cond.*(branch|ext)"):
        deltaconvert.read_program(path)


def test_a_program_in_training_mode_is_refused(tmp_path):
    program = export(Net().train(), (torch.cat([FRAME, FRAME]),)).run_decompositions()
    torch.export.save(program, tmp_path / "net.pt2")
    with pytest.raises(UnsupportedError, match=r"model\.eval\(\)|not among the pure"):
        deltaconvert.read_program(tmp_path / "net.pt2")


# --- files that are not what they should be ---------------------------------------------


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        deltaconvert.read_program(tmp_path / "net.pt2")
    with pytest.raises(CheckpointError, match="is a folder"):
        deltaconvert.read_program(tmp_path)


def test_what_is_no_archive_is_said_to_be_damaged(tmp_path):
    (tmp_path / "net.pt2").write_bytes(b"not a program")
    with pytest.raises(CheckpointError, match=r"damaged or no program of torch.export"):
        deltaconvert.read_program(tmp_path / "net.pt2")


def test_other_archives_are_told_apart(tmp_path):
    torch.save({"a": FRAME}, tmp_path / "weights.pt2")
    with pytest.raises(CheckpointError, match=r"holds no program of torch.export.save"):
        deltaconvert.read_program(tmp_path / "weights.pt2")
    with zipfile.ZipFile(tmp_path / "machine.pt2", "w") as archive:
        archive.writestr("m/data/aotinductor/model/x.so", b"")
        archive.writestr("m/archive_version", b"0")
    with pytest.raises(CheckpointError, match="machine code"):
        deltaconvert.read_program(tmp_path / "machine.pt2")


def test_another_version_is_refused(tmp_path):
    path = saved(Net(), tmp_path / "net.pt2")

    def newer(told: Any) -> None:
        told["schema_version"]["major"] = 99
    with_json(path, "models/model.json", newer)
    with pytest.raises(CheckpointError, match="schema version 99, this deltaconvert reads 8"):
        deltaconvert.read_program(path)


@pytest.mark.parametrize("member, change", [
    ("models/model.json", lambda data: data[:500]),
    ("models/model.json", lambda data: data.replace(
        b'{"as_tensor": {"name": "p_stem_0_weight"}}, "kind"',
        b'{"as_tensor": {"name": "nobody"}}, "kind"')),
    ("models/model.json", lambda data: data.replace(b'"stem.0.weight"', b'"__class__"')),
    ("models/model.json", lambda data: data.replace(b'"out_spec"', b'"no_spec"')),
    ("weight_0", lambda data: data[:8]),
    ("model_weights_config.json", lambda data: data.replace(b'"as_int": 3', b'"as_int": 333')),
])
def test_malformed_descriptions_are_refused(tmp_path, member, change):
    path = changed(saved(Net(), tmp_path / "net.pt2"), member, change)
    with pytest.raises(CheckpointError):
        deltaconvert.read_program(path)
