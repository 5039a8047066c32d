"""Files of every released format are still read, to the same outputs."""

import numpy as np
import pytest

from deltaconvert import NodeConfig, Preprocessing
from deltaconvert.files import VERSION, load, read_header
from tests.formats.make import FOLDER, frames, outputs


@pytest.mark.parametrize("version", range(1, VERSION + 1))
def test_a_stored_file_answers_as_it_did(version):
    delta = load(FOLDER / f"v{version}.delta")
    found = outputs(delta)
    with np.load(FOLDER / f"v{version}.npz") as expected:
        assert sorted(found) == sorted(expected)
        for name, value in expected.items():
            # The sums of another PyTorch may have another order.
            assert np.allclose(found[name], value, rtol=1e-4, atol=1e-5), name
            assert found[name].dtype == value.dtype


def test_what_version_1_says():
    delta = load(FOLDER / "v1.delta")
    assert delta.config.threshold == 0.01
    assert delta.config.nodes == {"second*": NodeConfig(0.02)}
    assert delta.preprocessing == Preprocessing("bgr", (0.5,), (0.25, 0.5, 0.25))
    state = delta.state_dict()
    assert state["second.weight"].data_ptr() == state["tied.weight"].data_ptr()
    assert str(state["labels"].dtype) == "torch.int16"
    assert "hidden" not in state
    assert type(delta(frames()[0])).__name__ == "Answer"


def test_its_header_alone():
    header = read_header(FOLDER / "v1.delta")
    assert header.version == 1
    assert header.nbytes == (FOLDER / "v1.delta").stat().st_size
    assert header.tensors["labels"] == ("I16", [3])
    assert header.tensors["first.0.weight"] == ("F32", [8, 3, 3, 3])
    assert "tied.weight" not in header.tensors
    assert header.model["config"]["threshold"] == 0.01
