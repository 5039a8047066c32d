"""Overlay videos: the frame, what was recomputed of it, and what a post-processing drew."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from deltaconvert.atomic import partial_name, unwritable
from deltaconvert.clips.decoding import import_av
from deltaconvert.errors import InputError
from deltaconvert.running.recomputed import INPUT

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

Draw = Callable[["ImageDraw", Any], None]

CODECS = ("libx264", "mpeg4")  # the first that this build of FFmpeg has
DEFAULT_FPS = 10
TINT = torch.tensor([255.0, 90.0, 0.0])
OPACITY = 0.45
TEXT_PX = 14
LEAST_PANEL_PX = 48


class OverlayVideo:
    """One clip's overlay, as an MP4 that gets its name when it is whole.

    A picture on top, the pixels that changed in it tinted; a panel for each resolution
    below, bright where it was recomputed.

    Args:
        path: of the video.
        fps: frames a second; None where the clip has no pace of its own.
        draw: draws one frame's result on its picture.
    """

    def __init__(self, path: Path, fps: float | None, draw: Draw | None = None) -> None:
        """Keep the settings; the video is opened at the first frame, which says its size."""
        self.path, self.draw = path, draw
        self.rate = Fraction(fps or DEFAULT_FPS).limit_denominator(1001)
        self._partial = partial_name(path)
        self._container: Any = None
        self._stream: Any = None

    def add(self, picture: Tensor, recomputed: Mapping[str, Tensor], said: str,
            result: Any = None) -> None:
        """Add a frame.

        Args:
            picture: ``[3, H, W]``, RGB from 0 to 1.
            recomputed: by resolution, see `Recomputed.by_scale`.
            said: a line of text.
            result: what the post-processing returned.

        Raises:
            InputError: the drawing raised.
            WriteError: the disk is full.
        """
        image = self._canvas(picture, recomputed, said, result)
        try:
            if self._container is None:
                self._open(image.shape[0], image.shape[1])
            frame = import_av().VideoFrame.from_ndarray(image, format="rgb24")
            self._container.mux(self._stream.encode(frame))
        except OSError as error:
            raise unwritable(self.path, error) from error

    def finish(self) -> Path | None:
        """Put the video in its place; None where there was no frame."""
        if self._container is None:
            return None
        try:
            self._container.mux(self._stream.encode(None))
            self._container.close()
            os.replace(self._partial, self.path)
        except OSError as error:
            raise unwritable(self.path, error) from error
        finally:
            self._partial.unlink(missing_ok=True)
        return self.path

    def discard(self) -> None:
        """Remove what was written."""
        if self._container is not None:
            self._container.close()
        self._partial.unlink(missing_ok=True)

    def _open(self, height: int, width: int) -> None:
        av = import_av()
        codec = next(name for name in CODECS if name in av.codecs_available)
        self._container = av.open(str(self._partial), "w", format="mp4")
        self._stream = self._container.add_stream(codec, rate=self.rate)
        self._stream.height, self._stream.width = height, width
        self._stream.pix_fmt = "yuv420p"

    def _canvas(self, picture: Tensor, recomputed: Mapping[str, Tensor], said: str,
                result: Any) -> np.ndarray:
        from PIL import Image, ImageDraw

        top = tinted(picture, recomputed.get(INPUT))
        image = Image.fromarray(top)
        self._draw(ImageDraw.Draw(image), result)
        stages = {name: m for name, m in recomputed.items() if name != INPUT}
        width, height = image.size
        panel = max(LEAST_PANEL_PX, width // max(1, len(stages)))
        panel_height = max(1, round(panel * height / width))
        size = (max(width, panel * len(stages)), height + 2 * TEXT_PX + panel_height)
        canvas = Image.new("RGB", (size[0] + size[0] % 2, size[1] + size[1] % 2))
        canvas.paste(image, (0, 0))
        text = ImageDraw.Draw(canvas)
        text.text((2, height), said, fill="white")
        nearest = Image.Resampling.NEAREST
        for column, (name, share) in enumerate(stages.items()):
            heat = Image.fromarray(heated(share)).resize((panel, panel_height), nearest)
            canvas.paste(heat, (column * panel, height + 2 * TEXT_PX))
            text.text((column * panel + 2, height + TEXT_PX), f"{name} {float(share.mean()):.0%}",
                      fill="white")
        return np.asarray(canvas)

    def _draw(self, onto: ImageDraw, result: Any) -> None:
        if self.draw is None:
            return
        try:
            self.draw(onto, result)
        except Exception as error:  # the user's code may raise anything
            raise InputError(f"the drawing of --postprocess raised {type(error).__name__}: "
                             f"{error}. It is called with a PIL.ImageDraw.Draw and what the "
                             "function returned.") from error


def tinted(picture: Tensor, mask: Tensor | None) -> np.ndarray:
    """Return a picture as uint8 ``[H, W, 3]``, its masked pixels tinted."""
    pixels = picture.permute(1, 2, 0) * 255
    if mask is not None:
        share = OPACITY * mask[..., None]
        pixels = pixels * (1 - share) + TINT * share
    array: np.ndarray = pixels.round().clamp(0, 255).to(torch.uint8).contiguous().numpy()
    return array


def heated(share: Tensor) -> np.ndarray:
    """Return a map from 0 to 1 as uint8 ``[H, W, 3]``: black, orange, white."""
    parts = (share * 3, share * 1.5 - 0.2, share * 3 - 2)
    array: np.ndarray = (torch.stack([p.clamp(0, 1) for p in parts], -1) * 255).to(
        torch.uint8).contiguous().numpy()
    return array


def draw_boxes(onto: ImageDraw, result: Any) -> None:
    """Draw ``result["boxes"]``: each with ``box`` (x1, y1, x2, y2 over the picture's size).

    And, where they have them, with ``label`` and ``score``. For post-processings of
    detectors: ``detections.draw = draw_boxes``.
    """
    image: Image = onto._image
    width, height = image.size
    for found in result["boxes"]:
        x1, y1, x2, y2 = (n * side for n, side in zip(found["box"], (width, height) * 2,
                                                      strict=True))
        onto.rectangle((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)), outline="lime")
        said = str(found.get("label", ""))
        if "score" in found:
            said += f" {found['score']:.2f}"
        onto.text((x1 + 1, max(0.0, y1 - TEXT_PX)), said.strip(), fill="lime")
