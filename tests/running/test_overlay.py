"""What an overlay shows: the pixels recomputed, by stage, and what was drawn."""

import av
import pytest
import torch
from torch import nn

import deltaconvert
from deltaconvert.errors import InputError
from deltaconvert.running.overlay import OverlayVideo, draw_boxes, heated, tinted
from deltaconvert.running.recomputed import Recomputed


def test_recomputed_pixels_are_the_candidates():
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, stride=2, padding=1),
                          nn.AdaptiveAvgPool2d(1))
    delta, seen = deltaconvert.convert(model, backend="reference"), Recomputed()
    stream = delta.new_stream()
    stream.observe(seen)
    frame = torch.rand(2, 1, 8, 8)
    stream(frame)
    frame = frame.clone()
    frame[1, 0, 4, 4] += 1
    seen.begin()
    stream(frame)
    still, moved = seen.by_scale(0), seen.by_scale(1)
    assert list(moved) == ["input", "1", "1/2"]
    assert all(float(m.sum()) == 0 for m in still.values())
    assert moved["input"].nonzero().tolist() == [[4, 4]]
    assert float(moved["1"].sum()) == 9
    assert moved["1"][3:6, 3:6].min() == 1
    assert moved["1/2"].nonzero().tolist() == [[1, 1], [1, 2], [1, 3], [2, 1], [2, 2], [2, 3],
                                               [3, 1], [3, 2], [3, 3]]


def test_tint_and_heat():
    picture, mask = torch.full((3, 2, 2), 0.5), torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    pixels = tinted(picture, mask)
    assert pixels[1, 1].tolist() == [128, 128, 128]
    assert pixels[0, 0, 0] > 128 > pixels[0, 0, 2]
    heat = heated(torch.tensor([[0.0, 1.0]]))
    assert heat[0].tolist() == [[0, 0, 0], [255, 255, 255]]


def decoded(path):
    with av.open(str(path)) as container:
        return [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]


def test_a_video_with_boxes_and_panels(tmp_path):
    video = OverlayVideo(tmp_path / "a.mp4", 25.0, draw_boxes)
    stages = {"input": torch.zeros(64, 96), "1/2": torch.ones(32, 48), "1/4": torch.zeros(16, 24)}
    found = {"boxes": [{"box": [0.25, 0.25, 0.75, 0.75], "label": "car", "score": 0.5}]}
    for _ in range(3):
        video.add(torch.zeros(3, 64, 96), stages, "frame 0", found)
    assert not (tmp_path / "a.mp4").exists()
    assert video.finish() == tmp_path / "a.mp4"
    frames = decoded(tmp_path / "a.mp4")
    assert len(frames) == 3
    assert frames[0].shape == (64 + 28 + 32, 96, 3)
    assert frames[0][48, 40:60, 1].mean() > 100  # the box's lower edge is green
    assert frames[0][40, 48].max() < 40  # and it is empty
    assert frames[0][-10, 20].min() > 200  # the stage that was recomputed is bright
    assert frames[0][-10, 70].max() < 60  # and the other one dark


def test_a_drawing_that_raises_is_told(tmp_path):
    video = OverlayVideo(tmp_path / "a.mp4", None, lambda onto, result: 1 / 0)
    with pytest.raises(InputError, match="the drawing of --postprocess raised ZeroDivisionError"):
        video.add(torch.zeros(3, 64, 96), {}, "", None)
    video.discard()
    assert list(tmp_path.iterdir()) == []


def test_without_frames_there_is_no_video(tmp_path):
    assert OverlayVideo(tmp_path / "a.mp4", 25.0).finish() is None
    assert list(tmp_path.iterdir()) == []
