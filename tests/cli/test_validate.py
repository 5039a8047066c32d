"""``deltaconvert validate``."""

import json

import pytest
import torch

from deltaconvert.cli.frames import ModelFrames
from deltaconvert.cli.validate import parse_limits
from deltaconvert.clips import synthetic
from deltaconvert.errors import ConfigError, InputError
from deltaconvert.preprocessing import Preprocessing
from tests.cli.conftest import SPEC
from tests.clips.files import noise_picture, truncate, write_video

CLIP = ("--source", "synthetic:active_share=0.1", "--size", "32x48", "--frames", "5")


def test_passes_against_the_stored_graph(cli, converted, tmp_path):
    done = cli("validate", converted, *CLIP, "--json", tmp_path / "report.json")
    assert done.code == 0, done.out + done.err
    assert "against the stored dense graph, on synthetic 32x48" in done.out
    assert done.out.endswith("PASSED\n")
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["passed"] is True
    assert data["frames"] == 5


def test_passes_against_the_original(cli, converted):
    done = cli("validate", converted, *CLIP, "--model", SPEC, "--checkpoint", "training.pth")
    assert done.code == 0, done.out + done.err
    assert f"against {SPEC} with training.pth" in done.out


def test_other_weights_are_1(cli, converted, folder):
    state = torch.load(folder / "plain.pth", weights_only=True)
    torch.save({k: v * 1.5 for k, v in state.items()}, folder / "other.pth")
    done = cli("validate", converted, *CLIP, "--model", SPEC, "--checkpoint", "other.pth")
    assert done.code == 1
    assert "FAILED" in done.out
    assert done.err == ""


def test_a_tolerance_of_ones_own(cli, folder):
    assert cli("convert", "plain.pth", "--model", SPEC, "-o", "held.delta", "--threshold", "100",
               "--backend", "reference").code == 0
    open_ended = cli("validate", "held.delta", *CLIP)
    assert open_ended.code == 0
    assert "no tolerance given: not judged" in open_ended.out
    assert "no better than standing still" in open_ended.out
    assert cli("validate", "held.delta", *CLIP, "--tolerance", "1e-3").code == 1
    assert cli("validate", "held.delta", *CLIP, "--tolerance", "10").code == 0
    assert cli("validate", "held.delta", *CLIP, "--max-abs", "1e-6").code == 1


def test_frames_are_made_as_the_model_takes_them(cli, converted):
    done = cli("validate", converted, *CLIP, "--channel-order", "bgr", "--mean", "0.4,0.5,0.6",
               "--std", "0.2", "--backend", "reference", "--threads", "1")
    assert done.code == 0, done.out + done.err


@pytest.mark.parametrize("words, said", [
    (("--channel-order", "gray"), "fails on inputs of the shapes"),
    (("--channel-order", "hsv"), "choose one of rgb, bgr, gray"),
    (("--mean", "a"), "give numbers with commas between"),
    (("--mean", "1,2"), "mean has 2 numbers, the frames have 3 channels"),
    (("--std", "0"), "give numbers above 0"),
    (("--model", SPEC), "--model and --baseline go together"),
    (("--backend", "nonsense"), "choose auto"),
])
def test_refusals(cli, converted, words, said):
    done = cli("validate", converted, *CLIP, *words)
    assert done.code == 2
    assert said in done.err
    assert "Traceback" not in done.err


def test_frames_in_numbers():
    clip = synthetic((16, 24), 1, active_share=0)
    (rgb,) = clip
    (bgr,) = ModelFrames(clip, Preprocessing("bgr", (0.1, 0.2, 0.3), (2.0,)))
    mean = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
    assert torch.equal(bgr[0], (rgb[[2, 1, 0]] - mean) / 2)
    (gray,) = ModelFrames(clip, Preprocessing("gray"), torch.float64)
    assert gray.shape == (1, 1, 16, 24)
    assert gray.dtype == torch.float64
    expected = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]
    assert torch.allclose(gray[0, 0].float(), expected, atol=1e-6)
    with pytest.raises(ConfigError, match="choose one of"):
        Preprocessing("yuv")


def test_bisect_says_which_node_is_the_first(cli, converted, tmp_path, monkeypatch):
    done = cli("validate", converted, *CLIP, "--bisect", "--json", tmp_path / "a.json")
    assert done.code == 0, done.out + done.err
    assert "bisect: all 3 nodes keep the law in all 5 frames" in done.out
    data = json.loads((tmp_path / "a.json").read_text())
    assert data["bisect"]["breach"] is None
    assert len(data["bisect"]["errors"]) == 3


def test_a_limit_for_each_output():
    assert parse_limits("--tolerance", None) is None
    assert parse_limits("--tolerance", ["0.5"]) == 0.5
    assert parse_limits("--tolerance", ["boxes=0.5", "0=1e-3"]) == {"boxes": 0.5, "0": 1e-3}
    for wrong, said in ((["a"], "give a number, or OUTPUT=NUMBER"),
                        (["1", "out=2"], "give one number for all outputs, or OUTPUT=NUMBER")):
        with pytest.raises(InputError, match=said):
            parse_limits("--tolerance", wrong)


def test_limits_by_output_are_held(cli, converted):
    assert cli("validate", converted, *CLIP, "--tolerance", "out=1e-3").code == 0
    done = cli("validate", converted, *CLIP, "--max-abs", "boxes=1")
    assert done.code == 2
    assert "max_abs names boxes; the outputs are out" in done.err


def test_another_seed_is_another_clip(cli, converted, tmp_path):
    for seed in (0, 1):
        assert cli("validate", converted, *CLIP, "--seed", seed, "--json",
                   tmp_path / f"{seed}.json").code == 0
    one, two = (json.loads((tmp_path / f"{s}.json").read_text())["outputs"] for s in (0, 1))
    assert one[0]["frozen_rms"] != two[0]["frozen_rms"]


def test_report_is_one_page(cli, converted, tmp_path):
    done = cli("validate", converted, *CLIP, "--report", tmp_path / "a.html")
    assert done.code == 0, done.err
    page = (tmp_path / "a.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert "PASSED" in page
    assert page.count("<svg") == 2
    assert cli("validate", converted, *CLIP, "--report", tmp_path / "no" / "a.html").code == 2


def test_what_was_decoded_counts(cli, converted, tmp_path):
    clip = truncate(write_video(tmp_path / "a.avi", [noise_picture(s) for s in range(12)]), 0.6)
    done = cli("validate", converted, "--source", clip, "--json", tmp_path / "a.json")
    assert done.code == 2
    assert "PASSED" in done.out
    assert "error: " in done.err
    assert "breaks off after" in done.err
    data = json.loads((tmp_path / "a.json").read_text())
    assert 0 < data["frames"] < 12
    assert "breaks off after" in data["broken"]
