"""``validate``: dense and converted side by side over a clip, and the law checked."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from deltaconvert.checking.dense import StoredModel, evaluating, own_roundings, stored_model
from deltaconvert.checking.law import Breach, LawChecker, check_law, inputs_of
from deltaconvert.checking.output_errors import OutputErrors
from deltaconvert.checking.report import Report, SpeedReport
from deltaconvert.errors import FrameError, InputError
from deltaconvert.islands import IslandsModule, IslandsProgram
from deltaconvert.module import DeltaModule
from deltaconvert.nodes import DeltaNode
from deltaconvert.outputs import named_outputs
from deltaconvert.program import Program
from deltaconvert.summary import settings_in_words
from deltaconvert.words import a_kind
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
        raise InputError(f"validate(model, delta, frames): delta is {a_kind(delta)}, not "
                         "what convert returned.")
    if law_every < 1:
        raise InputError(f"law_every={law_every}: give 1 to check the law in every frame, or more.")
    for what, limit in (("tolerance", tolerance), ("max_abs", max_abs)):
        for number in limit.values() if isinstance(limit, Mapping) else [limit]:
            if number is not None and not number >= 0:  # nor NaN, which nothing exceeds
                raise InputError(f"{what}={number}: give a number that is 0 or larger.")
    run = _Run(model or stored_model(delta), delta, tolerance, max_abs, law_every)
    with evaluating(run.model), torch.no_grad():
        for inputs in inputs_of(frames):
            run.take(inputs)
    return run.report()


class _Run:
    """One validation while it runs."""

    def __init__(self, model: nn.Module, delta: DeltaModule | IslandsModule, tolerance: Limit,
                 max_abs: Limit, law_every: int) -> None:
        self.model, self.delta, self.law_every = model, delta, law_every
        self.limits = {"tolerance": tolerance, "max_abs": max_abs}
        self.stream = delta.new_stream()
        self.checker = LawChecker(delta, each=False)
        self.stream.observe(self.checker)
        self.outputs: list[OutputErrors] = []
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
        shapes = [tuple(f.shape) for f in pytree.tree_leaves(inputs) if isinstance(f, Tensor)]
        self.shapes = self.shapes or shapes
        if shapes != self.shapes:
            raise InputError(f"frame {len(self.dense_ms)} has the shape {shapes}, those before "
                             f"it {self.shapes}: a clip has one size. Validate the parts apart.")
        self.checker.begin(*inputs)
        for_dense = pytree.tree_map_only(Tensor, Tensor.clone, inputs)
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
        self.outputs = [OutputErrors(name, *limits)
                        for (name, _), limits in zip(wanted, given, strict=True)]
        self._check_limit_names()
        if self.by_rounding:
            self._allow_own_rounding(wanted, inputs)

    def _allow_own_rounding(self, dense: list[tuple[str, Tensor]], inputs: Sequence[Any]) -> None:
        """Raise tolerances to what float32 does to the dense network in this very frame.

        How far rounding goes differs from frame to frame by several times. A frame that is
        wrong in spite of it is wrong: then nothing is measured any more.
        """
        roundings = own_roundings(self.model, inputs, dense, self._stored)
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


def _limit(limit: Limit, name: str) -> float | None:
    return limit.get(name) if isinstance(limit, Mapping) else limit


def timed(call: Callable[[], Result], inputs: Sequence[Any]) -> tuple[Result, float]:
    """Return a call's result and its milliseconds, on the device that the inputs are on."""
    device = next((f.device for f in pytree.tree_leaves(inputs) if isinstance(f, Tensor)),
                  torch.device("cpu"))
    _wait(device)
    start = time.perf_counter()
    result = call()
    _wait(device)
    return result, 1e3 * (time.perf_counter() - start)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _nbytes(node: DeltaNode) -> int:
    spec = node.about.output
    return math.prod(spec.shape) * spec.dtype.itemsize if spec.shape and spec.dtype else 0
