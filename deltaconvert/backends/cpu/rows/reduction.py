"""The kernels of `stencil`, in LLVM's own vector types: a few pixels of one kind at a time.

Sums over taps stay in registers, a few vectors of channels for a few pixels; what a tap's weights
are is loaded once for all of them. A loop that a compiler vectorises would load and store the
sums at each tap, and run over the taps anew for each pixel.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
# (intrinsics: Numba infers their types)

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from deltaconvert.backends.cpu.compiling.vectors import BLOCK, WIDTH
from deltaconvert.backends.cpu.rows.row import Row, first_of

PIXELS = 4
# Vectors of channels: with 32 registers, the sums of four pixels and some more.
WIDE, MIDDLE = (4, 2) if BLOCK >= 12 else (2, 1)
_FLOAT, _INT = ir.FloatType(), ir.IntType(64)
_VECTOR = ir.VectorType(_FLOAT, WIDTH)
_FUSE = ("contract",)


class Filtered:
    """Numbers times the tap's filter, ``[taps_y, taps_x, C]`` at the address of the weights."""

    start = 0.0

    def weights(self, row: Row, numbers: Any, places: tuple[Any, Any], firsts: list[Any],
                masks: list[Any]) -> list[Any]:
        """Load what belongs to a tap, for some vectors of channels."""
        builder = row.builder
        address = builder.add(numbers, builder.add(*places))
        return [row.load(address, first, mask)
                for first, mask in zip(firsts, masks, strict=True)]

    def take(self, builder: Any, so_far: Any, number: Any, weight: Any) -> Any:
        """Take a tap's numbers in."""
        return builder.fadd(builder.fmul(number, weight, flags=_FUSE), so_far, flags=_FUSE)


class Summed:
    """Numbers as they are."""

    start = 0.0

    def weights(self, row: Row, numbers: Any, places: tuple[Any, Any], firsts: list[Any],
                masks: list[Any]) -> list[Any]:
        """Return nothing."""
        return [None] * len(firsts)

    def take(self, builder: Any, so_far: Any, number: Any, weight: Any) -> Any:
        """Add."""
        return builder.fadd(so_far, number)


class Largest(Summed):
    """The largest; once NaN, it stays NaN, as in PyTorch."""

    start = float("-inf")

    def take(self, builder: Any, so_far: Any, number: Any, weight: Any) -> Any:
        """Take the larger."""
        larger = builder.or_(builder.fcmp_ordered(">", number, so_far),
                             builder.fcmp_unordered("uno", number, number))
        return builder.select(larger, number, so_far)


class _Block:
    """The code of a kernel while it is written: some vectors of channels of some pixels.

    Args:
        row: loads and stores.
        operation: what is done with a tap's numbers.
        args: of the kernel.
    """

    def __init__(self, row: Row, operation: Any, args: Any) -> None:
        self.row, self.builder, self.operation = row, row.builder, operation
        (self.pixels, self.rows, self.row_count, self.row_places, self.cols, self.col_count,
         self.col_places, self.numbers, self.out, self.out_step) = args

    def compute(self, first: Any, vectors: int, masks: list[Any]) -> None:
        """Reduce some vectors of channels, from the first on, and write them."""
        builder = self.builder
        firsts = [builder.add(first, _INT(WIDTH * v)) for v in range(vectors)]
        start = ir.Constant(_VECTOR, [self.operation.start] * WIDTH)
        sums = [[cgutils.alloca_once_value(builder, start) for _ in firsts] for _ in self.pixels]
        for places in sums:
            for place in places:
                builder.store(start, place)
        with cgutils.for_range(builder, self.row_count) as over_rows:
            down, row_place = (self._entry(table, over_rows.index)
                               for table in (self.rows, self.row_places))
            with cgutils.for_range(builder, self.col_count) as over_cols:
                along, col_place = (self._entry(table, over_cols.index)
                                    for table in (self.cols, self.col_places))
                weights = self.operation.weights(self.row, self.numbers, (row_place, col_place),
                                                 firsts, masks)
                offset = builder.add(down, along)
                for pixel, places in zip(self.pixels, sums, strict=True):
                    tap = builder.add(pixel, offset)
                    for at, mask, place, weight in zip(firsts, masks, places, weights, strict=True):
                        number = self.row.load_stored(tap, at, mask)
                        builder.store(self.operation.take(builder, builder.load(place), number,
                                                          weight), place)
        for i, places in enumerate(sums):
            target = builder.add(self.out, builder.mul(self.out_step, _INT(i)))
            for at, mask, place in zip(firsts, masks, places, strict=True):
                self.row.store(builder.load(place), target, at, mask)

    def _entry(self, table: Any, index: Any) -> Any:
        address = self.builder.add(table, self.builder.mul(index, _INT(8)))
        return self.builder.load(self.builder.inttoptr(address, _INT.as_pointer()), align=8)


def reduction(pixels: int, vectors: int, operation: Any) -> Any:
    """Make the kernel for so many pixels and vectors of channels.

    It is called with: an array of the maps' type; the address of the pixels' addresses; of the
    rows of taps the address of `Stencil.row_taps` of their kind, how many there are, and how many
    entries lie there; the same of the columns; the address of the filter; the channels of the map,
    and the first to compute (beyond the last, the last vector is masked); the address of the
    result, float32, and bytes from a pixel of it to the next.
    """
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        (_, addresses, rows, row_count, row_room, cols, col_count, col_room, numbers, channels,
         first, out, out_step) = args
        row = Row(builder, channels, signature.args[0].dtype)
        places = [builder.add(table, builder.mul(room, _INT(8)))
                  for table, room in ((rows, row_room), (cols, col_room))]
        bases = [builder.load(builder.inttoptr(builder.add(addresses, _INT(8 * i)),
                                               _INT.as_pointer()), align=8)
                 for i in range(pixels)]
        block = _Block(row, operation, (bases, rows, row_count, places[0], cols, col_count,
                                        places[1], numbers, out, out_step))
        masks: list[Any] = [None] * vectors
        if vectors < WIDE:
            last = builder.add(first, _INT((vectors - 1) * WIDTH))
            masks[-1] = first_of(builder, builder.sub(channels, last))
        block.compute(first, vectors, masks)
        return context.get_dummy_value()

    @intrinsic
    def kernel(typing, like, addresses, rows, row_count, row_room, cols, col_count, col_room,
               numbers, channels, first, out, out_step):
        return types.void(like, *[types.intp] * 12), codegen

    return kernel


def kernels(pixels: int, operation: Any) -> Any:
    """Make `reduction` with the number of vectors, `WIDE`, `MIDDLE` or 1, as its first argument."""
    wide, middle, single = (reduction(pixels, vectors, operation) for vectors in (WIDE, MIDDLE, 1))

    @register_jitable
    def reduce(vectors, like, addresses, rows, row_count, row_room, cols, col_count, col_room,
               numbers, channels, first, out, out_step):
        if vectors == WIDE:
            wide(like, addresses, rows, row_count, row_room, cols, col_count, col_room,
                 numbers, channels, first, out, out_step)
        elif vectors == MIDDLE:
            middle(like, addresses, rows, row_count, row_room, cols, col_count, col_room,
                   numbers, channels, first, out, out_step)
        else:
            single(like, addresses, rows, row_count, row_room, cols, col_count, col_room,
                   numbers, channels, first, out, out_step)

    return reduce
