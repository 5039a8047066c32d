"""Files of converted models: what comes back is what was saved, and nothing else is run."""

from __future__ import annotations

import json
import math
import operator
import os
import stat
import subprocess
import sys
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

import deltaconvert
from deltaconvert import CheckpointError, InputError, NodeConfig, UnsupportedError
from deltaconvert.files import container, load, load_structure, read_header, save
from deltaconvert.graph_json import allowed, arguments, writing

ROOT = Path(__file__).resolve().parents[1]


def trained(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give a model random weights and statistics that no default would have, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point() and tensor.dim() < 2:
            tensor.add_(torch.rand(tensor.shape, generator=generator) * 0.2)
    return model.eval()


def clip(*shape: int, frames: int = 4, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Frames of which a corner of a few pixels moves."""
    generator = torch.Generator().manual_seed(1)
    made = [torch.randn(shape, generator=generator)]
    for time in range(1, frames):
        frame = made[-1].clone()
        frame[..., time:time + 3, time:time + 4] = torch.randn(
            *shape[:-2], 3, 4, generator=generator)
        made.append(frame)
    return [frame.to(dtype) for frame in made]


def assert_comes_back(model: nn.Module, path: Path, frames: list[Tensor], **settings: Any
                      ) -> deltaconvert.DeltaModule:
    """Save and load; outputs, state dict, settings and a second file must be the same."""
    delta = deltaconvert.convert(model, **{"backend": "reference", **settings})
    save(delta, path)
    loaded = load(path)
    assert loaded.config == delta.config
    assert loaded.input_names == delta.input_names
    before, after = delta.state_dict(), loaded.state_dict()
    assert list(before) == list(after)
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype
        assert torch.equal(after[name], tensor), name
    for time, frame in enumerate(frames):
        expected, found = (pytree.tree_leaves(module(frame)) for module in (delta, loaded))
        for one, other in zip(expected, found, strict=True):
            same = torch.equal(one, other) if isinstance(one, Tensor) else one == other
            assert same, f"frame {time}: {one} is not {other}"
    save(loaded, path.with_suffix(".again"))
    assert path.with_suffix(".again").read_bytes() == path.read_bytes()
    return loaded


# --- round trips ------------------------------------------------------------------------

NETWORKS = {
    "resnet18": lambda: torchvision.models.resnet18(weights=None),
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(weights=None),
    "shufflenet_v2_x0_5": lambda: torchvision.models.shufflenet_v2_x0_5(weights=None),
    "densenet": lambda: torchvision.models.DenseNet(8, (2, 2, 2, 2), 16),
}


@pytest.mark.parametrize("threshold", [0.0, 0.05])
@pytest.mark.parametrize("network", NETWORKS)
def test_networks_come_back_bit_by_bit(network, threshold, tmp_path):
    torch.manual_seed(0)
    model = trained(NETWORKS[network]())
    assert_comes_back(model, tmp_path / "m.delta", clip(1, 3, 64, 64), threshold=threshold,
                      nodes={"*0*": NodeConfig(norm="rms")}, input_threshold=threshold / 2)


def test_every_setting_comes_back(tmp_path):
    settings: dict[str, Any] = {
        "threshold": 0.25, "threshold_unit": "std", "norm": "rms", "input_test": "block",
        "input_threshold": 0.1, "input_cap": 0.7, "dense_fallback": False, "threads": 1,
        "nodes": {"0": NodeConfig(threshold=0.5), "1*": NodeConfig(norm="max")}}
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    delta = deltaconvert.convert(model, backend="cpu", strict=True, **settings)
    save(delta, tmp_path / "m.delta")
    loaded = load(tmp_path / "m.delta")
    assert loaded.strict is True
    assert loaded.config == deltaconvert.Config(backend="cpu", **settings)


Detected = namedtuple("Detected", ["boxes", "score"])


class _Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Any:
        x = self.body(x)
        return OrderedDict(
            z=Detected(x.relu(), [x.mean((2, 3)), None]),
            a=({"b": x + 1, 3: x.max(dim=1)[0]}, "label", 2.5))


def test_nested_outputs_come_back(tmp_path):
    loaded = assert_comes_back(_Heads(), tmp_path / "m.delta", clip(2, 3, 16, 16))
    out = loaded(clip(2, 3, 16, 16)[0])
    assert type(out) is OrderedDict
    assert list(out) == ["z", "a"]
    assert type(out["z"]).__name__ == "Detected"
    assert out["z"]._fields == ("boxes", "score")
    assert out["z"].score[1] is None
    assert list(out["a"][0]) == ["b", 3]
    assert out["a"][1:] == ("label", 2.5)


class _Tied(nn.Module):
    """One weight under three names: by a parameter, and by a module that is in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.second.weight = self.first.weight
        self.third = self.first

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.first(x)).relu())


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path):
    path = tmp_path / "m.delta"
    loaded = assert_comes_back(_Tied(), path, clip(1, 4, 16, 16))
    _, tensors = container.unpack(path.read_bytes(), path)
    assert sorted(tensors) == ["first.bias", "first.weight", "second.bias"]
    state = loaded.state_dict()
    assert state["first.weight"].data_ptr() == state["second.weight"].data_ptr()
    assert state["first.bias"].data_ptr() == state["third.bias"].data_ptr()
    assert len(list(loaded.parameters())) == 3


class _Writes(nn.Module):
    """Writes into slices, views and copies of a map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        top = x[:, :, :4]
        top += 1.0
        x[:, 1:3, ..., ::2] = 0.5
        first, second = x.chunk(2, dim=1)
        first.mul_(second)
        x.unsqueeze(0)[..., 7:, 5].fill_(float("inf")).clamp_(max=3.0)
        second.copy_(first * 2)
        return x[..., None, :].squeeze(-2)


def test_writes_through_views_come_back(tmp_path):
    assert_comes_back(_Writes(), tmp_path / "m.delta", clip(2, 3, 16, 16))
    model, _ = container.unpack((tmp_path / "m.delta").read_bytes(), "m")
    named = {record.get("target") for record in model["graph"]}
    assert {"write_through", "out_of_place", "set_item"} <= named


class _Names(nn.Module):
    """Tensors of every kind, under names that are attributes or settings elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.reset = nn.Parameter(torch.randn(4, 1, 1))
        self.register_buffer("config", torch.randn(4, 1, 1))
        self.register_buffer("stream", torch.randn(4, 1, 1), persistent=False)
        self.plain = torch.randn(4, 1, 1)
        self.register_buffer("unused", torch.tensor(3))
        self.register_buffer("nothing", torch.zeros(0, 2))
        self.graph_ = nn.ModuleDict({"a-b": nn.ModuleList([nn.Conv2d(3, 4, 1, bias=False)])})

    def forward(self, x: Tensor) -> Tensor:
        x = self.graph_["a-b"][0](x) * self.reset + self.config
        return x * self.stream + self.plain


def test_buffers_constants_and_odd_names_come_back(tmp_path):
    loaded = assert_comes_back(_Names(), tmp_path / "m.delta", clip(1, 3, 8, 8))
    assert "stream" not in loaded.state_dict()
    assert not any(p.requires_grad for p in loaded.parameters())
    assert loaded.state_dict()["unused"].dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_and_memory_format_of_weights_come_back(dtype, tmp_path):
    model = trained(nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3)))
    model = model.to(dtype).to(memory_format=torch.channels_last)
    loaded = assert_comes_back(model, tmp_path / "m.delta", clip(1, 3, 16, 16, dtype=dtype))
    for name, tensor in model.state_dict().items():
        assert loaded.state_dict()[name].stride() == tensor.stride(), name


def test_a_loaded_model_takes_new_weights_and_dtypes(tmp_path):
    torch.manual_seed(0)
    model, other = (trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))) for _ in "ab")
    loaded = assert_comes_back(model, tmp_path / "m.delta", clip(1, 3, 8, 8))
    loaded.load_state_dict(other.state_dict())
    frame = clip(1, 3, 8, 8)[0]
    with torch.no_grad():
        torch.testing.assert_close(loaded(frame), other(frame), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(loaded.double()(frame.double()), other.double()(frame.double()))


class _Inputs(nn.Module):
    def forward(self, input: Tensor, größe: Tensor, scale: float = 2.0) -> Tensor:
        return input * scale - größe


def test_inputs_keep_their_names(tmp_path):
    save(deltaconvert.convert(_Inputs(), backend="reference"), tmp_path / "m.delta")
    one, other = clip(1, 3, 8, 8, frames=2)
    assert torch.equal(load(tmp_path / "m.delta")(input=one, größe=other), one * 2 - other)


class _Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 3)) if x.shape[-1] % 4 else x)


def test_shapes_that_a_model_was_traced_for_come_back(tmp_path):
    frame = torch.randn(1, 3, 9, 9)
    delta = deltaconvert.convert(_Branches(), frame, backend="reference")
    save(delta, tmp_path / "m.delta")
    loaded = load(tmp_path / "m.delta")
    assert torch.equal(loaded(frame), delta(frame))
    with pytest.raises(deltaconvert.FrameError, match="branches on shapes"):
        loaded(torch.randn(1, 3, 8, 8))


def test_needs_no_source_of_the_model(tmp_path):
    (tmp_path / "their_model.py").write_text(
        "from typing import NamedTuple\nfrom torch import Tensor, nn\n"
        "class Out(NamedTuple):\n    map: Tensor\n    mean: Tensor\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU())\n"
        "    def forward(self, x):\n"
        "        x = self.body(x)\n"
        "        return Out(x, x.mean((2, 3)))\n")
    make = ("import torch, deltaconvert, their_model\nfrom deltaconvert.files import save\n"
            "frame = torch.linspace(-1, 1, 300).view(1, 3, 10, 10)\n"
            "delta = deltaconvert.convert(their_model.Net(), backend='reference')\n"
            "save(delta, 'm.delta')\ntorch.save(list(delta(frame)), 'expected.pt')\n")
    use = ("import importlib.util, torch\nfrom deltaconvert.files import load\n"
           "assert importlib.util.find_spec('their_model') is None\n"
           "frame = torch.linspace(-1, 1, 300).view(1, 3, 10, 10)\n"
           "out = load('m.delta')(frame)\n"
           "assert type(out).__name__ == 'Out'\n"
           "for one, other in zip((out.map, out.mean), torch.load('expected.pt'), strict=True):\n"
           "    assert torch.equal(one, other)\n")
    for script, path in ((make, f"{ROOT}{os.pathsep}{tmp_path}"), (use, str(ROOT))):
        done = subprocess.run([sys.executable, "-P", "-c", script], cwd=tmp_path, text=True,
                              env={**os.environ, "PYTHONPATH": path}, capture_output=True)
        assert done.returncode == 0, done.stderr


# --- modules that are written as functions ----------------------------------------------

LEAVES = {
    "gelu": lambda: nn.GELU("tanh"),
    "prelu": lambda: nn.PReLU(4, 0.3),
    "elu": lambda: nn.ELU(0.7, inplace=True),
    "hardsigmoid": nn.Hardsigmoid,
    "softplus": lambda: nn.Softplus(2.0, 5.0),
    "group_norm": lambda: nn.GroupNorm(2, 4),
    "layer_norm": lambda: nn.LayerNorm([4, 12, 12], eps=1e-3),
    "instance_norm": lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    "instance_norm_plain": lambda: nn.InstanceNorm2d(4),
    "batch_norm_without_statistics": lambda: nn.BatchNorm2d(4, track_running_stats=False),
    "local_response_norm": lambda: nn.LocalResponseNorm(2),
    "reflect": lambda: nn.ReflectionPad2d((1, 2, 0, 1)),
    "bilinear": lambda: nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
    "pixel_shuffle": lambda: nn.PixelShuffle(2),
    "max_pool_indices": lambda: nn.MaxPool2d(2, return_indices=True),
}


@pytest.mark.parametrize("threshold", [0.0, 0.05])
@pytest.mark.parametrize("leaf", LEAVES)
def test_modules_of_torch_become_their_function(leaf, threshold, tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), LEAVES[leaf]())
    loaded = assert_comes_back(trained(model), tmp_path / "m.delta", clip(2, 3, 12, 12),
                               threshold=threshold)
    assert not any(node.op == "call_module" for node in loaded.graph.nodes)


def test_norms_take_frames_without_lanes_as_their_modules_do(tmp_path):
    model = nn.Sequential(nn.InstanceNorm2d(3))
    save(deltaconvert.convert(model, backend="reference"), tmp_path / "m.delta")
    frame = torch.randn(3, 8, 8)
    torch.testing.assert_close(load(tmp_path / "m.delta")(frame), model(frame))
    model = nn.Sequential(nn.InstanceNorm1d(3))
    save(deltaconvert.convert(model, backend="reference"), tmp_path / "m.delta")
    with pytest.raises(deltaconvert.FrameError, match="takes 3 dimensions"):
        load(tmp_path / "m.delta")(torch.randn(3, 8))


@fx.wrap
def their_own(x: Tensor) -> Tensor:
    return x.sin()


class _Grids(nn.Module):
    """Places of pixels, as detectors make them, and a tensor made like another."""

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = torch.meshgrid(
            [torch.arange(x.shape[2]), torch.arange(x.shape[3])], indexing="ij")
        return x * torch.stack([rows, columns, rows]).float() + x.new_tensor([2.0])


def test_grids_are_written(tmp_path):
    delta = deltaconvert.convert(_Grids(), backend="reference")
    save(delta, tmp_path / "m.delta")
    loaded = load(tmp_path / "m.delta")
    for size in (4, 6):
        x = torch.randn(1, 3, size, 5)
        assert torch.equal(loaded(x), _Grids()(x))


class _Unwritable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2)
        self.mirrored = nn.Conv1d(3, 4, 3, padding=1, padding_mode="reflect")
        self.hooked = nn.GELU()
        self.hooked.register_forward_hook(lambda module, args, out: out + 1)

    def forward(self, x: Tensor) -> Tensor:
        x = their_own(self.hooked(self.mirrored(x.flatten(2))))
        x = x + torch.rand_like(x)
        tokens = x.flatten(2).permute(2, 0, 1)
        return self.attention(tokens, tokens, tokens)[0]


def test_all_that_cannot_be_written_is_listed_at_once(tmp_path):
    delta = deltaconvert.convert(_Unwritable(), backend="reference")
    with pytest.raises(UnsupportedError) as refused:
        save(delta, tmp_path / "m.delta")
    text = str(refused.value)
    assert text.startswith("5 parts of this model cannot be written to a file")
    assert "mirrored (Conv1d): it is not one function but 2 (pad, conv1d)" in text
    assert "hooked (GELU): it has forward hooks" in text
    assert ".their_own is not among the functions that a file may name" in text
    assert "rand_like is not among the functions" in text
    assert "attention (MultiheadAttention): what it computes cannot be traced" in text
    assert "test_files.py" in text
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UnsupportedError, match=r"^1 part of this model cannot be written"):
        save(deltaconvert.convert(_Random(), backend="reference"), tmp_path / "m.delta")


class _Random(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


@dataclass
class Custom:
    map: Tensor


pytree.register_pytree_node(Custom, lambda c: ([c.map], None), lambda parts, _: Custom(*parts))


class _ReturnsCustom(nn.Module):
    def forward(self, x: Tensor) -> Custom:
        return Custom(x + 1)


class _ExtraState(nn.Conv2d):
    def get_extra_state(self) -> Any:
        return {"more": 1}

    def set_extra_state(self, state: Any) -> None:
        pass


class _Sparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.ones(4, 4).to_sparse()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table


@pytest.mark.parametrize("make, message", [
    (_ReturnsCustom, r"returns a .*Custom, which needs the model's source"),
    (lambda: nn.Sequential(_ExtraState(3, 4, 3)), "changes its state dict with code of its own"),
    (lambda: nn.Conv2d(3, 4, 3, device="meta"), "'weight' is on the meta device"),
    (lambda: nn.Sequential(OrderedDict({"a(b": nn.Conv2d(3, 4, 1)})), "has a name that is too"),
    (_Sparse, "'table' is sparse or quantised"),
    (lambda: nn.Conv2d(3, 4, 3, dtype=torch.complex64), "of torch.complex64, which"),
])
def test_what_save_refuses(make, message, tmp_path):
    delta = deltaconvert.convert(make(), backend="reference")
    with pytest.raises(UnsupportedError, match=message):
        save(delta, tmp_path / "m.delta")
    assert list(tmp_path.iterdir()) == []


def test_a_file_does_not_tell_where_its_author_keeps_the_model(tmp_path):
    save(deltaconvert.convert(_Heads(), backend="reference"), tmp_path / "m.delta")
    text = (tmp_path / "m.delta").read_bytes()
    assert str(ROOT).encode() not in text
    model, _ = container.unpack(text, "m")
    sources = {record["source"] for record in model["graph"] if "source" in record}
    assert any(s.startswith("tests/test_files.py:") and "self.body(x)" in s for s in sources)
    assert writing.without_folders("no line known") == "no line known"


# --- arguments --------------------------------------------------------------------------

VALUES = [
    None, True, False, 0, -7, 2**62, 1.0, 0.1, -0.0, math.inf, -math.inf, "text", "quo'te\n",
    Ellipsis, (), (1,), [1, (2.5, [None])], {"a": (1, 2)}, slice(None), slice(1, -1, 2),
    torch.float16, torch.bool, torch.Size((2, 3)), torch.channels_last, torch.preserve_format,
    torch.device("cpu"), (slice(0, 3), Ellipsis, None),
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_arguments_come_back_with_their_types(value):
    written = json.loads(json.dumps(arguments.encode(value, {}), allow_nan=False))
    found = arguments.decode(written, {})
    assert found == value
    assert type(found) is type(value)
    assert repr(found) == repr(value)


def test_nan_comes_back():
    assert math.isnan(arguments.decode(arguments.encode(math.nan, {}), {}))


def test_every_listed_name_exists_and_is_spelled_by_one_name():
    table = allowed.functions()
    assert table["torch.cat"] is torch.cat
    assert table["operator.getitem"] is operator.getitem
    for name in allowed.BOTH | allowed.ONLY_METHODS:
        assert name in allowed.methods(), name
    for name in allowed.ONLY_FUNCTIONAL:
        assert f"torch.nn.functional.{name}" in table


# --- damage -----------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path):
    """Path of a small, good file."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GELU())
    save(deltaconvert.convert(trained(model), backend="reference"), tmp_path / "m.delta")
    return tmp_path / "m.delta"


def test_a_file_that_is_cut_off(path):
    data = path.read_bytes()
    for length in (9, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=rf"is cut off: it has {length} of at least"):
            load(path)


def test_a_file_with_a_flipped_bit(path):
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    for place in [*range(0, header, 41), *range(header, len(data), 29), len(data) - 1]:
        damaged = bytearray(data)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"m\.delta (is|has)"):
            load(path)


def test_a_flipped_weight_is_told_as_damage(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 64
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="its contents do not match its checksum"):
        load(path)


def test_a_newer_version(path):
    model, tensors = container.unpack(path.read_bytes(), path)
    path.write_bytes(container.pack(model, tensors, 2))
    with pytest.raises(CheckpointError, match=r"format version 2; .* up to 1. Update it"):
        load(path)


@pytest.mark.parametrize("data, message", [
    (b"", "is empty"),
    (b"PK\x03\x04 and more", r"is not a \.delta file"),
    (b"{}", r"is not a \.delta file"),
    ((10**15).to_bytes(8, "little") + b"{", f"claims a header of {10**15} bytes"),
    ((10**7).to_bytes(8, "little") + b"{", "is cut off"),
    ((9).to_bytes(8, "little") + b"{no json}", "its header cannot be read"),
    ((5000).to_bytes(8, "little") + b'{"a":' + b"[" * 4995, "its header cannot be read"),
])
def test_what_is_no_delta_file(data, message, tmp_path):
    (tmp_path / "m.delta").write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "m.delta")


def test_no_file_a_folder_and_plain_weights(tmp_path):
    with pytest.raises(CheckpointError, match=r"m\.delta does not exist"):
        load(tmp_path / "m.delta")
    with pytest.raises(CheckpointError, match="cannot be read: Is a directory"):
        load(tmp_path)
    save_file({"weight": torch.ones(3)}, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match="is a safetensors file but not a converted model"):
        load(tmp_path / "w.safetensors")


def test_what_cannot_be_written(path, tmp_path):
    delta = load(path)
    (tmp_path / "file").write_text("")
    for target, reason in ((tmp_path / "none" / "m.delta", "No such file or directory"),
                           (tmp_path / "file" / "m.delta", "Not a directory"),
                           (tmp_path, "it is a folder")):
        with pytest.raises(InputError, match=f"cannot be written: {reason}"):
            save(delta, target)
    with pytest.raises(InputError, match="save takes a converted model, not a Conv2d"):
        save(nn.Conv2d(3, 4, 3), path)  # type: ignore[arg-type]
    for act in (load, load_structure, read_header, lambda none: save(delta, none)):
        with pytest.raises(InputError, match="the path is a NoneType: give the name of a file"):
            act(None)


def test_a_pipe_or_a_device_is_not_replaced(path, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    link = tmp_path / "link"
    link.symlink_to(pipe)
    for place in (pipe, link):
        with pytest.raises(InputError, match="cannot be written: it is a device or a pipe"):
            save(load(path), place)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_write_that_fails_leaves_the_old_file(path, tmp_path, monkeypatch):
    delta, before = load(path), path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        save(delta, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_replaces_what_a_link_points_to_with_ordinary_permissions(path, tmp_path):
    (tmp_path / "plain").write_text("")
    link = tmp_path / "link.delta"
    link.symlink_to(path)
    delta = load(path)
    path.write_text("old")
    save(delta, link)
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    load(path)


# --- attacks ----------------------------------------------------------------------------


def edited(path: Path, change: Any) -> None:
    """Change a file's description and give it the checksum that fits."""
    model, tensors = container.unpack(path.read_bytes(), path)
    change(model)
    path.write_bytes(container.pack(model, tensors))


def with_call(**record: Any) -> Any:
    """Return a change that puts a call in front of the output."""
    def change(model: Any) -> None:
        added = {"name": "evil", "op": "function", "args": [{"node": model["graph"][-2]["name"]}],
                 "kwargs": {}, **record}
        model["graph"].insert(-1, added)
        model["graph"][-1]["args"] = [[{"node": added["name"]}]]
    return change


NODE = {"node": "input_1"}


def call(**record: Any) -> dict[str, Any]:
    return record


CALLS = {
    "os.system": (call(target="os.system", args=["touch owned"]), "not among the pure tensor"),
    "posix": (call(target="posix.system", args=["touch owned"]), "not among the pure tensor"),
    "torch.load": (call(target="torch.load", args=["owned"]), "not among the pure tensor"),
    "torch.from_file": (call(target="torch.from_file", args=["owned"]), "not among the pure"),
    "eval": (call(target="eval", args=["open('owned', 'w')"]), "not among the pure tensor"),
    "builtins.eval": (call(target="builtins.eval", args=["1"]), "not among the pure tensor"),
    "torch.random": (call(target="torch.rand_like"), "not among the pure tensor functions"),
    "class": (call(target="getattr", args=[NODE, "__class__"]), "no string like '__class__'"),
    "globals": (call(target="getattr", args=[NODE, "__init__"]), "no string like '__init__'"),
    "getattr of a string": (call(target="getattr", args=["shape", "shape"]), "other arguments"),
    "getattr by a node": (call(target="getattr", args=[NODE, NODE]), "takes other arguments"),
    "getattr with a default": (call(target="getattr", args=[NODE, "shape", 1]), "other arguments"),
    "method": (call(op="method", target="__reduce__"), "not among the pure tensor functions"),
    "apply_": (call(op="method", target="apply_"), "not among the pure tensor functions"),
    "tofile": (call(op="method", target="tofile", args=[NODE, "owned"]), "not among the pure"),
    "dotted method": (call(op="method", target="data.add"), "not among the pure tensor"),
    "method of a string": (call(op="method", target="to", args=["cpu"]), "is not a node"),
    "out_of_place": (call(target="out_of_place", args=[NODE, "set_", NODE]), "like 'set_'"),
    "out_of_place by a node": (call(target="out_of_place", args=[NODE, NODE]), "other arguments"),
    "write_through": (call(target="write_through", args=[
        NODE, NODE, [["__class__", [], {"dict": {}}]]]), "no string like '__class__'"),
    "write_through by a node": (call(target="write_through", args=[
        NODE, NODE, [[NODE, [], {"dict": {}}]]]), "takes other arguments"),
    "operator": (call(op="operator", target="conv9d"), "has no operator 'conv9d'"),
    "module": (call(op="call_module", target="0"), "not among the pure tensor functions"),
    "keyword": (call(target="torch.relu", kwargs={"a=print(1) or b": 1}), "is not a plain name"),
    "reserved keyword": (call(target="torch.relu", kwargs={"lambda": 1}), "is not a plain name"),
    "out": (call(target="torch.relu", kwargs={"out": NODE}), "writes into its argument"),
    "newline": (call(name="a\nimport os", target="torch.relu"), "is not a plain name"),
    "semicolon": (call(name="a;print(1)", target="torch.relu"), "is not a plain name"),
    "call": (call(name="print(1)", target="torch.relu"), "is not a plain name"),
    "builtin": (call(name="print", target="torch.relu"), "a name that Python uses itself"),
    "torch": (call(name="torch", target="torch.relu"), "a name that Python uses itself"),
    "unicode": (call(name="é", target="torch.relu"), "is not a plain name"),
    "twice": (call(name="input_1", target="torch.relu"), "there are two nodes 'input_1'"),
    "unknown kind": (call(target="torch.relu", args=[{"code": "1"}]), "of an unknown kind"),
    "two kinds": (call(target="torch.relu", args=[{"node": "x", "float": "nan"}]), "unknown kind"),
    "huge": (call(target="torch.relu", args=[10**30]), "of an unknown kind"),
    "later": (call(target="torch.relu", args=[{"node": "evil"}]), "does not come before it"),
    "text": (call(target="torch.relu", args=["';print(1)"]), "takes no string like"),
    "equation": (call(target="torch.einsum", args=["i->i;x", NODE]), "takes no string like"),
    "operator text": (call(op="operator", target="relu", args=["'+'"]), "takes no string like"),
    "dtype": (call(target="torch.relu", args=[{"dtype": "load"}]), "malformed"),
    "device": (call(target="torch.relu", args=[{"device": "meta:;"}]), "names the device"),
    "weight": (call(op="weight", target="0.forward"), "no tensor '0.forward'"),
    "weight of code": (call(op="weight", target="0\").x"), "there is no tensor"),
    "input": (call(op="input", target="x=print(1)"), "an input cannot be called 'x=print"),
    "input self": (call(op="input", target="self"), "an input cannot be called 'self'"),
    "input twice": (call(op="input", target="input"), "an input cannot be called 'input'"),
    "too few arguments": (call(target="operator.add"), "malformed"),
    "not a record": (call(args=7, target="torch.relu"), "malformed"),
}


@pytest.mark.parametrize("attack", CALLS)
def test_a_graph_that_names_what_it_may_not(attack, path, tmp_path, monkeypatch):
    record, message = CALLS[attack]
    monkeypatch.chdir(tmp_path)
    edited(path, with_call(**record))
    with pytest.raises(CheckpointError, match=message):
        load(path)
    assert list(tmp_path.iterdir()) == [path]


def test_the_same_change_with_a_function_that_it_may_name_loads(path):
    expected = load(path)(clip(1, 3, 8, 8)[0]).neg()
    edited(path, with_call(target="torch.neg"))
    assert torch.equal(load(path)(clip(1, 3, 8, 8)[0]), expected)


def _set(key: str, value: Any) -> Any:
    return lambda model: model.update({key: value})


def _rename(name: str, **more: Any) -> Any:
    return lambda model: model["tensors"].append(
        {**model["tensors"][0], "name": name, "stored": "0.weight", **more})


CHANGES = {
    "no graph": (_set("graph", []), "malformed"),
    "no output": (lambda model: model["graph"].pop(), "has no output"),
    "graph of text": (_set("graph", "import os"), "malformed"),
    "no list": (_set("graph", None), "malformed"),
    "outputs": (_set("outputs", {"os.system": [0]}), "a container of an unknown kind, 'os.system'"),
    "outputs missing": (_set("outputs", {"tuple": [0, 1]}), "structure of its 1 outputs"),
    "outputs swapped": (_set("outputs", 1), "structure of its 1 outputs"),
    "named tuple": (_set("outputs", {"named_tuple": ["x=1\nimport os", ["a"], [0]]}),
                    "is not a plain name"),
    "field": (_set("outputs", {"named_tuple": ["x", ["a);print("], [0]]}), "is not a plain name"),
    "hidden field": (_set("outputs", {"named_tuple": ["x", ["__new__"], [0]]}), "malformed"),
    "setting": (_set("config", {"os": 1}), "no such setting: os"),
    "backend": (_set("config", {"backend": ["cpu"]}), r"backend=\['cpu'\]: choose auto, cpu"),
    "threshold": (_set("config", {"threshold": "1"}), "threshold='1': give a finite number"),
    "strict": (_set("strict", "yes"), "malformed"),
    "traced_for": (_set("traced_for", [["a"]]), "malformed"),
    "dtypes": (_set("dtypes", ["float32"]), "malformed"),
    "missing tensor": (_rename("more", stored="none"), "the tensor 'none' is missing"),
    "kind": (_rename("more", kind="code"), "of the unknown kind 'code'"),
    "format": (_rename("more", memory_format="x"), "malformed"),
    "forward": (_rename("0.forward"), "cannot have the name '0.forward'"),
    "tables": (_rename("_modules"), "cannot have the name '_modules'"),
    "training": (_rename("training"), "cannot have the name 'training'"),
    "class": (_rename("__class__.x"), "cannot have the name '__class__.x'"),
    "quote": (_rename('a").x'), "cannot have the name"),
    "no name": (_rename("a..b"), "cannot have the name 'a..b'"),
    "twice": (_rename("0.weight"), "cannot have the name '0.weight'"),
    "inside a tensor": (_rename("0.weight.x"), "cannot have the name '0.weight.x'"),
    "over a module": (_rename("0"), "cannot have the name '0'"),
    "deep": (_rename(".".join("a" * 3000)), "cannot have the name"),
}


@pytest.mark.parametrize("attack", CHANGES)
def test_a_description_that_is_not_right(attack, path):
    change, message = CHANGES[attack]
    edited(path, change)
    with pytest.raises(CheckpointError, match=message):
        load(path)


def test_a_graph_that_no_model_has_is_told_when_it_is_compiled(path):
    def shorten(model):
        record = next(r for r in model["graph"] if r["target"] == "conv2d")
        record["kwargs"]["stride"] = {"tuple": [1]}

    edited(path, shorten)
    delta = load(path)
    with pytest.raises(CheckpointError, match=r"m\.delta describes a model that cannot be compiled "
                                              r"\(IndexError: .*\)\. Convert the model again"):
        delta(clip(1, 3, 8, 8)[0])


def test_deep_nesting_is_refused(path):
    deep: list[Any] = []
    for _ in range(400):
        deep = [deep]
    edited(path, with_call(target="torch.relu", args=deep * 2))
    with pytest.raises(CheckpointError, match=r"malformed \(RecursionError"):
        load(path)  # FX could not write it as code
    edited(path, lambda model: model["graph"].pop(-2))
    model, tensors = container.unpack(path.read_bytes(), path)
    model["graph"][0]["path"] = "HERE"
    header = {"version": 1, "model": model}
    text = json.dumps(header).replace('"HERE"', "[" * 10**5 + "]" * 10**5)
    save_file(tensors, path, {"deltaconvert": text})
    with pytest.raises(CheckpointError, match="its header cannot be read"):
        load(path)


# --- headers alone, and memory ----------------------------------------------------------


def raw(header: dict[str, Any], tensors: bytes) -> bytes:
    """The bytes of a safetensors file with any header."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + tensors


@pytest.mark.parametrize("offsets", [[0, 16], [4, 20], [0, 12]])
def test_tensors_that_overlap_or_leave_gaps(offsets, path):
    """All that load reads is what the file says it is: no byte is in two tensors."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + size])
    moved = next(t for name, t in header.items() if t.get("data_offsets", [0])[0] > 0)
    moved["data_offsets"] = offsets
    path.write_bytes(raw(header, data[8 + size:]))
    with pytest.raises(CheckpointError, match=r"m\.delta is damaged: "):
        load(path)


def test_read_header_reads_no_tensor(path, monkeypatch):
    data = bytearray(path.read_bytes())
    data[-3] ^= 64  # damage that only the weights show
    path.write_bytes(data)
    header = read_header(path)
    assert header.tensors["0.weight"] == ("F32", [4, 3, 3, 3])
    assert [r["op"] for r in header.model["graph"]][-1] == "output"
    with pytest.raises(CheckpointError, match="do not match its checksum"):
        load(path)


@pytest.mark.parametrize("data, message", [
    (b"", "is empty"), (b"PK\x03\x04 and more", r"is not a \.delta file"),
    ((10**9).to_bytes(8, "little") + b"{", f"claims a header of {10**9} bytes"),
    ((9).to_bytes(8, "little") + b"{no json}", "its header cannot be read"),
    (raw({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
     "not a converted model"),
    (raw({"__metadata__": {"deltaconvert": '{"version": 1}'}}, b""), "no description of a model"),
    (raw({"__metadata__": {"deltaconvert": '{"version": 9}'}}, b""), "format version 9"),
    (raw({"__metadata__": {"deltaconvert": '{"version": 1, "model": {}}'},
          "a": {"dtype": "F32", "data_offsets": [0, 0]}}, b""), "list of tensors cannot be read"),
])
def test_a_header_that_is_none(data, message, tmp_path):
    (tmp_path / "m.delta").write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        read_header(tmp_path / "m.delta")


MEASURE = """
import resource, sys, torch
from deltaconvert import load
load(sys.argv[1])  # imports, and what is allocated once
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
load(sys.argv[2])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.slow
def test_loading_takes_no_more_than_twice_the_files_memory(path, tmp_path):
    large = tmp_path / "large.delta"
    save(deltaconvert.convert(nn.Linear(4000, 4000), backend="reference"), large)
    done = subprocess.run([sys.executable, "-c", MEASURE, str(path), str(large)], text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 2.1 * large.stat().st_size


class TestStructure:
    """`load_structure`: the model from its header, with zeros for weights."""

    def test_it_is_the_model_but_for_its_numbers(self, tmp_path):
        model = nn.Sequential(nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last),
                              nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 5)).eval()
        deltaconvert.save(deltaconvert.convert(model, threshold=0.5), tmp_path / "a.delta")
        found, whole = load_structure(tmp_path / "a.delta"), load(tmp_path / "a.delta")
        assert found.config == whole.config
        assert [(n, t.shape, t.dtype) for n, t in found.state_dict().items()] == [
            (n, t.shape, t.dtype) for n, t in whole.state_dict().items()]
        assert not any(t.any() for t in found.state_dict().values())
        assert str(found.graph) == str(whole.graph)

    def test_sizes_that_do_not_add_up_are_damage(self, tmp_path):
        deltaconvert.save(deltaconvert.convert(nn.Conv2d(3, 4, 3)), tmp_path / "a.delta")
        data = (tmp_path / "a.delta").read_bytes()
        (tmp_path / "a.delta").write_bytes(data.replace(b"[4,3,3,3]", b"[4,3,3,9]"))
        with pytest.raises(CheckpointError, match="its tensors are not of the sizes that it gives"):
            load_structure(tmp_path / "a.delta")
