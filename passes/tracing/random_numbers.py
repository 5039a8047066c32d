"""Random numbers: whether a forward goes by those that it draws, of which a graph keeps the first.

Before: ``if random.random() < 0.1: y = y * 2``, or ``y + torch.randn(4, 1, 1)``.
After: that they were drawn, and looked at, if only for a branch.

What is drawn like a frame's map (``torch.rand_like(y)``) is a call in the graph, and left alone.
What is drawn in vain, as where ``torch.rand([]) < p`` comes behind ``self.training and``, is too,
and so are ``random.uniform(0, 1)`` and ``np.random.rand()``; other draws of Python's and NumPy's
count as looked at.
"""

from __future__ import annotations

import pickle
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from deltaconvert.passes.tracing.find_numbers import with_numbers
from deltaconvert.passes.tracing.watch_counters import LOOKS, Watch

DRAW = frozenset({
    "rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "normal",
    "bernoulli", "multinomial", "poisson", "normal_", "uniform_", "random_", "bernoulli_",
    "exponential_", "cauchy_", "geometric_", "log_normal_"})
# What draws numbers between bounds, of Python and of NumPy.
BETWEEN = {random: ("random", "uniform"), np.random: ("random", "random_sample", "rand", "uniform")}


@contextmanager
def random_numbers_kept() -> Iterator[None]:
    """Leave all random numbers as they were."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)


def numbers_drawn() -> tuple[bytes, ...]:
    """Return what changes when a random number is drawn: of Python, of NumPy, of PyTorch."""
    return (pickle.dumps(random.getstate()), pickle.dumps(np.random.get_state()),
            torch.get_rng_state().numpy().tobytes())


def looks_at_drawn(trace: Callable[[], Any]) -> bool:
    """Whether a forward goes by random numbers that it draws while it is traced."""
    before, watch = numbers_drawn(), _WatchDrawn()
    try:
        with watch, _drawing_nothing():
            trace()
    except Exception:  # it went well with numbers
        return True
    return watch.looked or numbers_drawn()[:2] != before[:2]


class _Nothing:
    """Stands for a number that is drawn in vain: who looks at it fails."""


def _fail(self: _Nothing, *others: Any) -> Any:
    raise TypeError("a random number is looked at")


for _name in LOOKS:
    setattr(_Nothing, _name, _fail)


@contextmanager
def _drawing_nothing() -> Iterator[None]:
    """Let numbers between bounds be nothing, in this thread."""
    thread = threading.get_ident()

    def nothing(draw: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: (
            _Nothing() if threading.get_ident() == thread else draw(*args, **kwargs))
    kept = [(home, name, getattr(home, name)) for home, names in BETWEEN.items() for name in names]
    for home, name, draw in kept:
        setattr(home, name, nothing(draw))
    try:
        yield
    finally:
        for home, name, draw in kept:
            setattr(home, name, draw)


def draws_beside_frames(model: nn.Module, graph: fx.Graph) -> bool:
    """Whether numbers are drawn of which a frame tells no more than how many."""
    of_frames = with_numbers(model, graph, [])
    return any(node.users and of_frames.isdisjoint([node, *node.all_input_nodes])
               and getattr(node.target, "__name__", node.target) in DRAW for node in graph.nodes)


class _WatchDrawn(Watch):
    """Follow the tensors whose numbers were drawn."""

    def __init__(self) -> None:
        super().__init__([])

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = numbers_drawn()[2]
        result = super().__torch_function__(func, types, args, kwargs)
        if numbers_drawn()[2] != before:
            self._counts.update({id(leaf): leaf for leaf in pytree.tree_leaves(result)
                                 if isinstance(leaf, Tensor)})
        return result
