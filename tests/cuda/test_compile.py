"""Every specialisation that the test networks need compiles for every GPU, within limits.

By NVRTC, which needs no GPU. ``pytest -rP`` shows the table.
"""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from deltaconvert.backends.cuda.depthwise import run_of
from deltaconvert.backends.cuda.functions import ACTIVATIONS, FUNCTIONS
from deltaconvert.backends.cuda.pixels import (
    APPLY,
    FEW_CHANNELS,
    MANY_LANES,
    MOST_PACKS,
    MOST_PACKS_OF_OTHERS,
    THIN_BYTES,
)
from deltaconvert.backends.cuda.tiles import REGISTERS, Tile
from deltaconvert.cuda.loader import FOLDER, Kernel, kernel, source_of

ARCHITECTURES = [75, 80, 86, 89, 90, 100]
HALVES = (torch.float16, torch.bfloat16)
# Beyond so many registers, too few threads are resident.
MOST_REGISTERS = {"convolve": 168, "convolve_sm90": 255, "convolve_ahead": 168,
                  "compute_pixels": 168, "attend_windows": 168, "depthwise": 128,
                  "examine_pixels": 80, "finish_all": 96, "find_candidates": 96,
                  "normalize_pixels": 128}
MOST_OTHERWISE = 64
# Bytes: without tensor cores, and of warpgroups, outside of their loops.
MOST_SPILLED, MOST_SPILLED_OF_WARPGROUPS = 64, 16


def nvrtc():
    try:
        from cupy_backends.cuda.libs import nvrtc
        nvrtc.getVersion()
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"no NVRTC: {error}")
    return nvrtc


def convolutions(dtype: torch.dtype, tensor: bool) -> list[Kernel]:
    half, wide = tensor and dtype in HALVES, 16 // dtype.itemsize
    made = []
    for bn in (32, 64, 128):
        fused = {"BM": 128 if half and bn < 128 else 64, "BK": 32 if half else 16, "STAGES": 4}
        parts = {"BM": 64, "BK": 64 if half else 32 if tensor else 16, "STAGES": 3}
        made += [kernel("convolution.cu", "convolve", dtype, TENSOR=int(tensor), BN=bn, VEC=wide,
                        FUSED=int(rule), OUT_VEC=wide if rule else 1, WINDOWED=int(rule), **tile)
                 for rule, tile in ((True, fused), (False, parts))]
    return made


# Tiles that are chosen among on Hopper, see `_of_warpgroups` in tiles.py: rows, columns, stages,
# whether old values are copied early, parts of K.
TILES = ((128, 128, 3), (128, 256, 4), (128, 128, 4), (128, 64, 3), (128, 64, 6), (64, 64, 4),
         (64, 128, 3, True), (64, 128, 4), (64, 256, 4), (128, 32, 3), (128, 32, 6),
         (64, 32, 4), (64, 64, 4, True, 4), (64, 64, 4, True, 2), (64, 128, 4, True, 4),
         (64, 64, 4, True))


# Those of which a warpgroup copies, for 16-bit numbers.
TILES_AHEAD = ((128, 128, 6), (64, 128, 4), (128, 64, 4))


def ahead(dtype: torch.dtype) -> list[Kernel]:
    """Each of them, with an activation, and with numbers copied one by one."""
    made = [Tile(True, *tile[:2], 64, tile[2], True, True, True, ahead=True)
            for tile in TILES_AHEAD]
    return [kernel("convolution_ahead_sm90.cu", "convolve_ahead", dtype, BM=tile.bm, BN=tile.bn,
                   STAGES=tile.stages, VEC=vec, OUT_VEC=8, RMS=1, BLOCKS=tile.resident,
                   EARLY=early, WINDOWED=1, **activate)
            for tile in made for vec, early, activate in (
                (8, 1, {}), (8, 1, {"ACTIVATE": ACTIVATIONS["silu"]}), (1, 0, {}))]


def of_warpgroups(dtype: torch.dtype) -> list[Kernel]:
    """Each tile, as far as they differ."""
    wide = 16 // dtype.itemsize
    made = [Tile(True, bm, bn, 8 * wide, stages, True, True, *more)
            for bm, bn, stages, *more in TILES]
    # Each once, those of little work also with a scan, those of most registers with the activation
    # that is most often behind a convolution, and those of stems with numbers copied one by one.
    variants: list[tuple[Tile, int, int, dict[str, str]]] = [
        *((tile, wide, 0, {}) for tile in made), *((tile, wide, 1, {}) for tile in made[-3:]),
        *((tile, wide, 0, {"ACTIVATE": ACTIVATIONS["silu"]}) for tile in (*made[:2], made[-2])),
        *((made[i], 1, 0, {}) for i in (3, 5, 9, 11, 15))]
    return [kernel("convolution_sm90.cu", "convolve_sm90", dtype, BM=tile.bm, BN=tile.bn,
                   STAGES=tile.stages, VEC=vec, OUT_VEC=wide, RMS=1, BLOCKS=tile.resident,
                   EARLY=int(tile.early), SPLITS=tile.splits, WINDOWED=1, SCAN=scan, **activate)
            for tile, vec, scan, activate in variants]


def of_neighbours(dtype: torch.dtype, taps: int, step: int, spread: int) -> Kernel:
    """A depthwise convolution."""
    return kernel("depthwise.cu", "depthwise", dtype, OUT_VEC=16 // dtype.itemsize, TAPS=taps,
                  RUN=run_of(taps, step, spread), STEP=step, SPREAD=spread, RMS=1,
                  ACTIVATE=ACTIVATIONS["silu"])


def thin(dtype: torch.dtype, code: int, moved: int) -> Kernel:
    """A pixel of the most channels that one lane has."""
    return kernel("pixels.cu", "compute_pixels", dtype, OPERATION=code, MOVED=moved, LANES=1,
                  OUT_VEC=FEW_CHANNELS.get(code, (THIN_BYTES if moved > 1 else 16)
                                           // dtype.itemsize), PACKS=1, RMS=1,
                  **({"FUNCTION": FUNCTIONS["addcdiv"]} if code == APPLY else {}))


def without_lists(dtype: torch.dtype) -> list[Kernel]:
    """Those that find their candidates as they go."""
    wide = 16 // dtype.itemsize
    made = [kernel("sums.cu", "sum_pixels", dtype, VEC=vec, MOMENTS=moments, TOGETHER=together)
            for vec, moments, together in ((wide, 0, 1), (wide, 1, wide), (wide, 1, 1))]
    made += [kernel("vector.cu", "settle_vector", dtype, VEC=min(wide, 4) if pooled else wide,
                    RMS=1, POOLED=pooled) for pooled in (0, 1)]
    made += [kernel("norm.cu", "normalize_pixels", dtype, VEC=wide, LANES=32, PACKS=packs, RMS=1)
             for packs in (0, 1, 2, 4)]
    made += [kernel("windows.cu", "attend_windows", dtype, VEC=wide, TENSOR=int(tensor))
             for tensor in (False, *([True] if dtype in HALVES else []))]
    return [*made, kernel("regions.cu", "average_regions", dtype, VEC=wide, RMS=1)]


def everywhere(one: Kernel) -> Kernel:
    """The same for all pixels, without comparing."""
    return replace(one, defines=(*one.defines, ("ALL", 1)))


def kernels(capability: int) -> list[Kernel]:
    made = [kernel("masks.cu", "find_candidates", torch.float32),
            *without_lists(torch.float16),
            kernel("windows.cu", "attend_windows", torch.bfloat16, VEC=8, TENSOR=1)]
    if capability == 90:
        made += of_warpgroups(torch.float16) + of_warpgroups(torch.float32)
        made += of_warpgroups(torch.bfloat16)[:2] + ahead(torch.float16) + ahead(torch.bfloat16)[:1]
        made.append(kernel("condition.cu", "decide", torch.float32))
        made += without_lists(torch.float32)
    for dtype in (torch.float32, *HALVES):
        made.append(kernel("sparsify.cu", "examine_pixels", dtype, PACKS=3 * dtype.itemsize // 2))
        made += [kernel("sparsify.cu", entry, dtype, PACKS=0)
                 for entry in ("examine_values", "replace_values")]
        if dtype != torch.bfloat16:  # but for the conversions, float16's
            made += [of_neighbours(dtype, *taps) for taps in (
                (3, 1, 1), (3, 2, 1), (3, 2, 2), (5, 1, 1), (5, 2, 1), (5, 1, 2), (7, 1, 1),
                (7, 2, 1), (8, 1, 1))]
            made += [kernel("pixels.cu", "compute_pixels", dtype, OPERATION=code,
                            OUT_VEC=16 // dtype.itemsize,
                            MOVED=16 // dtype.itemsize, LANES=lanes, PACKS=packs, RMS=1,
                            **({"ACTIVATE": ACTIVATIONS["mish"]} if code % 2 else {}),
                            **({"FUNCTION": FUNCTIONS["addcdiv"]} if code == APPLY else {}))
                     for code in range(13)
                     for lanes, packs in ((8, 1), (32, MOST_PACKS.get(code, MOST_PACKS_OF_OTHERS)))]
            made += [thin(dtype, code, moved)
                     for code in range(13) if code not in MANY_LANES for moved in (1, 2)]
        if dtype == torch.float16 or capability >= 80:
            made += convolutions(dtype, True)
            made += [kernel("finish.cu", "finish_all", dtype, VEC=wide,
                            ACTIVATE=ACTIVATIONS["silu"]) for wide in (1, 16 // dtype.itemsize)]
    made += [everywhere(one) for one in made if one.file in ("depthwise.cu", "pixels.cu")
             and ("NUMBER", "f16") in one.defines]
    if capability == 90:
        made += [everywhere(one) for one in of_warpgroups(torch.float16)[:4:3]]
    return [*made, *convolutions(torch.float32, False)]


def compile_for(capability: int, one: Kernel) -> list[tuple[str, int, int]]:
    """Return entry, registers and bytes spilled of each kernel in the file."""
    compiler = nvrtc()
    program = compiler.createProgram(source_of(one.file), one.file, (), ())
    try:
        compiler.compileProgram(program, (f"-arch={one.architecture or f'sm_{capability}'}",
                                          "--ptxas-options=-v", *one.options))
    except Exception:
        pytest.fail(f"{one}: {compiler.getProgramLog(program)[:2000]}")
    log = compiler.getProgramLog(program)
    # Whoever reads a sum before `settled` has its products one after the other, or wrong.
    assert "warpgroup." not in log, log
    assert "setmaxnreg" not in log, log  # that it was ignored
    found = re.findall(r"entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill "
                       r"loads.*?Used (\d+) registers", log, re.DOTALL)
    assert found, log
    return [(entry, int(registers), int(stores) + int(loads))
            for entry, stores, loads, registers in found]


# All of them for one architecture, and for the others what differs most between them.
@pytest.mark.parametrize("capability", ARCHITECTURES)
def test_within_limits(capability):
    chosen = kernels(capability)
    if capability != 90:
        chosen = [k for k in chosen if k.file == "convolution.cu"][::5] + [
            k for k in chosen if k.file != "convolution.cu"][::9]
    for one in chosen:
        for entry, registers, spilled in compile_for(capability, one):
            what = f"{entry} {' '.join(f'{a}={b}' for a, b in one.defines)}"
            print(f"sm_{capability} {registers:4} registers {spilled:4} spilled  {what}")
            most = (MOST_SPILLED_OF_WARPGROUPS if one.architecture
                    else MOST_SPILLED if ("TENSOR", 0) in one.defines else 0)
            assert spilled <= most, f"{what} spills {spilled} bytes for sm_{capability}"
            assert registers <= MOST_REGISTERS.get(entry, MOST_OTHERWISE), what
            # Those that multiply wait for what others give, as the kernel's file counts it.
            defines = dict(one.defines)
            if entry == "convolve_ahead" and defines["BLOCKS"] > 1:
                threads = (defines["BM"] // 64 + 1) * 128
                assert registers == REGISTERS // (defines["BLOCKS"] * threads) // 8 * 8, what


def test_sources_hold_all_they_include():
    for path in FOLDER.glob("*.cu"):
        text = source_of(path.name)
        assert '#include "' not in text.replace('#include "multiply', "", 2)
        assert text.count("struct Rule {") == 1
