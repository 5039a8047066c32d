"""A normalised graph as JSON and back, naming nothing but pure tensor functions.

A record is a node: ``{"name": "relu_1", "op": "operator", "target": "relu", "args": [...],
"kwargs": {...}, "path": ..., "source": ..., "reason": ...}``. Its ``op`` is ``"input"``
(target: the argument's name), ``"weight"`` (target: a name in the state dict), ``"operator"``
(of the registry), ``"function"`` (of the table below), ``"method"`` (of a tensor) or
``"output"``.

FX writes Python source from a graph: names of nodes, weights and keywords go into it as
they are, arguments by their ``repr``. So reading takes plain names and a closed set of kinds
of arguments only, and looks functions up in a table: a file cannot say what is executed.
"""

from __future__ import annotations

from deltaconvert.graph_json.outputs import decode_spec, encode_spec
from deltaconvert.graph_json.reading import decode_graph
from deltaconvert.graph_json.writing import encode_graph

__all__ = ["decode_graph", "decode_spec", "encode_graph", "encode_spec"]
