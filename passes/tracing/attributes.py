"""What the modules of a model hold, to find out what a forward does to it, and to undo that."""

from __future__ import annotations

import sys
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

TABLES = ("_buffers", "_parameters")
NO_HOLDERS = (nn.Module, Tensor, type, types.ModuleType, types.FunctionType, types.MethodType)
# Of objects within objects: enough for a cache in a settings object, and no tour of the process.
DEPTH = 3
# Whose globals are no model's.
LIBRARIES = frozenset({"torch", "numpy", *sys.stdlib_module_names} - {"__main__"})
# Of a global list: a cache is short, a data set is not.
LONGEST_GLOBAL = 1000


class _Names(MutableMapping[str, Any]):
    """What code keeps elsewhere than in a dict, as one: in a class, in a closure."""

    def __init__(self, read: Callable[[], Mapping[str, Any]], put: Callable[[str, Any], None],
                 drop: Callable[[str], None]) -> None:
        self._read, self._put, self._drop = read, put, drop

    def __getitem__(self, key: str) -> Any:
        return self._read()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._put(key, value)

    def __delitem__(self, key: str) -> None:
        self._drop(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())


class Attributes:
    """The attributes of all modules, and what is in lists, dicts and objects among them.

    Also what the modules' code shares with others, where functions beside a model have their
    caches: attributes of classes, variables of closures, globals. Of these, proxies alone are
    undone, because other code may have set them meanwhile.
    """

    def __init__(self, model: nn.Module) -> None:
        """Take note of what is where, and of the numbers of the tensors."""
        self._held = [(name, holder, _plain_copy(holder)) for name, holder in _holders(model)]
        self._tensors = [(_join(name, key), value, value.detach().clone())
                         for name, holder, _ in self._held for key, value in _items(holder)
                         if isinstance(value, Tensor) and not isinstance(value, nn.Parameter)]
        self._parameters = list(model.named_parameters())
        self._versions = {id(tensor): _version(tensor) for _, tensor in self._named()}
        self._held += [(name, holder, _plain_copy(holder)) for name, holder in _globals(model)]
        self._shared = [(name, holder, _plain_copy(holder)) for name, holder in _shared(model)]

    def _named(self) -> Iterator[tuple[str, Tensor]]:
        yield from ((name, tensor) for name, tensor, _ in self._tensors)
        yield from self._parameters

    def tensor(self, path: str) -> Any:
        """Return the tensor that was at a path."""
        return dict(self._named()).get(path)

    def written(self) -> dict[int, str]:
        """Return the names of the tensors that were written into, by identity."""
        return {id(tensor): name for name, tensor in self._named()
                if _version(tensor) != self._versions[id(tensor)]}

    def storages(self) -> dict[int, str]:
        """Return the names of the tensors by the memory that they are in."""
        return {place: name for name, tensor in self._named() if (place := storage(tensor))}

    def changed(self) -> list[str]:
        """Return where another value is than before, and which tensors were written into."""
        return [*(name for name, _, _, _ in self.changes()), *self.written().values()]

    def changes(self) -> list[tuple[str, Any, Any, Any]]:
        """Return name, holder, key and value of what is another value than before."""
        return [(name if isinstance(holder, (list, deque)) else _join(name, key), holder, key,
                 value)
                for name, holder, before in (*self._held, *self._shared)
                for known in [dict(_items(before))] for key, value in _items(holder)
                if not _name(key).startswith("_tensor_constant")
                and not _same(value, known.get(key, known))]

    def moving(self) -> Iterator[tuple[str, Any, Any, Any]]:
        """Yield name, holder, key and value of all numbers and tensors that are not parameters."""
        for name, holder, _ in (*self._held, *self._shared):
            for key, value in _items(holder):
                if isinstance(value, (int, float, Tensor)) and not isinstance(
                        value, (bool, nn.Parameter, fx.Proxy)):
                    yield _join(name, key), holder, key, value

    def restore(self, undo: Callable[[Any], Any]) -> None:
        """Put back what was written into, and what had the place of such new values."""
        self.put_back(undo)
        written = self.written()
        with torch.no_grad():
            for _, tensor, before in self._tensors:
                if id(tensor) in written:
                    tensor.copy_(before)

    def put_back(self, undo: Callable[[Any], Any]) -> None:
        """Put back what had the place of such new values; the numbers of tensors stay."""
        for _, holder, before in self._shared:
            for key, value in list(holder.items()):
                if undo(value) and (proxies(value) or proxies(before.get(key))):
                    if key in before:
                        holder[key] = before[key]
                    else:
                        del holder[key]
        for _, holder, before in self._held:
            known = dict(_items(before))
            if isinstance(holder, (list, deque)):
                items = [known.get(key, value) if undo(value) else value
                         for key, value in enumerate(holder) if key in known or not undo(value)]
                items += [value for key, value in known.items()
                          if key >= len(holder) and undo(value)]
                if len(items) != len(holder) or any(map(_is_other, items, holder)):
                    holder.clear()
                    holder.extend(items)
                continue
            # Not by methods of its own class: a registry may file what it is given elsewhere.
            kind = OrderedDict if isinstance(holder, OrderedDict) else dict
            for key, value in list(_items(holder)):
                if undo(value) and key not in known:
                    kind.__delitem__(holder, key)
                elif undo(value) and value is not known[key]:
                    kind.__setitem__(holder, key, known[key])
            for key, value in known.items():
                if not kind.__contains__(holder, key) and undo(value):
                    kind.__setitem__(holder, key, value)


def storage(tensor: Any) -> int:
    """Return what stands for the memory that a tensor is in; 0 where it has none to be seen."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout is not torch.strided:
        return 0
    held = tensor.untyped_storage()
    return held.data_ptr() or int(held._cdata)  # where NumPy's memory lies, not who says so


def proxies(value: Any) -> list[fx.Proxy]:
    """Return the proxies in a value of nested containers."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, fx.Proxy)]


def _holders(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the attributes of each module, and each list, dict or object among them."""
    seen: set[int] = set()
    for path, module in model.named_modules():
        yield from _within(path, vars(module), seen, DEPTH)


def _within(name: str, holder: Any, seen: set[int], depth: int) -> Iterator[tuple[str, Any]]:
    if id(holder) in seen:
        return
    seen.add(id(holder))
    yield name, holder
    items = enumerate(list(holder)) if isinstance(holder, (list, deque)) else list(
        dict.items(holder))
    for key, value in items:
        inner = _holder(value)
        if inner is not None and depth:
            yield from _within(name if _is_table(key) else _join(name, key), inner, seen, depth - 1)


def _holder(value: Any) -> Any:
    """Return the list or dict that a value keeps things in, if any."""
    if isinstance(value, (list, dict, deque)):
        return value
    is_object = hasattr(value, "__dict__") and not isinstance(value, NO_HOLDERS)
    return vars(value) if is_object and not type(value).__module__.startswith("torch") else None


def _globals(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the short lists and dicts that the code of the model's modules shares."""
    seen: set[int] = set()
    for path, names in _shared(model):
        for key, value in names.items():
            if isinstance(value, (list, dict, deque)) and len(value) <= LONGEST_GLOBAL and (
                    not key.startswith("__") and id(value) not in seen):
                seen.add(id(value))
                yield _join(path, key), value


def _shared(model: nn.Module) -> Iterator[tuple[str, MutableMapping[str, Any]]]:
    """Yield what the code of the model's modules shares: globals, closures, and their classes."""
    homes: set[int] = set()
    for function in _functions(model):
        if id(function.__globals__) not in homes:
            homes.add(id(function.__globals__))
            yield function.__module__, function.__globals__
        if function.__closure__:
            yield "", _of_closure(function)
    for kind in {kind for module in model.modules() for kind in type(module).__mro__}:
        if not _of_library(kind):
            yield kind.__name__, _Names(partial(vars, kind), partial(setattr, kind),
                                        partial(delattr, kind))


def _of_closure(function: types.FunctionType) -> _Names:
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))

    def read() -> dict[str, Any]:
        return {name: cell.cell_contents for name, cell in cells.items()
                if cell != types.CellType()}

    def put(name: str, value: Any) -> None:
        cells[name].cell_contents = value

    def drop(name: str) -> None:
        del cells[name].cell_contents
    return _Names(read, put, drop)


def _of_library(code: Any) -> bool:
    return (code.__module__ or "torch").partition(".")[0] in LIBRARIES


def _functions(model: nn.Module) -> Iterator[types.FunctionType]:
    """Yield the methods of the model's modules, and the functions that they name, and so on."""
    kinds = {kind for module in model.modules() for kind in type(module).__mro__}
    waiting: list[Any] = [value for holder in (*kinds, *model.modules())
                          for value in vars(holder).values()]
    seen: set[int] = set()
    while waiting:
        function = waiting.pop()
        if id(function) in seen or not isinstance(function, types.FunctionType) or (
                _of_library(function)):
            continue
        seen.add(id(function))
        yield function
        waiting += _of_closure(function).values()
        named = [function.__globals__.get(name) for name in function.__code__.co_names]
        waiting += named
        waiting += [getattr(module, name, None) for module in named
                    if isinstance(module, types.ModuleType) and module.__name__.partition(".")[0]
                    not in LIBRARIES for name in function.__code__.co_names]


def _plain_copy(holder: Any) -> Any:
    if isinstance(holder, (list, deque)):
        return list(holder)
    return dict(dict.items(holder) if isinstance(holder, dict) else holder.items())


def _items(holder: Any) -> Iterable[tuple[Any, Any]]:
    """Return keys and values; containers of a module are holders of their own."""
    if isinstance(holder, (list, deque)):
        return enumerate(list(holder))
    pairs = dict.items(holder) if isinstance(holder, dict) else holder.items()
    return [(key, value) for key, value in list(pairs) if not _is_table(key)]


def _is_other(one: Any, other: Any) -> bool:
    return one is not other


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, (bool, int, float, str, torch.Size)) and type(one) is type(other):
        return one == other
    return one is other


def _join(path: str, key: Any) -> str:
    return f"{path}.{_name(key)}" if path else _name(key)


def _name(key: Any) -> str:
    """Name what a key stands for; a proxy that is asked itself records a call."""
    if type(key) is str:  # nearly all are, and mapping a tree takes a while
        return key
    return str(pytree.tree_map_only(fx.Proxy, lambda proxy: type(proxy).__name__, key))


def _is_table(key: Any) -> bool:
    return isinstance(key, str) and key in TABLES


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
