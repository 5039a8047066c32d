"""Helpers of a frame run beside the caller, not on its core."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

AFFINITIES = """
import os, threading, torch
from deltaconvert.backends.cpu.frames.workers import Workers

torch.set_num_threads(2)
workers, done, seen = Workers(2), threading.Event(), []

def help_with(worker):
    seen.append(os.sched_getaffinity(0))
    done.set()

workers.invite(help_with)
assert done.wait(60)
print(len(os.sched_getaffinity(0)), len(seen[0]), len(seen[0] & os.sched_getaffinity(0)))
"""


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
                    reason="one core, or a system that binds no threads")
@pytest.mark.parametrize("binding", ["true", "close", "spread", "false"])
def test_helpers_are_not_bound_to_the_callers_core(binding):
    """Where a user has OpenMP bind threads, the main thread is bound too, and its children."""
    environment = os.environ | {"OMP_PROC_BIND": binding, "OMP_NUM_THREADS": "2"}
    ran = subprocess.run([sys.executable, "-c", AFFINITIES], env=environment, capture_output=True,
                         text=True, check=True, timeout=120)
    caller, helper, shared = map(int, ran.stdout.split())
    assert helper >= 1
    if binding == "false":
        assert caller == helper == shared == len(os.sched_getaffinity(0))
    else:
        assert (caller, shared) == (1, 0)


AT_THE_END = """
import atexit, threading, time
# Registered first, called last.
atexit.register(lambda: print([t.name for t in threading.enumerate() if "cpu" in t.name]))

import torch
from deltaconvert.backends.cpu.frames.workers import Workers

torch.set_num_threads(2)
kept, begun, printed = Workers(3), threading.Event(), threading.Event()

def help_with(worker):
    begun.set()
    printed.wait(60)
    time.sleep(0.1)  # it helps still when the program is at its end

kept.invite(help_with)
dropped = Workers(2)
dropped.invite(help_with)
del dropped
assert begun.wait(60)
print([t.name for t in threading.enumerate() if "cpu" in t.name])
printed.set()
"""


def test_no_helper_outlives_the_program():
    """A daemon thread that an ending interpreter kills may take the program down with it."""
    ran = subprocess.run([sys.executable, "-c", AT_THE_END], capture_output=True, text=True,
                         check=True, timeout=120)
    before, after = ran.stdout.splitlines()
    assert before.count("deltaconvert-cpu-") == 3
    assert after == "[]"
