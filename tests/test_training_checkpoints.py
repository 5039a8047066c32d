"""Checkpoints as training frameworks write them: found and read without their code."""

from __future__ import annotations

import argparse
import collections
import json
import logging
import pathlib
import sys
import types
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from deltaconvert.checkpoints import apply_state_dict, read_checkpoint
from deltaconvert.checkpoints.reading import _plain_data
from deltaconvert.errors import CheckpointError, MismatchError, PickleError
from tests.checkpoints import make


def net() -> nn.Sequential:
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4)))


def trained() -> nn.Sequential:
    model = net()
    nn.init.constant_(model.conv.weight, 0.5)
    return model


def prefixed(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def plain_object(module: str, name: str, base: type = object):
    """An instance of a class of a package that is not there when it is read."""
    kind = type(name, (base,), {"__module__": module})
    parts = module.split(".")
    for length in range(1, len(parts) + 1):
        sys.modules.setdefault(".".join(parts[:length]), types.ModuleType(parts[length - 1]))
    setattr(sys.modules[module], name, kind)
    return kind()


def optimizer(model):
    made = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.rand(1, 3, 8, 8)).sum().backward()
    made.step()
    return made


def torchvision_references(model):
    args = argparse.Namespace(lr=0.1, model="net", output_dir=pathlib.Path("out"))
    made = optimizer(trained())
    schedule = torch.optim.lr_scheduler.MultiStepLR(made, [1, 2])
    return {"model": model.state_dict(), "optimizer": made.state_dict(), "epoch": 3,
            "lr_scheduler": schedule.state_dict(), "args": args,
            "model_ema": {"n_averaged": torch.tensor(9), **prefixed("module.", model.state_dict())}}


def lightning(model):
    settings = plain_object("lightning.fabric.utilities.data", "AttributeDict", dict)
    settings["lr"] = 0.1
    state = prefixed("net.", model.state_dict()) | {"loss.weight": torch.ones(2)}
    return {"epoch": 1, "global_step": 10, "pytorch-lightning_version": "2.4.0",
            "state_dict": state, "hyper_parameters": settings,
            "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score":
                                                               torch.tensor(0.5)}},
            "loops": {"fit_loop": {"state_dict": {}}}, "optimizer_states": []}


def timm(model):
    return {"epoch": 1, "arch": "net", "state_dict": model.state_dict(),
            "state_dict_ema": model.state_dict(), "args": argparse.Namespace(lr=1), "metric": 71.2}


def mmengine(model):
    history = plain_object("mmengine.logging.history_buffer", "HistoryBuffer")
    history._log_history = np.array([1.0, 2.0])
    history._max_length = 1000000
    return {"meta": {"epoch": 1, "time": "20240101", "seed": 0},
            "state_dict": OrderedDict(model.state_dict()),
            "message_hub": {"log_scalars": {"train/lr": history},
                            "runtime_info": {"loss": np.float64(0.5), "epoch": 3}}}


def ddp(model):
    return OrderedDict(prefixed("module.", model.state_dict()))


def ema_pytorch(model):
    return {"ema": prefixed("module.", model.state_dict()), "step": 100,
            "counts": collections.Counter(a=1)}


def compiled(model):
    return {"model": prefixed("_orig_mod.", model.state_dict())}


FRAMEWORKS = [torchvision_references, lightning, timm, mmengine, ddp, ema_pytorch, compiled]


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=lambda f: f.__name__)
def test_the_weights_are_found_and_fit(framework, tmp_path):
    torch.save(framework(trained()), tmp_path / "c.pth")
    for name in [n for n in sys.modules if n.startswith(("lightning", "mmengine"))]:
        del sys.modules[name]
    model = net()
    apply_state_dict(model, read_checkpoint(tmp_path / "c.pth").state)
    assert bool((model.conv.weight == 0.5).all())
    assert not any(name.startswith(("lightning", "mmengine")) for name in sys.modules)


MADE = pathlib.Path(__file__).parent / "checkpoints"  # by the frameworks, see make.py there
EXPECTED = torch.load(MADE / "expected.pth", weights_only=True)


@pytest.mark.parametrize("name", EXPECTED)
def test_what_the_frameworks_themselves_wrote(name):
    """Trained by their own loops; of averaged weights these, wherever they are kept."""
    model = make.net()
    apply_state_dict(model, read_checkpoint(MADE / name).state)
    state = model.state_dict()
    assert list(state) == list(EXPECTED[name])
    for key, tensor in EXPECTED[name].items():
        assert torch.equal(state[key], tensor), key
    assert not any(m.startswith(("lightning", "pytorch_lightning", "mmengine"))
                   for m in sys.modules)


def test_averages_differ_from_what_lies_beside_them():
    """So that the test above sees which of the two was taken."""
    entries = {"timm.pth.tar": "state_dict", "mmengine.pth": "ema_state_dict",
               "lightning-averaged.ckpt": "current_model_state"}
    for name, entry in entries.items():
        with torch.serialization.safe_globals(_plain_data()):
            other = torch.load(MADE / name, weights_only=True)[entry]
        (key,) = (k for k in other if k.endswith("conv.weight"))
        assert not torch.equal(other[key], EXPECTED[name]["conv.weight"]), name


def test_what_stands_for_getattr_looks_nothing_up(tmp_path):
    """It is in mmengine's files; what it gives can neither be called nor looked into."""
    class Looks:
        def __reduce__(self):
            return getattr, (torch.Tensor, "numpy")

    torch.save({"state_dict": {"w": torch.ones(1)}, "beside": Looks()}, tmp_path / "a.pth")
    with torch.serialization.safe_globals(_plain_data()):
        found = torch.load(tmp_path / "a.pth", weights_only=True)["beside"]
    assert type(found).__name__ == "Ignored"
    assert not callable(found)


def test_what_lies_beside_the_model_is_told(caplog):
    state = prefixed("net.", trained().state_dict()) | {"loss.weight": torch.ones(2)}
    with caplog.at_level(logging.WARNING):
        assert apply_state_dict(net(), state) == "net."
    assert "left out what lies beside the model, net.: loss.weight" in caplog.text


def test_a_model_of_which_only_a_part_is_there_does_not_fit():
    state = prefixed("net.", trained().state_dict())
    del state["net.norm.weight"]
    with pytest.raises(MismatchError, match="do not fit the model"):
        apply_state_dict(net(), state)


# --- objects, which run code when they are read -----------------------------------------


class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = trained().conv
        self.norm = nn.BatchNorm2d(4)


class Trap:
    def __reduce__(self):
        return open, ("executed", "w")


@pytest.mark.parametrize("content", [Whole, lambda: {"ema": Whole(), "epoch": 3}])
def test_a_pickled_model_is_refused_unless_trusted_and_that_is_said(content, tmp_path, caplog):
    torch.save(content(), tmp_path / "whole.pt")
    with pytest.raises(PickleError, match=r"holds more than weights, namely .*Whole, and was not "
                                          r"opened: .*\(--trust-pickle, trust_pickle=True\)"):
        read_checkpoint(tmp_path / "whole.pt")
    state = read_checkpoint(tmp_path / "whole.pt", trust_pickle=True).state
    assert bool((state["conv.weight"] == 0.5).all())
    assert "runs the code that it names, because it is trusted" in caplog.text


def test_trusting_a_file_that_needs_no_trust_runs_nothing(tmp_path, caplog):
    torch.save(net().state_dict(), tmp_path / "w.pt")
    read_checkpoint(tmp_path / "w.pt", trust_pickle=True)
    assert caplog.text == ""


def test_an_object_among_ignored_ones_is_no_way_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": net().state_dict(), "args": argparse.Namespace(evil=Trap())}, "w.pt")
    with pytest.raises(PickleError, match=r"namely \S*open, and was not opened"):
        read_checkpoint("w.pt")
    assert not (tmp_path / "executed").exists()


# --- bombs ------------------------------------------------------------------------------


def test_a_zip_file_that_unpacks_to_more_than_it_is(tmp_path):
    torch.save(net().state_dict(), tmp_path / "small.pt")
    with zipfile.ZipFile(tmp_path / "small.pt") as small, zipfile.ZipFile(
            tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb:
        for entry in small.namelist():
            bomb.writestr(entry, small.read(entry))
        bomb.writestr("archive/data/99", bytes(50_000_000))
    with pytest.raises(CheckpointError, match=r"has \d+ bytes and would unpack to 5\d{7}: "
                                              "torch.save compresses nothing"):
        read_checkpoint(tmp_path / "bomb.pt")


class Large:
    def __reduce__(self):
        return bytearray, (10**12,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_asks_for_memory(tmp_path, zipped):
    torch.save({"w": torch.ones(1), "bomb": Large()}, tmp_path / "bomb.pt",
               _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="makes byte arrays of any size as it is read"):
        read_checkpoint(tmp_path / "bomb.pt")


# --- weights in several files -----------------------------------------------------------


@pytest.fixture
def shards(tmp_path):
    """A folder of two safetensors files and their index."""
    state = trained().state_dict()
    files = {"model-00001-of-00002.safetensors": [n for n in state if n.startswith("conv")],
             "model-00002-of-00002.safetensors": [n for n in state if n.startswith("norm")]}
    for file, names in files.items():
        save_file({n: state[n] for n in names}, tmp_path / file)
    listed = {n: file for file, names in files.items() for n in names}
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": listed}))
    return tmp_path


@pytest.mark.parametrize("name", ["model.safetensors.index.json", ""])
def test_shards_by_their_index_or_their_folder(shards, name):
    model = net()
    apply_state_dict(model, read_checkpoint(shards / name).state)
    assert bool((model.conv.weight == 0.5).all())


@pytest.mark.parametrize("change, message", [
    (lambda text: text.replace("model-00002", "../model-00002"), r"names the file '\.\./model-"),
    (lambda text: text.replace("model-00002", "model-00003"), "model-00003.* does not exist"),
    (lambda text: text.replace("norm.weight", "norm.wait"), r"lacks norm\.wait, which model\.safe"),
    (lambda text: text[:50], r"is no index of weights, .*\(JSONDecodeError\)"),
    (lambda text: "{}", r"is no index of weights, .*\(KeyError\)"),
    (lambda text: '{"weight_map": {"a": 3}}', "names the file 3"),
])
def test_an_index_that_is_not_right(shards, change, message):
    index = shards / "model.safetensors.index.json"
    index.write_text(change(index.read_text()))
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(index)


def test_two_indices_are_not_guessed_from(shards):
    (shards / "other.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"several indices: give the one you mean, model\."):
        read_checkpoint(shards)
