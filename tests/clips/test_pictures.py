"""Folders, globs and single files of pictures: written here, then read back."""

import struct
from pathlib import Path

import av
import pytest
import torch
from PIL import Image

from deltaconvert.clips import natural_key, open_clip
from deltaconvert.errors import InputError
from tests.clips.files import (
    HEIGHT,
    WIDTH,
    encoded,
    grey,
    levels,
    noise_picture,
    truncate,
    write_picture,
)


class TestPictures:
    def test_folder_in_natural_order_other_files_left_out(self, tmp_path):
        for n in (1, 2, 9, 10, 100):
            write_picture(tmp_path / f"f{n}.png", grey(n))
        (tmp_path / "notes.txt").write_text("no picture")
        (tmp_path / "._f3.png").write_text("what some file systems leave behind")
        clip = open_clip(tmp_path)
        assert levels(clip) == [1, 2, 9, 10, 100] == levels(clip)
        assert (clip.name, clip.size, clip.length) == (tmp_path.name, (HEIGHT, WIDTH), 5)
        assert clip.fps is None

    def test_glob(self, tmp_path):
        for n in range(4):
            write_picture(tmp_path / f"a{n}.png", grey(10 * n))
            write_picture(tmp_path / f"b{n}.png", grey(200))
        clip = open_clip(str(tmp_path / "a*.png"), start=1, stride=2)
        assert levels(clip) == [10, 30]
        assert clip.length == 2

    def test_one_picture_is_a_clip_of_one_frame(self, tmp_path):
        picture = noise_picture()
        write_picture(tmp_path / "cam000.png", grey(1))
        # FFmpeg would read cam000.png.
        (frame,) = open_clip(write_picture(tmp_path / "cam%03d.png", picture))
        assert torch.equal((frame * 255).round().byte().permute(1, 2, 0), torch.from_numpy(picture))

    @pytest.mark.parametrize("orientation, dims, flips", [
        (1, (1, 2), []), (2, (1, 2), [2]), (3, (1, 2), [1, 2]), (4, (1, 2), [1]),
        (5, (2, 1), []), (6, (2, 1), [2]), (7, (2, 1), [1, 2]), (8, (2, 1), [1])])
    def test_however_a_camera_is_held_the_picture_is_upright(self, tmp_path, orientation, dims,
                                                             flips):
        """As Exif says it: 6 is a quarter turn clockwise, and 2, 4, 5 and 7 are mirrored."""
        picture = grey(0)
        picture[: HEIGHT // 2] = 160
        picture[:, : WIDTH // 2] += 80  # four quarters, all different
        jpeg = encoded(picture, "mjpeg", "yuvj420p")
        turned = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x112, 3, 1, orientation, 0, 0)
        app1 = b"\xff\xe1" + struct.pack(">H", len(turned) + 8) + b"Exif\0\0" + turned
        (tmp_path / "a.jpg").write_bytes(jpeg[:2] + app1 + jpeg[2:])
        (tmp_path / "b.jpg").write_bytes(jpeg)
        (stored,), (shown,) = open_clip(tmp_path / "b.jpg"), open_clip(tmp_path / "a.jpg")
        if len(flips) % 2 != (dims == (2, 1)) and av.__version__.startswith("18."):
            pytest.skip("PyAV 18 tells no mirrored picture with Exif data from a turned one")
        assert torch.equal(shown, stored.permute(0, *dims).flip(flips))
        assert float((stored[:, 2, 2] - stored[:, -2, -2]).abs().min()) > 0.9

    @pytest.mark.parametrize("name", ["a.png", "a.webp"])
    def test_an_animation_is_no_picture(self, tmp_path, name):
        first, *more = (Image.fromarray(grey(v)) for v in (10, 20, 30))
        first.save(tmp_path / name, save_all=True, append_images=more)
        with pytest.raises(InputError, match=rf"{name} is an animation.*as a GIF or a video"):
            open_clip(tmp_path / name)
        first.save(tmp_path / name)
        assert open_clip(tmp_path / name).length == 1

    def test_different_sizes(self, tmp_path):
        write_picture(tmp_path / "f1.png", grey(1))
        write_picture(tmp_path / "f2.png", grey(1, (32, 40)))
        clip = open_clip(tmp_path, size=(16, 16))
        with pytest.raises(
            InputError, match=r"different sizes: .*f2\.png is 32x40, .*f1\.png is 48"
        ):
            list(clip)

    def test_empty_folder(self, tmp_path):
        with pytest.raises(InputError, match=r"no pictures in the folder .*, found: no files"):
            open_clip(tmp_path)

    def test_folder_without_pictures_says_what_it_has(self, tmp_path):
        for name in ("a.mp4", "b.mp4", "c.txt"):
            (tmp_path / name).touch()
        with pytest.raises(
            InputError, match=r"found: 2 x \.mp4, 1 x \.txt\. Pictures end in \.bmp"
        ):
            open_clip(tmp_path)

    def test_glob_without_matches(self, tmp_path):
        with pytest.raises(InputError, match=r"no pictures in the pattern .*\*\.png, found: no"):
            open_clip(str(tmp_path / "*.png"))

    @pytest.mark.parametrize("name", ["f2.png", "f2.jpg"])
    def test_a_damaged_picture_raises_when_it_is_reached(self, tmp_path, name):
        write_picture(tmp_path / "f1.png", grey(1))
        truncate(write_picture(tmp_path / name, noise_picture()), 0.5)
        frames = iter(open_clip(tmp_path))
        next(frames)
        with pytest.raises(InputError, match=rf"{name} cannot be read as a picture: Invalid data"):
            next(frames)

    def test_start_behind_the_last(self, tmp_path):
        write_picture(tmp_path / "f1.png", grey(1))
        with pytest.raises(InputError, match="has 1 pictures, none from index 3 on"):
            open_clip(tmp_path, start=3)

    def test_natural_key_takes_digits_as_numbers(self):
        names = ["b1", "a10", "a9", "a1b2", "A2", "10", "9"]
        ordered = sorted(map(Path, names), key=natural_key)
        assert [str(p) for p in ordered] == ["9", "10", "a1b2", "A2", "a9", "a10", "b1"]
