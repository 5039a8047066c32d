"""Everything that is no matrix product, by `pixels.cu`: which operation, on what."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from deltaconvert.backends.base import Buffers, Scratch
from deltaconvert.backends.cuda import depthwise
from deltaconvert.backends.cuda.candidates import WARP, Tables, blocks, candidates, list_scratch
from deltaconvert.backends.cuda.context import (
    PACK_BYTES,
    Context,
    Lists,
    activation_of,
    channels_of,
    pixel_step,
    size_of,
    widest,
)
from deltaconvert.backends.cuda.filters import (
    argument,
    bias_of,
    depthwise_filter,
    is_convolution,
    is_depthwise,
    numbers_of,
)
from deltaconvert.backends.cuda.functions import ACTIVATIONS, NOTHING, applied, function_of
from deltaconvert.backends.cuda.kinds import Bound, CudaStep, Program, Unfit, at_candidates
from deltaconvert.backends.cuda.tiles import grid_of
from deltaconvert.backends.divisors import divisors_of
from deltaconvert.cuda.arguments import ConvArgs, PixelArgs, Source
from deltaconvert.cuda.launcher import Launch
from deltaconvert.cuda.loader import kernel
from deltaconvert.footprint import broadcast
from deltaconvert.nodes import DeltaNode, Slot
from deltaconvert.state import Edge

if TYPE_CHECKING:
    from deltaconvert.backends.cuda.convolution import Folded

(PARTS, MAXIMUM, MEAN, DEPTHWISE, COMBINE, PICK, AFFINE, SOFTMAX, CHANNEL_MEAN,
 GIVEN, WEIGH, APPLY, NORM) = range(13)  # as in pixels.cu
MOST_OPERANDS = 3  # that may be maps, of APPLY
WARPS = 8
MANY_REGISTERS = (PARTS, MAXIMUM, MEAN, DEPTHWISE, WEIGH, NORM)
# Packs of a pixel that a lane keeps until the rule has decided; with more, they are computed again.
MOST_PACKS = {GIVEN: 8, PICK: 1}
MOST_PACKS_OF_OTHERS = 4
# Bytes of a pixel that is one lane's, or fewer (registers) where numbers are moved one by one;
# operations in which that would be slow, or too much code.
THIN_BYTES, MANY_LANES, FEW_CHANNELS = 24, (PARTS, SOFTMAX, CHANNEL_MEAN), {PICK: 4}


@dataclass
class Operation:
    """What a node is to `pixels.cu`; made once a program.

    Args:
        code: of the operation.
        inputs: for each source, an edge or a constant map (``None``: no such source).
        weight, bias, divisors: float32, see `PixelArgs` in pixels.cu.
        taps: of DEPTHWISE, the weight as the model has it.
        table: int32, the same.
        numbers: alpha, beta, gamma, and a setting.
        product: the sources are multiplied; see `PixelArgs`.
        residual: the edge that is added.
        factor: of PICK, see there.
        function: of APPLY, an expression.
    """

    code: int
    inputs: Sequence[Slot | Tensor | None]
    weight: Tensor | None = None
    bias: Tensor | None = None
    divisors: Tensor | None = None
    taps: Tensor | None = None
    table: Tensor | None = None
    numbers: tuple[float, ...] = (1.0, 1.0, 0.0)
    product: bool = False
    residual: Slot | None = None
    factor: int = 1
    function: str = ""


def prepare(node: DeltaNode, program: Program) -> Operation:
    """Return the operation of a local node.

    Raises:
        Unfit: with the reason, where there is none.
    """
    operator = node.about.operator
    if operator is None or not at_candidates(node):
        raise Unfit("no kernel of its own")
    return _MAKERS.get(operator.name, _apply)(node, program.device)


def plan(node: DeltaNode, data: Operation, program: Program) -> tuple[list[Scratch], int]:
    """Return the memory for a list."""
    return [list_scratch(node, program.tables)], 1


def _one_slot(node: DeltaNode) -> Slot:
    x = node.about.args[0]
    if not isinstance(x, Slot):
        raise Unfit("its map is a constant")
    return x


def _pool(node: DeltaNode, device: torch.device) -> Operation:
    assert node.about.operator is not None
    x = _one_slot(node)
    if "max" in node.about.operator.name:
        return Operation(MAXIMUM, [x])
    rows, cols = divisors_of(node.about, node.about.footprints[x.index])
    divisors = torch.from_numpy(np.concatenate([rows, cols]).astype(np.float32))
    return Operation(MEAN, [x], divisors=divisors.to(device))


def _resize(node: DeltaNode, device: torch.device) -> Operation:
    operator, shapes = node.about.operator, node.about.shapes
    assert operator is not None
    assert operator.weights is not None
    assert shapes is not None
    sides = [torch.from_numpy(side).float().flatten() for side in operator.weights(shapes)]
    return Operation(WEIGH, [_one_slot(node)], weight=torch.cat(sides).to(device))


def _depthwise(node: DeltaNode, device: torch.device) -> Operation:
    if not is_convolution(node) or not is_depthwise(node):
        raise Unfit("a matrix product, or its filter is no constant")
    taps = depthwise_filter(node)
    return Operation(DEPTHWISE, [_one_slot(node)], weight=numbers_of(taps), taps=taps,
                     bias=bias_of(node), residual=argument(node, 3))


def _sum(node: DeltaNode, device: torch.device) -> Operation:
    assert node.about.operator is not None
    sign = -1.0 if node.about.operator.name == "sub" else 1.0
    return _combine(node, (1.0, sign * node.about.params.get("alpha", 1)))


def _product(node: DeltaNode, device: torch.device) -> Operation:
    return _combine(node, None)


def _combine(node: DeltaNode, factors: tuple[float, float] | None) -> Operation:
    """Sort two arguments into maps, constant maps and numbers."""
    operands: list[Any] = list(node.about.args[:2])
    number = next((i for i, a in enumerate(operands) if isinstance(a, (int, float))), None)
    if number is None:
        maps = [a if isinstance(a, Slot) else _constant(node, a) for a in operands]
        return Operation(COMBINE, maps, product=factors is None, numbers=(*factors, 0.0)
                         if factors else (1.0, 1.0, 0.0))
    value, x = operands[number], operands[1 - number]
    if not isinstance(x, Slot):
        raise Unfit("its map is a constant")
    if factors is None:
        return Operation(COMBINE, [x, None], numbers=(value, 0.0, 0.0))
    return Operation(COMBINE, [x, None],
                     numbers=(factors[1 - number], 0.0, factors[number] * value))


def _constant(node: DeltaNode, value: Any) -> Tensor:
    """Return a constant as ``[1 or N, C or 1, H or 1, W or 1]`` in channels-last memory."""
    if not isinstance(value, Tensor) or value.dim() > 4 or value.is_complex():
        raise Unfit("an argument is neither a map nor a number")
    shaped = value.reshape((1,) * (4 - value.dim()) + tuple(value.shape))
    return shaped.to(node.about.output.dtype).contiguous(memory_format=torch.channels_last)


def _activation(node: DeltaNode, device: torch.device) -> Operation:
    return Operation(COMBINE, [_one_slot(node), None], numbers=(1.0, 0.0, 0.0))


def _pick(node: DeltaNode, device: torch.device) -> Operation:
    """Describe ``cat`` and ``select``: each channel's source, and its place there."""
    channels = node.about.params.get("channels")
    if node.about.operator is not None and node.about.operator.name == "cat":
        inputs = list(node.about.args[0])
        if not all(isinstance(x, Slot) for x in inputs):
            raise Unfit("it joins a constant")
        widths = [_channels(node, x) for x in inputs]
        table = [(s, c) for s, width in enumerate(widths) for c in range(width)]
    elif channels is None:
        return _activation(node, device)  # moves pixels alone
    else:
        inputs = [_one_slot(node)]
        table = [(0, c) for c in channels]
    return Operation(PICK, inputs, table=torch.tensor(table, dtype=torch.int32, device=device))


def _channels(node: DeltaNode, slot: Slot) -> int:
    shape = node.about.inputs[slot.index].shape
    assert shape is not None
    return shape[1]


def _affine(node: DeltaNode, device: torch.device) -> Operation:
    x, (mean, var, weight, bias) = _one_slot(node), node.about.args[1:5]
    scale = (var.double() + node.about.params["eps"]).rsqrt()
    scale = scale if weight is None else scale * weight.double()
    shift = -mean.double() * scale + (0 if bias is None else bias.double())
    return Operation(AFFINE, [x], weight=scale.float().contiguous(),
                     bias=shift.float().contiguous())


def _apply(node: DeltaNode, device: torch.device) -> Operation:
    """Describe a function of numbers at one place: maps, constant maps and numbers."""
    assert node.about.operator is not None
    name = node.about.operator.name
    operands = [a for a in (*node.about.args, *node.about.params.values()) if a is not None]
    function = function_of(name, operands)
    if function is None:
        raise Unfit("no kernel of its own")
    if name == "prelu":  # whose slopes are a channel each
        operands[1] = operands[1].reshape(1, -1, 1, 1)
    maps: list[Slot | Tensor | None] = [None] * MOST_OPERANDS
    numbers = [0.0] * (MOST_OPERANDS + 1)
    for i, operand in enumerate(operands):
        if isinstance(operand, (int, float)) and i < len(numbers):
            numbers[i] = float(operand)
        elif i < MOST_OPERANDS:
            maps[i] = operand if isinstance(operand, Slot) else _constant(node, operand)
        else:
            raise Unfit("it has more arguments than the kernel takes")
    return Operation(APPLY, maps, numbers=tuple(numbers), function=function)


def _norm(node: DeltaNode, device: torch.device) -> Operation:
    """Describe ``layer_norm2d`` and ``rms_norm2d``."""
    assert node.about.operator is not None
    x, weight, *bias = _one_slot(node), *node.about.args[1:]
    if any(isinstance(a, Slot) for a in (weight, *bias)):
        raise Unfit("its weights change from frame to frame")
    eps = node.about.params["eps"]
    return Operation(
        NORM, [x], weight=numbers_of(weight), bias=numbers_of(bias[0]) if bias else None,
        numbers=(torch.finfo(torch.float32).eps if eps is None else eps, 0.0, 0.0),
        product=node.about.operator.name == "layer_norm2d")


def _picked(node: DeltaNode, device: torch.device, table: Sequence[tuple[int, int]],
            **more: Any) -> Operation:
    return Operation(PICK, [_one_slot(node)], product=True, **more,
                     table=torch.tensor(table, dtype=torch.int32, device=device))


def _shuffle(node: DeltaNode, device: torch.device) -> Operation:
    """Describe ``pixel_shuffle``: where in its square a pixel is says which channel it reads."""
    factor = node.about.params["factor"]
    return _picked(node, device, [(0, c * factor**2) for c in range(_channels_out(node))],
                   factor=factor)


def _unshuffle(node: DeltaNode, device: torch.device) -> Operation:
    """Describe ``pixel_unshuffle``: a tap is a pixel of the square."""
    taps = node.about.params["factor"] ** 2
    return _picked(node, device, [(c % taps, c // taps) for c in range(_channels_out(node))])


def _merge_patches(node: DeltaNode, device: torch.device) -> Operation:
    """Describe Swin's: the squares' pixels column by column."""
    channels = _channels(node, _one_slot(node))
    return _picked(node, device, [(2 * row + column, c) for column in range(2) for row in range(2)
                                  for c in range(channels)])


def _pad(node: DeltaNode, device: torch.device) -> Operation:
    params = node.about.params
    if params["mode"] != "constant":
        return _activation(node, device)  # moves pixels alone
    ahead = params["padding"][4] if len(params["padding"]) > 4 else 0
    channels = _channels(node, _one_slot(node))
    table = [(0, c - ahead if c - ahead < channels else -1) for c in range(_channels_out(node))]
    return _picked(node, device, table, numbers=(1.0, 1.0, params["value"]))


def _channels_out(node: DeltaNode) -> int:
    shape = node.about.output.shape
    assert shape is not None
    return shape[1]


def _over_channels(code: int) -> Callable[[DeltaNode, torch.device], Operation]:
    return lambda node, device: Operation(code, [_one_slot(node)])


_MAKERS: dict[str, Callable[[DeltaNode, torch.device], Operation]] = {
    "conv2d": _depthwise, "conv_transpose2d": _depthwise,
    "max_pool2d": _pool, "avg_pool2d": _pool,
    "adaptive_max_pool2d": _pool, "adaptive_avg_pool2d": _pool,
    "add": _sum, "sub": _sum, "mul": _product,
    "cat": _pick, "select": _pick, "resize_nearest": _pick, "pad_zero": _pick,
    "resize": _resize, "batch_norm": _affine, "softmax": _over_channels(SOFTMAX),
    "mean": _over_channels(CHANNEL_MEAN), "layer_norm2d": _norm, "rms_norm2d": _norm,
    "pixel_shuffle": _shuffle, "pixel_unshuffle": _unshuffle,
    "patch_merging2d": _merge_patches, "pad": _pad,
}
_MAKERS.update(dict.fromkeys([*ACTIVATIONS, "relu", "relu6", "clamp"], _activation))


def bind(node: DeltaNode, operation: Operation, buffers: Buffers, context: Context,
         program: Program) -> Bound:
    """Return the step of a local node."""
    made, launches = candidates(node, buffers, context, program.tables)
    launch = depthwise.bind(node, operation, buffers, context, made) if (
        operation.code == DEPTHWISE) else None
    launch = launch or _bind_operation(node, operation, buffers, context, made, program.tables)
    return Bound(CudaStep(context.launcher, [*launches, launch], buffers), made.counters)


def _bind_operation(node: DeltaNode, operation: Operation, buffers: Buffers, context: Context,
                    made: Lists, tables: Tables) -> Launch:
    args = _arguments(node, buffers, context, made)
    edge = buffers.output
    numbers, addresses = [channels_of(edge), args.step_out], [args.output]
    for i, entry in enumerate(operation.inputs):
        if entry is not None:
            args.source[i] = source = _source(node, entry, buffers, tables)
            if source.channels > 1:
                numbers.append(source.step)
                addresses.append(source.data)
    if operation.residual is not None:
        added = buffers.inputs[operation.residual.index]
        args.residual, args.step_residual = added.value.data_ptr(), pixel_step(added)
        numbers.append(args.step_residual)
        addresses.append(args.residual)
    for name in ("weight", "bias", "divisors", "table"):
        tensor = getattr(operation, name)
        if tensor is not None:
            setattr(args, name, tensor.data_ptr())
    args.alpha, args.beta, args.gamma, args.setting = (*operation.numbers, 0.0)[:4]
    args.product, args.factor = operation.product, operation.factor
    wide = widest(edge.value.element_size(), *numbers, addresses=tuple(addresses))
    defines = _activation_defines(node)
    if operation.function:
        defines["FUNCTION"] = operation.function
    return pixel_launch(operation.code, args, edge, context, wide, defines)


def _activation_defines(node: DeltaNode) -> dict[str, str]:
    return (applied(activation_of(node)) or NOTHING).defines


def finish_parts(node: DeltaNode, folded: Folded, buffers: Buffers, context: Context,
                 conv: ConvArgs, made: Lists) -> Launch:
    """Return the launch that finishes what `convolution.cu` left as sums."""
    edge, tile = buffers.output, folded.tile
    groups, _, group_out = folded.groups
    args = _arguments(node, buffers, context, made)
    args.parts, args.phases, args.bias = conv.parts, conv.phases, conv.bias
    args.residual, args.step_residual = conv.residual, conv.step_residual
    args.part_rows, args.part_cols, args.part_group = tile.bm, tile.bn, group_out
    args.part_width = -(-group_out // tile.bn) * tile.bn
    args.part_step = groups * args.part_width
    args.part_grid = grid_of(node, tile, folded.taps, context.launcher)
    wide = widest(edge.value.element_size(), group_out, args.step_out, args.step_residual or 0,
                  addresses=(args.output, args.residual or 0))
    return pixel_launch(PARTS, args, edge, context, wide, _activation_defines(node))


def _arguments(node: DeltaNode, buffers: Buffers, context: Context, made: Lists) -> PixelArgs:
    edge = buffers.output
    height, width = size_of(edge)
    return PixelArgs(rule=context.rule(node, buffers), output=edge.value.data_ptr(),
                     list=made.pixels, counts=context.counter(made.counts),
                     step_out=pixel_step(edge), height=height, width=width,
                     phase_count=made.phases, pixels=math.prod(edge.mask.shape))


def _source(node: DeltaNode, entry: Slot | Tensor, buffers: Buffers, tables: Tables) -> Source:
    if isinstance(entry, Slot):
        edge = buffers.inputs[entry.index]
        footprint = node.about.footprints[entry.index]
        value, step, lanes = edge.value, pixel_step(edge), edge.spec.lanes
    else:
        value, step = entry, entry.shape[1]
        footprint = broadcast((value.shape[2], value.shape[3]), size_of(buffers.output))
        lanes = value.shape[0]
    rows, cols = (None, None) if footprint.is_identity else tables.of(footprint)
    return Source(data=value.data_ptr(), rows=rows, cols=cols, step=step, height=value.shape[2],
                  width=value.shape[3], taps_y=footprint.taps[0], taps_x=footprint.taps[1],
                  channels=value.shape[1], one_lane=isinstance(entry, Tensor) and lanes == 1)


def compare_given(node: DeltaNode, given: int, buffers: Buffers, context: Context,
                  made: Lists) -> Launch:
    """Return the launch that applies the rule to new values at an address, without gaps there."""
    edge = buffers.output
    args = _arguments(node, buffers, context, made)
    # An activation is part of what was evaluated.
    args.rule.least, args.rule.most = -math.inf, math.inf
    args.source[0] = Source(data=given, step=channels_of(edge), channels=channels_of(edge))
    wide = widest(edge.value.element_size(), channels_of(edge), args.step_out,
                  addresses=(args.output, given))
    return pixel_launch(GIVEN, args, edge, context, wide, {})


def pixel_launch(code: int, args: PixelArgs, edge: Edge, context: Context, wide: int,
                 defines: dict[str, str]) -> Launch:
    """Choose grid, and how many lanes of a warp share a pixel, for an operation."""
    channels, moved = channels_of(edge), wide
    size = edge.value.element_size()
    most = FEW_CHANNELS.get(code, (THIN_BYTES if moved > 1 else PACK_BYTES) // size)
    if code not in MANY_LANES and channels <= most:
        wide = channels  # a lane has all of a pixel
    packs = -(-channels // wide)
    if code in (SOFTMAX, CHANNEL_MEAN):  # which look at the source's channels one by one
        packs = max(packs, args.source[0].channels)
    lanes = min(WARP, 1 << (packs - 1).bit_length())
    each = -(-channels // (wide * lanes))
    kept = each <= MOST_PACKS.get(code, MOST_PACKS_OF_OTHERS)
    packed = each if kept else 0
    # Those that are resident: see BLOCKS in pixels.cu.
    many = (wide // moved * max(4, moved * size) > PACK_BYTES) + (code in MANY_REGISTERS)
    resident = 2 if packed > 2 or many == 2 else 3 if packed == 2 or many else 4
    grid = blocks(context, math.prod(edge.mask.shape), 1, resident)
    which = kernel("pixels.cu", "compute_pixels", edge.value.dtype, OPERATION=code, OUT_VEC=wide,
                   MOVED=moved, LANES=lanes, PACKS=packed, RMS=args.rule.rms, **defines)
    return Launch(which, args, (grid, 1), WARP * WARPS)
