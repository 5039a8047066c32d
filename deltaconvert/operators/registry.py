"""The one registry of operators, and how an operator's file describes itself.

An operator is a plain function on dense tensors (the *canonical* function, the
target of the compiled graph's nodes) and a description of how it behaves on
video. Its file also lists every *spelling*: the modules, functions and methods
that mean it, each with a small adapter from that spelling's own arguments.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from deltaconvert.errors import RegistryError
from deltaconvert.footprint import Footprint

Rule = Literal["local", "global", "unknown"]
Size = tuple[int, ...]
Pair = tuple[int, int]


class Refusal(Exception):
    """Raised by an adapter: this call is not this operator, why, and what would make it one."""

    def __init__(self, reason: str, advice: str = "") -> None:
        """Keep both; the reason is the message."""
        super().__init__(reason)
        self.advice = advice


@dataclass(frozen=True)
class Shapes:
    """What an operator may ask about one of its calls, once shapes are known.

    Args:
        inputs: shapes of the tensors that change from frame to frame, in order.
        output: shape of the result.
        constants: the other tensor arguments by parameter name, as shapes.
        params: the canonical keyword arguments.
    """

    inputs: tuple[Size, ...]
    output: Size
    constants: dict[str, Size]
    params: dict[str, Any]

    def size_in(self, index: int = 0) -> Pair:
        """Return height and width of an input map."""
        return self.inputs[index][2], self.inputs[index][3]

    @property
    def size_out(self) -> Pair:
        """Height and width of the output map."""
        return self.output[2], self.output[3]

    @property
    def kernel(self) -> Pair:
        """Height and width of the filter."""
        weight = self.constants["weight"]
        return weight[2], weight[3]


FootprintRule = Callable[[Shapes], Sequence[Footprint]]
Refuse = Callable[[Shapes], "str | None"]


@dataclass(frozen=True)
class Operator:
    """One canonical operator.

    Args:
        name: unique; what a ``.delta`` file calls it.
        function: ``(*tensors, **params) -> Tensor`` on dense N x C x H x W tensors.
        rule: ``"local"`` or ``"global"``.
        footprints: taps of each input, for local operators; ``None`` where each output
            pixel reads its own place of each input, broadcasting.
        pixelwise: the function on gathered pixels: takes each input as
            ``[M, C, taps_y, taps_x]`` (what the footprint picks for each of M output pixels:
            mostly one pixel, ``[M, C, 1, 1]``) and the same parameters, and returns
            ``[M, C_out, 1, 1]``. Most pointwise operators give their own function.
        missing: the number that `pixelwise` finds where the footprint picks nothing, out of
            the parameters.
        weights: for a weighted sum of the taps of its one input, the weight of each:
            ``[H_out, taps_y]`` and ``[W_out, taps_x]``, float32, laid out as the footprint.
        not_local: asked once shapes are known: a reason why this call must run whole.
        multiply_adds: of one output pixel of one lane (of a whole lane, for global ones).
        fuses: what may be fused behind it: ``"residual"``, ``"activation"``.
        is_activation: a function of one value, so that it can be fused as
            ``activation=(name, *params)``; its parameters are numbers, in order, or constants
            with a number a channel.
        moves_only: values are moved, never computed with (so a comparison is exact).
        channels_first: an adapter for calls on ``N x H x W x C`` maps: takes the call's own
            arguments, with such maps as ``N x C x H x W``, and returns the `call` of the same
            meaning on these; ``None`` where there is none.
        advice: what would make a call local that is not, if anything.
    """

    name: str
    function: Callable[..., Tensor]
    rule: Literal["local", "global"] = "local"
    footprints: FootprintRule | None = None
    pixelwise: Callable[..., Tensor] | None = None
    missing: Callable[[dict[str, Any]], float] = lambda params: 0.0
    weights: Callable[[Shapes], tuple[np.ndarray, np.ndarray]] | None = None
    not_local: Refuse = lambda shapes: None
    multiply_adds: Callable[[Shapes], int] = lambda shapes: 0
    fuses: frozenset[str] = frozenset()
    is_activation: bool = False
    moves_only: bool = False
    channels_first: Callable[..., Call] | None = None
    advice: str = ""

    def __repr__(self) -> str:
        """Return the name alone: operators are unique."""
        return f"<operator {self.name}>"


@dataclass
class _Registry:
    by_name: dict[str, Operator] = field(default_factory=dict)
    by_function: dict[Callable[..., Any], Operator] = field(default_factory=dict)
    spellings: dict[Any, Callable[..., Any]] = field(default_factory=dict)
    modules: dict[type[nn.Module], Callable[..., Any]] = field(default_factory=dict)


_REGISTRY = _Registry()


def _add(table: dict[Any, Any], key: Any, value: Any) -> None:
    if table.get(key, value) is not value:
        raise RegistryError(f"{key!r} is registered already, as {table[key]!r}; a second "
                            f"registration ({value!r}) would silently replace it.")
    table[key] = value


def operator(*, pixelwise: Callable[..., Tensor] | bool | None = None, fuses: Sequence[str] = (),
             channels_first: Callable[..., Call] | bool | None = None,
             **description: Any) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Register the decorated canonical function; see `Operator` for the description.

    ``pixelwise=True`` says that the function itself works on gathered pixels, and
    ``channels_first=True`` that it means the same in either layout.

    Raises:
        RegistryError: where the name is taken.
    """
    def register(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        on_pixels = function if pixelwise is True else (pixelwise or None)
        same = partial(call, function) if channels_first is True else (channels_first or None)
        described = Operator(function.__name__, function, pixelwise=on_pixels,
                             fuses=frozenset(fuses), channels_first=same, **description)
        _add(_REGISTRY.by_name, described.name, described)
        _add(_REGISTRY.by_function, function, described)
        return function
    return register


def spelled(*targets: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register an adapter for functions and methods (methods by name).

    The adapter takes the spelling's own arguments and returns `call` of the canonical
    function, one of its arguments (an identity), or raises `Refusal`.
    """
    def register(adapter: Callable[..., Any]) -> Callable[..., Any]:
        for target in targets:
            _add(_REGISTRY.spellings, target, adapter)
        return adapter
    return register


def spelled_module(*types: type[nn.Module]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register an adapter ``(module, attribute, *inputs)`` for module types.

    ``attribute("weight")`` gives the graph's node for a parameter or buffer of the
    module, ``None`` where the module has ``None`` there. Subclasses do not inherit it:
    they may compute something else.
    """
    def register(adapter: Callable[..., Any]) -> Callable[..., Any]:
        for kind in types:
            _add(_REGISTRY.modules, kind, adapter)
        return adapter
    return register


@dataclass(frozen=True)
class Call:
    """What an adapter returns: a canonical function with its arguments."""

    function: Callable[..., Tensor]
    args: tuple[Any, ...]
    params: dict[str, Any]


def call(function: Callable[..., Any], *args: Any, **params: Any) -> Call:
    """Describe a call of a canonical function; tensors by position, settings by name."""
    return Call(function, args, params)


def find(function: Any) -> Operator | None:
    """Return the operator whose canonical function this is."""
    _load_all()
    try:
        return _REGISTRY.by_function.get(function)
    except TypeError:  # unhashable targets are nobody's
        return None


def named(name: str) -> Operator | None:
    """Return an operator by its name."""
    _load_all()
    return _REGISTRY.by_name.get(name)


def all_operators() -> list[Operator]:
    """Return every operator, in alphabetical order."""
    _load_all()
    return [_REGISTRY.by_name[name] for name in sorted(_REGISTRY.by_name)]


def spelling(target: Any) -> Callable[..., Any] | None:
    """Return the adapter for a function or a method's name."""
    _load_all()
    return _REGISTRY.spellings.get(target)


def module_spelling(kind: type[nn.Module]) -> Callable[..., Any] | None:
    """Return the adapter for a module type."""
    _load_all()
    return _REGISTRY.modules.get(kind)


def _load_all() -> None:
    """Import every file of this package once: a file is an operator's registration."""
    if not _LOADED:
        _LOADED.append(True)
        package = importlib.import_module("deltaconvert.operators")
        for info in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"deltaconvert.operators.{info.name}")


_LOADED: list[bool] = []
