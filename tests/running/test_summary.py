"""Percentiles and the words of a run's summary."""

import json
import math

import pytest
import torch
from torch import nn

import deltaconvert
from deltaconvert.clips import synthetic
from deltaconvert.errors import InputError
from deltaconvert.running.batches import Sources
from deltaconvert.running.session import Session
from deltaconvert.running.summary import ClipSummary, Times, percentile


def test_percentiles_are_interpolated():
    values = [4.0, 1.0, 3.0, 2.0, 5.0]
    assert [percentile(values, share) for share in (0, 0.5, 0.9, 1)] == [1, 3, 4.6, 5]
    assert percentile([7.0], 0.99) == 7
    assert math.isnan(percentile([], 0.5))
    assert Times.of([2.0, 1.0, 3.0]).mean == 2


def test_first_calls_are_apart_and_dense_is_sampled():
    delta = deltaconvert.convert(nn.Conv2d(3, 4, 3, padding=1), backend="reference")
    clips = [synthetic((32, 48), 6, seed=seed) for seed in (0, 1)]
    session = Session(delta, dense_every=2)
    for batch in Sources(clips, lambda p: p).as_streams():
        session.finished(session.run(batch))
    summary = session.summary([ClipSummary("a", (32, 48), 6), ClipSummary("b", (32, 48), 6)],
                              "streams")
    assert (summary.calls, len(summary.first_ms), len(session.later_ms)) == (12, 2, 10)
    assert summary.dense.calls == 6  # the second, fourth and sixth frame of each
    assert session.frames == {0: 6, 1: 6}
    assert 0 < summary.update_ratio_nodes < 0.5
    assert summary.ratios[:2] == [1.0, 1.0]
    assert summary.state_bytes == 2 * session.streams[0].state_bytes
    text = str(summary)
    assert "12 of 2 clips in" in text
    assert "on the same 6 calls" in text
    json.dumps(summary.to_dict(), allow_nan=False)


def test_lanes_answer_as_each_would_alone():
    torch.manual_seed(0)
    delta = deltaconvert.convert(nn.Conv2d(3, 4, 3, padding=1), backend="reference")
    clips = [synthetic((32, 48), 3, seed=seed) for seed in (0, 1)]
    session, alone = Session(delta), [delta.new_stream() for _ in clips]
    for batch in Sources(clips, lambda p: p).as_lanes():
        for done in session.run(batch):
            lane = done.picture.clip
            expected = alone[lane](batch.frame[lane:lane + 1])
            assert torch.allclose(done.outputs, expected, atol=1e-6)
            assert done.outputs.shape == (1, 4, 32, 48)


def test_nothing_to_sum_up():
    delta = deltaconvert.convert(nn.Conv2d(3, 4, 3), backend="reference")
    with pytest.raises(InputError, match="no frame was computed"):
        Session(delta).summary([], "streams")
    with pytest.raises(InputError, match="dense_every=-1"):
        Session(delta, -1)
