"""Frames with PyTorch's operators between compiled steps are run by PyTorch's own threads."""

from __future__ import annotations

import dataclasses
import multiprocessing
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import deltaconvert
from deltaconvert.backends.cpu.frames import team
from deltaconvert.checking.law import LawChecker

SIZE = 64


class Between(nn.Module):
    """Convolutions, a function that runs whole, and one of Python's in a compiled step."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, channels, 3), nn.Conv2d(channels, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.lgamma(torch.sort(self.first(x), -1).values.sigmoid()))


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def frames() -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    made = [torch.rand(1, 3, SIZE, SIZE, generator=random)]
    for i in range(4):
        made.append(made[-1].clone())
        made[-1][:, :, 8 * i:8 * i + 9] += 0.5
    return made


def converted(channels: int, **settings: object) -> tuple[nn.Module, deltaconvert.DeltaModule]:
    torch.manual_seed(0)
    model = Between(channels).eval()
    return model, deltaconvert.convert(model, threads=2, **settings)


def engine_of(delta: deltaconvert.DeltaModule) -> object:
    assert delta.stream._state is not None
    return delta.stream._state.context


@pytest.fixture
def teams(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The threads of each team that runs steps."""
    parallel = team._parallel()
    if parallel is None:
        pytest.skip("PyTorch's threads are not OpenMP's")
    seen: list[int] = []

    def counted(*arguments: int) -> None:
        seen.append(arguments[2])
        parallel(*arguments)

    monkeypatch.setattr(team, "_parallel", lambda: counted)
    return seen


@pytest.mark.usefixtures("two_threads")
def test_it_gives_what_dense_gives(teams: list[int]) -> None:
    model, delta = converted(32)
    checker = LawChecker(delta)
    for i, frame in enumerate(frames()):
        if i == 2:
            delta.stream.observe(checker)
        if i >= 2:
            checker.begin(frame)
        with torch.no_grad():
            torch.testing.assert_close(delta(frame), model(frame))
    assert not checker.breaches, checker.breaches[0]
    assert engine_of(delta).with_pytorch
    assert engine_of(delta).calls_python
    assert teams
    assert set(teams) == {2}
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_little_is_left_to_pytorch_by_one_thread() -> None:
    """32 channels of 62 x 62 are enough for two of its threads, and 4 are not."""
    _, delta = converted(4)
    delta(frames()[0])
    assert not engine_of(delta).with_pytorch


@pytest.mark.usefixtures("two_threads")
def test_another_number_of_threads_is_no_team() -> None:
    torch.set_num_threads(1)
    _, delta = converted(32)
    delta(frames()[0])
    assert not engine_of(delta).with_pytorch


@pytest.mark.usefixtures("two_threads")
def test_threads_that_pytorch_has_no_more_are_not_called(teams: list[int]) -> None:
    model, delta = converted(32)
    seen = frames()
    for frame in seen[:3]:
        delta(frame)
    assert teams
    teams.clear()
    torch.set_num_threads(1)
    with torch.no_grad():
        torch.testing.assert_close(delta(seen[3]), model(seen[3]))
    assert not teams
    torch.set_num_threads(2)
    delta(seen[4])
    assert teams


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork")
@pytest.mark.usefixtures("two_threads")
def test_a_forked_child_has_no_team(teams: list[int]) -> None:
    """As a DataLoader's, which tells PyTorch so; a team would wait for threads of the parent's."""
    model, delta = converted(32)
    seen = frames()
    for frame in seen[:3]:
        delta(frame)
    assert teams
    with torch.no_grad():
        expected = model(seen[3])

    def run() -> None:
        torch.set_num_threads(1)
        torch.testing.assert_close(delta(seen[3]), expected)

    child = multiprocessing.get_context("fork").Process(target=run)
    child.start()
    child.join(60)
    hangs = child.is_alive()
    child.kill()
    assert not hangs
    assert child.exitcode == 0


@pytest.mark.usefixtures("two_threads")
def test_an_error_within_a_step_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    _, delta = converted(32)
    seen = frames()
    delta(seen[0])
    delta(seen[1])

    def broken(*_: object) -> Tensor:
        raise RuntimeError("of the user's")

    node = next(n for n in delta.stream.program.nodes if n.about.function_name == "lgamma")
    assert node.about.operator is not None
    monkeypatch.setattr(node.about, "operator",
                        dataclasses.replace(node.about.operator, pixelwise=broken))
    with pytest.raises(RuntimeError, match="of the user's"):
        delta(seen[2])
