"""Several clips at once, as lanes and as streams."""

import pytest
import torch

from deltaconvert.clips import Clip
from deltaconvert.errors import ClipError, InputError
from deltaconvert.running.batches import Sources


def counting(name: str, frames: int, breaks: bool = False, size=(2, 3)) -> Clip:
    """A clip whose n-th frame is full of n."""
    def made():
        for number in range(frames):
            yield torch.full((3, *size), float(number))
        if breaks:
            raise ClipError(f"{name} breaks off")

    return Clip(name, size, made)


def test_streams_take_turns_until_each_has_ended():
    sources = Sources([counting("a", 3), counting("b", 1)], lambda pixels: pixels + 10)
    batches = list(sources.as_streams())
    assert [(b.stream, b.pictures[0].index) for b in batches] == [(0, 0), (1, 0), (0, 1), (0, 2)]
    assert [float(b.frame[0, 0, 0, 0]) for b in batches] == [10, 10, 11, 12]
    assert batches[0].frame.shape == (1, 3, 2, 3)
    assert float(batches[2].pictures[0].pixels[0, 0, 0]) == 1  # the picture as it was


def test_the_lane_of_a_clip_that_has_ended_keeps_its_last_frame():
    batches = list(Sources([counting("a", 3), counting("b", 1)], lambda p: p).as_lanes())
    assert [b.frame[:, 0, 0, 0].tolist() for b in batches] == [[0, 0], [1, 0], [2, 0]]
    assert [[p and p.index for p in b.pictures] for b in batches] == [[0, 0], [1, None], [2, None]]


def test_a_clip_that_breaks_off_is_noted_and_the_others_go_on():
    sources = Sources([counting("a", 1, breaks=True), counting("b", 3)], lambda p: p)
    assert len(list(sources.as_streams())) == 4
    assert {index: str(error) for index, error in sources.broken.items()} == {0: "a breaks off"}
    sources = Sources([counting("a", 1, breaks=True), counting("b", 3)], lambda p: p)
    assert len(list(sources.as_lanes())) == 3
    assert list(sources.broken) == [0]


@pytest.mark.parametrize("way", ["as_lanes", "as_streams"])
def test_a_clip_that_breaks_before_its_first_frame_raises(way):
    with pytest.raises(ClipError, match="a breaks off"):
        list(getattr(Sources([counting("a", 0, breaks=True)], lambda p: p), way)())


def test_lanes_of_different_sizes_are_refused():
    clips = [counting("a", 2, size=(16, 24)), counting("b", 2)]
    with pytest.raises(InputError, match=r"the clips are not: a 16x24, b 2x3\. Give --size"):
        list(Sources(clips, lambda p: p).as_lanes())
