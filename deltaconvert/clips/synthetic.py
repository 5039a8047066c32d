"""Synthetic clips: their options and what these may be; `scene` draws the frames."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import count
from typing import Any

from deltaconvert.clips.clip import Clip, Selection, Size, checked_size, require_int
from deltaconvert.clips.scene import MOST_OBJECTS_SHARE, Scene
from deltaconvert.errors import InputError

_OPTIONS: dict[str, Callable[[str], Any]] = {
    "size": lambda text: tuple(int(extent) for extent in text.lower().split("x")),
    "frames": int,
    "active_share": float,
    "objects": int,
    "noise": float,
    "seed": int,
    "start": int,
    "stride": int,
}


def parse_options(text: str) -> dict[str, Any]:
    """The options behind `synthetic:`, as `name=value,name=value`."""
    options = {}
    for item in filter(None, text.split(",")):
        name, _, value = (part.strip() for part in item.partition("="))
        if name not in _OPTIONS:
            raise InputError(f"synthetic has no option {name!r}; it has {', '.join(_OPTIONS)}")
        try:
            options[name] = _OPTIONS[name](value)
        except ValueError:
            example = "360x640" if name == "size" else "a number"
            raise InputError(f"synthetic: {name} must be {example}, got {value!r}") from None
    return options


def synthetic(
    size: Size = (360, 640),
    frames: int = 60,
    *,
    active_share: float = 0.05,
    objects: int | None = None,
    noise: float = 0.0,
    seed: int = 0,
    start: int = 0,
    stride: int = 1,
) -> Clip:
    """A static camera's clip: textured objects move over a textured background.

    Objects are opaque and finely grained, move in straight lines by whole pixels and
    bounce; each keeps to its own part of the picture, so that none hides another. The
    background has structure from single pixels up to a third of the picture. Frames are
    made one at a time and depend on nothing but the arguments.

    Args:
        size: H and W in pixels, each at least 16.
        frames: number of frames.
        active_share: share of the pixels, 0..1, that differ from the frame before (at
            stride 1 and without noise): where objects are or have just been. 0 gives
            frames that are all equal. Above 0.6 there are no objects: a band of the
            background of that share moves instead, all of it at 1.
        objects: how many; default one for every 2.5 % of `active_share`, at least one.
        noise: standard deviation of the sensor noise added to every value, in units of
            the full range; at 0, pixels that no object touches are equal to the bit.
        seed: another seed is another clip.
        start, stride: begin at that moment, and take every `stride`-th.

    Raises:
        InputError: an argument makes no sense, or objects this small or large do not fit.
    """
    checked = checked_size(size, least=16)
    require_int("frames", frames, least=1)
    require_int("seed", seed, least=0)
    selection = Selection(start, stride, frames)
    _check_share(active_share, objects)
    if not 0 <= noise < math.inf:
        raise InputError(f"noise must be a standard deviation of at least 0, got {noise!r}")
    scene = Scene.make(checked, active_share, objects, noise, seed)
    return Clip(
        "synthetic", checked, lambda: map(scene.frame, selection.of(count())), length=lambda: frames
    )


def _check_share(active_share: float, objects: int | None) -> None:
    if not 0 <= active_share <= 1:
        raise InputError(f"active_share must be between 0 and 1, got {active_share!r}")
    if objects is None:
        return
    require_int("objects", objects, least=1)
    if not 0 < active_share <= MOST_OBJECTS_SHARE:
        raise InputError(
            f"objects={objects} needs an active_share over 0 and at most {MOST_OBJECTS_SHARE}, "
            f"got {active_share!r}: leave objects out"
        )
