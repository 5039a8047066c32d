"""The dense runtimes that a user would pick instead, each prepared, checked, then timed.

None of them is a dependency: what is not installed, does not take the model, or answers
something else, is left out, by name and with the reason.
"""

from __future__ import annotations

import copy
import importlib
import io
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from deltaconvert.bench import memory
from deltaconvert.bench.outputs import relative_rms, rounding_error
from deltaconvert.errors import InputError
from deltaconvert.outputs import tensors

EAGER, OPENVINO_BF16 = "eager", "openvino-bf16"
# The same sums in another order through a deep network with random weights are off by some
# 1e-5. In bf16, with its 8 bits, some networks are off by a percent and some by half: so as much
# as PyTorch itself is off in bf16, and no less than a few roundings.
FP32_TOLERANCE = 1e-3
BF16_LEAST, BF16_OWN = 0.05, 2.0
INSTALL = "pip install 'deltaconvert[bench]'"

Run = Callable[[Any], Any]


@dataclass(frozen=True)
class Peer:
    """A dense runtime, ready to run.

    Args:
        name: for tables and JSON.
        precision: ``"fp32"`` or ``"bf16"``.
        layout: turns a frame into what the runtime likes best; not part of its time.
        run: computes one frame.
        error: relative RMS against eager, on the frame it was prepared with.
        peak_bytes: growth of the process while it ran, weights of its own included.
    """

    name: str
    precision: str
    layout: Callable[[Tensor], Any]
    run: Run
    error: float = 0.0
    peak_bytes: int | None = None


@dataclass
class Peers:
    """Those that are ready, eager first, and why others are not."""

    ready: list[Peer] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


class SkipError(Exception):
    """A runtime cannot take part; the text says why."""


def prepare(model: nn.Module, frame: Tensor, threads: int,
            wanted: Sequence[str] | None = None,
            say: Callable[[str], None] = lambda text: None) -> Peers:
    """Prepare the dense runtimes for a model and a frame's shape.

    Args:
        model: in eval mode; it is copied where a runtime changes weights or their layout.
        frame: ``[N, C, H, W]``.
        threads: for each of them.
        wanted: names out of `NAMES`; eager is always among them. Default: all.
        say: told what is being prepared, as some take minutes.

    Raises:
        InputError: for a name that is not there.
    """
    if unknown := sorted(set(wanted or ()) - set(NAMES)):
        raise InputError(f"no dense runtime is called {', '.join(unknown)}; there are "
                         f"{', '.join(NAMES)}.")
    source = _Source(model, frame, threads)
    peers = Peers()
    for name in NAMES:
        if wanted is not None and name != EAGER and name not in wanted:
            continue
        say(f"preparing {name}")
        try:
            peers.ready.append(_prepared(name, source))
        except SkipError as reason:
            peers.skipped[name] = str(reason)
            say(f"{name} is left out: {reason}")
    return peers


class _Source:
    """What every runtime is made from; the ONNX export is shared by those that read it."""

    def __init__(self, model: nn.Module, frame: Tensor, threads: int) -> None:
        self.model = copy.deepcopy(model).eval().to(memory_format=torch.channels_last)
        self.frame, self.threads = frame, threads
        self._onnx: bytes | None = None
        self.expected = tensors(_eager_run(self.model)(_channels_last(frame)))

    @property
    def onnx(self) -> bytes:
        """The model as ONNX, exported once."""
        if self._onnx is None:
            _module("onnxscript")
            try:
                with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                    program = torch.onnx.export(
                        copy.deepcopy(self.model).to(memory_format=torch.contiguous_format),
                        (self.frame,), dynamo=True, verbose=False)
                assert program is not None
                self._onnx = program.model_proto.SerializeToString()
            except Exception as error:  # the exporter's own kinds are not public
                raise SkipError(f"not exported to ONNX: {_first_line(error)}") from error
        return self._onnx

    def bf16_tolerance(self) -> float:
        """Return how far a runtime in bf16 may be off."""
        return allowed_rounding(rounding_error(self.model, _channels_last(self.frame),
                                               torch.bfloat16))


def allowed_rounding(own: float | None) -> float:
    """Return what a half precision may be off, relative RMS, given what PyTorch itself is off."""
    return max(BF16_LEAST, BF16_OWN * (own or 0.0))


def _prepared(name: str, source: _Source) -> Peer:
    growth = memory.Growth()
    peer = _BUILDERS[name](source)
    given = peer.layout(source.frame)
    output = _first_run(peer, given)
    growth.watch()
    for _ in range(2):
        peer.run(given)
    if len(output) != len(source.expected):
        raise SkipError(f"it returns {len(output)} tensors, eager {len(source.expected)}")
    error = max((relative_rms(found, expected) for found, expected in
                 zip(output, source.expected, strict=True)), default=0.0)
    allowed = FP32_TOLERANCE if peer.precision == "fp32" else source.bf16_tolerance()
    if not error <= allowed:
        raise SkipError(f"its output is off by {error:.1e} (relative RMS) from eager's, over the "
                        f"{allowed:.1e} that {peer.precision} may be off")
    return Peer(peer.name, peer.precision, peer.layout, peer.run, error, growth.bytes())


def _first_run(peer: Peer, given: Any) -> list[Tensor]:
    """Run once, which is when torch.compile compiles; a copy, as some hand out their memory."""
    try:
        return [t.clone() for t in tensors(peer.run(given))]
    except Exception as error:  # whatever a compiler or a runtime raises
        raise SkipError(f"does not run the model: {_first_line(error)}") from error


def _eager(source: _Source) -> Peer:
    return Peer(EAGER, "fp32", _channels_last, _eager_run(source.model))


def _eager_run(model: nn.Module) -> Run:
    def run(frame: Tensor) -> Any:
        with torch.inference_mode():
            return model(frame)
    return run


def _compiled(source: _Source) -> Peer:
    compiled = torch.compile(copy.deepcopy(source.model), options={"freezing": True})

    def run(frame: Tensor) -> Any:
        with torch.no_grad():
            return compiled(frame)
    return Peer("torch.compile", "fp32", _channels_last, run)


def _onnxruntime(source: _Source) -> Peer:
    runtime = _module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = source.threads, 3
    try:
        session = runtime.InferenceSession(source.onnx, options,
                                           providers=["CPUExecutionProvider"])
    except SkipError:
        raise
    except Exception as error:
        raise SkipError(f"does not load the model: {_first_line(error)}") from error
    name = session.get_inputs()[0].name
    return Peer("onnxruntime", "fp32", _numpy, lambda frame: session.run(None, {name: frame}))


def _openvino(source: _Source, precision: str = "fp32") -> Peer:
    runtime = _module("openvino")
    core = runtime.Core()
    hint = {"fp32": "f32", "bf16": "bf16"}[precision]
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise SkipError("this processor has no bf16")
    settings = {"INFERENCE_NUM_THREADS": source.threads, "INFERENCE_PRECISION_HINT": hint,
                "PERFORMANCE_HINT": "LATENCY"}
    try:
        compiled = core.compile_model(core.read_model(source.onnx), "CPU", settings)
    except SkipError:
        raise
    except Exception as error:
        raise SkipError(f"does not load the model: {_first_line(error)}") from error
    request = compiled.create_infer_request()
    name = "openvino" if precision == "fp32" else f"openvino-{precision}"
    return Peer(name, precision, _numpy,
                lambda frame: list(request.infer([frame], share_inputs=True).values()))


def _openvino_bf16(source: _Source) -> Peer:
    return _openvino(source, "bf16")


_BUILDERS: dict[str, Callable[[_Source], Peer]] = {
    EAGER: _eager,
    "torch.compile": _compiled,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    OPENVINO_BF16: _openvino_bf16,
}
NAMES = tuple(_BUILDERS)


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise SkipError(f"{name} is not installed ({INSTALL})") from None


def _channels_last(frame: Tensor) -> Tensor:
    return frame.contiguous(memory_format=torch.channels_last)


def _numpy(frame: Tensor) -> Any:
    return frame.contiguous().numpy()


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
