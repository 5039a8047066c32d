"""What the coverage table converts: every model of torchvision, 60 families of timm, and more.

A case says how a model is built, what it is fed, and how it is converted. Weights are random
and seeded; BatchNorm statistics come from the clip, and parameters that begin as constants
(scales of 1e-6, gains of 0) are scattered, so that every branch of a network counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from deltaconvert.calibrate import batch_norm_statistics
from deltaconvert.clips import synthetic
from deltaconvert.model_specs import build_model
from tests import families

FRAMES = 5
SIZE = (96, 96)

# One model a family, the smallest that has all of it.
TIMM = [
    "bat_resnext26ts", "botnet26t_256", "convmixer_768_32", "convnext_atto", "convnextv2_atto",
    "cs3darknet_s", "cspdarknet53", "cspresnet50", "darknet53", "densenet121", "dla34", "dpn68",
    "edgenext_xx_small", "efficientnet_b0", "efficientnetv2_rw_t", "efficientvit_b0",
    "ese_vovnet19b_dw", "fasternet_t0", "fastvit_t8", "fbnetc_100", "focalnet_tiny_srf",
    "gcresnext26ts", "gernet_s", "ghostnet_100", "ghostnetv2_100", "hardcorenas_a", "hgnetv2_b0",
    "hrnet_w32", "inception_next_atto", "inception_resnet_v2", "inception_v3", "inception_v4",
    "lambda_resnet26t", "lcnet_050", "legacy_xception", "mixnet_s", "mnasnet_small",
    "mobilenetv1_100", "mobilenetv3_small_050", "mobilenetv4_conv_small", "mobileone_s0",
    "mobilevit_xxs", "nf_resnet50", "nfnet_l0", "poolformer_s12", "regnety_002", "regnetz_005",
    "repghostnet_050", "repvgg_a0", "repvit_m0_9", "res2net50_26w_4s", "resnest14d", "resnet26d",
    "resnetv2_50x1_bit", "rexnet_100", "selecsls42b", "seresnet50", "starnet_s1",
    "tf_efficientnetv2_b0", "visformer_tiny",
]

# Of kinds that no model zoo has.
NETWORKS = {
    "unet_transposed": lambda: families.UNet(bilinear=False),
    "unet_bilinear": lambda: families.UNet(bilinear=True),
    "bifpn": families.BiFpn,
    "yolo": families.Yolo,
    "yolo_anchor_free": families.AnchorFreeYolo,
    "fast_segmentation": families.FastSegmentation,
    "super_resolution": families.SuperResolution,
}

# Built for one size alone, or so large that a smaller one will do.
SIZES = {"maxvit_t": (224, 224), "mvit": (224, 224), "vit_": (224, 224), "halonet": (256, 256),
         "botnet": (256, 256), "lambda": (256, 256), "bat_": (256, 256), "visformer": (224, 224),
         "convnext": (64, 64), "efficientnet_b7": (128, 128), "swin": (64, 64),
         "inception": (96, 96), "googlenet": (96, 96), "legacy_xception": (96, 96),
         "regnet_y_128gf": (64, 64), "raft": (128, 128), "unet": (128, 128),
         "swin3d": (64, 64), "mobilevit": (128, 128), "s3d": (224, 224)}


# What takes longest goes first, so that two processes end together; no two of the largest models
# one after the other, which would be in memory at once.
FIRST = ("regnet_y_128gf", "mvit_v1_b", "maxvit_t", "vit_h_14", "s3d", "mvit_v2_s",
         "efficientnet_v2_l", "efficientnet_b7", "lambda_resnet26t", "vit_l_16")


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Args:
        name: of the row, ``torchvision:resnet50``.
        kind: classification, segmentation, detection, video, optical flow, timm or other.
        size: of the frames, H and W in pixels.
        arguments: for the model's builder.
        modules: as `convert` takes it.
        depth: frames that a video model takes at once.
    """

    name: str
    kind: str
    size: tuple[int, int] = SIZE
    arguments: dict[str, Any] = field(default_factory=dict)
    modules: Any = None
    depth: int = 0

    def build(self) -> nn.Module:
        """Make the model with random seeded weights, in eval mode."""
        torch.manual_seed(0)
        source, _, name = self.name.partition(":")
        model = NETWORKS[name]() if source == "own" else build_model(self.name, self.arguments)
        _scatter(model)
        frames = self.frames()
        if self.kind == "video":
            batch_norm_statistics(model, frames[:2])
        elif self.kind != "optical flow":  # which is called with two frames
            batch_norm_statistics(model, [torch.cat(frames)])
        return model.eval()

    def frames(self) -> list[Any]:
        """Return what the model is called with, a frame of the clip after the other."""
        count = FRAMES + max(self.depth - 1, 1 if self.kind == "optical flow" else 0)
        clip = [2 * frame[None] - 1 for frame in synthetic(self.size, frames=count)]
        if self.kind == "optical flow":
            return list(pairwise(clip))
        if self.kind == "video":
            return [torch.stack(clip[i:i + self.depth], 2) for i in range(FRAMES)]
        if self.kind == "detection":
            return [(frame + 1) / 2 for frame in clip]
        return clip


def _scatter(model: nn.Module) -> None:
    """Move parameters that are one number throughout, so that zeros and ones hide nothing."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.numel() > 1 and parameter.dim() < 4 and _is_constant(parameter):
            noise = torch.randn(parameter.shape, generator=generator)
            with torch.no_grad():
                parameter.mul_(1 + 0.1 * noise).add_(0.1 * noise * (parameter.abs() < 1e-3))


def _is_constant(parameter: Tensor) -> bool:
    return bool((parameter == parameter.flatten()[0]).all())


def cases() -> list[Case]:
    """Return every row, in the order of the table."""
    import torchvision

    made = [Case(f"own:{name}", "other", _size(name)) for name in NETWORKS]
    for name in torchvision.models.list_models():
        if not name.startswith("quantized_"):  # already integers, for another engine
            made.append(_torchvision(name, torchvision.models.get_model_builder(name).__module__))
    made += [Case(f"timm:{name}", "timm", _size(name)) for name in TIMM]
    return made


def order(case: Case) -> int:
    """Return when a case is run: sort by it."""
    name = case.name.partition(":")[2]
    return FIRST.index(name) if name in FIRST else len(FIRST)


def _size(name: str) -> tuple[int, int]:
    """Return the size of the longest beginning of a name that has one."""
    found = [start for start in SIZES if name.startswith(start)]
    return SIZES[max(found, key=len)] if found else SIZE


def _torchvision(name: str, module: str) -> Case:
    spec, size = f"torchvision:{name}", _size(name)
    if ".detection" in module:
        return Case(spec, "detection", (96, 128), _detector(name), "auto")
    if ".optical_flow" in module:
        return Case(spec, "optical flow", size)
    if ".video" in module:
        return Case(spec, "video", size, depth=16 if name.startswith(("mvit", "s3d")) else 8)
    if ".segmentation" in module:
        return Case(spec, "segmentation", size)
    return Case(spec, "classification", size)


def _detector(name: str) -> dict[str, Any]:
    """Return arguments that let untrained scores through, and few boxes.

    A hundred boxes through a mask head would be 30 times the work of such a frame's backbone.
    """
    if "rcnn" in name:
        return {"min_size": 96, "max_size": 128, "box_score_thresh": 0.0,
                "box_detections_per_img": 10,
                "rpn_pre_nms_top_n_test": 50, "rpn_post_nms_top_n_test": 20}
    few = {"score_thresh": 0.0, "topk_candidates": 20}
    return few if name.startswith("ssd") else {"min_size": 96, "max_size": 128, **few}
