"""Models written as one function, and what the passes make of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

import deltaconvert
from deltaconvert.operators import registry
from deltaconvert.passes.channels_first import channels_first
from deltaconvert.passes.compiler import compile_graph
from deltaconvert.passes.find_convolutions import find_convolutions
from deltaconvert.passes.fold_batch_norm import fold_batch_norm
from deltaconvert.passes.fold_factors import fold_factors
from deltaconvert.passes.fold_squares import fold_squares
from deltaconvert.passes.fuse import fuse
from deltaconvert.passes.infer import infer
from deltaconvert.passes.partition import partition
from deltaconvert.passes.rejoin_maps import rejoin_maps
from deltaconvert.program import Program


class Model(nn.Module):
    """A model of one input: ``Model(lambda self, x: ..., conv=...)``."""

    def __init__(self, function: Callable[..., Any], **own: Any) -> None:
        super().__init__()
        self.function = function
        for name, value in own.items():
            setattr(self, name, nn.Parameter(value) if isinstance(value, Tensor) else value)
        self.eval()

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


class TwoInputs(Model):
    """The same of two."""

    def forward(self, x: Tensor, y: Tensor) -> Any:  # type: ignore[override]
        return self.function(self, x, y)


def frames_like(*shape: int, count: int = 4, seed: int = 0) -> list[Tensor]:
    """Frames in double precision of which a few pixels change in one lane."""
    generator = torch.Generator().manual_seed(seed)
    frame = torch.randn(shape, generator=generator, dtype=torch.float64)
    made = [frame]
    for time in range(1, count):
        frame = frame.clone()
        lane = frame[time % shape[0]]
        lane[..., time:time + 2, time:time + 2] += 1 + torch.rand(1, generator=generator).double()
        made.append(frame)
    return made


def assert_same_outputs(model: nn.Module, *clips: Sequence[Tensor], **config: Any
                        ) -> deltaconvert.DeltaModule:
    """Convert, compare with the dense model frame by frame in double precision; return it."""
    model = copy.deepcopy(model).double().eval()
    delta = deltaconvert.convert(model, backend="reference", **config)
    for time, frames in enumerate(zip(*clips, strict=True)):
        with torch.no_grad():
            expected, spec = pytree.tree_flatten(model(*(f.clone() for f in frames)))
        got, got_spec = pytree.tree_flatten(delta(*(f.clone() for f in frames)))
        assert got_spec == spec
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9,
                                       msg=lambda m, time=time: f"frame {time}: {m}")
    return delta


def program_of(delta: deltaconvert.DeltaModule) -> Program:
    program = delta.stream.program
    assert program is not None
    return program


def names(graph: fx.Graph) -> list[str]:
    """What a graph calls: operators by name, other functions and methods by theirs."""
    called = [n for n in graph.nodes if n.op.startswith("call_")]
    return [name_of(n) for n in called]


def name_of(node: fx.Node) -> str:
    operator = registry.find(node.target) if node.op == "call_function" else None
    if operator is not None:
        return operator.name
    return str(node.target) if isinstance(node.target, str) else node.target.__name__


def normalised(model: nn.Module) -> GraphModule:
    return compile_graph(model)


def specialised(model: nn.Module, *frames: Tensor,
                unfused: frozenset[str] = frozenset(), squares: int = 0) -> dict[str, Any]:
    """Run the passes up to `partition`; every stage's graph as names, and the results."""
    graph_module = normalised(model)
    stages: dict[str, Any] = {"normalize": names(graph_module.graph)}
    results = {}
    for name, run in [("fold_batch_norm", fold_batch_norm),
                      ("infer", lambda g: infer(g, frames)),
                      ("find_convolutions", find_convolutions),
                      ("rejoin_maps", lambda g: rejoin_maps(g, frames[0].shape[0])),
                      ("channels_first", lambda g: channels_first(g, frames[0].shape[0])),
                      ("fold_factors", fold_factors),
                      ("fold_squares", lambda g: fold_squares(g, squares)),
                      ("fuse", lambda g: fuse(g, unfused)),
                      ("partition", lambda g: partition(g, frames[0].shape[0]))]:
        results[name] = run(graph_module)
        graph_module.graph.lint()
        stages[name] = names(graph_module.graph)
    return {**stages, "results": results, "graph": graph_module.graph}


def trained_norm(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm.eval()
