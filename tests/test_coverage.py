"""No densifying in disguise: what share of the multiply-adds runs outside local nodes."""

from __future__ import annotations

import pytest
import torch
import torchvision

import deltaconvert
from examples.fastestdet import FastestDet
from examples.pose_resnet import pose_resnet50

MODELS = {
    "resnet50": lambda: torchvision.models.resnet50(weights=None),
    "pose_resnet50": pose_resnet50,
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(weights=None),
    "shufflenet_v2": lambda: torchvision.models.shufflenet_v2_x1_0(weights=None),
    "fastestdet": FastestDet,
}


@pytest.mark.parametrize("name", MODELS)
def test_under_one_percent_outside_local_nodes_before_the_classifier(name):
    delta = deltaconvert.convert(MODELS[name](), strict=True)
    frames = [torch.zeros(1, 3, 352, 640)]
    program = delta.program(delta.signature(frames), frames)
    before = [n for n in program.nodes if n.about.operator is None
              or n.about.operator.name != "linear"]
    total = sum(n.dense_multiply_adds for n in before)
    outside = sum(n.dense_multiply_adds for n in before if n.about.rule != "local")
    assert total > 1e8
    assert outside / total < 0.01
    assert all(n.about.rule in ("sparsify", "local", "global") for n in program.nodes)


@pytest.mark.parametrize("name", MODELS)
def test_every_node_runs_by_the_cpu_backend_where_it_is_local(name):
    delta = deltaconvert.convert(MODELS[name](), backend="cpu")
    frames = [torch.zeros(1, 3, 64, 64)]
    program = delta.program(delta.signature(frames), frames)
    elsewhere = {n.about.name: n.fallback_reason for n in program.nodes
                 if n.about.rule == "local" and n.backend != "cpu"}
    assert elsewhere == {}
