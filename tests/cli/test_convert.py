"""``deltaconvert convert``."""

import json
from pathlib import Path

import pytest
import torch

from deltaconvert.cli.options import parse_nodes, parse_size
from deltaconvert.config import NodeConfig
from deltaconvert.errors import InputError
from deltaconvert.files import load
from deltaconvert.model_specs import build_model
from tests.cli.conftest import SPEC


def test_writes_a_file_and_says_what_was_used(cli, folder):
    done = cli("convert", "plain.pth", "--model", SPEC, "-o", "a.delta", "--json", "a.json")
    assert done.code == 0, done.err
    assert "weights   plain.pth: the file itself is a state dict" in done.out
    assert "model     4 operators, 0.00 million parameters" in done.out
    assert "unknown" not in done.out  # not known without a size
    assert "wrote     a.delta" in done.out
    data = json.loads((folder / "a.json").read_text())
    assert data["bytes"] == (folder / "a.delta").stat().st_size
    assert data["entry"] == ""
    assert data["config"]["threshold"] == 0


def test_says_which_entry_of_a_training_checkpoint(cli, folder):
    done = cli("convert", "training.pth", "--model", SPEC, "-o", "a.delta")
    assert done.code == 0, done.err
    assert "training.pth: its entry ema, prefix 'module.' taken off" in done.out


def test_settings_are_kept(cli, folder):
    done = cli("convert", "plain.pth", "--model", SPEC, "-o", "a.delta", "--threshold", "0.1",
               "--threshold-unit", "std", "--norm", "rms", "--input-threshold", 0.02,
               "--input-test", "block", "--input-cap", "0.3", "--backend", "reference",
               "--threads", "2", "--no-dense-fallback", "--node", "3=0.5", "--node", "0*=0")
    assert done.code == 0, done.err
    config = load(folder / "a.delta").config
    assert (config.threshold, config.threshold_unit, config.norm) == (0.1, "std", "rms")
    assert (config.input_threshold, config.input_test, config.input_cap) == (0.02, "block", 0.3)
    assert (config.backend, config.threads, config.dense_fallback) == ("reference", 2, False)
    assert config.nodes == {"3": NodeConfig(0.5), "0*": NodeConfig(0.0)}


def test_strict_refuses_what_would_run_densely(cli, folder):
    words = ("convert", "plain.pth", "--model", SPEC, "--model-arg", "unknown=True", "-o",
             "a.delta", "--backend", "reference")
    done = cli(*words, "--strict", "--size", "32x48")
    assert done.code == 3
    assert "strict: " in done.err
    assert not (folder / "a.delta").exists()
    assert cli(*words, "--strict").code == 2
    done = cli(*words, "--size", "32x48")
    assert done.code == 0, done.err
    assert "unknown   1 operator, run whole and densely" in done.out
    assert "cummax is not an operator that deltaconvert knows" in done.out


def test_size_checks_that_the_model_takes_the_frames(cli, folder):
    words = ("convert", "plain.pth", "--model", SPEC, "-o", "a.delta")
    assert cli(*words, "--size", "32x48").code == 0
    done = cli(*words, "--size", "32")
    assert done.code == 2
    assert "give height x width in pixels" in done.err


@pytest.mark.parametrize("words, code, said", [
    (("nothing.pth", "--model", SPEC, "-o", "a.delta"), 2, "nothing.pth does not exist"),
    (("plain.pth", "--model", SPEC, "-o", "missing/a.delta"), 2, "there is no folder"),
    (("plain.pth", "--model", SPEC, "-o", "a.delta", "--json", "no/a.json"), 2, "no folder"),
    (("plain.pth", "--model", SPEC, "-o", "a.delta", "--model-arg", "channels=4"), 2,
     "do not fit the model"),
    (("plain.pth", "--model", SPEC, "-o", "a.delta", "--norm", "l2"), 2, "choose one of max, rms"),
    (("plain.pth", "--model", SPEC, "-o", "a.delta", "--node", "conv"), 2, "PATTERN=THRESHOLD"),
    (("plain.pth", "--model", SPEC, "-o", "a.delta", "--node", "2=0.5", "--node", "cnv*=0.1"), 2,
     "nodes['cnv*'] matches no node; there are "),
    (("plain.pth", "--model", SPEC, "-o", "a.delta", "--threshold", "-1"), 2, "threshold=-1.0"),
])
def test_refusals(cli, folder, words, code, said):
    done = cli("convert", *words)
    assert done.code == code
    assert done.err.startswith("error: ")
    assert said in done.err
    assert not (folder / "a.delta").exists()


def test_a_model_that_cannot_be_traced_is_not_supported(cli, folder):
    torch.save({"scale": torch.ones(1)}, folder / "any.pth")
    done = cli("convert", "any.pth", "--model", "small_network_for_cli:Branches", "-o", "a.delta")
    assert done.code == 3
    assert done.err.startswith("error: Branches cannot be traced at ")
    assert "x if x.sum() > 0 else -x" in done.err


def test_weights_that_are_no_numbers_are_told(cli, folder):
    state = torch.load("plain.pth")
    state["0.weight"][0, 0, 0, 0] = float("nan")
    torch.save(state, "diverged.pth")
    done = cli("convert", "diverged.pth", "--model", SPEC, "-o", "a.delta")
    assert (done.code, done.err) == (0, (
        "warning: diverged.pth has NaN in 1 tensor: 0.weight\n"))


def test_a_model_that_branches_on_shapes_needs_their_size(cli, folder):
    state = {"conv.weight": torch.randn(2, 1, 3, 3), "conv.bias": torch.randn(2)}
    torch.save(state, folder / "cropped.pth")
    words = ("convert", "cropped.pth", "--model", "small_network_for_cli:Cropped", "-o",
             "cropped.delta", "--channel-order", "gray")
    done = cli(*words)
    assert done.code == 2
    assert "branches on shapes" in done.err
    assert "--size HxW" in done.err
    assert cli(*words, "--size", "32x49").code == 0
    source = ("--source", "synthetic", "--frames", "2", "--size")
    assert cli("validate", "cropped.delta", *source, "32x49").code == 0
    done = cli("validate", "cropped.delta", *source, "32x48")
    assert done.code == 2
    assert "converted for frames of [(1, 1, 32, 49)]" in done.err


def test_parsing():
    assert parse_size("360x640") == (360, 640)
    assert parse_nodes(["a=1=0.5", "b=2", "a=1=0.25"]) == {
        "b": NodeConfig(2.0), "a=1": NodeConfig(0.25)}
    assert list(parse_nodes(["a=1", "b=2", "a=3"])) == ["b", "a"]
    for wrong in ("640", "0x3", "ax3", "1x2x3"):
        with pytest.raises(InputError):
            parse_size(wrong)


def test_a_program_needs_no_model(folder, cli):
    model = build_model(SPEC)
    model.load_state_dict(torch.load("plain.pth"))
    torch.export.save(torch.export.export(model, (torch.zeros(1, 3, 32, 48),)), "small.pt2")
    done = cli("convert", "small.pt2", "-o", "small.delta", "--size", "32x48", "--json", "out.json")
    assert done.code == 0, done.err
    assert "weights   small.pt2: a program of torch.export\n" in done.out
    assert json.loads(Path("out.json").read_text())["program"] is True
    done = cli("validate", "small.delta", "--source", "synthetic", "--size", "32x48",
               "--frames", "3", "--checkpoint", "small.pt2")
    assert done.code == 0, done.out + done.err
    assert "small.delta against small.pt2, on synthetic 32x48" in done.out
    frame = torch.rand(1, 3, 32, 48)
    torch.testing.assert_close(load("small.delta")(frame), model(frame).detach())


def test_a_program_with_a_model_and_weights_without_one_are_refused(folder, cli):
    Path("small.pt2").touch()
    done = cli("convert", "small.pt2", "--model", SPEC, "-o", "small.delta")
    assert (done.code, "leave --model and --model-arg out" in done.err) == (2, True)
    done = cli("convert", "plain.pth", "-o", "small.delta")
    assert (done.code, "name their model with --model" in done.err) == (2, True)
    assert not Path("small.delta").exists()
