"""A stream: a sequence of frames with caches of its own."""

from __future__ import annotations

import copy
import operator
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree

from deltaconvert.errors import (
    FrameError,
    InputError,
    StreamBusyError,
    UnsupportedError,
    lacks_memory,
)
from deltaconvert.passes.calls import without_gradient
from deltaconvert.program import Program
from deltaconvert.state import NodeStats, Observer, State

if TYPE_CHECKING:
    from deltaconvert.module import DeltaModule


def take(lock: threading.Lock) -> None:
    """Acquire the lock of a stream.

    Raises:
        StreamBusyError: another thread has it.
    """
    if not lock.acquire(blocking=False):
        raise StreamBusyError("this stream is running in another thread. A stream takes one "
                              "thread at a time: give each thread its own new_stream().")


NOT_EXPORTED = (
    "a converted model is not exported, because what a stream keeps from frame to frame is no part "
    "of a graph. Export the dense model; deltaconvert.save(delta, path) writes a converted one to "
    "a file.")


def is_followed() -> bool:
    """Whether PyTorch follows what is called: ``torch.compile``, an export, a trace."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def is_transformed() -> bool:
    """Whether ``torch.func`` transforms what is called: ``vmap``, ``grad``, ``jvp``."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def refuse_transformed() -> None:
    """Refuse to be called under a transform of ``torch.func``.

    Raises:
        UnsupportedError: saying what to do instead.
    """
    if is_transformed():
        raise UnsupportedError(
            "a converted model is not transformed by torch.func (vmap, grad, jvp): it has a past, "
            "and no gradients. Give it a batch, N x C x H x W, or transform the dense model.")


def aside(call: Callable[..., Any], *args: Any, **named: Any) -> Any:
    """Make a call that ``torch.compile`` leaves as it is: it is compiled by other means.

    Raises:
        UnsupportedError: under an export, which keeps no past.
    """
    if torch.compiler.is_exporting() or torch.jit.is_tracing():
        raise UnsupportedError(NOT_EXPORTED)
    return torch.compiler.disable(call, reason="a converted model is compiled already")(
        *args, **named)


def checked_lanes(lanes: Iterable[int] | None) -> list[int] | None:
    """Return the numbers of lanes, of whatever holds them.

    Raises:
        InputError: for one number, or for what are no whole numbers.
    """
    if isinstance(lanes, int):
        raise InputError(f"lanes={lanes!r}: give a list, [{lanes}].")
    try:
        return None if lanes is None else [operator.index(lane) for lane in lanes]
    except TypeError:
        raise InputError(f"lanes={lanes!r}: give a list of whole numbers, as [0, 2].") from None


class Stream:
    """Callable like the model, on the frames of a video one after the other.

    Weights are the module's; values, masks, counters and working memory are the stream's.
    Two threads may run two streams; one stream takes one thread at a time.
    """

    def __init__(self, module: DeltaModule) -> None:
        """Start empty; buffers are allocated at the first frame."""
        self._module = module
        self._program: Program | None = None
        self._state: State | None = None
        self._signature: Any = None
        self._lock = threading.Lock()
        self._observer: Observer | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Stream:
        """Return an empty stream of the copied module."""
        return Stream(copy.deepcopy(self._module, memo))

    def __call__(self, *frames: Any, **named: Any) -> Any:
        """Compute the outputs for the next frame.

        Args:
            frames: the model's inputs, ``[N, C, H, W]`` (or whatever it takes), a lane a
                batch element. Another shape, dtype or device starts new state. So does another
                choice of optional inputs, structure of them, or number among them.
            named: those that are given by name.

        Returns:
            What the model returns: same structure, shapes and dtype; copies.

        Raises:
            FrameError: the frame was refused; the stream is as it was.
            StreamBusyError: another thread is inside this stream.
            UnsupportedError: ``torch.export``, or a trace, follows the call; or memory is short.
        """
        if is_followed():
            return aside(self, *frames, **named)
        refuse_transformed()
        take(self._lock)
        try:
            given = [] if named else [without_gradient(f) for f in frames]
            known = not named and self._is_known(given)
            if not known:
                given = self._module.arrange(frames, named)
                known = self._is_known(given)
            if known and self._is_plain() and not torch.is_inference_mode_enabled():
                return self._run(given, known)
            with torch.inference_mode(False), torch.no_grad():
                return self._run(given, known)
        finally:
            self._lock.release()

    def reset(self, lanes: Sequence[int] | None = None) -> None:
        """Forget the past, of all lanes or of some: their next frame is a first frame.

        Without ``lanes``, weights that were written in place count from here on (but not what is
        written through ``.data`` or NumPy, which leaves no trace: ``load_state_dict`` follows it).

        Raises:
            FrameError: for a lane that is not there.
            StreamBusyError: a frame is running.
            InputError: for what is no list of whole numbers.
        """
        chosen = checked_lanes(lanes)
        take(self._lock)
        try:
            self._reset(chosen)
        finally:
            self._lock.release()

    def _reset(self, lanes: Sequence[int] | None) -> None:
        if lanes is None:
            self._module.follow_weights()
        if self._state is None:
            return
        chosen = range(self._state.lanes) if lanes is None else lanes
        for lane in chosen:
            if not 0 <= lane < self._state.lanes:
                raise FrameError(f"lane {lane} is not there: the last batch had "
                                 f"{self._state.lanes} lanes.")
        for lane in chosen:
            self._state.fresh[lane] = True

    def check(self) -> None:
        """Wait for the device, and raise if it refused a frame.

        On a CPU a frame with NaN or infinity is refused at once, and this does nothing. On
        a GPU, where asking would stall it, the lane keeps its values; the next call after
        the device has found out raises, or this one.

        Raises:
            FrameError: naming the lanes.
        """
        if self._state is not None and self._state.runner is not None:
            self._state.runner.check()

    def observe(self, observer: Observer | None) -> None:
        """Call ``observer(node, edge)`` after every node of every frame; ``None`` stops it.

        ``edge.value`` and ``edge.mask`` are the stream's own memory: read, copy, but do not
        write them.
        """
        self._observer = observer
        if self._state is not None:
            self._state.observer = observer

    @property
    def program(self) -> Program | None:
        """What the last frame was run by."""
        return self._program

    @property
    def state_bytes(self) -> int:
        """Bytes of values, masks and working memory; 0 before the first frame."""
        return self._program.plan.nbytes if self._program else 0

    @property
    def last(self) -> dict[str, NodeStats]:
        """The work of the last frame, by node."""
        return self._state.last() if self._state else {}

    @property
    def totals(self) -> dict[str, NodeStats]:
        """The work of all frames since the state was started, by node."""
        return self._state.totals() if self._state else {}

    def _run(self, frames: list[Any], known: bool) -> Any:
        program, state, signature = self._enter(frames, known)
        names = program.input_names
        frames = program.as_stored(dict(zip(names, frames, strict=True)))
        for name, frame in zip(names, frames, strict=True):
            step = state.steps.get(name)
            if step is not None:  # every input is examined before any is written
                step.examine(frame)  # type: ignore[attr-defined]
        if state is not self._state:
            self._program, self._state, self._signature = program, state, signature
        try:
            leaves = state.runner(frames) if state.runner else (
                program.graph_module(state, *frames))
        except BaseException as error:
            state.fresh[:] = True  # half-way: nothing in it can be trusted
            if lacks_memory(error):
                raise program.too_large() from error
            raise
        state.fresh[:] = False
        state.add_frame()
        return pytree.tree_unflatten(leaves, program.out_spec)

    def _is_known(self, frames: list[Any]) -> bool:
        """Whether these are frames like the last."""
        return self._state is not None and self._module.is_signature(self._signature, frames)

    def _is_plain(self) -> bool:
        """Whether a frame calls nothing of PyTorch's that a mode would change: going in and out of
        modes costs as much as some of the steps.
        """
        state = self._state
        return state is not None and state.observer is None and state.runner is not None and (
            state.runner.plain)

    def _enter(self, frames: list[Any], known: bool) -> tuple[Program, State, Any]:
        """Return program, state and signature for such frames: those of the last, or new ones."""
        if known and self._program is not None and self._state is not None:
            return self._program, self._state, self._signature
        signature = self._module.signature(frames)
        program = self._module.program(signature, frames)
        state = program.new_state()
        state.observer = self._observer
        return program, state, signature
