"""``deltaconvert bench``."""

import json

import pytest

from deltaconvert.bench import networks
from tests.cli.conftest import SPEC
from tests.clips.files import grey, write_video

SHORT = ("--size", "32x48", "--active", "0.1", "--frames", "7", "--against", "eager",
         "--backend", "reference", "--rounds", "2")


def test_writes_what_it_prints(cli, folder):
    done = cli("bench", SPEC, *SHORT, "--fidelity", "--json", "figures.json", "--plot", "time.png",
               "--report", "bench.html")
    assert done.code == 0, done.out + done.err
    assert "7 frames of synthetic 32x48" in done.out
    assert "over the best dense fp32 (eager)" in done.out
    data = json.loads((folder / "figures.json").read_text())
    assert data["model"] == SPEC
    assert data["machine"]["threads"] >= 1
    assert data["machine"]["libraries"]["torch"]
    assert data["size"] == [32, 48]
    assert data["threshold_search"]["threshold"] > 0
    assert {"speedup_over_best_dense_fp32", "speedup_over_eager", "fidelity_rms", "frozen_rms",
            "needed_share", "state_bytes"} <= set(data)
    assert (folder / "time.png").read_bytes().startswith(b"\x89PNG")
    page = (folder / "bench.html").read_text()
    assert page.count("<svg") == 2
    assert f"{data['speedup_over_eager']:.2f}x over eager" in page
    assert f"{SPEC}, 7 frames of synthetic 32x48; " in page


def test_a_delta_file_and_its_own_settings(cli, folder):
    assert cli("convert", "plain.pth", "--model", SPEC, "-o", "held.delta", "--threshold", "0.25",
               "--node", "0=0.5").code == 0
    done = cli("bench", "held.delta", *SHORT, "--json", "figures.json")
    assert done.code == 0, done.out + done.err
    data = json.loads((folder / "figures.json").read_text())
    assert "thresholds 0.25 to 0.5" in data["check"]["settings"] or (
        "thresholds 0.5" in data["check"]["settings"])
    assert data["threshold_search"] is None


def test_a_failing_check_is_1_and_nothing_is_timed_or_written(cli, folder, monkeypatch):
    monkeypatch.setattr(networks, "take_turns", lambda *_: pytest.fail("timed"))
    done = cli("bench", SPEC, *SHORT, "--threshold", "3", "--tolerance", "1e-6", "--checkpoint",
               "plain.pth", "--json", "figures.json")
    assert done.code == 1
    assert "the check failed, so nothing was timed" in done.err
    assert not (folder / "figures.json").exists()


@pytest.mark.parametrize("words, said", [
    (("--against", "nonsense"), "no dense runtime is called nonsense"),
    (("--plot", "time.jpg"), "ends in .png"),
    (("--size", "32"), "give height x width"),
    (("--source", "nothing.mp4", "--active", "0.1"), "only for the source 'synthetic'"),
    (("--json", "no/such.json"), "there is no folder"),
])
def test_refusals(cli, folder, words, said):
    done = cli("bench", SPEC, *SHORT, *words)
    assert done.code == 2
    assert said in done.err
    assert "Traceback" not in done.err


def test_a_clip_that_is_too_short_is_told_before_the_work(cli, folder):
    write_video(folder / "short.mkv", [grey(v) for v in (50, 60)])
    done = cli("bench", SPEC, "--source", "short.mkv")
    assert (done.code, done.err) == (2, (
        "error: the clip has 2 frames: give at least 4. The first is computed whole, and two "
        "after each pause are not timed.\n"))
