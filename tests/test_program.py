"""Frames in the precision of the doors that they come to."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from deltaconvert.program import _SHARED, converted

FRAMES: dict[str, Callable[[], Tensor]] = {
    "planes": lambda: torch.randn(1, 3, 150, 160),
    "channels last": lambda: torch.randn(2, 3, 9, 7).to(memory_format=torch.channels_last),
    "a part of another": lambda: torch.randn(3, 3, 5, 40)[1:3],
    "with gaps": lambda: torch.randn(1, 3, 6, 50)[..., 5:45],
    "expanded": lambda: torch.randn(3, 4, 5).expand(2, 3, 4, 5),
    "negative": lambda: torch._neg_view(torch.randn(1, 3, 4, 5)),
    "empty": lambda: torch.randn(0, 3, 4, 5),
    "a number": lambda: torch.randn(()),
}


@pytest.mark.parametrize("name", FRAMES)
def test_is_what_pytorch_converts_to(name: str) -> None:
    frame = FRAMES[name]()
    expected = frame.to(torch.bfloat16)
    made = converted(frame, torch.bfloat16)
    assert made.dtype == torch.bfloat16
    assert torch.equal(made, expected)
    assert made.stride() == expected.stride()


def test_is_the_frame_itself_where_nothing_is_to_be_converted() -> None:
    frame = torch.randn(1, 3, 4, 5)
    assert converted(frame, None) is frame
    assert converted(frame, torch.float32) is frame


def test_pytorch_is_given_less_than_it_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its other threads would keep the helpers from the frame."""
    given: list[int] = []
    copy = Tensor.copy_
    monkeypatch.setattr(Tensor, "copy_", lambda to, of: given.append(to.numel()) or copy(to, of))
    converted(torch.randn(1, 3, 150, 160), torch.bfloat16)
    assert given == [_SHARED, _SHARED, 3 * 150 * 160 - 2 * _SHARED]
