"""The coverage table: what is in it, how a row is measured, and how it reads."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import pytest
import torch
from torch import nn

import deltaconvert
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
    ("nothing", "whole"), ("shapes", "whole, size by size"),
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
    found = row(Branches("nothing"), monkeypatch)
    assert found["agrees"].startswith("no: off float64 by ")
    assert found["off_float64"] > 100 * found["dense_off_float64"]
    assert found["error_in_float64"] > 1e-4


class Amplified(nn.Module):
    """Differences of large numbers: float32 itself is further off than 1e-5."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Conv2d(3, 64, 3), nn.Conv2d(3, 64, 3)
        self.two.load_state_dict(self.one.state_dict())
        self.two.weight.data += 1e-4 * torch.randn_like(self.two.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.one(x) - self.two(x)


def test_rounding_is_called_so_and_by_how_much(monkeypatch):
    monkeypatch.setattr(coverage_table, "TOLERANCE", 1e-7)
    found = row(Amplified(), monkeypatch)
    assert found["error"] > 1e-5
    assert found["off_float64"] < 4 * found["dense_off_float64"]
    assert found["error_in_float64"] < 1e-9
    assert found["agrees"] == (
        f"rounding: off float64 by {found['off_float64']:.0e}, dense by "
        f"{found['dense_off_float64']:.0e}; {found['error_in_float64']:.0e} in float64")


def made(name: str, **beyond: float) -> dict[str, Any]:
    return {"name": f"own:{name}", "kind": "other", "size": [8, 8], "converts": "whole",
            "agrees": "yes", "error": 0.0, "beyond": beyond, "local": 1 - sum(beyond.values()),
            "global": 0.0, "unknown": 0.0, "outside": 0.0, "needed": 1.0, "state_bytes": 0}


def test_more_than_three_percent_outside_local_nodes_is_a_failure_or_an_exception(capsys):
    pytest.importorskip("timm")
    rows = [made("fine", cumsum=0.02), made("excepted", attention=0.4, cumsum=0.02),
            made("over", cumsum=0.02, sort=0.02)]
    assert coverage_table.report_failures(rows[:2]) == 0
    assert "all 2 measured rows are right" in capsys.readouterr().out
    assert coverage_table.report_failures(rows) == 1
    assert "own:over: {'cumsum': 0.02, 'sort': 0.02} outside local nodes" in capsys.readouterr().out
    text = coverage_table.table(rows)
    assert "| excepted | attention 40.0%, cumsum 2.0% |" in text
    assert "Over it without an exception: over." in text
    assert "| fine |" not in text.partition("## Beyond 3 %")[2]
    assert "Nothing else exceeds 3 % in any model." in coverage_table.table(rows[:2])


def test_what_is_outside_local_nodes_is_named():
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            tokens = y.flatten(2)
            return self.fc(y.mean((2, 3))) + (tokens @ tokens.transpose(1, 2)).sum()

    delta = deltaconvert.convert(Head().eval())
    frame = torch.rand(1, 3, 12, 12)
    shares = coverage_table.shares(Head(), delta, frame)
    total = 4 * 27 * 100 + 20 + 16 * 100
    assert shares["beyond"] == {"attention": 1600 / total, "classifier": 20 / total}


def test_the_table_has_a_line_for_each_row(monkeypatch):
    pytest.importorskip("timm")
    good = row(Branches("unknown"), monkeypatch) | {"name": "timm:good", "kind": "timm"}
    bad = {"name": "own:bad", "kind": "other", "size": [8, 8], "converts": "", "error": None,
           "agrees": "TraceError: a | b\nc"}
    text = coverage_table.table([good, bad])
    assert "2 models, 2\nmeasured, 1 agree: 1 within 1e-5, 0 but for rounding." in text
    assert "| bad | 8x8 | no | TraceError: a / b c |" in text
    assert "| good | 24x24 | whole | yes, " in text
    lines = [line for line in text.partition("## Beyond")[0].splitlines()
             if line.startswith(("| good", "| bad", "| model"))]
    assert [line.count("|") for line in lines] == [11, 11, 11, 11]  # a head for each kind
    assert next(iter(good["unknown_reasons"])) in text.partition("## Operators that run")[2]
