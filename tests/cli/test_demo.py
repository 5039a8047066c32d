"""``deltaconvert demo``."""

import json

import pytest
import torch

from deltaconvert.cli.demo import random_model
from deltaconvert.clips import synthetic

SHORT = ("--model", "squeezenet1_1", "--size", "64x96", "--frames", "4", "--backend", "reference")


def test_reports_and_draws(cli, tmp_path):
    done = cli("demo", *SHORT, "--out", tmp_path / "picture.png", "--json", tmp_path / "demo.json")
    assert done.code == 0, done.out + done.err
    header, exact, held = (
        line for line in done.out.splitlines() if line.startswith(("model ", "squeezenet1_1 ")))
    assert header.split()[:4] == ["model", "threshold", "error", "frozen"]
    assert exact.split()[:2] == ["squeezenet1_1", "0"]
    assert exact.endswith("PASSED")
    assert held.split()[1:3] == ["0.05", "std"]
    picture = (tmp_path / "picture.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    runs = json.loads((tmp_path / "demo.json").read_text())["runs"]
    assert [r["passed"] for r in runs] == [True, True]
    assert runs[1]["needed"] < runs[0]["needed"] < 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["demo.json", "picture.png"]


@pytest.mark.parametrize("words, said", [
    (("--out", "picture.jpg"), "ends in .png"),
    (("--model", "resnet19", "--frames", "2"), "torchvision has no model 'resnet19'"),
    (("--active", "2"), "active_share must be between 0 and 1"),
])
def test_refusals(cli, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    done = cli("demo", *words)
    assert done.code == 2
    assert said in done.err
    assert list(tmp_path.iterdir()) == []


def test_the_same_seed_is_the_same_model_and_leaves_torchs_own_alone():
    batches = [f[None] for f in synthetic((32, 48), 2)]
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, two = (random_model("resnet18", 1, batches).state_dict() for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert float(one["bn1.running_mean"].abs().max()) > 0
