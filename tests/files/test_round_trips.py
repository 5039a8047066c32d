"""What comes back from a file is what was saved."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import OrderedDict, namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import deltaconvert
from deltaconvert import NodeConfig
from deltaconvert.files import container, load, save
from deltaconvert.graph_json import writing
from tests.files.saving import assert_comes_back, clip, trained

ROOT = Path(__file__).resolve().parents[2]

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


def test_a_file_does_not_tell_where_its_author_keeps_the_model(tmp_path):
    save(deltaconvert.convert(_Heads(), backend="reference"), tmp_path / "m.delta")
    text = (tmp_path / "m.delta").read_bytes()
    assert str(ROOT).encode() not in text
    model, _ = container.unpack(text, "m")
    sources = {record["source"] for record in model["graph"] if "source" in record}
    assert any(s.startswith("files/test_round_trips.py:") and "self.body(x)" in s for s in sources)
    assert writing.without_folders("no line known") == "no line known"
