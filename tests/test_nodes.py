"""Arguments that are filled again and again are those that are filled once."""

from __future__ import annotations

import pytest
import torch

from deltaconvert.nodes import Slot, fill, filler


@pytest.mark.parametrize("template", [
    (), (1, "a"), (Slot(0), 2, Slot(1)), ([Slot(1), 3], Slot(0)), (slice(Slot(0), None),),
    {}, {"dim": 1}, {"dim": Slot(1)}, (Slot(0, ((2,), (4,))),)], ids=str)
def test_filler_does_as_fill(template):
    values = [torch.arange(2), 5]
    made = filler(template)
    for _ in range(2):  # what is prepared is not written to
        found, wanted = made(values), fill(template, tuple(values))
        assert str(found if isinstance(found, dict) else tuple(found)) == str(wanted)
