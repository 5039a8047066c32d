"""``deltaconvert tune``."""

import json

from deltaconvert.files import load

CLIP = ("--source", "synthetic:active_share=0.1", "--size", "32x48")


def test_writes_a_file_that_validates(cli, converted, tmp_path):
    tuned = tmp_path / "tuned.delta"
    done = cli("tune", converted, *CLIP, "--frames", "6", "-o", tuned, "--error", "0.05",
               "--backend", "reference", "--json", tmp_path / "found.json")
    assert done.code == 0, done.out + done.err
    data = json.loads((tmp_path / "found.json").read_text())
    assert "threshold" in done.err
    assert f"wrote {tuned}; see how it does on another clip" in done.out
    config = load(tuned).config
    assert config.backend == load(converted).config.backend
    assert data["passed"] is True
    assert config.threshold == data["threshold"] > 0
    assert sorted(config.nodes) == sorted(n for g in data["groups"] for n in g["nodes"])
    checked = cli("validate", tuned, *CLIP, "--frames", "6", "--tolerance", "0.05")
    assert checked.code == 0, checked.out + checked.err


def test_quiet_says_nothing(cli, converted, tmp_path):
    done = cli("tune", converted, *CLIP, "--frames", "3", "-o", tmp_path / "tuned.delta",
               "--rounds", "0", "--error", "0.05", "--quiet")
    assert (done.code, done.out, done.err) == (0, "", "")


def test_an_error_that_no_threshold_meets_is_1(cli, converted, tmp_path):
    done = cli("tune", converted, *CLIP, "--frames", "4", "-o", tmp_path / "tuned.delta",
               "--error", "1e-12", "--backend", "reference")
    assert done.code == 1, done.out + done.err
    assert "nothing is held back" in done.out


def test_a_wrong_error_is_2_and_writes_nothing(cli, converted, tmp_path):
    done = cli("tune", converted, *CLIP, "-o", tmp_path / "tuned.delta", "--error", "-1")
    assert done.code == 2
    assert "error=-1.0, rounds=2: give an error above 0" in done.err
    assert not (tmp_path / "tuned.delta").exists()
