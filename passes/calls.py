"""How a model is called: which of its parameters are given, and what tensors are in them.

Before: ``model(frame, (hidden, cell), scale=0.5)``.
After: three tensors, and a `Call` that says where they belong; the graph has an input for each.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from deltaconvert.errors import FrameError, FrameTypeError
from deltaconvert.passes.tracing.input_parameters import input_parameters
from deltaconvert.words import a_kind, count

CONSTANTS = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Call:
    """A call of a model's ``forward`` but for its tensors.

    Args:
        names: of the tensors, in order; ``state_1`` is the second in the parameter ``state``.
        spec: the tree of the arguments, by place and by name.
        constants: its leaves as they are written, with their types; a tensor stands for itself.
            So 0.0 is not -0.0, True is not 1, and NaN is NaN.
        values: the leaves.
    """

    names: tuple[str, ...]
    spec: pytree.TreeSpec
    constants: tuple[tuple[type, str], ...]
    values: tuple[Any, ...] = field(compare=False)

    @property
    def is_flat(self) -> bool:
        """Whether all of its arguments are tensors."""
        args, named = self.arguments(range(len(self.names)))
        return all(type(a) is int for a in (*args, *named.values())) and all(
            kind is Tensor for kind, _ in self.constants)

    def __str__(self) -> str:
        """Write it with the tensors' names."""
        args, named = self.arguments([_Name(name) for name in self.names])
        return f"({', '.join([*map(repr, args), *(f'{k}={v!r}' for k, v in named.items())])})"

    def arguments(self, tensors: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments with these in the place of the tensors."""
        given = iter(tensors)
        leaves = [next(given) if kind is Tensor else value
                  for (kind, _), value in zip(self.constants, self.values, strict=True)]
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        return args, kwargs


class _Name(str):
    """A name that is written as such."""

    __repr__ = str.__str__


class Frames(list[Tensor]):
    """The tensors of a call, in order; ``call`` is None where each is an input by itself."""

    call: Call | None = None


def without_gradient(frame: Any) -> Any:
    """Return a tensor's numbers alone; what is none as it is."""
    needs = isinstance(frame, Tensor) and frame.requires_grad
    return frame.detach() if needs else frame


def arranged(forward: Callable[..., Any], args: Sequence[Any], named: Mapping[str, Any],
             names: Sequence[str] = (), signature: inspect.Signature | None = None) -> Frames:
    """Return the tensors in the arguments of a call, and how they are given.

    Args:
        forward: with ``self`` bound.
        args: by their place.
        named: by name.
        names: of the inputs that it usually has, for the message.
        signature: of ``forward``, where it is known already.

    Raises:
        FrameError: ``forward`` has no such parameters.
        FrameTypeError: for what is neither a tensor, a number, nor a container of them.
    """
    try:
        bound = (signature or inspect.signature(forward)).bind(*args, **named)
    except TypeError as error:
        raise FrameError(_expected(forward, args, named, names)) from error
    _forget_defaults(bound)
    found = Frames()
    leaves, spec = pytree.tree_flatten((bound.args, bound.kwargs))
    for leaf in leaves:
        if not isinstance(leaf, (Tensor, *CONSTANTS)):
            raise FrameTypeError(_not_a_tensor(bound.arguments, leaf))
        if isinstance(leaf, Tensor):
            found.append(without_gradient(leaf))
    if not found:
        _refuse_numbers(bound.arguments)
        raise FrameTypeError("there is no tensor among the inputs; the model takes "
                             f"{', '.join(names or bound.signature.parameters)}.")
    values = tuple(None if isinstance(leaf, Tensor) else leaf for leaf in leaves)
    found.call = Call(_names(bound.arguments, [*bound.signature.parameters]), spec, tuple(
        (Tensor, "") if isinstance(leaf, Tensor) else _written(leaf) for leaf in leaves), values)
    return found


def _written(constant: Any) -> tuple[type, str]:
    return type(constant), repr(constant)


def _forget_defaults(bound: inspect.BoundArguments) -> None:
    """Drop what is given as it is by default: said or not, it is the same call.

    Not before what can be given by its place alone.
    """
    parameters = bound.signature.parameters
    for name, value in reversed(list(bound.arguments.items())):
        kind, default = parameters[name].kind, parameters[name].default
        if kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY) and (
                value is not default):
            return
        if value is default or (isinstance(value, CONSTANTS) and
                                _written(value) == _written(default)):
            del bound.arguments[name]


def _names(arguments: Mapping[str, Any], taken: Sequence[str]) -> tuple[str, ...]:
    """Name the tensors after the parameters that they are in."""
    names: list[str] = []
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            names.append(name)
            continue
        for place, _ in enumerate(t for t in pytree.tree_leaves(value) if isinstance(t, Tensor)):
            inner = f"{name}_{place}"
            while inner in taken or inner in names:
                inner += "_"
            names.append(inner)
    return tuple(names)


def _expected(forward: Callable[..., Any], args: Sequence[Any], named: Mapping[str, Any],
              names: Sequence[str]) -> str:
    names = names or [p.name for p in input_parameters(forward)]
    known = [*inspect.signature(forward).parameters]
    if wrong := sorted(set(named) - set(known[len(args):])):
        return (f"{', '.join(wrong)}: no input of that name is left; the inputs are "
                f"{', '.join(known)}.")
    return (f"the model takes {count(len(names), 'input')} ({', '.join(names)}), "
            f"{len(args) + len(named)} were given.")


def _refuse_numbers(arguments: Mapping[str, Any]) -> None:
    """Refuse numbers, alone or in lists, where a frame belongs."""
    for name, value in arguments.items():
        if value is not None and pytree.tree_leaves(value):
            raise FrameTypeError(f"input {name!r} is {a_kind(value)}, not a tensor. "
                                 "Decode and normalise the frame as for the dense model.")


def _not_a_tensor(arguments: Mapping[str, Any], leaf: Any) -> str:
    name = next(name for name, value in arguments.items()
                if any(leaf is other for other in pytree.tree_leaves(value)))
    what = a_kind(leaf)
    if dataclasses.is_dataclass(leaf):
        kind = type(leaf).__name__
        return (f"input {name!r} is or holds {what}, of which PyTorch does not know the parts. Say "
                f"torch.export.register_dataclass({kind}) before.")
    if leaf is arguments[name]:
        return (f"input {name!r} is {what}, not a tensor. Decode and normalise the frame as for "
                "the dense model.")
    return (f"input {name!r} holds a {type(leaf).__module__}.{type(leaf).__name__}, which is "
            "neither a tensor nor a number of Python's.")
