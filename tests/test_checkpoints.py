"""Weights out of every kind of file a user may come with."""

import logging
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from deltaconvert.checkpoints import (
    apply_state_dict,
    load_state_dict,
    read_checkpoint,
    strip_prefixes,
)
from deltaconvert.errors import CheckpointError


def net(width: int = 4) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(conv=nn.Conv2d(3, width, 3), norm=nn.BatchNorm2d(width), fc=nn.Linear(width, 2))
    )


def marked(value: float) -> dict[str, torch.Tensor]:
    """A state dict of `net` whose every tensor holds one value."""
    return {name: torch.full_like(t, value) for name, t in net().state_dict().items()}


def mark_of(state: dict[str, torch.Tensor]) -> float:
    return float(state["conv.weight"].unique())


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def filled(value: object) -> object:
    """A checkpoint with state dicts in the place of the words `right` and `wrong`."""
    if isinstance(value, dict):
        return {name: filled(inner) for name, inner in value.items()}
    return marked(float(value == "right")) if value in ("right", "wrong") else value


class TestReadCheckpoint:
    @pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin", ".pth.tar", ".safetensors"])
    def test_plain_state_dict(self, tmp_path, suffix):
        state, path = net().state_dict(), tmp_path / f"w{suffix}"
        if suffix == ".safetensors":
            save_file(state, path)
        else:
            torch.save(state, path)
        checkpoint = read_checkpoint(path)
        assert checkpoint.entry == ""
        assert set(checkpoint.state) == set(state)
        for name, tensor in state.items():
            torch.testing.assert_close(checkpoint.state[name], tensor, rtol=0, atol=0)

    def test_the_older_file_format_and_parameters(self, tmp_path):
        path = tmp_path / "w.pt"
        content = dict(net().named_parameters())
        torch.save(content, path, _use_new_zipfile_serialization=False)
        state = load_state_dict(path)
        assert torch.equal(state["fc.bias"], content["fc.bias"])
        assert not state["fc.bias"].requires_grad

    @pytest.mark.parametrize(
        "content, entry",
        [
            ({"state_dict": "right", "epoch": 3}, "state_dict"),
            ({"model": "right", "optimizer": {"state": {}, "param_groups": []}}, "model"),
            ({"state_dict": "wrong", "model_ema": "right"}, "model_ema"),
            ({"model": "wrong", "ema": {"module": "right", "updates": 9}}, "ema.module"),
            ({"model": {"state_dict": "right", "name": "x"}, "epoch": 1}, "model.state_dict"),
            ({"model": "right", "ema": None}, "model"),
            ({"params": "wrong", "params_ema": "right"}, "params_ema"),
            ({"net": "right", "acc": 0.5}, "net"),
            ({"detector": "right", "lr": 0.1}, "detector"),
        ],
    )
    def test_the_state_dict_in_a_training_checkpoint(self, tmp_path, caplog, content, entry):
        path = saved(tmp_path / "w.pt", filled(content))
        with caplog.at_level(logging.INFO):
            checkpoint = read_checkpoint(path)
        assert checkpoint.entry == entry
        assert mark_of(checkpoint.state) == 1
        assert f"using the entry {entry}" in caplog.text

    def test_several_candidates_are_not_guessed_from(self, tmp_path):
        path = saved(tmp_path / "w.pt", {"gen": marked(0), "disc": marked(1), "epoch": 3})
        with pytest.raises(CheckpointError, match=r"holds several state dicts \(gen, disc\): save"):
            read_checkpoint(path)

    @pytest.mark.parametrize(
        "content, message",
        [
            ([1, 2], r"no state dict in .*w\.pt, which holds a list\. A state dict maps"),
            ({}, "which holds an empty dict"),
            (torch.zeros(3), "which holds a Tensor"),
            ({"epoch": 3, "acc": 0.5}, "which holds a dict of 'epoch': an int, 'acc': a float"),
            ({**marked(1), "step": 4}, "which holds a dict of 9 tensors, 'step': an int"),
            ({f"k{n}": n for n in range(20)}, "'k7': an int and 12 more"),
        ],
    )
    def test_what_is_no_state_dict(self, tmp_path, content, message):
        with pytest.raises(CheckpointError, match=message):
            read_checkpoint(saved(tmp_path / "w.pt", content))


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


class TestUnreadableFiles:
    @pytest.mark.parametrize("new_format", [True, False])
    def test_nothing_in_a_file_is_executed(self, tmp_path, monkeypatch, new_format):
        monkeypatch.chdir(tmp_path)
        content = {"state_dict": marked(1), "extra": Evil()}
        torch.save(content, "w.pt", _use_new_zipfile_serialization=new_format)
        with pytest.raises(
            CheckpointError, match=r"holds more than weights, .*model\.state_dict\("
        ):
            read_checkpoint("w.pt")
        assert not Path("executed").exists()
        torch.load("w.pt", weights_only=False)  # the trap itself works
        assert Path("executed").exists()

    def test_a_pickled_object_is_named(self, tmp_path):
        path = saved(tmp_path / "w.pt", {"model": marked(1), "loss": nn.CrossEntropyLoss()})
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(path)
        assert "namely torch.nn.modules.loss.CrossEntropyLoss, and was not opened" in str(
            caught.value
        )

    @pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
    @pytest.mark.filterwarnings("error:.*TorchScript:UserWarning")
    def test_torchscript(self, tmp_path):
        torch.jit.save(torch.jit.trace(nn.ReLU(), torch.zeros(1)), tmp_path / "w.pt")
        with pytest.raises(CheckpointError, match=r"w\.pt is a TorchScript program, not weights"):
            read_checkpoint(tmp_path / "w.pt")

    @pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
    @pytest.mark.parametrize(
        "content, message",
        [
            (b"", r"is empty \(0 bytes\): download or save it again"),
            (b"version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer, not the"),
            (b"\n<!DOCTYPE html><html>", "is a web page, not weights"),
            (b"garbage " * 50, "is damaged"),
        ],
    )
    def test_what_downloads_leave_behind(self, tmp_path, suffix, content, message):
        path = tmp_path / f"w{suffix}"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            read_checkpoint(path)

    @pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
    @pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
    def test_cut_off(self, tmp_path, kind, share):
        path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pt")
        if kind == "safetensors":
            save_file(marked(1), path)
        else:
            torch.save(marked(1), path, _use_new_zipfile_serialization=kind == "zip")
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(CheckpointError, match="is damaged"):
            read_checkpoint(path)

    @pytest.mark.parametrize(
        "name, message",
        [
            ("nothing.pt", r"nothing\.pt does not exist\. Give a file of weights"),
            ("", "is a folder, not a file"),
            ("w.onnx", r"files of weights end in \.safetensors, \.bin.*, not in \.onnx"),
            ("w.delta", r"is a converted model: open it with deltaconvert\.load"),
        ],
    )
    def test_not_a_file_of_weights(self, tmp_path, name, message):
        (tmp_path / "w.onnx").write_bytes(b"x")
        (tmp_path / "w.delta").write_bytes(b"x")
        with pytest.raises(CheckpointError, match=message):
            read_checkpoint(tmp_path / name)


class TestApplyStateDict:
    def test_every_tensor_arrives(self):
        model = net()
        assert apply_state_dict(model, marked(3)) == ""
        assert all(float(t.unique()) == 3 for t in model.state_dict().values())

    @pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "module._orig_mod."])
    def test_wrapper_prefixes_come_off(self, prefix):
        model = net()
        state = {prefix + name: tensor for name, tensor in marked(3).items()}
        assert apply_state_dict(model, state) == prefix
        assert mark_of(model.state_dict()) == 3

    def test_the_weights_of_an_averaged_model_fit(self):
        averaged = torch.optim.swa_utils.AveragedModel(net())
        apply_state_dict(averaged.module, marked(3))
        model = net()
        assert apply_state_dict(model, averaged.state_dict()) == "module."
        assert mark_of(model.state_dict()) == 3

    def test_a_prefix_that_the_model_has_stays(self):
        model = nn.Sequential(OrderedDict(model=net()))
        state = {f"model.{name}": tensor for name, tensor in marked(3).items()}
        assert strip_prefixes(state, model.state_dict()) == (state, "")
        assert apply_state_dict(model, state) == ""
        doubled = {f"module.{name}": tensor for name, tensor in state.items()}
        assert apply_state_dict(model, doubled) == "module."

    def test_a_prefix_that_only_some_names_have_stays(self):
        state = {"module.a": torch.zeros(1), "b": torch.zeros(1)}
        assert strip_prefixes(state, ["a", "b"]) == (state, "")

    def test_half_precision_goes_into_a_float_model(self):
        model = net()
        apply_state_dict(model, {name: t.half() for name, t in marked(3).items()})
        assert model.conv.weight.dtype == torch.float32
        assert mark_of(model.state_dict()) == 3

    def test_weights_from_before_batch_counters_fit(self):
        state = {n: t for n, t in marked(3).items() if not n.endswith("num_batches_tracked")}
        model = net()
        apply_state_dict(model, state)
        assert mark_of(model.state_dict()) == 3
        del state["fc.bias"]
        with pytest.raises(CheckpointError, match=r"model:\n  missing: 1: fc\.bias\nBuild"):
            apply_state_dict(model, state)

    def test_names_that_a_module_changes_as_it_loads_fit(self):
        class Renamed(nn.Linear):
            def _load_from_state_dict(self, state_dict, prefix, *args):
                state_dict[prefix + "weight"] = state_dict.pop(prefix + "kernel")
                super()._load_from_state_dict(state_dict, prefix, *args)

        model = Renamed(2, 2)
        apply_state_dict(model, {"kernel": torch.ones(2, 2), "bias": torch.zeros(2)})
        assert torch.equal(model.weight, torch.ones(2, 2))

    def test_all_that_does_not_fit_is_told_at_once_and_nothing_is_changed(self):
        model = net()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        state = marked(3)
        state["fc.wieght"] = state.pop("fc.weight")
        state["head.scale"] = torch.zeros(1)
        state["conv.bias"] = torch.zeros(9)
        with pytest.raises(CheckpointError) as caught:
            apply_state_dict(model, state)
        assert str(caught.value).splitlines() == [
            "the weights do not fit the model:",
            "  missing: 1: fc.weight",
            "  not in the model: 2: fc.wieght (near fc.weight), head.scale",
            "  of another shape: 1: conv.bias is [9], the model's is [4]",
            "Build the model with the arguments it was trained with (model_args, --model-arg), "
            "or choose its own weights",
        ]
        assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())

    def test_long_lists_are_cut(self):
        state = {f"other.{n}": torch.zeros(1) for n in range(500)}
        with pytest.raises(CheckpointError) as caught:
            apply_state_dict(net(), state)
        assert "not in the model: 500: other.0, " in str(caught.value)
        assert "other.7 and 492 more" in str(caught.value)
        assert "other.8" not in str(caught.value)
        assert "These are another model's weights" in str(caught.value)

    def test_what_is_left_over_can_be_left_out(self, caplog):
        model, state = net(), marked(3) | {"head.scale": torch.zeros(1)}
        with pytest.raises(CheckpointError, match=r"Leave them out \(--ignore-surplus, ignore_sur"):
            apply_state_dict(model, state)
        apply_state_dict(model, state, ignore_surplus=True)
        assert torch.equal(model.fc.weight, state["fc.weight"])
        assert "left out what the model has no place for: head.scale" in caplog.text

    def test_nothing_may_be_missing_where_what_is_left_over_is_left_out(self):
        state = marked(3)
        state["fc.wieght"] = state.pop("fc.weight")
        with pytest.raises(CheckpointError, match=r"missing: 1: fc\.weight"):
            apply_state_dict(net(), state, ignore_surplus=True)


def test_a_program_is_no_file_of_weights(tmp_path):
    path = tmp_path / "net.pt2"
    path.write_bytes(b"anything")
    with pytest.raises(CheckpointError, match=r"a program of torch\.export.*read_program"):
        read_checkpoint(path)


def test_whole_numbers_are_no_weights():
    model = net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"whole numbers.*conv\.weight is torch\.int8"):
        apply_state_dict(model, {name: t.to(torch.int8) for name, t in before.items()})
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_numpy_arrays_are_named(tmp_path):
    path = tmp_path / "a.pth"
    torch.save({name: t.numpy() for name, t in net().state_dict().items()}, path)
    with pytest.raises(CheckpointError, match="objects in the place of tensors, NumPy arrays"):
        read_checkpoint(path)


def test_text_in_the_place_of_weights(tmp_path):
    path = tmp_path / "a.pth"
    path.write_text("hello")
    with pytest.raises(CheckpointError, match=r"not a file of torch\.save"):
        read_checkpoint(path)
