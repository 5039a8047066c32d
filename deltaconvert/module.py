"""The converted model: an ``nn.Module`` with the original's state dict and many streams."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import random
import threading
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from deltaconvert.config import Config
from deltaconvert.errors import (
    CheckpointError,
    FrameError,
    FrameShapeError,
    FrameTypeError,
    TraceError,
    UnsupportedError,
)
from deltaconvert.fallbacks import fallbacks
from deltaconvert.model_graph import ModelGraph, autocast_of
from deltaconvert.nodes import DeltaNode
from deltaconvert.passes.calls import Call, Frames, arranged, without_gradient
from deltaconvert.passes.compiler import recompile_graph, specialize
from deltaconvert.passes.tracing.input_parameters import input_parameters
from deltaconvert.passes.tracing.tracer import own_forward
from deltaconvert.preprocessing import Preprocessing
from deltaconvert.program import Program
from deltaconvert.sharing import read_together
from deltaconvert.state import NodeStats
from deltaconvert.stream import NOT_EXPORTED, Stream
from deltaconvert.summary import summarize
from deltaconvert.words import a_kind, count

NONE: Mapping[str, Any] = types.MappingProxyType({})
# Of one module: frames whose size or batch differs again and again must not fill the memory. As
# many as fit into so many bytes are kept, weights that they share counted once, but never fewer
# than these nor more: a small model's nodes take more memory than its weights. Streams keep theirs.
FEWEST_PROGRAMS, MOST_PROGRAMS = 8, 64
PROGRAM_BYTES = 1 << 30
MOST_GRAPHS = 64
# One program at a time: what is derived from weights is shared by all of them.
_compiling = threading.RLock()


class DeltaModule(nn.Module):
    """A model that, on video, computes only what changed.

    Called with the frames of a video one after the other it answers as the dense model
    does. Made by `convert` or `load`. ``state_dict()`` has the original's names, shapes and
    values; ``load_state_dict``, ``.to()`` and ``.half()`` derive everything anew and start
    all streams afresh (a file's model that is for some shapes alone keeps its dtype).
    Weights that are written in place count from the next ``reset()`` of any stream; what is
    written through ``.data`` or NumPy leaves no trace, and asks for ``load_state_dict``.
    Gradients are not computed.
    """

    config: Config
    strict: bool
    input_names: list[str]  # in order, of a call with tensors alone
    preprocessing: Preprocessing | None
    loaded_from: str | None
    stream: Stream
    _root: nn.Module
    _graphs: list[ModelGraph]  # that of the last new frame first
    _call: Call | None  # that it was converted for
    _targets: tuple[str, ...]  # those names as they are given
    _retraces: bool
    _programs: dict[Any, Program]
    _chance: random.Random
    _version: int
    _compiled_from: Any  # what the weights of the programs were
    _weights_device: torch.device | None

    def __init__(self, root: nn.Module, traced: ModelGraph, config: Config, *,
                 strict: bool = False, preprocessing: Preprocessing | None = None,
                 retraces: bool = False) -> None:
        """Take over the modules of ``root`` (a private copy) and its normalised graph.

        ``preprocessing`` says how pictures become frames, where it is known. With ``retraces``,
        ``root`` is traced again for frames that ``traced`` is not right for.
        """
        super().__init__()
        for table in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
            setattr(self, table, getattr(root, table))
        # Not attributes that nn.Module would register: the graph's modules are root's own.
        self.__dict__.update(_root=root, _graphs=[traced], _retraces=retraces, config=config,
                             strict=strict, preprocessing=preprocessing, loaded_from=None,
                             _programs={}, _chance=random.Random(0), _version=0,
                             _compiled_from=None, _weights_device=None)
        self.__dict__["input_names"] = traced.input_names
        self.__dict__["_call"] = traced.call
        self.__dict__["_targets"] = tuple(
            str(n.target) for n in self.graph.nodes if n.op == "placeholder")
        self.__dict__["stream"] = Stream(self)
        self.training = False

    @property
    def traced(self) -> ModelGraph:
        """The graph that the last new frame was run by, or the first is to be."""
        return self._graphs[0]

    @property
    def graph(self) -> fx.Graph:
        """The graph of `traced`."""
        return self.traced.graph

    @property
    def kept(self) -> ModelGraph:
        """The graph for a file: of the last call without numbers of its own beside its tensors.

        So what a frame was given once is not what a file takes from then on; numbers are those that
        the model was converted with, or its defaults.
        """
        return next((g for g in self._graphs if g.call in (None, self._call) or all(
            kind is Tensor for kind, _ in g.call.constants)), self.traced)  # type: ignore[union-attr]

    def forward(self, *frames: Any, **named: Any) -> Any:
        """Compute the outputs for the next frame of the module's own stream; see `Stream`.

        Raises:
            FrameError: see `Stream`; and for a name that is no input's.
        """
        return self.stream(*frames, **named)

    def arrange(self, inputs: Sequence[Any], named: Mapping[str, Any] = NONE) -> list[Any]:
        """Return the tensors that a call of the model gives it, in order: `Frames`, or a list.

        Raises:
            FrameError: for inputs that the model does not have.
        """
        if not named and not self._goes_by_call and len(inputs) == len(self.input_names) and all(
                isinstance(i, Tensor) for i in inputs):
            return [without_gradient(i) for i in inputs]
        if self._retraces:
            found = arranged(self._forward, inputs, named, self._targets, self._signature)
            assert found.call is not None
            plain = found.call.is_flat and found.call.names == self._targets
            return list(found) if plain and not self._goes_by_call else found
        waiting = self._targets[len(inputs):]
        if wrong := sorted(set(named) - set(waiting)):
            raise FrameError(f"{', '.join(wrong)}: no input of that name is left; the inputs are "
                             f"{', '.join(self._targets)}.")
        return [without_gradient(i) for i in (*inputs, *(named[n] for n in waiting if n in named))]

    @cached_property
    def _forward(self) -> Callable[..., Any]:
        return own_forward(self._root)

    @cached_property
    def _goes_by_call(self) -> bool:
        """Whether ``forward(*args)`` names no input, so that only a call tells what there is."""
        return self._retraces and not input_parameters(self._forward)

    @cached_property
    def _signature(self) -> inspect.Signature:
        """That of the model's ``forward``: it is asked at every frame with nested inputs."""
        return inspect.signature(self._forward)

    def new_stream(self) -> Stream:
        """Start another stream with the same weights and a past of its own."""
        return Stream(self)

    def reset(self, lanes: Sequence[int] | None = None) -> None:
        """Forget the past of the module's own stream; see `Stream.reset`."""
        self.stream.reset(lanes)

    def observe(self, observer: Any) -> None:
        """Watch every node of the module's own stream; see `Stream.observe`."""
        self.stream.observe(observer)

    def summary(self) -> str:
        """Return a table of nodes, rules, thresholds, state bytes and last update ratios."""
        return summarize(self)

    @property
    def newest_program(self) -> Program | None:
        """What was compiled last, for a frame or for ``convert``'s ``example_inputs``."""
        return next(reversed(self._programs.values()), None)

    @property
    def statistics(self) -> dict[str, NodeStats]:
        """The work of the module's own stream since it was started, by node."""
        return self.stream.totals

    def with_config(self, config: Config) -> DeltaModule:
        """Return a module that shares these weights under other settings."""
        return self._like(self._root, config)

    def __copy__(self) -> DeltaModule:
        """Return a module that shares these weights; its streams start without a past."""
        return self.with_config(self.config)

    def __deepcopy__(self, memo: dict[int, Any]) -> DeltaModule:
        """Copy the weights; streams of the copy start without a past."""
        return self._like(copy.deepcopy(self._root, memo), self.config)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse to be pickled.

        Raises:
            UnsupportedError: saying what to do instead.
        """
        raise UnsupportedError(
            "a converted model is not pickled: deltaconvert.save(delta, path) writes it to a file, "
            "and deltaconvert.load(path) reads it in any process.")

    def __prepare_scriptable__(self) -> Any:
        """Refuse ``torch.jit.script``.

        Raises:
            UnsupportedError: saying what to do instead.
        """
        raise UnsupportedError(NOT_EXPORTED)

    def _like(self, root: nn.Module, config: Config) -> DeltaModule:
        plain = next((g for g in self._graphs if g.call == self._call), self.kept)
        made = DeltaModule(root, plain, config, strict=self.strict,
                           preprocessing=self.preprocessing, retraces=self._retraces)
        made.__dict__["_graphs"] = list(self._graphs)
        made.loaded_from = self.loaded_from
        return made

    def train(self, mode: bool = True) -> DeltaModule:
        """Stay in eval mode: a delta network cannot be trained."""
        return self

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load weights as ``nn.Module`` does; derived weights follow, streams start afresh."""
        self._forget()
        return super().load_state_dict(*args, **kwargs)

    def _apply(self, fn: Any, recurse: bool = True) -> DeltaModule:
        self._refuse_another_dtype(fn)
        self._forget()
        super()._apply(fn, recurse)
        return self

    def _refuse_another_dtype(self, fn: Any) -> None:
        """Refuse ``.half()`` and the like where the graph may hold the dtype that was asked for.

        Raises:
            UnsupportedError: saying what to do instead.
        """
        first = next((p for p in self.parameters() if p.is_floating_point()), None)
        if self.traced.traced_for is None or self._retraces or first is None:
            return
        wanted = fn(first.new_empty(0)).dtype
        if wanted != first.dtype:
            raise UnsupportedError(
                f"this model is for frames of {self.traced.traced_for}, because its code goes "
                f"by them, and in {first.dtype}, which it may have asked for as well. Convert the "
                f"model as it is in {wanted}, with example_inputs of that dtype; or keep it and "
                "say convert(model, dtype='bfloat16').")

    def _forget(self) -> None:
        self._programs.clear()
        if self._retraces and any(g.traced_for or g.by_numbers for g in self._graphs):
            # It may hold a device, a dtype, or what the numbers in a buffer led to.
            self._graphs[:] = [dataclasses.replace(self.kept, is_guess=True)]
        self.__dict__["_version"] += 1
        self.__dict__["_weights_device"] = None

    def follow_weights(self) -> None:
        """Derive everything anew if weights were written in place since programs were made."""
        if self._programs and self._compiled_from != self._weights():
            self._forget()

    def _weights(self) -> tuple[list[int], list[int]]:
        return weights_in(self.modules())

    def is_compiled_from(self, modules: Iterable[nn.Module]) -> bool:
        """Whether its programs, if there are any, are of the weights in these as they are now."""
        return not self._programs or self._compiled_from == weights_in(modules)

    def named_inputs(self, inputs: Sequence[Any]) -> dict[str, Tensor]:
        """Return the tensors of a call by the names of the nodes that take them.

        Raises:
            FrameError: see `signature`.
        """
        given = self.arrange(inputs)
        self.signature(given)
        return dict(zip(self.traced.input_names, given, strict=True))

    def signature(self, frames: Sequence[Any]) -> Any:
        """Return what a program is specialised for.

        Raises:
            FrameError: for the wrong number of inputs, or something that is not a tensor.
        """
        call = frames.call if isinstance(frames, Frames) else None
        names = self._targets if call is None else call.names
        if len(frames) != len(names) or not frames:
            raise FrameError(f"the model takes {count(len(names), 'input')} "
                             f"({', '.join(names)}), {len(frames)} were given.")
        for name, frame in zip(names, frames, strict=True):
            _check_frame(name, frame, self._device())
        strides = _strides(frames) if self.graph_for(frames).by_layout else None
        return ((self._version, autocast_of(frames), call, strides),
                *((tuple(f.shape), f.dtype, f.device) for f in frames))

    def is_signature(self, signature: Any, frames: Sequence[Any]) -> bool:
        """Whether frames have a signature that was made before; quicker than making theirs."""
        (version, autocast, call, strides), *specs = signature
        if version != self._version or len(specs) != len(frames):
            return False
        if call != (frames.call if isinstance(frames, Frames) else None):
            return False
        return all(
            isinstance(f, Tensor) and f.shape == shape and f.dtype == dtype and f.device == device
            and f.layout is torch.strided
            for f, (shape, dtype, device) in zip(frames, specs, strict=True)
        ) and autocast == autocast_of(frames) and (
            strides is None or strides == _strides(frames))

    def takes(self, frames: Sequence[Tensor]) -> bool:
        """Whether a graph is there that is right for such frames."""
        return any(traced.takes(frames) for traced in self._graphs)

    def graph_for(self, frames: Sequence[Tensor]) -> ModelGraph:
        """Return the graph for such frames, traced where it is new; see `traced`.

        Raises:
            FrameShapeError: there is none, and none can be had.
            FrameTypeError: there is one for frames of another dtype alone.
        """
        graphs = [g for g in self._graphs if not g.is_guess]
        found = next((g for g in graphs if g.takes(frames)), None)
        if found is None and not self._retraces:
            raise self.traced.refusal(frames)
        if found is None:
            shapes = [tuple(f.shape) for f in frames]
            call = frames.call if isinstance(frames, Frames) else None
            self._refuse_many(call)
            try:
                with torch.inference_mode(False):
                    found = ModelGraph.of(recompile_graph(self._root, frames))
            except TraceError as error:
                if call is not None:
                    raise FrameTypeError(
                        f"the model cannot be traced for such a call, {call}: {error}") from error
                raise FrameShapeError(
                    "the model's code branches on shapes, and cannot be traced for frames of "
                    f"{shapes} in {[f.dtype for f in frames]}: {error}") from error
        if found is not self.traced:
            others = [g for g in graphs if g is not found]
            self.__dict__["_graphs"] = [found, *others[:MOST_GRAPHS]]
        return found

    def _refuse_many(self, call: Call | None) -> None:
        """Refuse one more graph where numbers among the inputs differ from frame to frame.

        Raises:
            FrameTypeError: saying what to do instead.
        """
        if call is not None and not call.is_flat and len(
                {g.call for g in self._graphs} - {None}) >= MOST_CALLS:
            raise FrameTypeError(
                f"this would be call number {MOST_CALLS + 1} of another structure or with other "
                f"numbers among its inputs, {call}, and each has a graph of its own. Give numbers "
                "that differ from frame to frame as tensors of N x 1 x 1 x 1.")

    def _device(self) -> torch.device | None:
        """Return where the weights are: looked up once, because it is asked at every frame."""
        if self._weights_device is None:
            first = next(iter(self.parameters()), None)
            self.__dict__["_weights_device"] = None if first is None else first.device
        return self._weights_device

    def _specialize(self, frames: Sequence[Tensor]) -> Program:
        try:
            return specialize(self._root, self.graph_for(frames), frames, self.config)
        except IMPOSSIBLE as error:
            if self.loaded_from is None:
                raise
            raise CheckpointError(
                f"{self.loaded_from} describes a model that cannot be compiled "
                f"({type(error).__name__}: {error!s:.200}). Convert the model again.") from error

    def program(self, signature: Any, frames: Sequence[Tensor]) -> Program:
        """Return the program for a signature, compiling it where it is new.

        Raises:
            FrameError: where the model does not take such frames.
            UnsupportedError: under ``strict``, where something falls back.
        """
        program = self._programs.pop(signature, None)  # another thread may forget all of them
        if program is None:
            program = self._compiled(signature, frames)
        self._programs[signature] = program  # the last
        self._make_room()
        return program

    def _compiled(self, signature: Any, frames: Sequence[Tensor]) -> Program:
        """Compile; or return what another thread compiled meanwhile."""
        with _compiling:
            if (found := self._programs.get(signature)) is not None:
                return found
            as_known = not self._programs or self._compiled_from == self._weights()
            with read_together(t for t in (*self.parameters(), *self.buffers())
                               if t.device.type != "cpu"):
                program = self._specialize(frames)
            if self.strict:
                _refuse_fallbacks(program.nodes)
            if as_known:  # behind it: the model's own code may write into buffers
                self.__dict__["_compiled_from"] = self._weights()
            if program.device.type == "cuda":
                # Whoever finds the derived weights may read them on another stream.
                torch.cuda.current_stream(program.device).synchronize()
            self._programs[signature] = program
            return program

    def _make_room(self) -> None:
        """Drop programs while they take too much memory, any but the last.

        Dropping the one that is not used for longest would drop each just before its turn, in a
        clip that goes round through one size more than there is room for.
        """
        kept = {key: program.memory for key, program in list(self._programs.items())}
        while len(kept) > MOST_PROGRAMS or (
                len(kept) > FEWEST_PROGRAMS and _together(kept.values()) > PROGRAM_BYTES):
            dropped = self._chance.choice(list(kept)[:-1])
            del kept[dropped]
            self._programs.pop(dropped, None)


def weights_in(modules: Iterable[nn.Module]) -> tuple[list[int], list[int]]:
    """Return what stands for the weights of modules, each as it is until it is written into."""
    weights = [t for module in modules for table in (module._parameters, module._buffers)
               for t in table.values() if t is not None]
    try:
        versions = [t._version for t in weights]
    except RuntimeError:  # only here, since islands compare in each frame
        versions = [0 if t.is_inference() else t._version for t in weights]
    return [t.data_ptr() for t in weights], versions


def _together(memories: Iterable[Mapping[int, int]]) -> int:
    """Return the bytes of pieces of memory, each counted once."""
    pieces: dict[int, int] = {}
    for memory in memories:
        pieces.update(memory)
    return sum(pieces.values())


def _strides(frames: Sequence[Tensor]) -> tuple[int, ...]:
    """Return how frames lie in memory, but for the strides that mean nothing."""
    return tuple(stride for f in frames
                 for size, stride in zip(f.shape, f.stride(), strict=True) if size > 1)


# Kinds of calls of one model, by structure and numbers: each has a graph of its own.
MOST_CALLS = 16

# What the passes raise on calls that no model makes, which only a file can describe.
IMPOSSIBLE = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError,
              AssertionError)


def _check_frame(name: str, frame: Any, device: torch.device | None) -> None:
    if not isinstance(frame, Tensor):
        what = f"input {name!r} is {a_kind(frame)}"
        if any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(frame)):
            raise FrameTypeError(f"{what}, and a model without its source (from a file, or a "
                                 "program of torch.export) takes tensors, one after the other.")
        raise FrameTypeError(f"{what}, not a tensor. Decode and normalise the frame as for the "
                             "dense model.")
    if frame.layout is not torch.strided or frame.is_quantized:
        way = "dequantize" if frame.is_quantized else "to_dense"
        raise FrameTypeError(f"input {name!r} is {frame.layout}, {frame.dtype}: its numbers do not "
                             f"lie there one by one. Give {name}.{way}().")
    if frame.dim() == 0 or frame.numel() == 0:
        raise FrameShapeError(f"input {name!r} has the shape {tuple(frame.shape)}: there is no "
                              "lane or no pixel in it. Give N x C x H x W, N at least 1.")
    if frame.is_meta:
        raise FrameTypeError(f"input {name!r} is on the meta device, where tensors have no "
                             "numbers. Give a real frame, and load the model's weights first.")
    if device is not None and frame.device != device:
        raise FrameTypeError(f"input {name!r} is on {frame.device}, the weights are on {device}. "
                             f"Move the frame with .to({str(device)!r}), or the model.")


def _refuse_fallbacks(nodes: Sequence[DeltaNode]) -> None:
    unknown = [f for f in fallbacks(nodes) if f.rule == "unknown"]
    if unknown:
        raise UnsupportedError(
            f"strict: {len(unknown)} nodes would run as unknown operators, whole and densely:\n"
            + "\n".join(f"  {fallback}" for fallback in unknown)
            + "\nConvert with strict=False to accept that, or replace them.")
