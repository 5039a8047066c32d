"""Launching, with a driver that only notes what it is asked."""

from __future__ import annotations

import threading

import torch

from deltaconvert.cuda import launcher
from deltaconvert.cuda.arguments import ConditionArgs
from deltaconvert.cuda.launcher import Driver, Launch
from deltaconvert.cuda.loader import kernel


class Notes:
    """Of each launch, how many attributes it has: one lets it begin early."""

    def __init__(self) -> None:
        self.attributes: list[int] = []

    def cuLaunchKernelEx(self, config, function, args, extra):
        self.attributes.append(config._obj.count)
        return 0


def test_what_waits_is_this_threads_next_launch(monkeypatch):
    notes = Notes()
    monkeypatch.setattr(launcher, "driver", lambda: notes)
    driver = Driver(overlap=True)
    launch = Launch(kernel("condition.cu", "decide", torch.float32), ConditionArgs(), (1, 1), 32)

    def run() -> None:
        driver.launch(0, launch, 0)

    driver.next.joins = True
    other = threading.Thread(target=run)
    other.start()
    other.join()
    run()
    run()
    assert notes.attributes == [1, 0, 1]
