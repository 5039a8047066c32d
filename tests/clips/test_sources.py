"""What holds for every source: arguments that are refused, and what PyAV is needed for."""

import os
import subprocess
import sys

import pytest

from deltaconvert.clips import open_clip
from deltaconvert.errors import ClipError, InputError
from tests.clips.files import grey, write_picture


@pytest.mark.parametrize(
    "options, message",
    [
        ({"frames": 0}, "frames must be a whole number of at least 1, got 0"),
        ({"start": -1}, "start must be a whole number of at least 0, got -1"),
        ({"stride": 0}, "stride must be a whole number of at least 1, got 0"),
        ({"stride": 1.5}, "stride must be a whole number of at least 1, got 1.5"),
        ({"size": (0, 10)}, r"size must be \(height, width\), two whole .* 1 px, got \(0, 10\)"),
        ({"size": (10,)}, r"size must be \(height, width\)"),
        ({"noise": 0.1, "objects": 2}, "objects, noise: only for the source 'synthetic', not for"),
    ],
)
def test_arguments_that_make_no_sense(tmp_path, options, message):
    write_picture(tmp_path / "f1.png", grey(1))
    with pytest.raises(InputError, match=message):
        open_clip(tmp_path, **options)


@pytest.mark.parametrize("source", ["rtsp://127.0.0.1/live", "http://127.0.0.1/a.mp4", "/dev/null",
                                    "fifo"])
def test_what_cannot_be_read_again_is_told_from_what_is_not_there(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")
    with pytest.raises(ClipError, match=f"^{source} is a stream or a device, and a clip is a file"):
        open_clip(source)


def test_an_empty_name_is_not_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_picture(tmp_path / "a.png", grey(1))
    with pytest.raises(ClipError, match="the name of the source is empty"):
        open_clip("")


def test_importing_needs_no_pyav():
    code = "import sys, deltaconvert.clips; sys.exit('av' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_pyav_files_are_refused_and_synthetic_works(tmp_path, monkeypatch):
    path = write_picture(tmp_path / "f1.png", grey(1))
    monkeypatch.setitem(sys.modules, "av", None)
    assert len(list(open_clip("synthetic", size=(32, 32), frames=2))) == 2
    with pytest.raises(InputError, match=r"needs PyAV \(.*\)\. Do: pip install av"):
        open_clip(path)


def test_text_is_not_drawn(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("FFmpeg would draw these words.\n" * 100)
    with pytest.raises(ClipError, match=r"notes\.txt is text, no video"):
        open_clip(path)


def test_a_pattern_of_numbers_is_led_to_a_glob(tmp_path):
    with pytest.raises(ClipError, match=r"are named by a glob: '.*/im_\*\.png', in quotes"):
        open_clip(tmp_path / "im_%04d.png")
