"""``deltaconvert run``."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import deltaconvert
from deltaconvert.cli.run import _interruptible
from deltaconvert.files import load
from tests.clips.files import grey, noise_picture, truncate, write_picture, write_video

ROOT = Path(__file__).resolve().parents[2]
CLIP = ("--source", "synthetic:active_share=0.1", "--size", "32x48", "--frames", "5")

FUNCTIONS = '''
def mean(output):
    return {"mean": float(output.mean())}

def fails(output):
    raise KeyError("boxes")

def tensor(output):
    return output

def drawn(output):
    return {"boxes": []}

drawn.draw = lambda onto, result: onto.rectangle((0, 0, 47, 31), fill="blue")
'''


@pytest.fixture
def functions(folder):
    """A module of post-processings in the current folder."""
    (folder / "functions_for_cli.py").write_text(FUNCTIONS)
    return "functions_for_cli"


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_outputs_are_the_models_and_the_summary_says_what_was_measured(cli, converted, folder):
    done = cli("run", converted, *CLIP, "--dense-every", "2", "--json", "run.json")
    assert done.code == 0, done.err
    assert "5 of 1 clip in" in done.out
    assert "p50 " in done.out
    assert "on the same 2 calls" in done.out
    assert "results: runs/run1: synthetic.npz, summary.json" in done.out
    assert names(folder / "runs" / "run1") == ["summary.json", "synthetic.npz"]
    data = json.loads((folder / "run.json").read_text())
    assert data == json.loads((folder / "runs" / "run1" / "summary.json").read_text())
    assert (data["frames"], data["dense"]["calls"], data["interrupted"]) == (5, 2, False)
    assert 0 < data["needed"] < 1
    assert len(data["ms"]) == 5
    with np.load(folder / "runs" / "run1" / "synthetic.npz") as arrays:
        assert arrays["out"].shape == (5, 1, 4, 16, 24)


def test_the_frames_are_those_of_the_clip(cli, converted, folder):
    write_picture(folder / "f1.png", noise_picture(1, (32, 48)))
    write_picture(folder / "f2.png", noise_picture(2, (32, 48)))
    assert cli("run", converted, "--source", "f*.png", "--channel-order", "bgr", "--mean",
               "0.5").code == 0
    frames = torch.stack([torch.from_numpy(noise_picture(seed, (32, 48))) for seed in (1, 2)])
    frames = frames.permute(0, 3, 1, 2).float().div(255).flip(1) - 0.5
    delta = load(converted)
    expected = torch.stack([delta(frame[None]) for frame in frames])
    (found,) = (folder / "runs" / "run1").glob("*.npz")
    with np.load(found) as arrays:
        assert np.allclose(arrays["out"], expected.numpy(), atol=1e-6)


def test_the_preprocessing_in_the_file_is_used_and_may_be_overridden(cli, folder):
    assert cli("convert", "plain.pth", "--model", "small_network_for_cli:small", "-o", "b.delta",
               "--backend", "reference", "--channel-order", "bgr", "--std", "0.5").code == 0
    assert "; bgr, minus 0, over 0.5\n" in cli("run", "b.delta", *CLIP).out
    assert "; rgb, minus 0, over 0.5\n" in cli(
        "run", "b.delta", *CLIP, "--channel-order", "rgb").out


def test_the_size_of_the_weights_is_in_the_file_and_used_where_it_is_asked_for(cli, folder):
    delta = deltaconvert.convert(torch.nn.Conv2d(3, 2, 1), preprocessing=deltaconvert.Preprocessing(
        size=(20, 24), shorter_side=30, interpolation="bicubic"))
    deltaconvert.save(delta, folder / "sized.delta")
    write_picture(folder / "f.png", noise_picture(1, (60, 90)))

    def shape(*words: str) -> tuple[int, ...]:
        done = cli("run", "sized.delta", "--source", "f.png", "--dense-every", "0", *words)
        assert done.code == 0, done.err
        (found,) = sorted((folder / "runs").iterdir())[-1].glob("*.npz")
        with np.load(found) as arrays:
            return arrays["out"].shape[-2:]

    assert shape() == (60, 90)
    assert shape("--size", "model") == (20, 24)
    assert shape("--size", "model", "--fit", "pad") == (20, 24)
    assert "size [20, 24], shorter_side 30, interpolation bicubic" in cli(
        "inspect", "sized.delta", "--header").out


def test_a_file_that_says_no_size_has_none_to_ask_for(cli, converted):
    done = cli("run", converted, *CLIP[:2], "--size", "model")
    assert done.code == 2
    assert done.err.strip() == (
        "error: --size model: the file does not say at which size its weights were evaluated; "
        "models of torchvision: and timm: do. Give --size HxW.")


@pytest.mark.parametrize("together", ["streams", "lanes"])
def test_several_clips_answer_as_each_alone(cli, converted, folder, together):
    clips = [f"synthetic:frames={n},size=32x48,seed={n}" for n in (3, 5)]
    done = cli("run", converted, "--source", clips[0], "--source", clips[1], "--together", together)
    assert done.code == 0, done.err
    assert "8 of 2 clips" in done.out
    for number, clip in enumerate(clips):
        assert cli("run", converted, "--source", clip).code == 0
        name = "synthetic.npz" if number == 0 else "synthetic-2.npz"
        with np.load(folder / "runs" / "run1" / name) as both, \
                np.load(folder / "runs" / f"run{number + 2}" / "synthetic.npz") as alone:
            assert np.allclose(both["out"], alone["out"], atol=1e-6)


def test_post_processing_gives_json_lines(cli, converted, folder, functions):
    done = cli("run", converted, *CLIP, "--postprocess", f"{functions}:mean")
    assert done.code == 0, done.err
    assert names(folder / "runs" / "run1") == ["summary.json", "synthetic.jsonl"]
    lines = (folder / "runs" / "run1" / "synthetic.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [r["frame"] for r in records] == [0, 1, 2, 3, 4]
    assert all(set(r) == {"frame", "ms", "update_ratio", "result"} for r in records)
    assert records[0]["update_ratio"] == 1
    assert isinstance(records[0]["result"]["mean"], float)


def test_an_overlay_shows_what_was_drawn(cli, converted, folder, functions):
    import av

    done = cli("run", converted, *CLIP, "--postprocess", f"{functions}:drawn", "--overlay")
    assert done.code == 0, done.err
    with av.open(str(folder / "runs" / "run1" / "synthetic.overlay.mp4")) as container:
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    assert len(frames) == 5
    assert frames[2][16, 24, 2] > 150 > frames[2][16, 24, 0]


@pytest.mark.parametrize("words, said", [
    (("--postprocess", "functions_for_cli:fails"), "raised KeyError for frame 0: 'boxes'"),
    (("--postprocess", "functions_for_cli:tensor"), "cannot be written as JSON"),
    (("--postprocess", "functions_for_cli:nothing"), "no 'nothing' in"),
    (("--postprocess", "no_such_module:f"), "Functions are named package.module:function"),
    (("--postprocess", "mean"), "a function is named package.module:function"),
    (("--together", "batch"), "--together 'batch': choose one of streams, lanes"),
    (("--save", "npy"), "--save 'npy': choose one of npz, none"),
    (("--channel-order", "gray"), "fails on inputs of the shapes"),
    (("--fit", "bend"), "fit 'bend': choose one of stretch, pad, crop"),
])
def test_refusals_leave_nothing(cli, converted, folder, functions, words, said):
    clip = write_video(folder / "clip.mp4", [grey(9)] * 3) if "--fit" in words else None
    source = ("--source", clip, "--size", "32x48") if clip else CLIP
    done = cli("run", converted, *source, *words)
    assert done.code == 2
    assert said in done.err
    assert list(folder.glob("runs/*")) == []


def test_a_video_that_breaks_off_counts_up_to_there(cli, converted, folder):
    pictures = [noise_picture(seed) for seed in range(12)]
    truncate(write_video(folder / "clip.avi", pictures), 0.6)
    done = cli("run", converted, "--source", "clip.avi")
    assert done.code == 2
    assert "breaks off after" in done.err
    data = json.loads((folder / "runs" / "run1" / "summary.json").read_text())
    (clip,) = data["clips"]
    assert 0 < clip["frames"] < 12
    assert "breaks off after" in clip["broken"]
    with np.load(folder / "runs" / "run1" / "clip.npz") as arrays:
        assert len(arrays["out"]) == clip["frames"]


def test_quiet_says_nothing_and_json_may_go_to_standard_output(cli, converted):
    done = cli("run", converted, *CLIP, "--quiet")
    assert (done.code, done.out, done.err) == (0, "", "")
    data = json.loads(cli("run", converted, *CLIP, "--json", "-").out)
    assert data["frames"] == 5


def started(folder, converted, *words):
    """A run over an endless-looking clip in a process of its own, once it has begun."""
    process = subprocess.Popen(
        [sys.executable, "-m", "deltaconvert", "run", str(converted), "--source",
         "synthetic:frames=100000,size=32x48", "--postprocess", "functions_for_cli:mean",
         "--save", "npz", "--overlay", "--dense-every", "0", *words],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        partial = list((folder / "runs").glob("run1/.*.jsonl.*.partial"))
        if partial and partial[0].read_text().count("\n") >= 3:
            return process
        time.sleep(0.02)
    process.kill()
    raise AssertionError(f"it did not begin: {process.communicate()}")


def test_ctrl_c_before_the_first_frame_is_done_ends_at_once():
    """Compiling for it takes longer than anybody waits, and there is nothing to keep."""
    session = SimpleNamespace(ms=[])
    with pytest.raises(KeyboardInterrupt), _interruptible(session):
        signal.raise_signal(signal.SIGINT)
    session.ms.append(1.0)
    with _interruptible(session) as stopped:
        signal.raise_signal(signal.SIGINT)
        assert stopped()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_ctrl_c_ends_with_whole_files_and_a_summary(converted, folder, functions):
    import av

    process = started(folder, converted)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted: " in out
    results = folder / "runs" / "run1"
    assert names(results) == ["summary.json", "synthetic.jsonl", "synthetic.npz",
                              "synthetic.overlay.mp4"]
    frames = json.loads((results / "summary.json").read_text())["frames"]
    assert frames >= 3
    lines = (results / "synthetic.jsonl").read_text().splitlines()
    assert [json.loads(line)["frame"] for line in lines] == list(range(frames))
    with np.load(results / "synthetic.npz") as arrays:
        assert len(arrays["out"]) == frames
    with av.open(str(results / "synthetic.overlay.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == frames
