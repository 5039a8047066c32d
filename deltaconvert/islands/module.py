"""Islands: submodules that are converted inside a model that cannot be traced whole.

The model's own code runs as it is, with its resizing, its anchors and its loops; calls of
the chosen submodules are answered by their conversions. Which call it is within a frame
counts: the third call of a head that is shared over the levels of a pyramid has a past of
its own, that of the third call in the frames before. The law does not depend on that
choice, as a node's value is held against its inputs' whatever came before; how much is
computed does.
"""

from __future__ import annotations

import copy
import dataclasses
import threading
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from deltaconvert.config import Config
from deltaconvert.errors import ConfigError, FrameError, UnsupportedError
from deltaconvert.islands.inner_hooks import InnerHooks
from deltaconvert.module import DeltaModule
from deltaconvert.nodes import DeltaNode
from deltaconvert.passes.tracing.input_parameters import input_parameters
from deltaconvert.passes.tracing.tracer import own_forward
from deltaconvert.state import NodeStats, Observer
from deltaconvert.stream import (
    Stream,
    aside,
    checked_lanes,
    is_followed,
    is_transformed,
    refuse_transformed,
    take,
)
from deltaconvert.summary import summarize

HOOKS = ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
         "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs")


class IslandsModule(nn.Module):
    """A model of which some submodules compute only what changed.

    Called as the model is. Made by `convert` with ``modules``. ``state_dict()`` is the
    model's own; ``load_state_dict``, ``.to()`` and ``.half()`` start all streams afresh.
    Gradients are not computed.

    ``islands`` has the converted submodules by their path, ``model`` the model's copy that
    holds them; called by itself, outside of a stream, that copy is the dense model.
    """

    islands: dict[str, DeltaModule]
    model: nn.Module
    stream: IslandsStream
    config: Config

    def __init__(self, model: nn.Module, islands: Mapping[str, DeltaModule],
                 config: Config) -> None:
        """Take over a private copy of the model; an island's root takes its submodule's place."""
        super().__init__()
        for path, island in islands.items():
            _put(model, path, island._root)
            island._root.__dict__["forward"] = _Answer(path, island._root)
        for table in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
            setattr(self, table, getattr(model, table))
        self.__dict__.update(model=model, islands=dict(islands), config=config)
        self.__dict__["stream"] = IslandsStream(self)
        self.training = False

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Compute the model's answer to the next frame of the module's own stream."""
        return self.stream(*inputs, **named)

    def new_stream(self) -> IslandsStream:
        """Start another stream with the same weights and a past of its own."""
        return IslandsStream(self)

    def reset(self, lanes: Sequence[int] | None = None) -> None:
        """Forget the past of the module's own stream; see `IslandsStream.reset`."""
        self.stream.reset(lanes)

    def observe(self, observer: Observer | None) -> None:
        """Watch every node of every island of the module's own stream."""
        self.stream.observe(observer)

    @property
    def input_names(self) -> list[str]:
        """The names of what ``forward`` must be given, in order."""
        return [p.name for p in input_parameters(self.model.forward)]

    def named_inputs(self, inputs: Sequence[Any]) -> dict[str, Any]:
        """Return inputs by their names, as far as they are given by place."""
        return dict(zip(self.input_names, inputs, strict=False))

    @property
    def statistics(self) -> dict[str, NodeStats]:
        """The work of the module's own stream since it was started, by node."""
        return self.stream.totals

    def with_config(self, config: Config) -> IslandsModule:
        """Return a module that shares these weights under other settings.

        Raises:
            ConfigError: for settings of a node that is in no island.
        """
        check_settings(config, list(self.islands))
        islands = {path: island.with_config(settings_of(config, path))
                   for path, island in self.islands.items()}
        return IslandsModule(self.model, islands, config)

    def __deepcopy__(self, memo: dict[int, Any]) -> IslandsModule:
        """Copy the model; streams of the copy start without a past."""
        model = copy.deepcopy(self.model, memo)
        return IslandsModule(model, {path: island._like(model.get_submodule(path), island.config)
                                     for path, island in self.islands.items()}, self.config)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse to be pickled.

        Raises:
            UnsupportedError: saying what to do instead.
        """
        raise UnsupportedError(
            "a converted model is not pickled: keep the weights, delta.state_dict(), and convert "
            "the model from its source in each process.")

    def summary(self) -> str:
        """Return a table of nodes for each call of an island in the last frame."""
        called = [f"{label}:\n{summarize(self.islands[_path(label)], stream)}"
                  for label, stream in self.stream.calls.items()]
        waiting = [f"{path}: not called yet" for path in self.islands
                   if path not in self.stream.calls]
        return "\n\n".join([*called, *waiting])

    def train(self, mode: bool = True) -> IslandsModule:
        """Stay in eval mode: a delta network cannot be trained."""
        return self

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load weights as ``nn.Module`` does; derived weights follow, streams start afresh."""
        for island in self.islands.values():
            island._forget()
        return super().load_state_dict(*args, **kwargs)

    def _apply(self, fn: Any, recurse: bool = True) -> IslandsModule:
        for island in self.islands.values():
            island._refuse_another_dtype(fn)
        for island in self.islands.values():
            island._forget()
        super()._apply(fn, recurse)
        return self


class IslandsStream:
    """A past for every call of every island; callable like the model.

    What the model's own code keeps from frame to frame is the model's: all streams share it.
    Two threads may run two streams; one stream takes one thread at a time.
    """

    def __init__(self, module: IslandsModule) -> None:
        """Start empty; a call's buffers are allocated when it is first made."""
        self.module = module
        self._lock = threading.Lock()
        self._observer: Observer | None = None
        self._shapes: dict[str, Any] = {}
        self._made: dict[str, int] = {}
        self._answered: list[str] = []
        self._relabelled: dict[tuple[str, DeltaNode], DeltaNode] = {}
        self.calls: dict[str, Stream] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> IslandsStream:
        """Return an empty stream of the copied module."""
        return IslandsStream(copy.deepcopy(self.module, memo))

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """Compute the model's answer to the next frame.

        Raises:
            FrameError: an island refused its input. Islands before it have taken the frame in,
                which later frames only cost time, not correctness.
            StreamBusyError: another thread is inside this stream.
        """
        if is_followed():
            return aside(self, *inputs, **named)
        refuse_transformed()
        take(self._lock)
        self._made, self._answered = {}, []
        token = _RUNNING.set(self)
        try:
            with torch.inference_mode(False), torch.no_grad():
                return self.module.model(*inputs, **named)
        finally:
            _RUNNING.reset(token)
            self._lock.release()

    def answer(self, path: str, island: DeltaModule, inputs: tuple[Any, ...],
               named: Mapping[str, Any]) -> tuple[bool, Any]:
        """Answer a call of an island by its conversion: whether it is, and with what.

        A call whose shapes are not those of its last frame is left to the dense submodule:
        where the batch is the boxes of the frame, there is nothing to take up again.
        """
        count = self._made[path] = self._made.get(path, 0) + 1
        label = path if count == 1 else f"{path}[{count}]"
        frames = _frames(island, inputs, named)
        shapes = None if frames is None else [(f.shape, f.dtype, f.device) for f in frames]
        if frames is None or self._shapes.setdefault(label, shapes) != shapes:
            self._shapes[label] = shapes
            return False, None
        try:
            return True, self._stream(label, island, frames)(*frames)
        except FrameError as error:
            raise type(error)(f"{label}: {error}") from error

    def _stream(self, label: str, island: DeltaModule, frames: Sequence[Tensor]) -> Stream:
        stream = self.calls.setdefault(label, Stream(island))
        self._answered.append(label)
        observer = self._observer
        stream.observe(None if observer is None else
                       lambda node, edge: observer(self._labelled(label, node), edge))
        enter = getattr(observer, "enter", None)
        if enter is not None:
            for name, frame in zip(island.input_names, frames, strict=True):
                enter(f"{label}:{name}", frame)
        return stream

    def _labelled(self, label: str, node: DeltaNode) -> DeltaNode:
        """Return a node under names that are unique among all islands and their calls."""
        key = label, node
        if key not in self._relabelled:
            self._relabelled[key] = _relabelled(label, node)
        return self._relabelled[key]

    def reset(self, lanes: Sequence[int] | None = None) -> None:
        """Forget the past: the next frame is a first frame.

        An island's lanes need not be the model's (an encoder may take two pictures as one
        batch), so all lanes are forgotten, which costs time alone, whichever are asked for.

        Raises:
            InputError: for what is no list of whole numbers.
            StreamBusyError: a frame is running.
        """
        checked_lanes(lanes)
        take(self._lock)
        try:
            for island in self.module.islands.values():
                island.follow_weights()
            self.calls.clear()
            self._shapes.clear()
            self._relabelled.clear()
        finally:
            self._lock.release()

    def observe(self, observer: Observer | None) -> None:
        """Call ``observer(node, edge)`` after every node; names are ``call:node``.

        An observer with a method ``enter(name, frame)`` is told before a call what comes in.
        """
        self._observer = observer

    @property
    def program(self) -> IslandsProgram | None:
        """What the last frame's calls were run by, as one."""
        programs = {label: stream.program for label, stream in self.calls.items()
                    if stream.program is not None}
        if not programs:
            return None
        first = next(iter(programs.values()))
        nodes = [self._labelled(label, node) for label, program in programs.items()
                 for node in program.nodes]
        return IslandsProgram(nodes, self.module.config, first.lanes)

    @property
    def state_bytes(self) -> int:
        """Bytes of values, masks and working memory of all calls."""
        return sum(stream.state_bytes for stream in self.calls.values())

    @property
    def last(self) -> dict[str, NodeStats]:
        """The work of the last frame, by node."""
        return {f"{label}:{name}": work for label in self._answered
                for name, work in self.calls[label].last.items()}

    @property
    def totals(self) -> dict[str, NodeStats]:
        """The work of all frames since the state was started, by node."""
        return {f"{label}:{name}": work for label, stream in self.calls.items()
                for name, work in stream.totals.items()}


@dataclasses.dataclass
class IslandsProgram:
    """All nodes of all calls, by names that are unique among them; lanes of the first call."""

    nodes: list[DeltaNode]
    config: Config
    lanes: int


_RUNNING: ContextVar[IslandsStream | None] = ContextVar("_RUNNING", default=None)


class _Answer:
    """Stands in the place of a submodule's ``forward``.

    So the submodule stays what it is: its type, its attributes, its hooks, its weights.
    """

    def __init__(self, path: str, root: nn.Module) -> None:
        self.path, self.root, self.dense = path, root, own_forward(root)
        self.hooks = InnerHooks(root)
        self.modules = list(root.modules())
        self.training = [m.training for m in self.modules]

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        stream = _RUNNING.get()
        island = None if stream is None else stream.module.islands.get(self.path)
        if stream is not None and island is not None and island._root is self.root and (
                self._is_as_converted(island)):
            answered, result = stream.answer(self.path, island, inputs, named)
            if answered:
                return result
        return self.dense(*inputs, **named)

    def _is_as_converted(self, island: DeltaModule) -> bool:
        """Whether the model around it left it so, without hooks within, in eval mode.

        Under a transform of ``torch.func`` its numbers are not to be had.
        """
        return not self.hooks and self.training == [m.training for m in self.modules] and (
            island.is_compiled_from(self.modules) and not is_transformed())

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Give a copy of the submodule its own dense ``forward``."""
        return copy.deepcopy(self.dense, memo)


def _frames(island: DeltaModule, inputs: tuple[Any, ...], named: Mapping[str, Any]
            ) -> list[Tensor] | None:
    """Return the inputs of a converted submodule in order; ``None`` where it takes others."""
    names = island.input_names
    if len(inputs) + len(named) != len(names) or set(names[len(inputs):]) != set(named):
        return None
    frames = [*inputs, *(named[name] for name in names[len(inputs):])]
    if not all(isinstance(f, Tensor) and f.dim() and f.numel() for f in frames):
        return None
    return frames if island.takes(frames) else None


def _relabelled(label: str, node: DeltaNode) -> DeltaNode:
    def named(spec: Any) -> Any:
        return dataclasses.replace(spec, name=f"{label}:{spec.name}")
    about = node.about
    path = ".".join(filter(None, (_path(label), about.path)))
    made = copy.copy(node)
    made.__dict__["about"] = dataclasses.replace(
        about, name=f"{label}:{about.name}", path=path, inputs=tuple(map(named, about.inputs)),
        output=named(about.output))
    return made


def _path(label: str) -> str:
    return label.partition("[")[0]


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module in the place of a submodule, wherever in the model that is.

    It takes over the hooks there, which may be methods of the model's.
    """
    replaced = model.get_submodule(path)
    for table in HOOKS:
        setattr(module, table, getattr(replaced, table))
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is replaced:
                parent._modules[name] = module


def check_settings(config: Config, paths: Sequence[str]) -> None:
    """Refuse settings of nodes that are in none of the islands at these paths.

    Raises:
        ConfigError: naming the setting.
    """
    for pattern in config.nodes:
        if not any(pattern.startswith(f"{path}.") for path in paths):
            raise ConfigError(f"nodes[{pattern!r}] is in no island: begin with the path of one, "
                              f"{', '.join(f'{path}.' for path in paths[:8])}.")


def settings_of(config: Config, path: str) -> Config:
    """Return an island's own settings: nodes by their path within it."""
    nodes = {pattern.removeprefix(f"{path}."): own for pattern, own in config.nodes.items()
             if pattern.startswith(f"{path}.")}
    return config.replace(nodes=nodes)
