"""What every backend must have."""

from __future__ import annotations

import pytest

from deltaconvert.backends.base import Backend


def test_a_backend_that_lacks_a_part_is_not_made():
    class Half(Backend):
        name = "half"

        def supports(self, node):
            return None

    with pytest.raises(TypeError, match="abstract methods bind, fold_filters, plan"):
        Half()
