"""``convert``: a dense model in, a model that computes only what changed out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from deltaconvert.config import Config
from deltaconvert.errors import InputError
from deltaconvert.module import DeltaModule
from deltaconvert.preprocessing import Preprocessing
from deltaconvert.program import compile_graph


def convert(model: nn.Module, example_inputs: Tensor | Sequence[Tensor] | None = None, *,
            config: Config | None = None, strict: bool = False,
            preprocessing: Preprocessing | None = None, **overrides: Any) -> DeltaModule:
    """Convert a trained CNN into a module with the same outputs for video.

    Args:
        model: any ``nn.Module`` that can be traced; it is copied and left untouched.
        example_inputs: frames like those to come, ``[N, C, H, W]``: shapes, rules and state
            bytes are then known at once (and ``strict`` answers at once). A model whose code
            branches on shapes needs them, and then takes frames of these shapes only.
        config: the settings; exact by default.
        strict: raise where an operator would run whole and densely because it is unknown.
        preprocessing: how pictures become frames; kept with the model, and in its file, for
            whoever feeds it pictures: the command line does.
        **overrides: single settings of `Config`, over those of ``config``.

    Returns:
        The converted model, in eval mode, on the model's device, with streams of its own.

    Raises:
        TraceError: where the model cannot be traced; the message names the line.
        ConfigError: for a setting that makes no sense.
        UnsupportedError: under ``strict``, with every such node.
    """
    if isinstance(model, DeltaModule):
        raise InputError("this model is converted already; convert takes the dense model.")
    settings = (config or Config()).replace(**overrides)
    frames = [example_inputs] if isinstance(example_inputs, Tensor) else list(example_inputs or ())
    graph_module = compile_graph(model, frames)
    delta = DeltaModule(graph_module.meta["root"], graph_module.graph,
                        graph_module.meta["out_spec"], settings, strict=strict,
                        results=graph_module.meta["results"],
                        traced_for=graph_module.meta["traced_for"], preprocessing=preprocessing)
    if frames:
        delta.program(delta.signature(frames), frames)
    return delta
