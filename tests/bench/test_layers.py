"""The sweep over single convolutions."""

import threading
import time

import pytest
import torch
from torch import nn

from deltaconvert.bench import layers
from deltaconvert.bench.layers import Layer, LayerRun, blobs, convolutions, measure
from deltaconvert.bench.prompt import PromptWorkers
from deltaconvert.config import Config
from deltaconvert.errors import CheckError, InputError

ONES = (1, 1)
STRIDED = Layer(8, 16, 18, 20, (3, 3), (2, 2), ONES, ONES, 1)
DEPTHWISE = Layer(8, 8, 18, 20, (3, 3), ONES, ONES, ONES, 8)


def test_distinct_convolutions_in_order_and_no_gates():
    block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, bias=False),
                          nn.Conv2d(4, 8, (1, 3), stride=(2, 1), groups=2),
                          nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1))
    found = convolutions(block, torch.zeros(1, 4, 10, 12))
    assert found == [Layer(4, 4, 10, 12, (3, 3), ONES, ONES, ONES, 1),
                     Layer(4, 8, 10, 12, (1, 3), (2, 1), (0, 0), ONES, 2)]
    assert [layer.kind for layer in found] == ["dense", "grouped"]
    assert (DEPTHWISE.kind, STRIDED.is_target) == ("depthwise", False)
    assert Layer(32, 64, 9, 9, ONES, ONES, (0, 0), ONES, 1).is_target


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_blobs_come_to_the_share(share):
    mask = blobs(45, 80, share, torch.Generator().manual_seed(0))
    disc = 3.2 * 3 ** 2 / (45 * 80)  # what the last one may add
    assert share <= float(mask.float().mean()) <= min(1.0, share + disc)


@pytest.mark.parametrize("layer", [STRIDED, DEPTHWISE], ids=str)
def test_figures_of_a_layer(layer):
    found = measure(layer, Config(threads=1), shares=(0.0, 0.1, 1.0), rounds=2)
    assert [p.share for p in found.points] == [0.0, 0.1, 1.0]
    still, some, whole = found.points
    assert (still.needed, still.scheduled, still.efficiency) == (0.0, 0.0, None)
    mask = blobs(18, 20, 0.1, _generator_behind(0.0))
    touched = nn.functional.max_pool2d(mask[None, None].float(), 3, layer.stride, 1)
    assert some.needed == pytest.approx(float(touched.mean()))
    assert some.active == pytest.approx(float(mask.float().mean()))
    assert (whole.needed, whole.active) == (1.0, 1.0)
    assert some.efficiency == pytest.approx(
        found.dense_ms.median * some.needed / some.ms.median)
    assert found.to_dict()["points"][1]["needed_share"] == some.needed


def _generator_behind(share):
    generator = torch.Generator().manual_seed(0)
    blobs(18, 20, share, generator)
    return generator


def test_a_wrong_result_is_not_timed(monkeypatch):
    class Wrong(LayerRun):
        def _bind(self, config):
            step = super()._bind(config)

            def wrong():
                work = step()
                self.output.value[0, 0, 2, 2] += 1
                return work
            return wrong

    def never(*_):
        raise AssertionError("timed")

    monkeypatch.setattr(layers, "LayerRun", Wrong)
    monkeypatch.setattr(layers, "ms_of", never)
    with pytest.raises(CheckError, match="nothing was timed"):
        measure(STRIDED, Config(threads=1), shares=(0.1,), rounds=1)


def test_a_backend_that_cannot_run_it_says_why(monkeypatch):
    from deltaconvert.backends.cpu.backend import CpuBackend

    monkeypatch.setattr(CpuBackend, "supports", lambda self, node: "not today")
    with pytest.raises(InputError, match=r"8 -> 16, 18x20: backend cpu does not run it: not today"):
        LayerRun(STRIDED, Config(threads=1))


@pytest.mark.parametrize("threads", [1, 3])
def test_helpers_are_there_before_a_run_begins(threads):
    workers, over = PromptWorkers(threads), threading.Event()
    there: list[int] = []

    def help_with(worker):
        there.append(worker)
        over.wait(60)

    start = time.perf_counter()
    for _ in range(2):  # the second finds them still in the first
        workers.invite(help_with)
        assert sorted(there) == list(range(1, threads))
    assert start <= workers.ready <= time.perf_counter()
    over.set()


def test_means_are_of_the_targets_own_layers_and_shares():
    wide = Layer(32, 32, 8, 8, ONES, ONES, (0, 0), ONES, 1)
    spread = layers.Spread.of([1.0])
    points = [layers.Point(share, share, share, share, spread, efficiency)
              for share, efficiency in ((0.01, 0.1), (0.05, 0.4), (0.5, 0.9), (1.0, 5.0))]
    found = [layers.LayerResult(wide, spread, points),
             layers.LayerResult(STRIDED, spread, points[:1])]
    summary = layers.summary(found)
    assert summary["dense_32_channels_or_more"] == pytest.approx(0.6)
    assert summary["depthwise"] is None
