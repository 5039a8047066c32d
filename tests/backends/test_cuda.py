"""Every kernel of the cuda backend, run on the host, against the reference backend."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from deltaconvert.backends.rule import change_norm
from deltaconvert.nodes import DeltaNode
from tests.backends.test_cpu import ACTIVATIONS, CASES, MAP, conv, make_node, weights
from tests.cuda.streams import TF32, KernelStream

HALVES = [torch.float16, torch.bfloat16]
# One of each kernel, and of each way into it.
OF_EACH_KIND = ["conv 3x3", "conv 7x7 of 3 channels", "conv + residual + relu", "grouped",
                "depthwise", "transposed", "max pool", "mean pool without padding", "gate", "cat",
                "softmax"]
CONVOLUTIONS = ["conv 3x3", "conv 1x1 stride 2", "conv 7x7 of 3 channels",
                "conv + residual + relu", "grouped", "transposed", "transposed with gaps"]


@pytest.fixture(autouse=True)
def _exact():
    with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
        yield


def at(node: DeltaNode, dtype: torch.dtype) -> DeltaNode:
    """The node in another dtype."""
    about = node.about
    args = tuple(a.to(dtype) if isinstance(a, Tensor) else a for a in about.args)
    inputs = tuple(dataclasses.replace(spec, dtype=dtype) for spec in about.inputs)
    output = dataclasses.replace(about.output, dtype=dtype)
    return DeltaNode(dataclasses.replace(about, args=args, inputs=inputs, output=output))


def scaled(case: Any) -> Any:
    """A convolution whose sums are about as large as its inputs, for few bits."""
    (name, args, params), shapes = case
    if isinstance(args[1] if len(args) > 1 else None, Tensor):
        args = (args[0], args[1] / math.sqrt(args[1][0].numel()), *args[2:])
    return (name, args, params), shapes


@pytest.mark.parametrize("name", CASES)
def test_equals_the_reference(name: str) -> None:
    KernelStream(make_node(CASES[name])).run()


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "parts"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_with_sums_in_one_kernel_or_two(name: str, fused: bool) -> None:
    stream = KernelStream(make_node(CASES[name]), told={"fused": fused})
    stream.run()
    assert {"compute_pixels" in k.entry for k in stream.launcher.ran} == {False, not fused}


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name", OF_EACH_KIND)
def test_half_precisions(name: str, dtype: torch.dtype) -> None:
    KernelStream(at(make_node(scaled(CASES[name])), dtype)).run()


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_tf32(name: str) -> None:
    with torch.backends.cudnn.flags(allow_tf32=True):
        stream = KernelStream(make_node(scaled(CASES[name])), tolerance=TF32, told={"fused": False})
        stream.run()
    assert ("TENSOR", 1) in stream.launcher.ran[1].defines
