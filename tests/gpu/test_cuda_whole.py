"""Nodes that run when anything changed, by kernels of their own, on a GPU."""

from __future__ import annotations

import pytest
import torch

from deltaconvert.backends.cuda import vectors
from tests.backends.cpu.test_backend import make_node
from tests.backends.test_cuda import at
from tests.backends.test_cuda_whole import (
    ATTEND,
    ATTENTIONS,
    GROUPS,
    NORM,
    NORMS,
    POOL,
    POOLED,
    WindowStream,
    attention,
    check,
    flattened,
    group_norm,
    pooled,
    regions,
    whole_node,
)
from tests.gpu.test_cuda import GPU, _exact, launcher, to_gpu  # noqa: F401

ON_GPU = {"device": GPU}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [*POOLED, (144, 92, 160)], ids=str)
def test_pooling_to_one_pixel(size, dtype, norm, launcher):  # noqa: F811
    check(to_gpu(whole_node(pooled(*size), 0.1, norm, dtype)), POOL, "pooling",
          launcher=launcher, **ON_GPU)


@pytest.mark.parametrize("parts", [False, True], ids=["block", "grid"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [13, 40, 264, 40000])
def test_values_of_one_pixel(channels, dtype, norm, parts, launcher, monkeypatch):  # noqa: F811
    if parts:
        monkeypatch.setattr(vectors, "MOST_OF_BLOCK", 16)
        monkeypatch.setattr(vectors, "PACKS_A_THREAD", 1)
    check(to_gpu(whole_node(flattened(channels), 0.2, norm, dtype)), set(), "whole",
          launcher=launcher, **ON_GPU)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels, groups", [*GROUPS, (320, 1), (2080, 4)])
def test_group_norm(channels, groups, dtype, norm, launcher):  # noqa: F811
    case = group_norm(channels, groups, 46, 40)
    check(to_gpu(whole_node(case, 0.1, norm, dtype)), NORM, "norm", launcher=launcher, **ON_GPU)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels, size", [(32, (2, 2)), (13, (6, 6)), (264, (1, 2)),
                                            (512, (3, 3))])
def test_few_regions_of_many_pixels(channels, size, dtype, norm, launcher):  # noqa: F811
    check(to_gpu(at(make_node(regions(channels, size), 0.1, norm), dtype)), set(), "regions",
          launcher=launcher, **ON_GPU)


OF_SWIN = attention(3, (46, 80), (7, 7), (3, 3))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [*ATTENTIONS.values(), OF_SWIN], ids=[*ATTENTIONS, "Swin"])
def test_attention_within_windows(case, dtype, launcher):  # noqa: F811
    check(to_gpu(whole_node(case, 0.05, "max", dtype)), ATTEND, "windows", WindowStream,
          launcher=launcher, **ON_GPU)
