"""A stream's frame as one CUDA graph, whose body runs only where the device says so.

PyTorch captures the body; the kernels before and behind it are added by the driver's own calls,
because they alone know conditional nodes, and how to change a kernel's arguments later. The
names in ``cu...`` and the layouts below are those of ``cuda.h``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import byref, c_int, c_longlong, c_ubyte, c_uint, c_void_p
from typing import Any

import torch

from deltaconvert.cuda.arguments import ConditionArgs
from deltaconvert.cuda.launcher import CupyLauncher, Launch, Launcher, current_stream, driver

CONDITIONAL, IF, SWITCH, DEFAULT_EACH_LAUNCH = 13, 0, 2, 1
PROGRAMMATIC = 1  # of an edge: its kind, and the port of the kernel that it leaves
OVERLAP = "cuGraphAddDependencies_v2"  # what older drivers lack


class _KernelNode(ctypes.Structure):
    """``CUDA_KERNEL_NODE_PARAMS``."""

    _fields_ = (("function", c_void_p), ("grid", c_uint * 3), ("block", c_uint * 3),
                ("shared_bytes", c_uint), ("args", ctypes.POINTER(c_void_p)),
                ("extra", c_void_p), ("kernel", c_void_p), ("context", c_void_p))


class _Edge(ctypes.Structure):
    """``CUgraphEdgeData``."""

    _fields_ = (("from_port", c_ubyte), ("to_port", c_ubyte), ("type", c_ubyte),
                ("reserved", c_ubyte * 5))


class _ConditionalNode(ctypes.Structure):
    """``CUgraphNodeParams`` of a conditional node."""

    _fields_ = (("type", c_int), ("reserved", c_int * 3), ("handle", c_longlong),
                ("kind", c_int), ("size", c_uint), ("bodies", ctypes.POINTER(c_void_p)),
                ("context", c_void_p), ("rest", c_longlong * 26))


class FrameGraph:
    """Kernels one after the other, a body that is chosen or may be skipped, and more kernels."""

    def __init__(self, launcher: Launcher, before: Sequence[Launch],
                 bodies: Sequence[torch.cuda.CUDAGraph], behind: Sequence[Launch],
                 condition: Launch | None) -> None:
        """Put a graph together.

        Args:
            launcher: of the device.
            before: the first kernels; their arguments may be changed by `update`.
            bodies: captured, and kept as graphs.
            behind: the last kernels.
            condition: the kernel that decides which body runs, if any, whose arguments get the
                handle; nothing, and the only one always runs.

        Raises:
            RuntimeError: with the driver's own words; it may be too old for conditional nodes.
        """
        assert isinstance(launcher, CupyLauncher)
        self._launcher, self._bodies = launcher, bodies  # whose memory the graph uses
        self.ways = len(bodies) if condition else 0
        self._library = driver()
        self._can_overlap = launcher.overlaps and hasattr(self._library, OVERLAP)
        self._graph, self._executable, self._last = c_void_p(), c_void_p(), c_void_p()
        self._overlaps = False  # the last node is a kernel that lets the next one begin early
        self._context = c_void_p()
        self._call("cuCtxGetCurrent", byref(self._context))
        self._call("cuGraphCreate", byref(self._graph), 0)
        # With where their arguments are, from which they may be told anew.
        self._nodes = {id(launch): (self._add_kernel(launch), self._params(launch))
                       for launch in before}
        if condition is None:
            self._add("cuGraphAddChildGraphNode", c_void_p(bodies[0].raw_cuda_graph()))
            self._overlaps = False
        else:
            self._add_condition(condition, bodies)
        for launch in behind:
            self._add_kernel(launch)
        self._call("cuGraphInstantiateWithFlags", byref(self._executable), self._graph,
                   ctypes.c_ulonglong(0))

    def update(self, launch: Launch) -> None:
        """Take over the arguments of one of the first kernels."""
        node, params = self._nodes[id(launch)]
        self._call("cuGraphExecKernelNodeSetParams_v2", self._executable, node, byref(params))

    def replay(self) -> None:
        """Launch on PyTorch's current stream of the device."""
        stream = current_stream(self._launcher.device.index or 0)
        self._call("cuGraphLaunch", self._executable, c_void_p(stream))

    def __del__(self) -> None:
        """Give the driver back what is the driver's."""
        if self._executable:
            self._library.cuGraphExecDestroy(self._executable)
        if self._graph:
            self._library.cuGraphDestroy(self._graph)

    def _params(self, launch: Launch) -> _KernelNode:
        args = (c_void_p * 1)(ctypes.addressof(launch.args))
        return _KernelNode(
            self._launcher.function(launch), (*launch.grid, 1), (launch.threads, 1, 1),
            launch.shared_bytes, ctypes.cast(args, ctypes.POINTER(c_void_p)))

    def _add_kernel(self, launch: Launch) -> c_void_p:
        params, before, overlaps = self._params(launch), self._last, self._overlaps
        self._overlaps = self._can_overlap
        if not overlaps:
            return self._add("cuGraphAddKernelNode_v2", byref(params))
        self._last = c_void_p()
        node = self._add("cuGraphAddKernelNode_v2", byref(params))
        edge = _Edge(from_port=PROGRAMMATIC, type=PROGRAMMATIC)
        self._call(OVERLAP, self._graph, byref(before), byref(node),
                   byref(edge), ctypes.c_size_t(1))
        return node

    def _add_condition(self, condition: Launch, bodies: Sequence[torch.cuda.CUDAGraph]) -> None:
        """Add the kernel that decides, and the node with the bodies."""
        args, handle = condition.args, c_longlong()
        assert isinstance(args, ConditionArgs)
        self._call("cuGraphConditionalHandleCreate", byref(handle), self._graph, self._context,
                   c_uint(0), c_uint(DEFAULT_EACH_LAUNCH))
        args.condition = handle.value
        self._add_kernel(condition)
        node = _ConditionalNode(type=CONDITIONAL, handle=handle.value, size=len(bodies),
                                kind=IF if len(bodies) == 1 else SWITCH, context=self._context)
        added, after = c_void_p(), (c_void_p * 1)(self._last)
        self._call("cuGraphAddNode_v2", byref(added), self._graph, after, None,
                   ctypes.c_size_t(1), byref(node))
        self._last, self._overlaps = added, False
        for i, body in enumerate(bodies):
            self._call("cuGraphAddChildGraphNode", byref(c_void_p()), c_void_p(node.bodies[i]),
                       None, ctypes.c_size_t(0), c_void_p(body.raw_cuda_graph()))

    def _add(self, name: str, what: Any) -> c_void_p:
        """Add a node behind the last one."""
        node, after = c_void_p(), (c_void_p * 1)(self._last)
        count = 1 if self._last else 0
        self._call(name, byref(node), self._graph, after if count else None,
                   ctypes.c_size_t(count), what)
        self._last = node
        return node

    def _call(self, name: str, *args: Any) -> None:
        function = getattr(self._library, name, None)
        if function is None:
            raise RuntimeError(f"the driver has no {name}")
        status = function(*args)
        if status:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(status, byref(text))
            raise RuntimeError(f"{name}: {text.value.decode() if text.value else status}")
