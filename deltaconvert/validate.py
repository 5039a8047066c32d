"""``validate``: dense and converted side by side over a clip, and the law checked."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from deltaconvert.errors import FrameError, InputError
from deltaconvert.islands import IslandsModule, IslandsProgram
from deltaconvert.law import Breach, LawChecker, check_law, inputs_of
from deltaconvert.model_graph import ModelGraph
from deltaconvert.module import DeltaModule
from deltaconvert.nodes import DeltaNode
from deltaconvert.outputs import named_outputs
from deltaconvert.passes.trace import private_copy
from deltaconvert.program import Program
from deltaconvert.report import OutputReport, Report, SpeedReport
from deltaconvert.work import Work, ratio

__all__ = ["Breach", "LawChecker", "Report", "StoredModel", "check_law", "validate"]

Frame = Tensor | Sequence[Tensor]
Limit = float | Mapping[str, float] | None
Result = TypeVar("Result")

# Relative RMS at threshold 0: the same sums in another order, through a deep network. About
# a hundred roundings in float32; half precisions round so coarsely that a few are visible.
# A network may itself be further off than that (a ResNet-50 with random weights is 2e-5 off
# float64, and as much off itself in another memory format): so no less than some times what
# the dense network's own rounding is, measured.
OWN_ROUNDINGS = 4.0
EXACT_TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-2,
                    torch.bfloat16: 5e-2}


class StoredModel(nn.Module):
    """The dense graph that a converted model keeps, as a module: same weights, same outputs.

    What `validate` compares with where the original is not at hand.
    """

    def __init__(self, delta: DeltaModule) -> None:
        """Share the weights of ``delta``."""
        super().__init__()
        self._graph_of = lambda frames: (delta._root, delta.graph_for(frames))  # is not copied
        self._shapes: list[torch.Size] = []
        self._take(delta._root, delta.traced)

    def _take(self, root: nn.Module, traced: ModelGraph) -> None:
        self.traced = traced
        self.dense = fx.GraphModule(root, traced.graph, class_name="Dense").eval()

    def forward(self, *frames: Tensor) -> Any:
        """Compute all of it; a copy in another precision does so by the same graph."""
        shapes = [f.shape for f in frames]
        if shapes != self._shapes:
            self._take(*self._graph_of(frames))
            self._shapes = shapes
        return pytree.tree_unflatten(self.dense(*frames), self.traced.out_spec)


def _stored(delta: DeltaModule | IslandsModule) -> nn.Module:
    """Return the dense model inside a converted one."""
    return delta.model if isinstance(delta, IslandsModule) else StoredModel(delta)


def validate(model: nn.Module | None, delta: DeltaModule | IslandsModule,
             frames: Iterable[Frame], *, tolerance: Limit = None,
             max_abs: Limit = None, law_every: int = 10) -> Report:
    """Run dense and converted side by side over a clip and compare everything.

    The converted model runs in a stream of its own. The law is checked in the first frame, in
    every ``law_every``-th, in the last, and in the first that is out of tolerance, until one
    breaks it; that is done outside the time of a frame.

    Args:
        model: the dense model, on the device of ``delta``; evaluated in eval mode as it is,
            and left in the mode it was in. ``None`` takes the dense graph inside ``delta``.
        delta: the converted model.
        frames: each what the model takes, ``[N, C, H, W]``, or a tuple of inputs; one
            size throughout.
        tolerance: largest relative RMS error of a frame (its RMS error over the output's RMS
            in the clip), or a dict of them by output. At threshold 0 the default is 1e-5 in
            float32 (`EXACT_TOLERANCES`; in the precision of `Config.dtype` where that is set),
            or four times what the dense network itself is off float64, in the first frame or in
            one that would fail, if that is more; above, there is none.
        max_abs: largest error of any number, likewise.
        law_every: how many frames from one check of the law to the next.

    Returns:
        The report: ``report.passed``, ``print(report)``, ``report.to_dict()``.

    Raises:
        InputError: no frames, an output name that does not exist, or models whose outputs
            differ in structure.
        FrameError: a frame that the model does not take.
    """
    if not isinstance(delta, (DeltaModule, IslandsModule)):
        raise InputError(f"validate(model, delta, frames): delta is a {type(delta).__name__}, not "
                         "what convert returned.")
    if law_every < 1:
        raise InputError(f"law_every={law_every}: give 1 to check the law in every frame, or more.")
    for what, limit in (("tolerance", tolerance), ("max_abs", max_abs)):
        for number in limit.values() if isinstance(limit, Mapping) else [limit]:
            if number is not None and not number >= 0:  # nor NaN, which nothing exceeds
                raise InputError(f"{what}={number}: give a number that is 0 or larger.")
    run = _Run(model or _stored(delta), delta, tolerance, max_abs, law_every)
    with evaluating(run.model), torch.no_grad():
        for inputs in inputs_of(frames):
            run.take(inputs)
    return run.report()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module into eval mode, and back into the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


class _Run:
    """One validation while it runs."""

    def __init__(self, model: nn.Module, delta: DeltaModule | IslandsModule, tolerance: Limit,
                 max_abs: Limit, law_every: int) -> None:
        self.model, self.delta, self.law_every = model, delta, law_every
        self.limits = {"tolerance": tolerance, "max_abs": max_abs}
        self.stream = delta.new_stream()
        self.checker = LawChecker(delta, each=False)
        self.stream.observe(self.checker)
        self.outputs: list[_Output] = []
        self.work = Work()
        self.ratios_input: list[float] = []
        self.ratios_nodes: list[float] = []
        self.dense_ms: list[float] = []
        self.delta_ms: list[float] = []
        self.law_frames: set[int] = set()
        self.went_wrong = False
        self.by_rounding = False  # whether tolerances follow the dense network's own rounding
        self.shapes: Any = None

    def take(self, inputs: tuple[Tensor, ...]) -> None:
        """Run one frame both ways and compare."""
        shapes = [tuple(f.shape) for f in inputs if isinstance(f, Tensor)]
        self.shapes = self.shapes or shapes
        if shapes != self.shapes:
            raise InputError(f"frame {len(self.dense_ms)} has the shape {shapes}, those before "
                             f"it {self.shapes}: a clip has one size. Validate the parts apart.")
        if len(inputs) == len(self.delta.input_names):  # else the stream has the better message
            self.checker.begin(*inputs)
        for_dense = [f.clone() if isinstance(f, Tensor) else f for f in inputs]
        converted, ms = timed(lambda: self.stream(*inputs), inputs)
        self.delta_ms.append(ms)
        dense, ms = timed(lambda: self._dense(for_dense), inputs)
        self.dense_ms.append(ms)
        self._compare(dense, converted, inputs)
        self._count_work()
        goes_wrong = any(o.goes_wrong for o in self.outputs)
        if self.checker.frame % self.law_every == 0 or (goes_wrong and not self.went_wrong):
            self._check_law()
        self.went_wrong = self.went_wrong or goes_wrong

    def _count_work(self) -> None:
        frame = Work()
        frame.add(self.stream)
        self.ratios_input.append(frame.input_ratio(self.program.nodes))
        self.ratios_nodes.append(frame.mean_ratio(self.program.nodes))
        if len(self.dense_ms) > 1:
            self.work.add(self.stream)

    def _dense(self, inputs: Sequence[Tensor]) -> Any:
        try:
            with torch.inference_mode():
                return self.model(*inputs)
        except (RuntimeError, ValueError) as error:
            raise FrameError(
                f"the dense model fails on frame {len(self.dense_ms)} of the shape {self.shapes}: "
                f"{str(error).splitlines()[0]}. Is it the model that was converted?") from error

    def _compare(self, dense: Any, converted: Any, inputs: Sequence[Any]) -> None:
        wanted, found = named_outputs(dense), named_outputs(converted)
        if [n for n, _ in wanted] != [n for n, _ in found]:
            raise InputError(
                f"the dense model returns {[n for n, _ in wanted]}, the converted one "
                f"{[n for n, _ in found]}. Is it the model that was converted?")
        if not self.outputs:
            self._start_outputs(wanted, inputs)
        for output, (_, a), (_, b) in zip(self.outputs, wanted, found, strict=True):
            output.add(a, b)
        if self.by_rounding and any(o.goes_wrong for o in self.outputs):
            self._allow_own_rounding(wanted, inputs)

    def _start_outputs(self, wanted: list[tuple[str, Tensor]], inputs: Sequence[Any]) -> None:
        given = [[_limit(self.limits[what], name) for what in ("tolerance", "max_abs")]
                 for name, _ in wanted]
        self.by_rounding = self.exact and all(lim is None for limits in given for lim in limits)
        if self.by_rounding:
            given = [[self._exact_tolerance(value), None] for _, value in wanted]
        self.outputs = [_Output(name, *limits)
                        for (name, _), limits in zip(wanted, given, strict=True)]
        self._check_limit_names()
        if self.by_rounding:
            self._allow_own_rounding(wanted, inputs)

    def _allow_own_rounding(self, dense: list[tuple[str, Tensor]], inputs: Sequence[Any]) -> None:
        """Raise tolerances to what float32 does to the dense network in this very frame.

        How far rounding goes differs from frame to frame by several times. A frame that is
        wrong in spite of it is wrong: then nothing is measured any more.
        """
        roundings = _own_roundings(self.model, inputs, dense, self._stored)
        for output, own in zip(self.outputs, roundings, strict=True):
            output.tolerance = max(output.tolerance or 0.0, OWN_ROUNDINGS * own)
        self.by_rounding = not any(o.goes_wrong for o in self.outputs)

    def _exact_tolerance(self, value: Tensor) -> float:
        precision = self._stored or (
            value.dtype if value.is_floating_point() else self._frame_dtype)
        return EXACT_TOLERANCES.get(precision, EXACT_TOLERANCES[torch.float32])

    def _check_limit_names(self) -> None:
        names = [o.name for o in self.outputs]
        for what, limit in self.limits.items():
            unknown = sorted(set(limit) - set(names)) if isinstance(limit, Mapping) else []
            if unknown:
                raise InputError(f"{what} names {', '.join(unknown)}; the outputs are "
                                 f"{', '.join(names)}.")

    def _check_law(self) -> None:
        if self.checker.frame not in self.law_frames and not self.checker.breaches:
            self.law_frames.add(self.checker.frame)
            self.checker.check()

    @property
    def program(self) -> Program | IslandsProgram:
        """What the converted frames are run by."""
        if self.stream.program is None:
            raise InputError("no island was called in the first frame, so there is nothing to "
                             "validate: the model calls other submodules than those converted.")
        return self.stream.program

    @property
    def exact(self) -> bool:
        """Whether nothing may be held back."""
        return all(node.about.threshold == 0 for node in self.program.nodes)

    @property
    def _stored(self) -> torch.dtype | None:
        """The precision that the settings ask for, where it is not the model's own."""
        name = self.delta.config.dtype
        return None if name is None else getattr(torch, name)

    @property
    def _frame_dtype(self) -> torch.dtype:
        return next((n.about.output.dtype for n in self.program.nodes
                     if n.about.output.dtype is not None), torch.float32)

    def report(self) -> Report:
        """Sum up; the last frame's law is checked first."""
        if not self.dense_ms:
            raise InputError("the clip holds no frames. An iterator that was used up gives none: "
                             "make it anew, or give a list.")
        self._check_law()
        nodes, work = self.program.nodes, self.work
        total = work.total()
        dense_ms, delta_ms = (statistics.median(ms[1:]) if ms[1:] else math.nan
                              for ms in (self.dense_ms, self.delta_ms))
        return Report(
            frames=len(self.dense_ms), lanes=self.program.lanes,
            dtype=str(self._frame_dtype).removeprefix("torch."), exact=self.exact,
            settings=settings_in_words(self.program), outputs=[o.report() for o in self.outputs],
            breaches=list(self.checker.breaches), law_frames=len(self.law_frames),
            law_nodes=self.checker.nodes_seen, update_ratio_input=work.input_ratio(nodes),
            update_ratio_nodes=work.mean_ratio(nodes), needed=ratio(total.needed, total.dense),
            scheduled=ratio(total.scheduled, total.dense), stages=work.stages(nodes),
            speed=SpeedReport(dense_ms, delta_ms, self.dense_ms[0], self.delta_ms[0],
                              torch.get_num_threads()),
            state_bytes=self.stream.state_bytes,
            activation_bytes=sum(_nbytes(node) for node in nodes),
            frame_ratio_input=self.ratios_input, frame_ratio_nodes=self.ratios_nodes)


def _own_roundings(model: nn.Module, inputs: Sequence[Any], dense: list[tuple[str, Tensor]],
                   stored: torch.dtype | None) -> list[float]:
    """Return how far each dense output is off the same network in float64, as relative RMS.

    With ``stored``, the dense network's in that precision.
    0 where that cannot be told: not every model runs in another precision than its own.
    """
    try:
        exact = _outputs_at(torch.float64, model, inputs)
        dense = dense if stored is None else _outputs_at(stored, model, inputs)
        ratios = [ratio(math.sqrt(_mean_square(_difference(value, reference))),
                         math.sqrt(_mean_square(_finite(reference))))
                  for (_, value), (_, reference) in zip(dense, exact, strict=True)]
        return [ratio if math.isfinite(ratio) else 0.0 for ratio in ratios]
    except Exception:  # the model's own code: it may raise anything
        return [0.0] * len(dense)


def _outputs_at(precision: torch.dtype, model: nn.Module, inputs: Sequence[Any]
                ) -> list[tuple[str, Tensor]]:
    frames = [f.to(precision) if isinstance(f, Tensor) and f.is_floating_point() else f
              for f in inputs]
    return named_outputs(private_copy(model).to(precision)(*frames))


def _limit(limit: Limit, name: str) -> float | None:
    return limit.get(name) if isinstance(limit, Mapping) else limit


def timed(call: Callable[[], Result], inputs: Sequence[Any]) -> tuple[Result, float]:
    """Return a call's result and its milliseconds, on the device that the inputs are on."""
    device = next((f.device for f in inputs if isinstance(f, Tensor)), torch.device("cpu"))
    _wait(device)
    start = time.perf_counter()
    result = call()
    _wait(device)
    return result, 1e3 * (time.perf_counter() - start)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _Output:
    """Sums of one output's errors."""

    def __init__(self, name: str, tolerance: float | None, max_abs: float | None) -> None:
        self.name, self.tolerance, self.max_abs_allowed = name, tolerance, max_abs
        self.first: Tensor | None = None
        self.squares: list[tuple[float, float, float]] = []  # of error, dense, frozen's error
        self.products = [0.0, 0.0, 0.0]  # dense with converted, and each with itself
        self.max_abs = self.max_relative = 0.0
        self.numbers = self.not_finite = 0  # of the dense output

    @property
    def goes_wrong(self) -> bool:
        """Whether the last frame is out of tolerance."""
        if not self.squares:
            return False
        so_far = math.sqrt(statistics.fmean(s[1] for s in self.squares))
        rms = ratio(math.sqrt(self.squares[-1][0]), so_far)
        return not ((self.tolerance is None or rms <= self.tolerance) and (
            self.max_abs_allowed is None or self.max_abs <= self.max_abs_allowed))

    def add(self, dense: Tensor, converted: Tensor) -> None:
        """Compare one frame's.

        Raises:
            InputError: where shapes or dtypes differ.
        """
        if dense.shape != converted.shape or dense.dtype != converted.dtype:
            raise InputError(
                f"output {self.name!r} is {dense.dtype} of {tuple(dense.shape)} from the dense "
                f"model, {converted.dtype} of {tuple(converted.shape)} from the converted one. "
                "Is it the model that was converted?")
        if self.first is None:
            self.first = dense.clone()
        error, reference = _difference(converted, dense), _finite(dense)
        self.numbers += dense.numel()
        self.not_finite += int((~dense.isfinite()).sum())
        # Where a frame has another number of boxes, all of it is new.
        frozen = _difference(self.first, dense) if self.first.shape == dense.shape else reference
        self.squares.append((_mean_square(error), _mean_square(reference), _mean_square(frozen)))
        self._add_products(reference, _finite(converted))
        if error.numel():
            largest = float(error.abs().max())
            self.max_abs = _larger(self.max_abs, largest)
            self.max_relative = _larger(self.max_relative,
                                        ratio(largest, float(reference.abs().max())))

    def _add_products(self, dense: Tensor, converted: Tensor) -> None:
        pairs = (dense, converted), (dense, dense), (converted, converted)
        for i, (a, b) in enumerate(pairs):
            self.products[i] += float((a * b).sum())

    def report(self) -> OutputReport:
        """Sum up."""
        rms = [math.sqrt(error) for error, _, _ in self.squares]
        error, size, frozen = (math.sqrt(statistics.fmean(part))
                               for part in zip(*self.squares, strict=True))
        worst = max(range(len(rms)), key=lambda i: math.inf if math.isnan(rms[i]) else rms[i])
        both, dense, converted = self.products
        lengths = math.sqrt(dense * converted)
        return OutputReport(
            name=self.name, max_abs=self.max_abs, max_relative=self.max_relative, rms=error,
            relative_rms=ratio(error, size), worst_frame=worst,
            worst_relative_rms=ratio(rms[worst], size), slope=slope(rms),
            cosine=both / lengths if lengths else math.nan, frozen_rms=frozen,
            frozen_relative_rms=ratio(frozen, size), tolerance=self.tolerance,
            max_abs_allowed=self.max_abs_allowed, frame_rms=rms,
            frame_frozen_rms=[math.sqrt(frozen) for _, _, frozen in self.squares],
            not_finite=ratio(self.not_finite, self.numbers))


def _numbers(value: Tensor) -> Tensor:
    """Return a tensor as float64; of labels, which have no size, each counts 1."""
    if value.is_complex():
        return torch.view_as_real(value).double()
    return value.double() if value.is_floating_point() else torch.ones_like(value).double()


def _finite(value: Tensor) -> Tensor:
    """Return a tensor as float64 with 0 for what is not finite, which has no size to speak of."""
    numbers = _numbers(value)
    return torch.where(numbers.isfinite(), numbers, 0.0)


def _difference(value: Tensor, reference: Tensor) -> Tensor:
    """Return value - reference as float64: 0 where both are the same infinity or both NaN."""
    if not (value.is_floating_point() or value.is_complex()):
        return (value != reference).double()
    a, b = _numbers(value), _numbers(reference)
    same = (a == b) | (a.isnan() & b.isnan())
    return torch.where(same, 0.0, a - b)


def _mean_square(value: Tensor) -> float:
    return float(value.square().mean()) if value.numel() else 0.0


def _larger(one: float, other: float) -> float:
    return other if other > one or math.isnan(other) else one


def slope(values: Sequence[float]) -> float:
    """Return the least-squares slope of values against their index; 0 for fewer than two."""
    middle, mean = (len(values) - 1) / 2, statistics.fmean(values)
    spread = sum((i - middle) ** 2 for i in range(len(values)))
    if spread == 0:
        return 0.0
    return sum((i - middle) * (v - mean) for i, v in enumerate(values)) / spread


def _nbytes(node: DeltaNode) -> int:
    spec = node.about.output
    return math.prod(spec.shape) * spec.dtype.itemsize if spec.shape and spec.dtype else 0


def settings_in_words(program: Program | IslandsProgram) -> str:
    """Say which thresholds and backends a program has."""
    config = program.config
    thresholds = sorted({n.about.threshold for n in program.nodes if n.about.rule != "sparsify"
                         and n.about.threshold > 0})
    unit = " std" if config.threshold_unit == "std" else ""
    said = "exact" if not thresholds else (
        f"thresholds {thresholds[0]:g}" + (f" to {thresholds[-1]:g}" if thresholds[1:] else "")
        + f"{unit} ({config.norm})")
    if config.input_threshold:
        said += f", input {config.input_threshold:g} ({config.input_test} test)"
    runs: dict[str, int] = {}
    for node in program.nodes:
        by = "in place" if node.about.aliases else node.backend
        runs[by] = runs.get(by, 0) + 1
    return said + "; nodes run by " + ", ".join(
        f"{name} {number}" for name, number in sorted(runs.items(), key=lambda r: -r[1]))
