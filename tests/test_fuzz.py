"""A bounded share of the fuzzing that `make fuzz` does for as long as wanted."""

import pytest

from tests.fuzzing import CASES, run


@pytest.mark.slow
def test_no_mutated_file_does_more_than_be_refused():
    done, ended, found = run(0, 40 * len(CASES), seconds=120)
    assert found == []
    assert done > 3 * len(CASES)
    kinds = {kind.partition(":")[0] for kind in ended}
    assert kinds == {case.__name__ for case in CASES}
    assert any(kind.endswith(": CheckpointError") for kind in ended)
    assert any(kind.endswith(": read and run") for kind in ended)
