"""Runs the kernels on the CPU: each specialisation compiled by g++ against the host's shim."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from deltaconvert.cuda.launcher import Launch
from deltaconvert.cuda.loader import FOLDER, Kernel, source_of

HOST = Path(__file__).parent
ORDERS = ((0, 0xFF), (1, 0x7F), (2, 0xFF))  # forwards, backwards, mixed; and the poison
_ENTRY = re.compile(r'extern "C" __global__ void (?:__launch_bounds__\([\w, ]+\) )?'
                    r'(\w+)\((\w+) args\)')
STANDARD = "-std=c++17"
RUNNER = """
extern "C" const char* host_run(void (*kernel)(const void*), const void* args, int grid_x,
                                int grid_y, int threads, unsigned long shared_bytes, int cluster,
                                int order, int poison) {
    return host::run(kernel, args, grid_x, grid_y, threads, shared_bytes, cluster, order, poison);
}
"""


def compiler() -> str:
    """Return g++, or skip the test."""
    found = shutil.which("g++")
    if found is None:
        pytest.skip("no g++ to compile the kernels with")
    return found


def source_for_host(file: str, change: tuple[str, str] | None = None) -> tuple[str, str]:
    """Return the shim's file that a kernel file includes, and what it says beside that.

    With one text in it replaced, to plant a mistake.
    """
    source = source_of(file, (HOST, FOLDER))
    shim = "device_sm90.cuh" if _text_of("device_sm90.cuh") in source else "device.cuh"
    for part in ("device.cuh", shim):
        source = source.replace(_text_of(part), "")
    if change is not None:
        if source.count(change[0]) != 1:  # no failed assertion, which a mistake is noticed by
            raise LookupError(f"{change[0]!r} is not there once")
        source = source.replace(*change)
    for entry, args in _ENTRY.findall(source):
        source += f"""
extern "C" void call_{entry}(const void* args) {{ {entry}(*static_cast<const {args}*>(args)); }}
extern "C" unsigned long sizeof_{entry}() {{ return sizeof({args}); }}
"""
    return shim, source


def _text_of(shim: str) -> str:
    """Return a file of the shim as it is in a kernel's text, without what it includes."""
    return re.sub('^#pragma once\n|^#include ".*"$', "", (HOST / shim).read_text("utf-8"),
                  flags=re.MULTILINE)


@functools.cache
def library(file: str, options: tuple[str, ...],
            change: tuple[str, str] | None = None) -> ctypes.CDLL:
    """Compile a file."""
    runner()  # first, because its variables are taken
    shim, source = source_for_host(file, change)
    return ctypes.CDLL(str(_built(source, ".so", *options, "-include", str(precompiled(shim)))))


@functools.cache
def precompiled(shim: str) -> Path:
    """Return the shim, with what g++ makes of it beside it: that takes as long as most kernels."""
    source = source_of(shim, (HOST,))
    header = _built(source, ".hpp.gch", STANDARD, "-x", "c++-header").with_suffix("")
    if not header.exists():
        partial = header.with_suffix(f".{os.getpid()}")
        partial.write_text(source, encoding="utf-8")
        os.replace(partial, header)
    return header


@functools.cache
def runner() -> ctypes.CDLL:
    """Compile what runs kernels; its variables of the shim are those of all libraries after it."""
    built = _built(RUNNER, ".so", STANDARD, "-include", str(precompiled("device.cuh")))
    return ctypes.CDLL(str(built), mode=ctypes.RTLD_GLOBAL)


def _built(source: str, suffix: str, *options: str) -> Path:
    """Compile a text; kept for the next run of the tests under a hash of all that matters."""
    digest = hashlib.sha1(repr((source, options)).encode()).hexdigest()[:20]
    folder = Path(tempfile.gettempdir()) / f"deltaconvert-host-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    built = folder / f"{digest}{suffix}"
    if not built.exists():
        with tempfile.TemporaryDirectory(dir=folder) as work:
            text, made = Path(work) / "kernel.cpp", Path(work) / f"made{suffix}"
            text.write_text(source, encoding="utf-8")
            command = [compiler(), *options, "-O1", "-U_FORTIFY_SOURCE", "-fPIC",
                       "-ffp-contract=off", "-Wall", "-Wno-unknown-pragmas", "-Wno-unused",
                       "-Wno-maybe-uninitialized", *(["-shared"] if suffix == ".so" else []),
                       str(text), "-o", str(made)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120,
                                  check=False)
            assert done.returncode == 0, done.stderr[:4000]
            os.replace(made, built)  # whole, also for a process beside this one
    return built


class HostLauncher:
    """A launcher on the CPU.

    Args:
        order: index into `ORDERS`.
        change: a mistake to plant in a file, ``(file, text, replacement)``.
        processors: of a small GPU, so that tiles outnumber blocks.
    """

    shared_limit = 227 * 1024
    capability = (9, 0)

    def __init__(self, order: int = 0, change: tuple[str, str, str] | None = None,
                 processors: int = 2) -> None:
        self.order, self.change, self.processors = order, change, processors
        self.ran: list[Kernel] = []

    def prepare(self, kernels: Iterable[Kernel]) -> None:
        for kernel in kernels:
            self._library(kernel)

    def _library(self, kernel: Kernel) -> ctypes.CDLL:
        change = None
        if self.change is not None and self.change[0] == kernel.file:
            change = self.change[1:]
        return library(kernel.file, kernel.options, change)

    def join(self) -> None:
        pass

    def launch(self, launch: Launch) -> None:
        built = self._library(launch.kernel)
        entry = launch.kernel.entry
        size = getattr(built, f"sizeof_{entry}")()
        assert size == ctypes.sizeof(launch.args), (entry, size, ctypes.sizeof(launch.args))
        run = runner().host_run
        run.restype = ctypes.c_char_p
        order, poison = ORDERS[self.order]
        self.ran.append(launch.kernel)
        error = run(getattr(built, f"call_{entry}"), ctypes.byref(launch.args), *launch.grid,
                    launch.threads, ctypes.c_ulong(launch.shared_bytes), launch.cluster, order,
                    poison)
        assert error is None, f"{entry}: {error.decode()}"
