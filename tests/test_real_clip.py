"""A trained network on real clips: FastestDet agrees with dense, through the CLI's files too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import deltaconvert
from deltaconvert.clips import open_clip
from examples.fastestdet import FastestDet

ROOT = Path(__file__).parent.parent


@pytest.fixture
def detector(data_dir):
    model = FastestDet()
    model.load_state_dict(torch.load(data_dir / "fastestdet.pth", weights_only=True))
    return model.eval()


@pytest.mark.parametrize("clip", ["plaza.avi", "highway.mp4"])
def test_agrees_with_dense_over_30_frames_at_threshold_0(detector, data_dir, clip):
    delta = deltaconvert.convert(detector, strict=True)
    frozen = None
    for time, frame in enumerate(open_clip(str(data_dir / clip), size=(352, 640), frames=30)):
        frame = frame[None].flip(1)  # the network takes BGR
        with torch.no_grad():
            expected = detector(frame)
        frozen = expected if frozen is None else frozen
        scale = expected.square().mean().sqrt()
        error = (delta(frame) - expected).square().mean().sqrt() / scale
        assert error < 1e-5, f"frame {time}"
    assert (frozen - expected).square().mean().sqrt() / scale > 1e-2, "the clip moves"


def test_converts_and_validates_through_the_command_line(data_dir, tmp_path):
    out = tmp_path / "fastestdet.delta"
    run = [sys.executable, "-m", "deltaconvert"]
    convert = subprocess.run(
        [*run, "convert", str(data_dir / "fastestdet.pth"), "--model",
         "examples.fastestdet:FastestDet", "-o", str(out)],
        cwd=ROOT, capture_output=True, text=True, check=False)
    assert convert.returncode == 0, convert.stderr
    validate = subprocess.run(
        [*run, "validate", str(out), "--source", str(data_dir / "highway.mp4"), "--size",
         "352x640", "--frames", "4", "--channel-order", "bgr"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin"})
    assert validate.returncode == 0, validate.stdout + validate.stderr
    assert "passed" in validate.stdout.lower()
