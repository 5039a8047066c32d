"""Read programs of ``torch.export`` (``.pt2`` files), running nothing of them.

``torch.export.load`` is not used on files: it unpickles what is stored, evaluates strings
as expressions and looks functions up by the names a file gives. Here the description, which
is JSON, is read as data: operators of ATen become calls of pure tensor functions out of a
table (`from_aten`), weights are raw bytes, or unpickled as weights only.
"""

from __future__ import annotations

import io
import json
import operator
import os
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from deltaconvert.errors import CheckpointError, DamagedError, UnsupportedError
from deltaconvert.exported.archive import DTYPES, Archive
from deltaconvert.exported.model import ExportedModel
from deltaconvert.files.container import MALFORMED
from deltaconvert.files.tensors import Entry, place
from deltaconvert.passes import from_aten
from deltaconvert.passes.from_aten import Meaning, NoMeaning
from deltaconvert.passes.tracing.explain import source_line

SUFFIX = ".pt2"
MEMORY_FORMATS = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d,
                  4: torch.preserve_format}


def read_program(path: str | os.PathLike[str]) -> ExportedModel:
    """Read a program that ``torch.export.save`` wrote, without executing anything of it.

    Returns:
        A dense model for `convert`, on the CPU. It takes the shapes that it was exported for.

    Raises:
        CheckpointError: the file is missing, damaged, no such program, of a version that is
            not known, or holds more than tensors.
        UnsupportedError: it calls what has no counterpart here; all of that is listed.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise CheckpointError(f"{path} {what}. Give a file of torch.export.save ({SUFFIX}).")
    return _read(path, str(path))


def from_program(program: torch.export.ExportedProgram) -> ExportedModel:
    """Turn an exported program in memory into a model, on the program's device.

    Raises:
        UnsupportedError: see `read_program`.
    """
    memory = io.BytesIO()
    torch.export.save(program, memory)
    memory.seek(0)
    device = next((t.device for t in program.state_dict.values()), torch.device("cpu"))
    return _read(memory, "the program").to(device)


def _read(file: Path | io.BytesIO, name: str) -> ExportedModel:
    try:
        with zipfile.ZipFile(file) as archive:
            return _Reader(Archive(archive, name)).model()
    except (zipfile.BadZipFile, OSError) as error:
        raise DamagedError(f"{name} is damaged or no program of torch.export: {error}. Copy or "
                           "export it again.") from error
    except MALFORMED as error:
        raise CheckpointError(f"{name} is no program of torch.export.save as this deltaconvert "
                              f"knows it ({type(error).__name__}: {error!s:.200}). Export it with "
                              f"PyTorch {torch.__version__.partition('+')[0]}.") from error


class _Reader:
    """A graph being built from its description."""

    def __init__(self, archive: Archive) -> None:
        program = archive.description()["graph_module"]
        self.archive = archive
        self.told, self.signature = program["graph"], program["signature"]
        self.calls = program["module_call_graph"][0]["signature"]
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.values: dict[str, fx.Node] = {}
        self.shapes: list[tuple[int, ...]] = []
        self.dtypes: list[torch.dtype] = []
        self.problems: list[str] = []

    def model(self) -> ExportedModel:
        """Read all of it."""
        self._inputs()
        read = self._names_read()
        for node in self.told["nodes"]:
            self._node(node, read)
        if self.problems:
            raise UnsupportedError(
                f"{self.archive.name} has {len(self.problems)} calls that cannot be converted:\n"
                + "\n".join(f"  {problem}" for problem in dict.fromkeys(self.problems))
                + "\nExport a part of the model without them, or convert it from its source.")
        outputs = self._outputs()
        self.graph.output(outputs)
        self.graph.lint()
        return ExportedModel(self.root, self.graph, self._out_spec(len(outputs)),
                             self.shapes, self.dtypes)

    # --- inputs and weights

    def _inputs(self) -> None:
        weights = self.archive.tensors("weights") | self.archive.tensors("constants")
        made: dict[int, nn.Parameter] = {}
        for spec in self.signature["input_specs"]:
            (kind, about), = spec.items()
            if kind == "user_input":
                self._user_input(about["arg"])
            elif kind == "parameter":
                tensor = weights[about["parameter_name"]]
                parameter = made.setdefault(id(tensor), nn.Parameter(tensor, requires_grad=False))
                self._weight(about["arg"]["name"], about["parameter_name"], "parameter", parameter)
            elif kind == "buffer":
                name = about["buffer_name"]
                self._weight(about["arg"]["name"], name,
                             "buffer" if about["persistent"] else "temporary", weights[name])
            elif kind == "tensor_constant":
                name = about["tensor_constant_name"]
                self._weight(about["arg"]["name"], name, "constant", weights[name])
            elif kind != "constant_input":  # a number that the program was exported with
                self.problems.append(f"an input is a {kind}, which is more than a tensor")

    def _user_input(self, argument: Mapping[str, Any]) -> None:
        (kind, about), = argument.items()
        if kind == "as_none":
            return
        if kind != "as_tensor":
            self.problems.append(f"an input is no tensor ({kind.removeprefix('as_')})")
            return
        name = about["name"]
        self.values[name] = self.graph.placeholder(name)
        about = self.told["tensor_values"][name]
        self.shapes.append(tuple(int(s["as_int"]) if "as_int" in s else -1
                                 for s in about["sizes"]))
        self.dtypes.append(DTYPES[about["dtype"]])

    def _weight(self, name: str, target: str, kind: Any, tensor: Tensor) -> None:
        place(self.root, Entry(target, kind, target, None), tensor)
        self.values[name] = node = self.graph.get_attr(target)
        node.meta.update(path=target, source="")

    def _names_read(self) -> set[str]:
        """Return every name that an argument or an output refers to."""
        read: set[str] = set()

        def collect(value: Any) -> None:
            if isinstance(value, dict):
                read.update(v for k, v in value.items() if k in ("name", "as_name")
                            and isinstance(v, str))
                value = list(value.values())
            for part in value if isinstance(value, list) else ():
                collect(part)
        for node in self.told["nodes"]:
            collect([given["arg"] for given in node["inputs"]])
        collect(self.told["outputs"])
        return read

    # --- nodes

    def _node(self, node: Mapping[str, Any], read: set[str]) -> None:
        outputs = [name for given in node["outputs"] for name in _output_names(given)]
        try:
            found = self._meaning(node, not any(name in read for name in outputs[1:]))
        except NoMeaning as refusal:
            stack = source_line(node["metadata"].get("stack_trace")) or "line unknown"
            self.problems.append(f"{node['target']}: {refusal} ({stack})")
            for name in outputs:  # so that what reads it can be looked at, too
                self.values[name] = self.graph.placeholder(f"missing_{name}")
            return
        if found is not None:
            self._add(found, node, outputs)

    def _meaning(self, node: Mapping[str, Any], only_first: bool) -> Meaning | None:
        target = str(node["target"])
        given = {i["name"]: self._argument(i["arg"]) for i in node["inputs"]}
        if not target.startswith("torch.ops."):
            return from_aten.of_numbers(target, tuple(given.values()))
        name, _, overload = target.removeprefix("torch.ops.aten.").rpartition(".")
        if not target.startswith("torch.ops.aten.") or not name.isidentifier():
            raise NoMeaning("it is an operator of an extension, and not of PyTorch")
        given = _with_defaults(name, overload, given)
        if name in ("conv1d", "conv2d", "conv3d") and isinstance(given.get("padding"), str):
            return self._padded(name, given)
        return from_aten.meaning(name, given, only_first)

    def _padded(self, name: str, given: dict[str, Any]) -> Meaning:
        """Spell out the padding of a convolution with ``padding="same"``."""
        rank = int(name[4])
        if given["padding"] == "same":
            weight = given["weight"]
            if weight.op != "get_attr":
                raise NoMeaning("padding='same' with weights that are computed")
            steps = given.get("dilation", [1])
            steps = list(steps) * (rank if len(steps) == 1 else 1)
            sides = from_aten.same_padding(_found(self.root, weight.target).shape, steps)
            if any(sides):
                given["input"] = self.graph.call_function(F.pad, (given["input"], sides))
                given["input"].meta.update(path="", source="")
        given["padding"] = 0
        return Meaning(getattr(F, name), tuple(given.values()), {})

    def _add(self, found: Meaning, node: Mapping[str, Any], outputs: list[str]) -> None:
        op = "call_method" if isinstance(found.target, str) else "call_function"
        name = outputs[0] if outputs else None
        made = self.graph.create_node(op, found.target, found.args, found.kwargs, name=name)
        about = {"source": source_line(node["metadata"].get("stack_trace")),
                 "path": _module_path(node["metadata"].get("nn_module_stack", ""))}
        made.meta.update(about)
        several = len(outputs) > 1 or any("as_tensors" in o for o in node["outputs"])
        if not several or found.first:
            self.values.update(dict.fromkeys(outputs[:1], made))
            return
        for index, part in enumerate(outputs):
            self.values[part] = self.graph.call_function(operator.getitem, (made, index))
            self.values[part].meta.update(about)

    def _argument(self, argument: Mapping[str, Any]) -> Any:
        """Return an argument; tensors and sizes are nodes.

        Raises:
            NoMeaning: for graphs (control flow), custom objects, and what is not known.
        """
        (kind, content), = argument.items()
        if kind in ("as_none", "as_layout"):
            return None
        if kind in ("as_int", "as_bool", "as_string", "as_ints", "as_bools", "as_strings",
                    "as_int_lists"):
            return content
        if kind in ("as_float", "as_floats"):  # JSON has no infinity: that is a string
            return [float(c) for c in content] if kind == "as_floats" else float(content)
        if kind in ("as_tensor", "as_name"):
            return self.values[content["name"] if kind == "as_tensor" else content]
        if kind in ("as_tensors",):
            return [self.values[c["name"]] for c in content]
        if kind in ("as_sym_ints", "as_sym_floats", "as_sym_bools", "as_optional_tensors"):
            return [self._argument(c) for c in content]
        if kind in ("as_sym_int", "as_sym_float", "as_sym_bool", "as_optional_tensor"):
            return self._argument(content)
        if kind == "as_scalar_type":
            return DTYPES[content]
        if kind == "as_memory_format":
            return MEMORY_FORMATS[content]
        if kind == "as_device":
            return torch.device("cpu") if content["type"] == "cpu" else torch.device("cuda")
        what = "a branch or a loop" if kind == "as_graph" else kind.removeprefix("as_")
        raise NoMeaning(f"it takes {what}")

    # --- outputs

    def _outputs(self) -> list[Any]:
        """Return what the caller gets; a frame written into stays as it was, as in `trace`."""
        kinds = [kind for spec in self.signature["output_specs"] for kind in spec]
        if wrong := sorted(set(kinds) - {"user_output", "user_input_mutation"}):
            raise UnsupportedError(
                f"{self.archive.name} changes its own state as it runs ({', '.join(wrong)}): "
                "export the model in eval mode, model.eval().")
        return [self._argument(argument) for argument, kind in zip(
            self.told["outputs"], kinds, strict=True) if kind == "user_output"]

    def _out_spec(self, outputs: int) -> pytree.TreeSpec:
        _, spec = json.loads(self.calls["out_spec"])
        order, made = pytree.tree_flatten(_structure(spec, iter(range(outputs))))
        if order != list(range(outputs)):
            raise ValueError("the structure of its outputs does not fit them")
        return made


def _found(root: nn.Module, path: Any) -> Any:
    value: Any = root
    for part in str(path).split("."):
        value = getattr(value, part)
    return value


def _output_names(output: Mapping[str, Any]) -> list[str]:
    (kind, content), = output.items()
    if kind == "as_tensor":
        return [str(content["name"])]
    if kind in ("as_tensors", "as_optional_tensors"):
        return [name for part in content for name in _output_names(
            part if "as_tensor" in part or "as_none" in part else {"as_tensor": part})]
    if kind in ("as_sym_int", "as_sym_float", "as_sym_bool"):
        return _output_names(content)
    return [str(content)] if kind == "as_name" else [""] if kind == "as_none" else []


def _with_defaults(name: str, overload: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return arguments in the order of the schema, with defaults where some are left out."""
    packet = getattr(torch.ops.aten, name, None)
    if packet is None or overload not in packet.overloads():
        raise NoMeaning("this PyTorch has no such operator")
    arguments = list(getattr(packet, overload)._schema.arguments)
    positional = [a for a in arguments if not a.kwarg_only]
    last = max((i for i, a in enumerate(positional) if a.name in given), default=-1)
    ordered = {a.name: given.get(a.name, a.default_value)
               for a in positional[:last + 1]}
    return ordered | {a.name: given[a.name] for a in arguments if a.kwarg_only and a.name in given}


def _module_path(stack: str) -> str:
    """Return the innermost module's path from ``key,path,type;key,path,type``."""
    parts = stack.rpartition(";")[2].split(",")
    return parts[1] if len(parts) > 2 else ""


def _structure(spec: Mapping[str, Any], places: Any) -> Any:
    """Return nested containers with the number of each output in its place."""
    kind, children = spec["type"], spec["children_spec"]
    if kind is None:
        return next(places)
    parts = [_structure(child, places) for child in children]
    if kind in ("builtins.tuple", "builtins.list"):
        return tuple(parts) if kind == "builtins.tuple" else parts
    if kind in ("builtins.dict", "collections.OrderedDict"):
        keys = json.loads(spec["context"])
        made = zip(keys, parts, strict=True)
        return dict(made) if kind == "builtins.dict" else OrderedDict(made)
    raise UnsupportedError(f"the program returns a {kind}, whose class is not in the file. Export "
                           "a model that returns tuples, lists and dicts.")
