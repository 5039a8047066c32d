"""Synthetic clips: what changes from frame to frame, and what does not."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from deltaconvert.clips import Clip, open_clip, synthetic
from deltaconvert.errors import InputError


def changed_shares(clip: Clip) -> list[float]:
    """Share of the pixels, any channel, that differ from one frame to the next."""
    return [float((a != b).any(0).float().mean()) for a, b in pairwise(clip)]


def centre(mask: torch.Tensor) -> torch.Tensor:
    """Middle of a mask's bounding box, y and x."""
    places = mask.nonzero().float()
    return (places.amin(0) + places.amax(0)) / 2


def blobs(mask: torch.Tensor) -> int:
    """Number of connected regions, by spreading the largest label within the mask."""
    inside = mask.float()[None, None]
    labels = torch.arange(1.0, mask.numel() + 1).view_as(inside) * inside
    for _ in range(sum(mask.shape)):
        labels = F.max_pool2d(labels, 3, 1, 1) * inside
    return int(labels.unique().numel()) - 1


class TestSynthetic:
    @pytest.mark.parametrize("share", [0.01, 0.03, 0.05, 0.11, 0.3, 0.6, 0.7, 1.0])
    @pytest.mark.parametrize("size", [(64, 64), (97, 161), (360, 640)])
    def test_the_share_of_changed_pixels_is_the_one_asked_for(self, size, share):
        shares = changed_shares(synthetic(size, 12, active_share=share, seed=3))
        assert np.mean(shares) == pytest.approx(share, rel=0.06)
        assert min(shares) > 0.9 * share

    def test_share_holds_over_a_long_clip_with_its_turns(self):
        shares = changed_shares(synthetic((96, 160), 400, active_share=0.05))
        assert min(shares) > 0.8 * 0.05
        assert max(shares) < 1.2 * 0.05

    def test_no_share_gives_equal_frames_that_share_no_memory(self):
        first, *others = synthetic((64, 64), 4, active_share=0)
        assert all(torch.equal(first, other) for other in others)
        others[0].zero_()
        assert not torch.equal(first, others[0])
        assert torch.equal(first, others[1])

    @pytest.mark.parametrize(
        "options, expected",
        [({"active_share": 0.05}, 2), ({"active_share": 0.03}, 1), ({"objects": 5}, 5)],
    )
    def test_number_of_objects(self, options, expected):
        still, _ = synthetic((240, 320), 2, active_share=0, seed=1)
        frame, _ = synthetic((240, 320), 2, seed=1, **options)
        assert blobs((frame != still).any(0)) == expected

    def test_pixels_that_no_object_touches_are_equal_to_the_bit(self):
        frames = torch.stack(list(synthetic((120, 160), 6, active_share=0.05)))
        touched = (frames != frames[0]).any(0).any(0)
        assert 0.03 < float(touched.float().mean()) < 0.15

    def test_values_are_textured_and_in_range(self):
        frame = next(iter(synthetic((120, 160), 1, active_share=0.3, noise=0.2)))
        assert (frame.dtype, frame.shape) == (torch.float32, (3, 120, 160))
        assert 0 <= float(frame.min()) < 0.2
        assert 0.8 < float(frame.max()) <= 1
        background = next(iter(synthetic((120, 160), 1, active_share=0)))
        coarse = F.avg_pool2d(background[None], 20)[0]
        fine = background[..., 1:] - background[..., :-1]
        assert float(coarse.std()) > 0.05
        assert float(fine.std()) > 0.03

    def test_noise_has_the_sigma_asked_for_and_is_new_in_every_frame(self):
        clean = list(synthetic((120, 160), 3, active_share=0, seed=5))
        noisy = list(synthetic((120, 160), 3, active_share=0, seed=5, noise=0.02))
        grain = torch.stack(noisy) - torch.stack(clean)
        assert float(grain.std()) == pytest.approx(0.02, rel=0.02)
        assert float(grain.mean()) == pytest.approx(0, abs=2e-4)
        assert abs(float(torch.corrcoef(grain.flatten(1))[0, 1])) < 0.02

    def test_deterministic_by_seed_and_re_iterable(self):
        clip = synthetic((64, 64), 3, noise=0.01, seed=7)
        again, other = (list(synthetic((64, 64), 3, noise=0.01, seed=s)) for s in (7, 8))
        assert all(torch.equal(a, b) for a, b in zip(clip, again, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(clip, again, strict=True))
        assert not torch.equal(again[0], other[0])

    def test_start_and_stride_take_frames_of_the_same_clip(self):
        whole = list(synthetic((64, 64), 10, noise=0.01))
        some = list(open_clip("synthetic", size=(64, 64), noise=0.01, frames=3, start=2, stride=3))
        assert all(torch.equal(a, b) for a, b in zip(some, whole[2:9:3], strict=True))

    def test_objects_move_smoothly(self):
        still = next(iter(synthetic((120, 160), 1, active_share=0, seed=2)))
        clip = synthetic((120, 160), 200, active_share=0.03, seed=2)
        places = torch.stack([centre((frame != still).any(0)) for frame in clip])
        steps = (places[1:] - places[:-1]).abs()
        assert float(steps.max()) <= 3
        assert float(steps.sum(1).min()) >= 1
        # They cross the picture and turn at its edges.
        assert bool(((places.amax(0) - places.amin(0)) > torch.tensor([60, 80])).all())

    def test_options_behind_the_word_win(self):
        clip = open_clip(
            "synthetic:size=48x64, frames=4,active_share=0.3", frames=9, active_share=1
        )
        assert (clip.size, clip.length, clip.name, clip.fps) == ((48, 64), 4, "synthetic", None)
        assert changed_shares(clip) == pytest.approx([0.3] * 3, rel=0.1)

    def test_defaults(self):
        clip = open_clip("synthetic")
        assert (clip.size, clip.length) == ((360, 640), 60)

    @pytest.mark.parametrize(
        "call, message",
        [
            ({"active_share": 1.5}, "active_share must be between 0 and 1, got 1.5"),
            ({"active_share": float("nan")}, "active_share must be between 0 and 1, got nan"),
            ({"noise": -0.1}, "noise must be a standard deviation of at least 0, got -0.1"),
            ({"objects": 0}, "objects must be a whole number of at least 1, got 0"),
            ({"objects": 2, "active_share": 0.8}, "objects=2 needs an active_share over 0 and at"),
            ({"objects": 100}, r"an object of 2 pixels does not fit .*: choose another number"),
            ({"size": (8, 64)}, r"of at least 16 px, got \(8, 64\)"),
            ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
            ({"frames": 0}, "frames must be a whole number of at least 1, got 0"),
        ],
    )
    def test_arguments_that_make_no_sense(self, call, message):
        with pytest.raises(InputError, match=message):
            synthetic(**{"size": (64, 64), "frames": 2, **call})

    @pytest.mark.parametrize(
        "source, message",
        [
            ("synthetic:speed=3", "synthetic has no option 'speed'; it has size, frames, active_"),
            ("synthetic:noise=much", "synthetic: noise must be a number, got 'much'"),
            ("synthetic:size=big", "synthetic: size must be 360x640, got 'big'"),
            ("synthetic:size=64", r"size must be \(height, width\)"),
        ],
    )
    def test_options_that_make_no_sense(self, source, message):
        with pytest.raises(InputError, match=message):
            open_clip(source)
