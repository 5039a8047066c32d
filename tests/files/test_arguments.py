"""The arguments of calls as JSON and back, and the names of functions."""

from __future__ import annotations

import json
import math
import operator

import pytest
import torch

from deltaconvert.graph_json import allowed, arguments

VALUES = [
    None, True, False, 0, -7, 2**62, 1.0, 0.1, -0.0, math.inf, -math.inf, "text", "quo'te\n",
    Ellipsis, (), (1,), [1, (2.5, [None])], {"a": (1, 2)}, slice(None), slice(1, -1, 2),
    torch.float16, torch.bool, torch.Size((2, 3)), torch.channels_last, torch.preserve_format,
    torch.device("cpu"), (slice(0, 3), Ellipsis, None),
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_arguments_come_back_with_their_types(value):
    written = json.loads(json.dumps(arguments.encode(value, {}), allow_nan=False))
    found = arguments.decode(written, {})
    assert found == value
    assert type(found) is type(value)
    assert repr(found) == repr(value)


def test_nan_comes_back():
    assert math.isnan(arguments.decode(arguments.encode(math.nan, {}), {}))


def test_every_listed_name_exists_and_is_spelled_by_one_name():
    table = allowed.functions()
    assert table["torch.cat"] is torch.cat
    assert table["operator.getitem"] is operator.getitem
    for name in allowed.BOTH | allowed.ONLY_METHODS:
        assert name in allowed.methods(), name
    for name in allowed.ONLY_FUNCTIONAL:
        assert f"torch.nn.functional.{name}" in table
