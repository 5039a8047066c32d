"""The soak, for some seconds; and that it would see what it looks for."""

import pytest

from tests.soak import Seen, judge, soak


@pytest.mark.slow
def test_some_seconds():
    wrong, figures = soak(12)
    assert wrong == []
    assert [name for name, _ in figures] == ["seconds", "memory, MB", "thread 0", "thread 1"]


def good():
    return [Seen(100, [0.01] * 20), Seen(100, [0.01] * 20)]


def test_what_it_would_see():
    assert judge(good(), [10**8] * 10, 1)[0] == []
    assert judge(good(), [10**8] * 5 + [2 * 10**8] * 5, 1)[0] == [
        "memory grew by 100.0 MB from the first half to the second"]
    drifts, fails, breaks = good(), good(), good()
    drifts[1].errors[10:] = [0.02] * 10
    fails[0].failure = ValueError("no")
    breaks[0].breaches.append("conv breaks the law")
    assert judge(drifts, [1] * 10, 1)[0] == [
        "thread 1: the error grew from 1.00e-02 to 2.00e-02"]
    assert judge(fails, [1] * 10, 1)[0] == ["thread 0: ValueError('no')"]
    assert judge(breaks, [1] * 10, 1)[0] == ["thread 0: conv breaks the law"]
