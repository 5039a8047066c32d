"""A normalised graph as records; the package says what these are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from torch import fx, nn

from deltaconvert.errors import UnsupportedError
from deltaconvert.graph_json.allowed import methods, refusal, spellings
from deltaconvert.graph_json.arguments import Unwritable, encode
from deltaconvert.graph_json.leaves import PREFIX, as_function
from deltaconvert.operators import registry
from deltaconvert.words import count

Record = dict[str, Any]
TOLD = ("path", "source", "reason", "advice")  # what a record says of a node beside what it calls


def encode_graph(graph: fx.Graph, root: nn.Module) -> list[Record]:
    """Return the records of a normalised graph.

    Modules that the graph still calls (unknown ones, of ``torch.nn``) become the one
    function that they call, with their settings as its arguments.

    Args:
        graph: of a converted model, before any pass behind `normalize`.
        root: whose parameters, buffers and modules it names.

    Raises:
        UnsupportedError: listing all that cannot be written, with its path and why.
    """
    writer = _Writer(root, {node.name for node in graph.nodes})
    for node in graph.nodes:
        writer.write(node)
    if writer.problems:
        raise UnsupportedError(
            f"{count(len(writer.problems), 'part')} of this model cannot be written to a file, "
            "which names nothing but pure tensor functions:\n"
            + "\n".join(f"  {problem}" for problem in writer.problems)
            + "\nReplace them in the model, or convert it from its source each time.")
    return writer.records


class _Writer:
    """Records being made; problems are collected, so that all are told at once."""

    def __init__(self, root: nn.Module, taken: set[str]) -> None:
        self.root, self.taken = root, taken
        self.records: list[Record] = []
        self.problems: list[str] = []
        self.refer: dict[fx.Node, Any] = {}

    def write(self, node: fx.Node) -> None:
        """Write one node of the graph."""
        if node.op == "placeholder":
            self._add(node, {"name": node.name, "op": "input", "target": str(node.target)},
                      node.meta)
        elif node.op == "get_attr":
            self._weight(node, node.name, str(node.target), node.meta)
        elif node.op == "call_module":
            self._leaf(node)
        elif node.op == "output":
            self._output(node)
        else:
            self._call(node, node.name, node.meta)

    def _add(self, node: fx.Node, record: Record, meta: Mapping[str, Any]) -> None:
        told = {key: str(meta[key]) for key in TOLD if meta.get(key)}
        if "source" in told:
            told["source"] = without_folders(told["source"])
        self.records.append({**record, **told})
        self.refer[node] = {"node": record["name"]}

    def _weight(self, node: fx.Node, name: str, target: str, meta: Mapping[str, Any]) -> None:
        self._add(node, {"name": name, "op": "weight", "target": target},
                  {"path": meta.get("path"), "source": meta.get("source")})

    def _output(self, node: fx.Node) -> None:
        try:
            self.records.append({"op": "output", "args": [encode(node.args[0], self.refer)]})
        except Unwritable as unwritable:
            self.problems.append(f"the output: {unwritable}")

    def _call(self, node: fx.Node, name: str, meta: Mapping[str, Any]) -> None:
        op, target = _target(node)
        record = {"name": name, "op": op, "target": target}
        reason = refusal(op, target, node.args, node.kwargs) if op else (
            f"{target} is not among the functions that a file may name")
        try:
            record["args"] = [encode(a, self.refer) for a in node.args]  # type: ignore[assignment]
            record["kwargs"] = {  # type: ignore[assignment]
                key: encode(a, self.refer) for key, a in node.kwargs.items()}
        except Unwritable as unwritable:
            reason = reason or f"{target} has {unwritable}"
        if reason:
            place = meta.get("source") or "line unknown"
            self.problems.append(f"{meta.get('path') or name}: {reason} ({place})")
        self._add(node, record, meta)

    def _leaf(self, node: fx.Node) -> None:
        """Write the function that a module of ``torch.nn`` calls, in the module's place."""
        path = str(node.target)
        module = self.root.get_submodule(path)
        try:
            inner, call = as_function(module)
            self._bind(node, inner)
        except Unwritable as unwritable:
            self.problems.append(f"{path} ({type(module).__name__}): {unwritable}")
            self.refer[node] = {"node": node.name}
            return
        for part in inner.nodes:
            name = node.name if part is call else self._unused(f"{node.name}_{part.name}")
            if part.op == "get_attr":
                self._weight(part, name, f"{path}.{str(part.target).removeprefix(PREFIX)}",
                             node.meta)
            elif part.op.startswith("call"):
                self._call(part, name, node.meta)
        self.refer[node] = self.refer[call]

    def _bind(self, node: fx.Node, inner: fx.Graph) -> None:
        names = {str(n.target): n for n in inner.nodes if n.op == "placeholder"}
        given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        if len(node.args) > len(names) or set(given) != set(names):
            raise Unwritable("it is called with more than the tensors it computes with")
        for name, part in names.items():
            self.refer[part] = encode(given[name], self.refer)

    def _unused(self, name: str) -> str:
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return name


def without_folders(source: str) -> str:
    """Shorten ``file:line: code`` to the file and its folder.

    A file is handed on; where its author keeps the model is nobody's business.
    """
    found = re.fullmatch(r"(.*?)(:\d+(?:: .*)?)", source, re.DOTALL)
    return "/".join(PurePath(found[1]).parts[-2:]) + found[2] if found else source


def _target(node: fx.Node) -> tuple[str, str]:
    """Return how a file spells what a node calls; no ``op`` where it may not."""
    if node.op == "call_method":
        name = str(node.target)
        return ("method" if name in methods() else ""), name
    found = registry.find(node.target)
    if found is not None:
        return "operator", found.name
    try:
        known = spellings().get(node.target)  # type: ignore[arg-type]
    except TypeError:  # unhashable: nobody's
        known = None
    if known is None:
        home = getattr(node.target, "__module__", None)
        name = getattr(node.target, "__name__", str(node.target))
        return "", f"{home}.{name}" if home else name
    return "function", known
