"""Everything a user may hand in wrong: the type of its error, its text, and the exit code.

What the parts do is tested beside them; this is the list as a whole.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import deltaconvert
from deltaconvert import errors
from deltaconvert.checkpoints import apply_state_dict, read_checkpoint
from deltaconvert.clips import open_clip
from deltaconvert.files import container
from tests.cli.conftest import SPEC
from tests.clips.files import grey, noise_picture, truncate, write_picture, write_video

ROOT = Path(__file__).resolve().parents[2]


def test_every_type_of_error_is_in_the_list_of_the_documentation():
    listed = (ROOT / "docs" / "reliability.md").read_text()
    types = [t for t in vars(errors).values() if isinstance(t, type)]
    assert len(types) > 20
    assert [t.__name__ for t in types if f"`{t.__name__}`" not in listed] == []


# --- frames -----------------------------------------------------------------------------


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(4), nn.ReLU())


def nan_frame() -> Tensor:
    frame = torch.zeros(1, 3, 16, 16)
    frame[0, 1, 2, 3] = float("nan")
    return frame


FRAMES = {
    "rank": (torch.zeros(16, 16), errors.FrameShapeError,
             r"module 0 fails on inputs of the shapes \[\(16, 16\)\]: "),
    "channels": (torch.zeros(1, 4, 16, 16), errors.FrameShapeError,
                 "Check the size and the channels of the frames"),
    "dtype": (torch.zeros(1, 3, 16, 16, dtype=torch.float64), errors.FrameTypeError,
              "The weights are torch.float32: give the frames that dtype"),
    "device": (torch.zeros(1, 3, 16, 16, device="meta"), errors.FrameTypeError,
               r"is on the meta device, where tensors have no numbers. Give a real frame"),
    "nan": (nan_frame(), errors.NotFiniteError,
            r"holds 1 numbers that are NaN or infinite \(lanes \[0\]\). The frame was refused"),
    "infinity": (torch.full((1, 3, 16, 16), float("inf")), errors.NotFiniteError,
                 "holds 768 numbers that are NaN or infinite"),
    "no lane": (torch.zeros(0, 3, 16, 16), errors.FrameShapeError,
                "there is no lane or no pixel in it"),
    "no pixel": (torch.zeros(1, 3, 0, 16), errors.FrameShapeError,
                 "there is no lane or no pixel in it"),
    "too small": (torch.zeros(1, 3, 4, 4), errors.FrameShapeError,
                  r"fails on inputs of the shapes \[\(1, 4, 2, 2\)\].*Check the size"),
    "sparse": (torch.zeros(1, 3, 16, 16).to_sparse(), errors.FrameTypeError,
               r"is torch.sparse_coo, torch.float32: .* Give input.to_dense\(\)"),
    "no tensor": ([[1.0]], errors.FrameTypeError, "is a list, not a tensor. Decode and normalise"),
}


@pytest.mark.parametrize("kind", FRAMES)
def test_a_frame_is_refused_and_the_stream_goes_on(kind):
    wrong, error, text = FRAMES[kind]
    delta = deltaconvert.convert(small(), backend="reference")
    frame = torch.rand(1, 3, 16, 16)
    expected = delta(frame)
    with pytest.raises(error, match=text) as caught:
        delta(wrong)
    assert type(caught.value) is error
    assert caught.value.exit_code == 2
    assert torch.equal(delta(frame), expected)


def test_a_second_thread_in_one_stream():
    delta = deltaconvert.convert(small(), backend="reference")
    inside, leave, caught = threading.Event(), threading.Event(), []

    def wait(node, edge):
        inside.set()
        leave.wait(10)

    delta.observe(wait)
    first = threading.Thread(target=delta, args=(torch.rand(1, 3, 16, 16),))
    first.start()
    inside.wait(10)
    try:
        delta(torch.rand(1, 3, 16, 16))
    except errors.StreamBusyError as error:
        caught.append(str(error))
    leave.set()
    first.join()
    assert caught == ["this stream is running in another thread. A stream takes one thread at a "
                      "time: give each thread its own new_stream()."]


# --- models and weights -----------------------------------------------------------------


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return x if x.sum() > 0 else -x


def test_a_model_that_cannot_be_traced():
    with pytest.raises(errors.TraceError) as caught:
        deltaconvert.convert(Branching())
    text = str(caught.value)
    assert "test_bad_input.py" in text
    assert "return x if x.sum() > 0 else -x" in text
    assert "body" in text  # the submodule to convert instead
    assert caught.value.exit_code == 3


def test_weights_that_do_not_fit_are_all_listed_with_the_nearest_names():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
    state = model.state_dict()
    state["1.wieght"] = state.pop("1.weight")
    state["2.weight"] = torch.zeros(4, 5, 1, 1)
    del state["2.bias"]
    with pytest.raises(errors.MismatchError) as caught:
        apply_state_dict(model, state)
    text = str(caught.value)
    assert "missing: 2: 1.weight, 2.bias" in text
    assert "not in the model: 1: 1.wieght (near 1.weight)" in text
    assert "of another shape: 1: 2.weight is [4, 5, 1, 1], the model's is [4, 4, 1, 1]" in text
    assert "--model-arg" in text


def pickled(path: Path) -> None:
    torch.save(nn.Sequential(nn.Conv2d(3, 4, 3)), path)


def program(path: Path) -> None:
    with open(path, "wb") as file:
        torch.export.save(torch.export.export(small(), (torch.zeros(1, 3, 16, 16),)), file)


def zip_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(10**7))


WEIGHTS = {
    "missing": (lambda path: None, errors.CheckpointError, "does not exist"),
    "empty": (lambda path: path.write_bytes(b""), errors.DamagedError, r"is empty \(0 bytes\)"),
    "noise": (lambda path: path.write_bytes(bytes(range(256)) * 9), errors.DamagedError,
              "is damaged, cut off or no file of weights"),
    "program": (program, errors.CheckpointError, r"torch.export, not weights. Give .* in .pt2"),
    "objects": (pickled, errors.PickleError, r"was not opened: .*--trust-pickle"),
    "bomb": (zip_bomb, errors.UnsafeError, "would unpack to 10000000"),
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_a_file_of_weights_is_refused(kind, cli, folder):
    make, error, text = WEIGHTS[kind]
    make(folder / "w.pth")
    with pytest.raises(error, match=text) as caught:
        read_checkpoint("w.pth")
    assert type(caught.value) is error
    done = cli("convert", "w.pth", "--model", SPEC, "-o", "out.delta")
    assert (done.code, done.err) == (2, f"error: {caught.value}\n")
    assert not (folder / "out.delta").exists()


def test_trust_runs_the_code_and_says_so(cli, folder, caplog):
    from importlib import import_module

    sys.path.insert(0, str(folder))
    try:
        torch.save(import_module("small_network_for_cli").small(), folder / "whole.pth")
        done = cli("convert", "whole.pth", "--model", SPEC, "-o", "out.delta", "--trust-pickle")
    finally:
        sys.path.remove(str(folder))
    assert done.code == 0, done.err
    assert "unpickling it runs the code that it names, because it is trusted" in caplog.text


# --- .delta files -----------------------------------------------------------------------


def flipped(data: bytes) -> bytes:
    return data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]


def newer(data: bytes) -> bytes:
    model, tensors = container.unpack(data, "m")
    return container.pack(model, tensors, 2)


def overlapping(data: bytes) -> bytes:
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + size])
    spans = [t["data_offsets"] for t in header.values() if "data_offsets" in t]
    moved = next(span for span in spans if span[0] >= 8)
    moved[:] = [moved[0] - 8, moved[1] - 8]
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size:]


def evil(data: bytes) -> bytes:
    model, tensors = container.unpack(data, "m")
    record = next(r for r in model["graph"] if r["op"] == "operator")
    record |= {"op": "function", "target": "os.system"}
    return container.pack(model, tensors)


def oversized(data: bytes) -> bytes:
    return (10**9).to_bytes(8, "little") + data[8:]


DELTAS = {
    "truncated": (lambda data: data[:-7], errors.DamagedError, "is cut off: it has"),
    "flipped": (flipped, errors.DamagedError,
                "is damaged: its contents do not match its checksum"),
    "newer": (newer, errors.VersionError,
              "has the format version 2; this deltaconvert reads up to 1. Update it"),
    "header of a gigabyte": (oversized, errors.DamagedError,
                             "is damaged: it claims a header of 1000000000 bytes"),
    "overlapping": (overlapping, errors.DamagedError, "is damaged: "),
    "function": (evil, errors.UnsafeError,
                 "the function 'os.system' is not among the pure tensor functions"),
    "other": (lambda data: b"GIF89a" + data, errors.CheckpointError, r"is not a \.delta file"),
}


@pytest.mark.parametrize("kind", DELTAS)
def test_a_delta_file_is_refused(kind, cli, converted):
    change, error, text = DELTAS[kind]
    converted.write_bytes(change(converted.read_bytes()))
    with pytest.raises(error, match=text) as caught:
        deltaconvert.load(converted)
    assert type(caught.value) is error
    done = cli("run", converted, "--source", "synthetic", "--size", "32x48")
    assert (done.code, done.err) == (2, f"error: {caught.value}\n")
    assert list(converted.parent.glob("runs/*")) == []


# --- clips ------------------------------------------------------------------------------


def two_sizes(folder: Path) -> str:
    for number, size in enumerate([(32, 48), (16, 24)]):
        write_picture(folder / f"p{number}.png", noise_picture(number, size))
    return "p*.png"


def changing(folder: Path) -> str:
    """A raw H.264 stream of two sizes one after the other."""
    import av

    with open(folder / "change.h264", "wb") as file:
        for size in ((48, 64), (64, 96)):
            write_video(folder / "part.mkv", [grey(9, size)] * 4, "libx264")
            with av.open(str(folder / "part.mkv")) as container:
                stream = container.streams.video[0]
                annexb = av.bitstream.BitStreamFilterContext("h264_mp4toannexb", stream)
                for packet in container.demux(stream):
                    for out in annexb.filter(packet):
                        file.write(bytes(out))
    return "change.h264"


def cut(folder: Path) -> str:
    truncate(write_video(folder / "cut.avi", [noise_picture(n) for n in range(12)]), 0.6)
    return "cut.avi"


def text_as_video(folder: Path) -> str:
    (folder / "notes.mp4").write_text("no video " * 100)
    return "notes.mp4"


def empty(folder: Path) -> str:
    (folder / "empty.mp4").write_bytes(b"")
    return "empty.mp4"


CLIPS = {
    "missing": (lambda folder: "no.mp4", "no such file or folder: no.mp4. A clip is a video file"),
    "empty": (empty, r"empty\.mp4 is empty \(0 bytes\)"),
    "no video": (text_as_video, r"notes\.mp4 cannot be read as a video: "),
    "changing": (changing, r"frame \d+ is 64x96, the first one is 48x64 \(height x width\). Cut"),
    "cut off": (cut, r"cut\.avi breaks off after \d+ frames: the file was cut off. Repair"),
    "two sizes": (two_sizes, "pictures of different sizes: .*p1.png is 16x24, .*p0.png is 32x48"),
    "no pictures": (lambda folder: "*.png", "no pictures in the pattern"),
}


@pytest.mark.parametrize("kind", CLIPS)
def test_a_clip_is_refused_or_counts_up_to_there(kind, cli, converted, folder):
    make, text = CLIPS[kind]
    source = make(folder)
    half_way = kind in ("changing", "cut off", "two sizes")
    with pytest.raises(errors.ClipError, match=text) as caught:
        list(open_clip(source))
    assert type(caught.value) is (errors.BrokenClipError if half_way else errors.ClipError)
    done = cli("run", converted, "--source", source)
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    results = [p.name for p in folder.glob("runs/run1/*")]
    if half_way:  # what was decoded counts
        (clip,) = json.loads((folder / "runs/run1/summary.json").read_text())["clips"]
        assert clip["frames"] > 0
        assert clip["broken"] in done.err
    else:
        assert results == []


def test_a_clip_in_colour_for_a_model_of_one_channel(cli, folder):
    """Its error says which flag makes it gray."""
    torch.save(nn.Conv2d(1, 8, 3).state_dict(), "gray.pth")
    Path("gray_network_for_cli.py").write_text(
        "from torch import nn\n\ndef make():\n    return nn.Conv2d(1, 8, 3)\n")
    done = cli("convert", "gray.pth", "--model", "gray_network_for_cli:make", "-o", "gray.delta",
               "--backend", "reference")
    assert done.code == 0, done.err
    clip = "validate", "gray.delta", "--source", "synthetic", "--size", "32x48", "--frames", "2"
    done = cli(*clip)
    assert done.code == 2
    assert done.err.endswith("Frames for it are gray (on the command line --channel-order gray).\n")
    assert cli(*clip, "--channel-order", "gray").code == 0


# --- disks ------------------------------------------------------------------------------


def full(*args: object, **kwargs: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("words", [
    ("convert", "plain.pth", "--model", SPEC, "-o", "a.delta"),
    ("run", "small.delta", "--source", "synthetic", "--size", "32x48", "--frames", "2"),
    ("inspect", "small.delta", "--json", "a.json"),
    ("validate", "small.delta", "--source", "synthetic", "--size", "32x48", "--frames", "2",
     "--report", "a.html"),
])
def test_a_full_disk(cli, converted, folder, monkeypatch, words):
    before = sorted(p.name for p in folder.rglob("*"))
    monkeypatch.setattr(os, "replace", full)
    done = cli(*words)
    assert done.code == 2
    assert "cannot be written: No space left on device. Give a path in a folder" in done.err
    after = {p.name for p in folder.rglob("*")} - set(before)
    assert after <= {"runs", "__pycache__"} | {p.name for p in folder.glob("__pycache__/*")}


@pytest.mark.parametrize("flag", ["--json", "--report"])
def test_a_folder_that_is_not_there_is_told_before_the_work(cli, converted, flag):
    done = cli("run", converted, "--source", "synthetic", "--size", "32x48", flag, "no/a")
    assert done.code == 2
    assert "no/a cannot be written: there is no folder" in done.err


@pytest.mark.parametrize("words, lost", [
    (("convert", "plain.pth", "--model", SPEC, "-o", "plain.pth"), "plain.pth"),
    (("convert", "plain.pth", "--model", SPEC, "-o", "link.pth"), "link.pth"),
    (("convert", "plain.pth", "--model", SPEC, "-o", "a.delta", "--json", "a.delta"), "a.delta"),
    (("run", "small.delta", "--source", "clip.mp4", "--report", "clip.mp4"), "clip.mp4"),
    (("validate", "small.delta", "--source", "synthetic", "--json", "small.delta"), "small.delta"),
    (("inspect", "small.delta", "--html", "small.delta"), "small.delta"),
    (("tune", "small.delta", "--source", "clip.mp4", "-o", "clip.mp4"), "clip.mp4"),
    (("tune", "small.delta", "--source", "clip.mp4", "-o", "a.delta", "--json", "small.delta"),
     "small.delta"),
    (("bench", "small.delta", "--json", "small.delta"), "small.delta"),
])
def test_what_is_read_is_not_written_over(cli, converted, folder, words, lost):
    (folder / "link.pth").symlink_to("plain.pth")
    (folder / "clip.mp4").write_bytes(b"the only copy")
    before = {p: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    done = cli(*words)
    assert (done.code, done.err) == (2, (
        f"error: {lost} cannot be written: this command reads it, or writes something else there. "
        "Give another name.\n"))
    assert {p: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before


@pytest.mark.parametrize("words", [
    ["convert", "plain.pth", "--model", SPEC, "-o", "-"], ["run", "small.delta", "-o", "-"],
    ["run", "small.delta", "--report", "-"], ["tune", "small.delta", "-o", "-"],
    ["inspect", "small.delta", "--dot", "-"]], ids=lambda words: words[0] + words[-2])
def test_standard_output_is_for_json_alone(cli, converted, folder, words):
    clip = ["--source", "synthetic:frames=3,size=32x48"] if words[0] in ("run", "tune") else []
    done = cli(*words, *clip)
    assert done.code == 2, done.out
    assert "Name a f" in done.err
    assert not (folder / "-").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("words", [
    ["inspect", "small.delta"], ["inspect", "small.delta", "--json", "-"], ["--version"],
    ["--help"], ["run", "--help"]], ids=" ".join)
def test_standard_output_that_is_full(converted, folder, words):
    with open("/dev/full", "w") as full_device:
        done = subprocess.run(
            [sys.executable, "-m", "deltaconvert", *words], cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=full_device, text=True,
            stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (2, (
        "error: standard output cannot be written: No space left on device. Write to a file that "
        "has room left, or say --quiet.\n"))


@pytest.mark.parametrize("words", [
    ["inspect", "small.delta"], ["inspect", "small.delta", "--json", "-"], ["--help"]],
    ids=" ".join)
def test_a_reader_that_has_enough_is_no_failed_check(converted, folder, words):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "deltaconvert", *words], cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=writing, text=True,
        stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_standard_error_that_is_closed(folder):
    """Python has none at all then."""
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m deltaconvert inspect nothing.delta 2>&-"], cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == 2


def test_a_name_that_is_no_text(cli, converted, folder):
    """Of bytes that the locale has no letters for."""
    name = os.fsdecode(b"clip\xff.mkv")
    write_video(folder / "clip.mkv", [grey(v) for v in (50, 60)]).rename(folder / name)
    done = cli("run", converted, "--source", name, "--report", "a.html", "--json", "a.json")
    assert done.code == 0, done.err
    assert "clip?.mkv" in (folder / "a.html").read_text()
    assert json.loads((folder / "a.json").read_text())["clips"][0]["frames"] == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(cli, converted, folder):
    (folder / "locked").mkdir(mode=0o500)
    done = cli("inspect", converted, "--json", "locked/a.json")
    assert done.code == 2
    assert "no permission in" in done.err


# --- Ctrl-C -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("delay_s", [1.5, 2.5, 3.5, 5.0])
def test_ctrl_c_at_any_moment(converted, folder, delay_s):
    """While it imports Python itself ends the process by the signal, which shells call 130.

    Or loses it, where it comes in a callback, and says so; then as a user one asks again. Or makes
    another error of it, up to Python 3.11, where it comes in a `__set_name__`.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "deltaconvert", "run", "small.delta", "--source",
         "synthetic:frames=100000", "--size", "32x48"], cwd=folder, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        # A shell starts what runs in the background deaf to it, and so would this be.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    time.sleep(delay_s)
    process.send_signal(signal.SIGINT)
    try:
        _, err = process.communicate(timeout=60)
    except subprocess.TimeoutExpired as waiting:
        said = waiting.stderr or b""
        if b"Exception ignored" not in said or b"KeyboardInterrupt" not in said:
            raise  # it was not lost, so it should have ended
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    made_another = "KeyboardInterrupt" in err and "Error calling __set_name__" in err
    assert process.returncode in (130, -signal.SIGINT) or made_another, err
    for results in folder.glob("runs/*"):
        assert sorted(p.name for p in results.iterdir()) == ["summary.json", "synthetic.npz"]
