"""The coverage table: what is in it, how a row is measured, and how it reads."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import coverage_table
from benchmarks.coverage_cases import TIMM, Case, cases


def test_every_model_of_torchvision_is_in_it_and_sixty_families_of_timm():
    import torchvision

    names = [case.name for case in cases()]
    assert len(names) == len(set(names))
    wanted = {f"torchvision:{name}" for name in torchvision.models.list_models()
              if not name.startswith("quantized_")}
    assert wanted <= set(names)
    assert len(TIMM) == len(set(TIMM)) == 60
    kinds = {case.name.partition(":")[2]: case.kind for case in cases()}
    assert kinds["raft_small"] == "optical flow"
    assert kinds["r3d_18"] == "video"
    assert kinds["fasterrcnn_resnet50_fpn"] == "detection"
    assert kinds["fcn_resnet50"] == "segmentation"


@pytest.mark.skipif(not importlib.util.find_spec("timm"), reason="timm is not installed")
def test_timm_has_all_of_them():
    import timm

    assert [name for name in TIMM if not timm.is_model(name)] == []


class Branches(nn.Module):
    def __init__(self, on: str) -> None:
        super().__init__()
        self.on = on
        self.conv, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        if self.on == "shapes" and x.shape[2] % 2:
            x = x[:, :, 1:]
        if self.on == "numbers" and float(x.max()) > 1e6:
            return x
        return torch.cummax(self.last(x), 1)[0] if self.on == "unknown" else self.last(x)


def row(model: nn.Module, monkeypatch, **settings: Any) -> dict[str, Any]:
    case = Case("own:x", "other", (24, 24), **settings)
    monkeypatch.setattr(Case, "build", lambda self: model.eval())
    return coverage_table.measure(case)


@pytest.mark.parametrize("on, converts", [
    ("nothing", "whole"), ("shapes", "whole, for one size"),
    ("numbers", "islands: conv, last"), ("unknown", "whole")])
def test_a_row_says_how_a_model_converts(monkeypatch, on, converts):
    found = row(Branches(on), monkeypatch)
    assert found["converts"] == converts
    assert found["agrees"] == "yes"
    assert found["error"] < 1e-5 < 0.01 < found["frozen"]
    assert sum(found[key] for key in ("local", "global", "unknown", "outside")) == pytest.approx(1)
    assert found["local"] == pytest.approx(1)
    assert bool(found["unknown_reasons"]) == (on == "unknown")
    assert json.loads(json.dumps(found)) == found


def test_a_row_says_what_went_wrong(monkeypatch):
    class Fails(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no such thing")

    found = row(Fails(), monkeypatch)
    assert found["error"] is None
    assert "no such thing" in found["agrees"] or "TraceError" in found["agrees"]


def test_a_conversion_that_is_wrong_is_not_called_rounding(monkeypatch):
    convert = coverage_table.convert

    def wrong(model: nn.Module, *how: Any) -> Any:
        delta, said = convert(model, *how)
        with torch.no_grad():
            delta.conv.weight.mul_(1.001)
        return delta, said
    monkeypatch.setattr(coverage_table, "convert", wrong)
    assert row(Branches("nothing"), monkeypatch)["agrees"].startswith("no: dense itself is ")


def test_the_table_has_a_line_for_each_row(monkeypatch):
    pytest.importorskip("timm")
    good = row(Branches("unknown"), monkeypatch) | {"name": "timm:good", "kind": "timm"}
    bad = {"name": "own:bad", "kind": "other", "size": [8, 8], "converts": "", "error": None,
           "agrees": "TraceError: a | b\nc"}
    text = coverage_table.table([good, bad])
    assert "2 models, 2\nmeasured, 1 agree." in text
    assert "| bad | 8x8 | no | TraceError: a / b c |" in text
    assert "| good | 24x24 | whole | yes, " in text
    lines = [line for line in text.splitlines() if line.startswith(("| good", "| bad", "| model"))]
    assert [line.count("|") for line in lines] == [11, 11, 11, 11]  # a head for each kind
    assert next(iter(good["unknown_reasons"])) in text.partition("## Operators that run")[2]
