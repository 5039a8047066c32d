"""What compiled code does beneath Numba: tuples in memory, calls by address, atomics.

A step's arguments are a `NamedTuple` whose annotations say how it lies in memory. `Kept` puts
one there once; compiled code reads it by its address. So a frame's steps are numbers in a
table, and compiled code goes from one to the next without Python.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
# (compiled code: Numba infers the types of its loops)

from __future__ import annotations

import ctypes
import functools
import platform
import sys
from types import FunctionType
from typing import Annotated, Any, NamedTuple, get_type_hints

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.imputils import impl_ret_borrowed
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from deltaconvert.backends.cpu.compiling.jit import Entry, entry


class Varies(NamedTuple):
    """Marks a field that holds numbers as the maps do, float32 or bfloat16 (see `storage`)."""

    dimensions: int


Numbers = Annotated[np.ndarray, Varies(1)]
Numbers3 = Annotated[np.ndarray, Varies(3)]
Floats = Annotated[np.ndarray, types.float32[::1]]
Floats2 = Annotated[np.ndarray, types.float32[:, ::1]]
Floats3 = Annotated[np.ndarray, types.float32[:, :, ::1]]
Doubles = Annotated[np.ndarray, types.float64[::1]]
Ints = Annotated[np.ndarray, types.int32[::1]]
Ints2 = Annotated[np.ndarray, types.int32[:, ::1]]
Longs = Annotated[np.ndarray, types.int64[::1]]
Longs2 = Annotated[np.ndarray, types.int64[:, ::1]]
Longs3 = Annotated[np.ndarray, types.int64[:, :, ::1]]
Longs4 = Annotated[np.ndarray, types.int64[:, :, :, ::1]]
Bytes = Annotated[np.ndarray, types.uint8[::1]]
Bytes2 = Annotated[np.ndarray, types.uint8[:, ::1]]
Flags = Annotated[np.ndarray, types.boolean[::1]]

_PLAIN = {int: types.intp, bool: types.boolean, float: types.float64, np.float32: types.float32}
_SCALARS = {types.intp: ctypes.c_ssize_t, types.boolean: ctypes.c_bool,
            types.float32: ctypes.c_float, types.float64: ctypes.c_double}
_INT = ir.IntType(64)


# Kept, as the next: a network has hundreds of steps, and few kinds of them.
@functools.cache
def layout(kind: Any, stored: Any = types.float32) -> Any:
    """Return the Numba type of a `NamedTuple` class, from the annotations of its fields.

    Args:
        kind: the class.
        stored: how `Numbers` are.
    """
    fields = get_type_hints(kind, include_extras=True)
    found = tuple(_field(hint, stored) for hint in fields.values())
    return types.BaseTuple.from_types(found, kind)


def _field(hint: Any, stored: Any) -> Any:
    if found := _PLAIN.get(hint):
        return found
    if not hasattr(hint, "__metadata__"):
        return layout(hint, stored)
    marked = hint.__metadata__[0]
    return types.Array(stored, marked.dimensions, "C") if isinstance(marked, Varies) else marked


class Entries(NamedTuple):
    """An entry for maps of float32, and the same for bfloat16."""

    float32: Entry
    bfloat16: Entry

    def of(self, data: np.ndarray) -> Entry:
        """Return the one for a map."""
        return self.bfloat16 if data.dtype == np.uint16 else self.float32


def entries(kind: type, work: Any, name: str = "") -> Entries:
    """Make the entries of a loop ``work(task, number)`` on tasks of a kind.

    They are functions without a closure, and with names of their own. Numba finds what it has kept
    by a function's name and by what is in its closure, and a loop there is another in each process.

    Args:
        kind: a `NamedTuple`.
        work: what is done with a task, and a worker or the number of workers.
        name: of the work; that of ``work`` unless given. A kind has each name once.
    """
    def made(stored: Any) -> Entry:
        names = {"__name__": kind.__module__, "read": read, "_WORK": work,
                 "_KIND": layout(kind, stored)}
        function: Any = FunctionType(_run.__code__, names)
        function.__qualname__ = f"{kind.__name__}.{name or work.__name__}.{stored}"
        return entry(function)

    return Entries(made(types.float32), made(types.uint16))


def _run(address, number):
    _WORK(read(address, _KIND), number)


_WORK: Any = None  # of an entry, as the next
_KIND: Any = None


class Kept:
    """A tuple in memory, for as long as this object lives.

    Attributes:
        address: where.
    """

    def __init__(self, value: Any) -> None:
        """Copy the tuple; its arrays stay where they are.

        Raises:
            TypeError: a field is not what its annotation says.
        """
        kind, named = numba.typeof(value), value.__class__
        declared, other = (layout(named, stored) for stored in (types.float32, types.uint16))
        declared = other if kind == other else declared
        if kind != declared:
            wrong = [f"{name} is {a}, not {b}" for name, a, b in
                     zip(value._fields, kind, declared, strict=True) if a != b]
            raise TypeError(f"{type(value).__name__}: {'; '.join(wrong)}")
        self.value = value
        self.memory = _structure(declared)()
        _fill(self.memory, declared, value)
        self.address = ctypes.addressof(self.memory)


@functools.cache
def _structure(kind: Any) -> Any:
    """Return how Numba lays a type out, for `ctypes`."""
    parts: Any = kind
    fields: list[tuple[str, Any]]
    if isinstance(kind, types.BaseTuple):
        fields = [(f"field{i}", _structure(part)) for i, part in enumerate(parts)]
    elif isinstance(kind, types.Array):
        sizes = ctypes.c_ssize_t * kind.ndim
        fields = [(name, ctypes.c_void_p) for name in ("meminfo", "parent")]
        fields += [(name, ctypes.c_ssize_t) for name in ("items", "item_bytes", "data")]
        fields += [("shape", sizes), ("strides", sizes)]
    else:
        return _SCALARS[kind]
    return type("Layout", (ctypes.Structure,), {"_fields_": fields})


def _fill(memory: Any, kind: Any, value: Any) -> None:
    """Write a tuple; its arrays are borrowed, so no reference to them is counted."""
    for (name, _), field, part in zip(memory._fields_, kind, value, strict=True):
        if isinstance(field, types.BaseTuple):
            _fill(getattr(memory, name), field, part)
        elif isinstance(field, types.Array):
            array = getattr(memory, name)
            array.items, array.item_bytes, array.data = part.size, part.itemsize, part.ctypes.data
            array.shape[:], array.strides[:] = part.shape, part.strides
        else:
            setattr(memory, name, part)


def _read(typing: Any, address: Any, kind: Any) -> Any:
    """Read a value of a kind, a `layout`, from an address."""
    found = kind.instance_type

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.inttoptr(args[0], context.get_value_type(found).as_pointer())
        return impl_ret_borrowed(context, builder, found, builder.load(place))

    return found(types.intp, kind), codegen


def _view(typing: Any, address: Any, size: Any, like: Any) -> Any:
    """View memory as ``[size]`` of another array's type, for as long as somebody keeps it."""
    found = types.Array(like.dtype, 1, "C")

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(found)(context, builder)
        data = builder.inttoptr(args[0], array.data.type)
        bytes_each = _INT(like.dtype.bitwidth // 8)
        populate_array(array, data, cgutils.pack_array(builder, [args[1]]),
                       cgutils.pack_array(builder, [bytes_each]), bytes_each, None)
        return array._getvalue()

    return found(types.intp, types.intp, like), codegen


def _word_at(typing: Any, address: Any) -> Any:
    """Read eight bytes from any address."""
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(builder.inttoptr(args[0], _INT.as_pointer()), align=1)

    return types.intp(types.intp), codegen


def _call(typing: Any, function: Any, address: Any, number: Any) -> Any:
    """Call an `Entry` by its address."""
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [_INT, _INT])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), codegen


def _atomic(operation: str, ordering: str) -> Any:
    def change(typing: Any, address: Any, amount: Any) -> Any:
        """Change the number at an address, at once for all threads; return what it was."""
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            place = builder.inttoptr(args[0], _INT.as_pointer())
            return builder.atomic_rmw(operation, place, args[1], ordering)

        return types.intp(types.intp, types.intp), codegen

    return intrinsic(change)


def _load(typing: Any, address: Any) -> Any:
    """Read the number at an address, with all that was written before it."""
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.inttoptr(args[0], _INT.as_pointer())
        return builder.load_atomic(place, "acquire", 8)

    return types.intp(types.intp), codegen


def _replace(typing: Any, address: Any, old: Any, new: Any) -> Any:
    """Write ``new`` where ``old`` is still there; return whether it was."""
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.inttoptr(args[0], _INT.as_pointer())
        done = builder.cmpxchg(place, args[1], args[2], "seq_cst", "seq_cst")
        return builder.extract_value(done, 1)

    return types.boolean(types.intp, types.intp, types.intp), codegen


def _yield(typing: Any) -> Any:
    """Let another thread have the processor."""
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, _YIELD), [])
        return context.get_dummy_value()

    return types.void(), codegen


def _pause(typing: Any) -> Any:
    """Tell the processor that this thread waits; nothing where that instruction is not known."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if x86:
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind,
                                                        "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), codegen


_YIELD = "deltaconvert_yield"
if sys.platform == "win32":
    _yielding: Any = ctypes.windll.kernel32.SwitchToThread
else:
    _yielding = ctypes.CDLL(None).sched_yield
llvmlite.binding.add_symbol(_YIELD, ctypes.cast(_yielding, ctypes.c_void_p).value)

read: Any = intrinsic(_read)
view: Any = intrinsic(_view)
word_at: Any = intrinsic(_word_at)
call: Any = intrinsic(_call)
take: Any = _atomic("add", "acq_rel")
exchange: Any = _atomic("xchg", "seq_cst")
load: Any = intrinsic(_load)
replace: Any = intrinsic(_replace)
pause: Any = intrinsic(_pause)
yield_processor: Any = intrinsic(_yield)
