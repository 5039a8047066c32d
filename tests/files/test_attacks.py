"""Nothing else is run than what a file may name, whatever it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from deltaconvert import CheckpointError
from deltaconvert.files import container, load
from tests.files.saving import clip


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
