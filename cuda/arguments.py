"""The kernels' arguments as structures, field by field as the ``.cu`` files declare them.

They are passed by value. Pointers are addresses, ``tensor.data_ptr()``.
"""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int, c_longlong, c_void_p

MOST_SOURCES = 8


class Rule(ctypes.Structure):
    """How a node decides; ``common.cuh``."""

    _fields_ = (("thresholds", c_void_p), ("fresh", c_void_p), ("mask", c_void_p),
                ("changed", c_void_p), ("list", c_void_p), ("bits", c_void_p), ("plane", c_int),
                ("channels", c_int), ("rms", c_int), ("width", c_int), ("y", c_float),
                ("z", c_float), ("least", c_float), ("most", c_float))


class MaskSource(ctypes.Structure):
    """What output pixels read of a map; ``masks.cu``."""

    _fields_ = (("mask", c_void_p), ("changed", c_void_p), ("rows", c_void_p),
                ("cols", c_void_p), ("height", c_int), ("width", c_int), ("taps_y", c_int),
                ("taps_x", c_int), ("reads", c_int), ("first_y", c_int), ("first_x", c_int),
                ("step_y", c_int), ("step_x", c_int), ("spread_y", c_int), ("spread_x", c_int),
                ("unused", c_int))


class Work(ctypes.Structure):
    """What a frame had to do; ``work.cuh``."""

    _fields_ = (("share", c_float), ("doors", c_float), ("dense", c_float), ("frames", c_float),
                ("patience", c_float), ("break_even", c_float))


class CandidateArgs(ctypes.Structure):
    """Of ``find_candidates`` and ``unite_masks``; ``masks.cu``."""

    _fields_ = (("fresh", c_void_p), ("list", c_void_p), ("counts", c_void_p), ("mask", c_void_p),
                ("lanes", c_int), ("height", c_int), ("width", c_int), ("period_y", c_int),
                ("period_x", c_int), ("sources", c_int), ("together", c_int), ("unused", c_int),
                ("source", MaskSource * MOST_SOURCES))


class BeginArgs(ctypes.Structure):
    """Of ``begin_frame``; ``masks.cu``."""

    _fields_ = (("masks", c_void_p), ("mask_packs", c_longlong), ("counters", c_void_p),
                ("counter_packs", c_longlong), ("bits", c_void_p), ("bit_packs", c_longlong),
                ("bad", c_void_p), ("pending", c_void_p),
                ("fresh", c_void_p), ("told", c_void_p), ("work", c_void_p), ("lanes", c_int),
                ("unused", c_int))


class DenseArgs(ctypes.Structure):
    """Of ``change_everything``; ``masks.cu``."""

    _fields_ = (("masks", c_void_p), ("mask_packs", c_longlong), ("counters", c_void_p),
                ("wholes", c_void_p), ("fresh", c_void_p), ("counted", c_int), ("lanes", c_int))


class EndArgs(ctypes.Structure):
    """Of ``end_frame``; ``masks.cu``."""

    _fields_ = (("counters", c_void_p), ("grains", c_void_p), ("costs", c_void_p),
                ("doors", c_void_p), ("totals", c_void_p), ("bad", c_void_p), ("work", c_void_p),
                ("counted", c_int), ("lanes", c_int))


class ConditionArgs(ctypes.Structure):
    """Of ``decide``; ``condition.cu``."""

    _fields_ = (("condition", c_longlong), ("fresh", c_void_p), ("bad", c_void_p),
                ("work", c_void_p), ("changed", c_void_p * MOST_SOURCES), ("lanes", c_int),
                ("doors", c_int), ("ways", c_int), ("unused", c_int))


class FrameArgs(ctypes.Structure):
    """Of the door in; ``sparsify.cu``."""

    _fields_ = (("rule", Rule), ("frame", c_void_p), ("value", c_void_p), ("marks", c_void_p),
                ("bad", c_void_p), ("stride_lane", c_longlong), ("stride_channel", c_longlong),
                ("stride_row", c_longlong), ("stride_col", c_longlong), ("step", c_int),
                ("lanes", c_int), ("height", c_int), ("width", c_int), ("threshold", c_float),
                ("cap", c_float), ("packed", c_int), ("unused", c_int))


class Phase(ctypes.Structure):
    """The output pixels with the same taps; ``parts.cuh``."""

    _fields_ = (("list", c_int), ("taps_y", c_int), ("taps_x", c_int), ("rows", c_int),
                ("cols", c_int), ("stages", c_int), ("weight", c_longlong))


class Window(ctypes.Structure):
    """Where taps are, by arithmetic; ``conv_args.cuh``."""

    _fields_ = (("first_y", c_int), ("first_x", c_int), ("step_y", c_int), ("step_x", c_int),
                ("spread_y", c_int), ("spread_x", c_int))


class ConvArgs(ctypes.Structure):
    """Of ``convolve``; ``convolution.cu``."""

    _fields_ = (("rule", Rule), ("input", c_void_p), ("weight", c_void_p), ("bias", c_void_p),
                ("residual", c_void_p), ("output", c_void_p), ("list", c_void_p),
                ("counts", c_void_p), ("tables", c_void_p), ("phases", c_void_p),
                ("parts", c_void_p), ("bits", c_void_p), ("more_bits", c_void_p),
                ("step_in", c_int), ("step_out", c_int),
                ("step_residual", c_int), ("height_in", c_int), ("width_in", c_int),
                ("height_out", c_int), ("width_out", c_int), ("group_in", c_int),
                ("group_out", c_int), ("groups", c_int), ("phase_count", c_int),
                ("most_taps_y", c_int), ("most_taps_x", c_int), ("capacity", c_int),
                ("window", Window))


class DepthwiseArgs(ctypes.Structure):
    """Of ``depthwise``; ``depthwise.cu``."""

    _fields_ = (("rule", Rule), ("input", c_void_p), ("weight", c_void_p), ("bias", c_void_p),
                ("residual", c_void_p), ("output", c_void_p), ("list", c_void_p),
                ("count", c_void_p), ("step_in", c_int), ("step_out", c_int),
                ("step_residual", c_int), ("height_in", c_int), ("width_in", c_int),
                ("height", c_int), ("width", c_int), ("taps_y", c_int), ("pixels", c_int),
                ("packs", c_int), ("groups", c_int), ("window", Window))


class Source(ctypes.Structure):
    """A map that is read pixel by pixel; ``pixels.cu``."""

    _fields_ = (("data", c_void_p), ("rows", c_void_p), ("cols", c_void_p), ("step", c_int),
                ("height", c_int), ("width", c_int), ("taps_y", c_int), ("taps_x", c_int),
                ("channels", c_int), ("one_lane", c_int), ("unused", c_int))


class Changes(ctypes.Structure):
    """Whether a node's inputs changed; ``whole.cuh``."""

    _fields_ = (("changed", c_void_p * MOST_SOURCES), ("sources", c_int), ("unused", c_int))


class SumArgs(ctypes.Structure):
    """Of ``sum_pixels``; ``sums.cu``."""

    _fields_ = (("inputs", Changes), ("input", c_void_p), ("parts", c_void_p),
                ("fresh", c_void_p), ("step", c_int), ("channels", c_int), ("plane", c_int),
                ("width", c_int), ("parts_of_lane", c_int), ("unused", c_int))


class VectorArgs(ctypes.Structure):
    """Of the kernels of ``vector.cu``."""

    _fields_ = (("rule", Rule), ("inputs", Changes), ("given", c_void_p), ("parts", c_void_p),
                ("output", c_void_p), ("scores", c_void_p), ("count", c_void_p),
                ("alpha", c_float), ("part_count", c_int), ("step_out", c_int),
                ("unused", c_int))


class NormArgs(ctypes.Structure):
    """Of the kernels of ``norm.cu``."""

    _fields_ = (("rule", Rule), ("inputs", Changes), ("input", c_void_p), ("parts", c_void_p),
                ("table", c_void_p), ("weight", c_void_p), ("bias", c_void_p),
                ("output", c_void_p), ("count", c_void_p), ("eps", c_float),
                ("part_count", c_int), ("together", c_int), ("group", c_int),
                ("step_in", c_int), ("step_out", c_int))


class RegionArgs(ctypes.Structure):
    """Of ``average_regions``; ``regions.cu``."""

    _fields_ = (("rule", Rule), ("mask", c_void_p), ("changed", c_void_p), ("input", c_void_p),
                ("rows", c_void_p), ("cols", c_void_p), ("divisors", c_void_p),
                ("output", c_void_p), ("count", c_void_p), ("height_in", c_int),
                ("width_in", c_int), ("height", c_int), ("taps_y", c_int), ("taps_x", c_int),
                ("step_in", c_int), ("step_out", c_int), ("width", c_int))


class WindowArgs(ctypes.Structure):
    """Of the kernels of ``windows.cu``."""

    _fields_ = (("rule", Rule), ("inputs", Changes), ("mask", c_void_p), ("input", c_void_p),
                ("bias", c_void_p), ("position", c_void_p), ("scales", c_void_p),
                ("given", c_void_p), ("list", c_void_p), ("windows", c_void_p),
                ("counts", c_void_p), ("lanes", c_int), ("height", c_int), ("width", c_int),
                ("step", c_int), ("channels", c_int), ("heads", c_int), ("rows", c_int),
                ("cols", c_int), ("down", c_int), ("across", c_int), ("shift_y", c_int),
                ("shift_x", c_int), ("cosines", c_int), ("unused", c_int))


class FinishArgs(ctypes.Structure):
    """Of ``finish_all``; ``finish.cu``."""

    _fields_ = (("rule", Rule), ("given", c_void_p), ("bias", c_void_p), ("residual", c_void_p),
                ("output", c_void_p), ("step_out", c_int), ("step_residual", c_int),
                ("pixels", c_int), ("packs", c_int))


class PixelArgs(ctypes.Structure):
    """Of ``compute_pixels``; ``pixels.cu``."""

    _fields_ = (("rule", Rule), ("output", c_void_p), ("residual", c_void_p), ("list", c_void_p),
                ("counts", c_void_p), ("weight", c_void_p), ("bias", c_void_p),
                ("table", c_void_p), ("divisors", c_void_p), ("parts", c_void_p),
                ("phases", c_void_p), ("step_out", c_int), ("step_residual", c_int),
                ("height", c_int), ("width", c_int), ("phase_count", c_int),
                ("product", c_int), ("alpha", c_float), ("beta", c_float), ("gamma", c_float),
                ("setting", c_float), ("factor", c_int),
                ("part_rows", c_int), ("part_cols", c_int), ("part_group", c_int),
                ("part_width", c_int), ("part_step", c_int), ("part_grid", c_int),
                ("pixels", c_int), ("source", Source * MOST_SOURCES))
