"""Compiling kernels through CuPy, and launching them on PyTorch's current stream.

Launches go to the driver itself, because only so a kernel may be launched before the one
ahead of it is done, which `wait_for_earlier_kernels` in device.cuh is the other half of.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from deltaconvert.cuda.loader import Kernel, source_of

ORDINARY_SHARED_BYTES = 48 * 1024  # beyond, a kernel must be told that it may
PORTABLE_CLUSTER = 8  # blocks; the same
# A cached kernel loads in a few milliseconds; what takes longer is being compiled.
SILENT_SECONDS = 1.0


@dataclass
class Launch:
    """A kernel with all that it is called with.

    Args:
        kernel: which.
        args: its one argument, by value.
        grid: blocks in x and y.
        threads: of a block.
        shared_bytes: dynamic shared memory.
        cluster: blocks that run together, of which the grid is a multiple.
        fits: no more clusters than can be resident, so that none waits for the others to end.
    """

    kernel: Kernel
    args: ctypes.Structure
    grid: tuple[int, int]
    threads: int
    shared_bytes: int = 0
    cluster: int = 1
    fits: bool = False


class Launcher(Protocol):
    """What runs launches, and what it says about the device.

    Attributes:
        processors: streaming multiprocessors.
        shared_limit: bytes of shared memory that a block may have.
        capability: compute capability.
    """

    processors: int
    shared_limit: int
    capability: tuple[int, int]

    def prepare(self, kernels: Iterable[Kernel]) -> None:
        """Compile what is not compiled yet."""

    def launch(self, launch: Launch) -> None:
        """Run on the current stream, asynchronously."""

    def join(self) -> None:
        """Say that the next launch follows kernels of several streams: it waits for all of them."""


class CupyLauncher:
    """Runs kernels on one CUDA device."""

    def __init__(self, device: torch.device) -> None:
        """Ask the device what it is."""
        import cupy

        self._cupy = cupy
        self.device = device
        about = torch.cuda.get_device_properties(device)
        self.processors = about.multi_processor_count
        self.shared_limit = int(getattr(about, "shared_memory_per_block_optin"))  # noqa: B009
        self.capability = (about.major, about.minor)
        self._functions: dict[Kernel, Any] = {}
        self._allowed: dict[Kernel, int] = {}
        self.overlaps = self.capability >= (9, 0)  # kernels begin before the one ahead is done
        self._driver = Driver(self.overlaps)

    def prepare(self, kernels: Iterable[Kernel]) -> None:
        """Compile, several at once; say so on stderr when it takes a while."""
        missing = sorted(set(kernels) - set(self._functions), key=repr)
        if not missing:
            return
        start = time.monotonic()
        # Only half of the cores: the user's decoder may be running already.
        with ThreadPoolExecutor(max(1, (os.cpu_count() or 2) // 2)) as pool:
            done = pool.map(self._compile, missing)
            for count, (kernel, function) in enumerate(zip(missing, done, strict=True), 1):
                self._functions[kernel] = function
                if time.monotonic() - start > SILENT_SECONDS:
                    print(f"\rdeltaconvert: compiling CUDA kernels, {count} of {len(missing)} "
                          "(cached for the next start)", end="", file=sys.stderr, flush=True)
        if time.monotonic() - start > SILENT_SECONDS:
            print(file=sys.stderr)

    def _compile(self, kernel: Kernel) -> Any:
        with self._cupy.cuda.Device(self.device.index or 0):
            if kernel.architecture:
                module = self._cupy.RawModule(path=str(machine_code(kernel)))
            else:
                module = self._cupy.RawModule(code=source_of(kernel.file), options=kernel.options)
            return module.get_function(kernel.entry)

    def function(self, launch: Launch) -> int:
        """Return the driver's handle of a launch's kernel, with the shared memory it wants."""
        if launch.kernel not in self._functions:
            self.prepare([launch.kernel])
        function = self._functions[launch.kernel]
        if launch.shared_bytes > self._allowed.get(launch.kernel, ORDINARY_SHARED_BYTES):
            function.max_dynamic_shared_size_bytes = launch.shared_bytes
            self._allowed[launch.kernel] = launch.shared_bytes
        if launch.cluster > PORTABLE_CLUSTER and not launch.fits:
            self._driver.allow_large_clusters(function.kernel.ptr, launch)
        if launch.cluster > 1 and not launch.fits:
            self._driver.clip(function.kernel.ptr, launch)
        return int(function.kernel.ptr)

    def join(self) -> None:
        """See `Launcher`."""
        self._driver.next.joins = True

    def launch(self, launch: Launch) -> None:
        """Run on PyTorch's current stream of the device; see `Launcher`."""
        function, index = self.function(launch), self.device.index or 0
        if torch.cuda.current_device() == index:  # a guard costs as much as the launch
            self._driver.launch(function, launch, current_stream(index))
        else:
            with torch.cuda.device(index):
                self._driver.launch(function, launch, current_stream(index))


def machine_code(kernel: Kernel) -> Path:
    """Compile for the very architecture that a kernel is for; kept beside CuPy's own cache.

    CuPy itself compiles for what later GPUs of a family run too, which lacks the instructions
    that only one of them has.
    """
    from cupy_backends.cuda.libs import nvrtc

    source, options = source_of(kernel.file), (f"-arch={kernel.architecture}", *kernel.options)
    digest = hashlib.sha1(repr((source, options, nvrtc.getVersion())).encode()).hexdigest()
    folder = os.environ.get("CUPY_CACHE_DIR") or Path.home() / ".cupy" / "kernel_cache"
    path = Path(folder) / f"deltaconvert-{digest}.cubin"
    if path.exists():
        return path
    program = nvrtc.createProgram(source, kernel.file, (), ())
    try:
        nvrtc.compileProgram(program, options)
        code = nvrtc.getCUBIN(program)
    except nvrtc.NVRTCError as error:
        raise RuntimeError(f"{kernel}: {nvrtc.getProgramLog(program)}") from error
    finally:
        nvrtc.destroyProgram(program)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(code)
    os.replace(file.name, path)  # whole, also for a process beside this one
    return path


def current_stream(index: int) -> int:
    """Return the handle of PyTorch's current stream on a device."""
    raw = getattr(torch._C, "_cuda_getCurrentRawStream", None)  # what compiled graphs call, too
    return int(raw(index) if raw else torch.cuda.current_stream(index).cuda_stream)


def own_stream(device: int) -> torch.cuda.Stream:
    """Make a CUDA stream that nobody else is given, on a device in use; it is never destroyed.

    PyTorch gives its 32 out in turns, so that two threads may get the same one, and whatever is
    launched on a stream that is captured becomes part of the graph, whoever launches it.

    Raises:
        RuntimeError: the driver has none.
    """
    handle = ctypes.c_void_p()
    if status := driver().cuStreamCreate(ctypes.byref(handle), NON_BLOCKING):
        raise RuntimeError(f"cuStreamCreate: error {status}")
    return torch.cuda.ExternalStream(handle.value or 0, device=device)


class _Attribute(ctypes.Structure):
    """``CUlaunchAttribute``."""

    _fields_ = (("id", ctypes.c_int), ("pad", ctypes.c_int), ("value", ctypes.c_int * 16))


class _Config(ctypes.Structure):
    """``CUlaunchConfig``."""

    _fields_ = (("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3),
                ("shared_bytes", ctypes.c_uint), ("stream", ctypes.c_void_p),
                ("attributes", ctypes.POINTER(_Attribute)), ("count", ctypes.c_uint))


class _Next(threading.local):
    """What is said of this thread's next launch: others may launch in between."""

    joins = False


NON_BLOCKING = 1  # CU_STREAM_...: beside the default stream
NON_PORTABLE_CLUSTER_SIZE_ALLOWED = 14  # CU_FUNC_ATTRIBUTE_...
CLUSTER_DIMENSION, PROGRAMMATIC_STREAM_SERIALIZATION = 4, 6  # CU_LAUNCH_ATTRIBUTE_...


def driver() -> ctypes.CDLL:
    """Load the driver's library."""
    return ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")


class Driver:
    """The CUDA driver's launch."""

    def __init__(self, overlap: bool) -> None:
        """Load the driver; ``overlap`` launches kernels before the one ahead is done."""
        self._library = driver()
        self.overlap, self.next = overlap, _Next()

    def launch(self, function: int, launch: Launch, stream: int) -> None:
        """Launch a function.

        Raises:
            RuntimeError: with the driver's own words.
        """
        config = self._config(launch, stream)
        args = (ctypes.c_void_p * 1)(ctypes.addressof(launch.args))
        self._check(launch, self._library.cuLaunchKernelEx(
            ctypes.byref(config), ctypes.c_void_p(function), args, None))
        self.next.joins = False

    def allow_large_clusters(self, function: int, launch: Launch) -> None:
        """Let a kernel have clusters that not every GPU of its kind need be able to run."""
        self._check(launch, self._library.cuFuncSetAttribute(
            ctypes.c_void_p(function), NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1))

    def clip(self, function: int, launch: Launch) -> None:
        """Take clusters off a grid that are more than the device can run at the same time."""
        most = ctypes.c_int()
        config = self._config(launch, 0)
        self._check(launch, self._library.cuOccupancyMaxActiveClusters(
            ctypes.byref(most), ctypes.c_void_p(function), ctypes.byref(config)))
        launch.grid = min(launch.grid[0], max(1, most.value) * launch.cluster), launch.grid[1]
        launch.fits = True

    def _config(self, launch: Launch, stream: int) -> _Config:
        attributes = (_Attribute * 2)()
        count = 0
        if self.overlap and not self.next.joins:
            attributes[0].id, attributes[0].value[0] = PROGRAMMATIC_STREAM_SERIALIZATION, 1
            count = 1
        if launch.cluster > 1:
            attributes[count].id = CLUSTER_DIMENSION
            attributes[count].value[:3] = launch.cluster, 1, 1
            count += 1
        return _Config((*launch.grid, 1), (launch.threads, 1, 1), launch.shared_bytes, stream,
                       ctypes.cast(attributes, ctypes.POINTER(_Attribute)), count)

    def _check(self, launch: Launch, status: int) -> None:
        if status:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(status, ctypes.byref(text))
            words = text.value.decode() if text.value else f"error {status}"
            raise RuntimeError(f"{launch.kernel.entry} of {launch.kernel.file}: {words}")


def launch_all(launcher: Launcher, launches: Sequence[Launch]) -> None:
    """Run launches in order."""
    for launch in launches:
        launcher.launch(launch)
