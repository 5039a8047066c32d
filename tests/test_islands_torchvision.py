"""Detectors and optical flow of torchvision with converted backbones.

In float64, where rounding does not decide which of two untrained boxes is the better one; or
with one box a class.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import detection
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

import deltaconvert
from deltaconvert.clips import synthetic

SIZE = (96, 128)
SCALED = {"min_size": SIZE[0], "max_size": SIZE[1]}
BY_REGION = {"box_score_thresh": 0.0, "box_detections_per_img": 4,
             "rpn_pre_nms_top_n_test": 40, "rpn_post_nms_top_n_test": 15}
IN_ONE_STAGE = {"score_thresh": 0.0, "topk_candidates": 20}
ONE_A_CLASS = {"score_thresh": 0.0, "topk_candidates": 1}


def pyramid(levels: tuple[int, ...] = (1, 2, 3, 4), **more: Any) -> nn.Module:
    return resnet_fpn_backbone(backbone_name="resnet18", weights=None, returned_layers=levels,
                               **more)


DETECTORS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "faster_rcnn": (lambda: detection.FasterRCNN(pyramid(), 5, **SCALED, **BY_REGION),
                    "rpn.head.conv"),
    "mask_rcnn": (lambda: detection.MaskRCNN(pyramid(), 5, **SCALED, **BY_REGION),
                  "rpn.head.conv"),
    "keypoint_rcnn": (lambda: detection.KeypointRCNN(pyramid(), 2, num_keypoints=4, **SCALED,
                                                     **BY_REGION), "rpn.head.conv"),
    "retinanet": (lambda: detection.RetinaNet(pyramid((2, 3, 4)), 5, **SCALED, **IN_ONE_STAGE,
                                              anchor_generator=anchors(4)),
                  "head.regression_head.conv"),
    "fcos": (lambda: detection.FCOS(pyramid((2, 3, 4)), 5, **SCALED, **IN_ONE_STAGE,
                                    anchor_generator=anchors(4, per_place=1)),
             "head.regression_head.conv"),
    "ssdlite": (lambda: detection.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=5, **ONE_A_CLASS),
        "head.regression_head.module_list.0"),
    "ssd": (lambda: detection.ssd300_vgg16(
        weights=None, weights_backbone=None, num_classes=5, **ONE_A_CLASS),
        "head.regression_head.module_list.0"),
}


def anchors(levels: int, per_place: int = 3) -> Any:
    sizes = tuple((8 * 2**i,) for i in range(levels))
    ratios = ((0.5, 1.0, 2.0),) if per_place == 3 else ((1.0,),)
    return detection.anchor_utils.AnchorGenerator(sizes, ratios * levels)


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_finds_the_same_boxes(name):
    torch.manual_seed(0)
    build, head = DETECTORS[name]
    dtype = torch.float32 if name == "ssd" else torch.float64  # it has one size, 300x300
    model = build().to(dtype).eval()
    frames = [frame[None].to(dtype) for frame in synthetic(SIZE, frames=3)]
    delta = deltaconvert.convert(model, modules="auto")
    assert {"backbone", head} <= set(delta.islands)
    assert not any("roi_heads" in path for path in delta.islands)
    report = deltaconvert.validate(model, delta, frames, law_every=100,
                                   tolerance=1e-5 if dtype == torch.float32 else 1e-12)
    assert report.passed, report
    assert all(o.frozen_rms > 100 * o.rms for o in report.outputs if o.name.endswith("boxes"))
    with torch.no_grad():
        assert len(model(frames[0])[0]["boxes"]) > 1


@pytest.mark.slow
@pytest.mark.parametrize("modules", [["feature_encoder", "context_encoder"], None])
def test_raft_sees_the_same_flow(modules):
    torch.manual_seed(0)
    model = torchvision.models.optical_flow.raft_small(weights=None).eval()
    clip = [2 * frame[None] - 1 for frame in synthetic((128, 128), frames=4)]
    delta = deltaconvert.convert(model, modules=modules)
    report = deltaconvert.validate(model, delta, pairwise(clip))
    assert report.passed, report
    if modules is None:
        return
    lanes = {call: stream.program.lanes for call, stream in delta.stream.calls.items()}
    assert lanes == {}  # validate took a stream of its own
    delta(clip[0], clip[1])
    assert delta.stream.calls["feature_encoder"].program.lanes == 2
    assert delta.stream.calls["context_encoder"].program.lanes == 1
