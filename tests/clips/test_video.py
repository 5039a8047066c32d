"""Video files, whole and broken: written here, then read back."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from deltaconvert.clips import open_clip
from deltaconvert.errors import InputError
from tests.clips.files import (
    HEIGHT,
    WIDTH,
    encoded,
    grey,
    levels,
    noise_picture,
    truncate,
    write_video,
)

RAMP = [grey(10 * n) for n in range(1, 21)]


class TestVideo:
    @pytest.mark.parametrize("name, codec", [("a.mp4", "h264"), ("a.avi", "mpeg4")])
    def test_frames_come_in_order_with_size_rate_and_values(self, tmp_path, name, codec):
        clip = open_clip(write_video(tmp_path / name, RAMP, codec))
        assert (clip.name, clip.size, clip.fps, clip.length) == (name, (HEIGHT, WIDTH), 25.0, 20)
        frames = list(clip)
        assert all(f.shape == (3, HEIGHT, WIDTH) and f.dtype == torch.float32 for f in frames)
        assert levels(clip) == pytest.approx([10 * n for n in range(1, 21)], abs=2)

    def test_the_rate_is_the_average_where_times_between_frames_differ(self, tmp_path):
        path = tmp_path / "a.mp4"
        with av.open(path, "w") as container:
            stream = container.add_stream("mpeg4", rate=25)
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            stream.codec_context.time_base = Fraction(1, 1000)
            for number in range(20):  # every second one comes soon after the one before
                frame = av.VideoFrame.from_ndarray(grey(10 * number), format="rgb24")
                frame.time_base = Fraction(1, 1000)
                frame.pts = 500 * (number // 2) + 40 * (number % 2)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        assert open_clip(path).fps == pytest.approx(4, rel=0.1)

    def test_channels_are_red_green_blue(self, tmp_path):
        picture = grey(0)
        picture[..., 0], picture[..., 1] = 200, 100
        frame = next(iter(open_clip(write_video(tmp_path / "a.mp4", [picture] * 3))))
        assert [round(float(c.mean()) * 255) for c in frame] == pytest.approx([200, 100, 0], abs=4)

    def test_every_iteration_starts_at_the_first_frame(self, tmp_path):
        clip = open_clip(write_video(tmp_path / "a.mp4", RAMP))
        first, second = iter(clip), iter(clip)
        next(first)
        assert torch.equal(next(iter(clip)), next(second))
        assert len(list(clip)) == len(list(clip)) == 20

    @pytest.mark.parametrize(
        "options, expected",
        [
            ({"frames": 3}, [10, 20, 30]),
            ({"start": 18}, [190, 200]),
            ({"start": 1, "stride": 4, "frames": 3}, [20, 60, 100]),
            ({"stride": 7}, [10, 80, 150]),
            ({"frames": 50, "start": 19}, [200]),
        ],
    )
    def test_start_stride_and_frames_select(self, tmp_path, options, expected):
        clip = open_clip(write_video(tmp_path / "a.mp4", RAMP), **options)
        assert levels(clip) == pytest.approx(expected, abs=2)
        assert clip.length == len(expected)
        assert clip.fps == 25 / options.get("stride", 1)

    def test_resizing_is_antialiased_bilinear(self, tmp_path):
        path = write_video(tmp_path / "a.mp4", [noise_picture()] * 2)
        whole = next(iter(open_clip(path)))
        clip = open_clip(path, size=(20, 24))
        small = next(iter(clip))
        expected = F.interpolate(whole[None], (20, 24), mode="bilinear", antialias=True)[0]
        assert clip.size == (20, 24)
        torch.testing.assert_close(small, expected, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("matrix, dims, flips", [
        ((1, 0, 0, 1), (1, 2), []), ((-1, 0, 0, 1), (1, 2), [2]), ((1, 0, 0, -1), (1, 2), [1]),
        ((-1, 0, 0, -1), (1, 2), [1, 2]), ((0, 1, -1, 0), (2, 1), [2]),
        ((0, -1, 1, 0), (2, 1), [1]), ((0, 1, 1, 0), (2, 1), []), ((0, -1, -1, 0), (2, 1), [1, 2])])
    def test_a_phone_may_turn_and_mirror_its_pictures(self, tmp_path, matrix, dims, flips):
        path = write_video(tmp_path / "a.mp4", [noise_picture(1)])
        stored, = open_clip(path)
        data = bytearray(path.read_bytes())
        at = data.index(b"tkhd") + 4 + 4 + 20 + 8 + 8  # version, times, reserved, layer ...
        a, b, c, d = (n << 16 for n in matrix)
        data[at:at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
        path.write_bytes(data)
        shown, = open_clip(path)
        assert torch.equal(shown, stored.permute(0, *dims).flip(flips))

    def test_a_colon_in_a_relative_name_is_no_protocol(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        write_video(tmp_path / "a.mp4", RAMP).rename("cam:10.mp4")
        assert len(list(open_clip("cam:10.mp4"))) == 20

    def test_the_length_of_a_real_avi_is_counted_not_read_from_its_header(self, data_file):
        clip = open_clip(data_file("plaza.avi"))  # the header says 682
        assert (clip.length, clip.size) == (341, (720, 1280))

    def test_real_video_decodes_to_the_reference_frame(self, data_file):
        frame = next(iter(open_clip(data_file("plaza.avi"), size=(352, 640))))
        reference = np.load(data_file("fastestdet_plaza0_640x352.npz"))["frame_bgr"]
        expected = torch.from_numpy(reference[..., ::-1].copy()).permute(2, 0, 1) / 255
        # Another resize made the reference; a wrong channel order is 6 times as far off.
        assert float((frame - expected).abs().mean()) < 0.02


class TestBrokenVideo:
    def test_missing(self, tmp_path):
        with pytest.raises(InputError, match=r"no such file or folder: .*nope\.mp4\. A clip is a"):
            open_clip(tmp_path / "nope.mp4")

    def test_empty(self, tmp_path):
        (tmp_path / "a.mp4").touch()
        with pytest.raises(InputError, match=r"a\.mp4 is empty \(0 bytes\)"):
            open_clip(tmp_path / "a.mp4")

    def test_not_a_video(self, tmp_path):
        (tmp_path / "notes.mp4").write_text("no video\n" * 100)
        with pytest.raises(InputError, match=r"notes\.mp4 cannot be read as a video: Invalid data"):
            open_clip(tmp_path / "notes.mp4")

    def test_sound_only(self, tmp_path):
        with av.open(str(tmp_path / "a.wav"), "w") as container:
            stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
            sound.sample_rate = 8000
            container.mux(stream.encode(sound))
        with pytest.raises(InputError, match=r"a\.wav holds no video that can be decoded"):
            open_clip(tmp_path / "a.wav")

    def test_header_without_frames(self, tmp_path):
        whole = write_video(tmp_path / "a.avi", RAMP).read_bytes()
        (tmp_path / "a.avi").write_bytes(whole[: whole.index(b"movi") + 4])
        with pytest.raises(InputError, match=r"a\.avi holds a video without frames"):
            open_clip(tmp_path / "a.avi")

    @pytest.mark.parametrize(
        "name, options",
        [
            ("a.mp4", {"movflags": "faststart"}),
            ("a.mp4", {"movflags": "frag_keyframe+empty_moov"}),
            ("a.avi", {}),
            ("a.mkv", {}),
            ("a.ts", {}),
            ("a.m2ts", {}),
        ],
    )
    def test_cut_off_half_way_yields_what_there_is_then_raises(self, tmp_path, name, options):
        pictures = [noise_picture(seed) for seed in range(40)]
        path = truncate(write_video(tmp_path / name, pictures, options=options), 0.49)
        seen: list[torch.Tensor] = []
        with pytest.raises(InputError, match=f"{name} breaks off after .*fewer frames") as caught:
            seen.extend(open_clip(path))  # keeps what came before the error
        assert 10 <= len(seen) <= 22
        assert f"after {len(seen)} frames" in str(caught.value)
        assert len(list(open_clip(path, frames=10))) == 10

    def test_an_avi_that_was_cut_off_between_two_frames(self, tmp_path):
        path = write_video(tmp_path / "a.avi", [noise_picture(seed) for seed in range(40)])
        content = path.read_bytes()
        path.write_bytes(content[: content.index(b"00dc", len(content) // 2)])
        with pytest.raises(InputError, match=r"breaks off after \d+ frames: the file was cut off"):
            list(open_clip(path))

    def test_whole_files_are_not_taken_for_cut_off(self, tmp_path):
        pictures = [noise_picture(seed) for seed in range(40)]
        for name in ("a.mp4", "a.avi", "a.mkv", "a.mov", "a.ts", "a.m2ts"):
            assert len(list(open_clip(write_video(tmp_path / name, pictures)))) == 40, name

    def test_frame_size_that_changes(self, tmp_path):
        big, small = grey(50), grey(50, (32, WIDTH))
        stream = [encoded(p, "mjpeg", "yuvj420p") for p in (big, big, big, small)]
        (tmp_path / "a.mjpeg").write_bytes(b"".join(stream))
        clip = open_clip(tmp_path / "a.mjpeg", size=(16, 16))
        with pytest.raises(InputError, match=r"frame 3 is 32x64, the first one is 48x64"):
            list(clip)

    def test_start_behind_the_end(self, tmp_path):
        clip = open_clip(write_video(tmp_path / "a.mp4", RAMP), start=20)
        with pytest.raises(InputError, match=r"a\.mp4 ends before frame 20: choose a smaller"):
            list(clip)
