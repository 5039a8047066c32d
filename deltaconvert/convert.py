"""``convert``: a dense model in, a model that computes only what changed out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from deltaconvert.config import Config
from deltaconvert.errors import (
    ConfigError,
    FrameTypeError,
    InputError,
    TraceError,
    UnsupportedError,
)
from deltaconvert.exported import ExportedModel
from deltaconvert.exported.reading import from_program
from deltaconvert.islands import IslandsModule, convert_islands
from deltaconvert.likely_frames import likely_frames
from deltaconvert.model_graph import ModelGraph
from deltaconvert.module import DeltaModule
from deltaconvert.passes.calls import arranged
from deltaconvert.passes.compiler import compile_graph
from deltaconvert.passes.tracing.find_state import KeepsState
from deltaconvert.passes.tracing.input_parameters import input_parameters
from deltaconvert.passes.tracing.tracer import own_forward, unwrapped
from deltaconvert.passes.views import is_repeated
from deltaconvert.preprocessing import Preprocessing
from deltaconvert.words import a_kind


@overload
def convert(model: nn.Module | ExportedProgram,
            example_inputs: Tensor | Sequence[Any] | None = None, *,
            config: Config | None = None, strict: bool = False, modules: None = None,
            preprocessing: Preprocessing | None = None, **overrides: Any) -> DeltaModule: ...


@overload
def convert(model: nn.Module | ExportedProgram,
            example_inputs: Tensor | Sequence[Any] | None = None, *,
            config: Config | None = None, strict: bool = False, modules: Literal["auto"],
            preprocessing: Preprocessing | None = None,
            **overrides: Any) -> DeltaModule | IslandsModule: ...


@overload
def convert(model: nn.Module | ExportedProgram,
            example_inputs: Tensor | Sequence[Any] | None = None, *,
            config: Config | None = None, strict: bool = False, modules: Sequence[str],
            **overrides: Any) -> IslandsModule: ...


def convert(model: nn.Module | ExportedProgram,
            example_inputs: Tensor | Sequence[Any] | None = None, *,
            config: Config | None = None, strict: bool = False,
            modules: Sequence[str] | Literal["auto"] | None = None,
            preprocessing: Preprocessing | None = None,
            **overrides: Any) -> DeltaModule | IslandsModule:
    """Convert a trained CNN into a module with the same outputs for video.

    Args:
        model: any ``nn.Module`` that can be traced, a program of ``torch.export``, or what
            `read_program` read; it is copied and left untouched. Of ``torch.compile``,
            ``DataParallel`` and other wrappers of PyTorch's, the model within is taken.
        example_inputs: frames like those to come, ``[N, C, H, W]``: shapes, rules and state
            bytes are then known at once (and ``strict`` answers at once). A model whose code
            branches on shapes is traced for each size of frames that comes. Inputs may be nested,
            as the model takes them: ``(frame, (hidden, cell))``.
        config: the settings; exact by default.
        strict: raise where an operator would run whole and densely because it is unknown.
        modules: for a model that cannot be traced whole: the paths of the submodules to
            convert in it (``["backbone"]``), or ``"auto"`` for the largest that can be
            traced. The rest stays the model's own code; ``example_inputs`` are then whatever
            the model is called with.
        preprocessing: how pictures become frames; kept with the model, and in its file, for
            whoever feeds it pictures: the command line does. Not with islands.
        **overrides: single settings of `Config`, over those of ``config``.

    Returns:
        The converted model, in eval mode, on the model's device, with streams of its own; an
        `IslandsModule` where ``modules`` are given.

    Raises:
        TraceError: where the model cannot be traced; the message names the line.
        InputError: for what is no model, or is converted already; ``modules`` that are not there.
        ConfigError: for a setting that makes no sense.
        UnsupportedError: under ``strict``, with every such node.
    """
    model = from_program(model) if isinstance(model, ExportedProgram) else model
    if not isinstance(model, nn.Module):
        raise InputError(f"convert takes an nn.Module, not {_what(model)}. To convert a "
                         "checkpoint, build its model and load the weights first.")
    model = unwrapped(model)
    if isinstance(model, (DeltaModule, IslandsModule)):
        raise InputError("this model is converted already; convert takes the dense model.")
    inner = [name for name, m in model.named_modules() if isinstance(m, DeltaModule)]
    if modules is None and inner:
        raise InputError(f"a part of this model, {inner[0]}, is converted already; convert takes "
                         "the dense model. Call the model as it is, or convert it anew.")
    if not isinstance(config, Config | None):
        raise ConfigError(f"config={config!r}: give a Config, or its settings by name.")
    if not isinstance(strict, bool):
        raise ConfigError(f"strict={strict!r}: give True or False.")
    settings = (config or Config()).replace(**overrides)
    inputs = [example_inputs] if isinstance(example_inputs, Tensor) else list(example_inputs or ())
    if modules in (None, "auto"):
        try:
            frames = _arranged(model, inputs)
            traced, is_guess = _compile(model, frames)
        except (TraceError, FrameTypeError):
            if modules is None:
                raise
        else:
            delta = DeltaModule(traced.meta["root"], ModelGraph.of(traced, is_guess), settings,
                                strict=strict, preprocessing=preprocessing,
                                retraces=not isinstance(model, ExportedModel))
            try:
                if frames and modules:
                    delta.new_stream()(*inputs)  # the numbers may settle a shape
                elif frames:
                    delta.program(delta.signature(frames), frames)
                elif modules and _may_keep_state(traced):
                    raise UnsupportedError("it may keep a buffer from frame to frame: what may be "
                                           "a view of one is written into. Give convert its "
                                           "example_inputs, which tell.")
                return delta
            except UnsupportedError as reason:
                if modules is None or strict or preprocessing is not None:
                    raise
                return _islands_or(reason, model, inputs, settings)
    if preprocessing is not None:
        raise InputError("preprocessing is kept with a model that is converted whole; a model with "
                         "islands is called with what the original takes.")
    return convert_islands(model, modules, inputs, settings, strict)


def _may_keep_state(traced: GraphModule) -> bool:
    """Whether a graph writes into what may be a view of a weight or buffer."""
    return any(is_repeated(n) and "held" in n.meta for n in traced.graph.nodes)


def _islands_or(reason: UnsupportedError, model: nn.Module, inputs: Sequence[Any],
                settings: Config) -> IslandsModule:
    """Convert the parts of what cannot be converted whole, or say why it cannot be."""
    try:
        return convert_islands(model, "auto", inputs, settings, strict=False)
    except TraceError as error:
        raise reason from error


def _arranged(model: nn.Module, inputs: Sequence[Any]) -> Sequence[Tensor]:
    """Return the tensors in the example inputs, which may be nested, or beside numbers."""
    if not inputs or isinstance(model, (ExportedModel, torch.jit.ScriptModule)):
        return inputs
    forward = own_forward(model)
    if all(isinstance(i, Tensor) for i in inputs) and input_parameters(forward):
        return inputs
    return arranged(forward, inputs, {})


def _what(given: Any) -> str:
    if isinstance(given, type):
        return f"the class {given.__name__} (call it first)"
    return a_kind(given)


def _compile(model: nn.Module, frames: Sequence[Tensor]) -> tuple[GraphModule, bool]:
    """Trace a model, where its code branches on shapes for such frames, or for likely ones.

    Returns:
        The graph, and whether it is for a guess.
    """
    try:
        return compile_graph(model, frames), False
    except TraceError:
        for guess in () if frames else likely_frames(model):
            try:
                return compile_graph(model, guess), True
            except TraceError as error:
                if isinstance(error.__cause__, KeepsState):
                    raise
                continue  # the first reason is the model's own
        raise
