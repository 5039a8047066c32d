"""What runs in a process of its own may fail, die and hang, and the next call is answered."""

from __future__ import annotations

import os
import time

import pytest

from benchmarks.apart import Apart, Failed


def work(what):
    if what == "raise":
        raise ValueError("as told")
    if what == "die":
        os._exit(3)
    if what == "hang":
        time.sleep(60)
    return what, os.getpid()


def test_the_next_call_is_answered():
    run = Apart(work, seconds=20)
    (_, first), (_, second) = run("one"), run("two")
    assert first == second != os.getpid()
    for what, told in (("raise", "ValueError: as told"), ("die", "died")):
        with pytest.raises(Failed, match=told):
            run(what)
        found, process = run(what + "!")
        assert (found, process != first) == (what + "!", True)
    run.seconds = 0.5
    with pytest.raises(Failed, match="not done"):
        run("hang")
    run.close()
