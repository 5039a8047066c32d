"""How far one output is off over a clip."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

from deltaconvert.checking.report import OutputReport
from deltaconvert.errors import InputError
from deltaconvert.outputs import mean_square
from deltaconvert.work import ratio


class OutputErrors:
    """Sums of one output's errors."""

    def __init__(self, name: str, tolerance: float | None, max_abs: float | None) -> None:
        self.name, self.tolerance, self.max_abs_allowed = name, tolerance, max_abs
        self.first: Tensor | None = None
        self.squares: list[tuple[float, float, float]] = []  # of error, dense, frozen's error
        self.products = [0.0, 0.0, 0.0]  # dense with converted, and each with itself
        self.max_abs = self.max_relative = 0.0
        self.numbers = self.not_finite = 0  # of the dense output

    @property
    def goes_wrong(self) -> bool:
        """Whether the last frame is out of tolerance."""
        if not self.squares:
            return False
        so_far = math.sqrt(statistics.fmean(s[1] for s in self.squares))
        rms = ratio(math.sqrt(self.squares[-1][0]), so_far)
        return not ((self.tolerance is None or rms <= self.tolerance) and (
            self.max_abs_allowed is None or self.max_abs <= self.max_abs_allowed))

    def add(self, dense: Tensor, converted: Tensor) -> None:
        """Compare one frame's.

        Raises:
            InputError: where shapes or dtypes differ.
        """
        if dense.shape != converted.shape or dense.dtype != converted.dtype:
            raise InputError(
                f"output {self.name!r} is {dense.dtype} of {tuple(dense.shape)} from the dense "
                f"model, {converted.dtype} of {tuple(converted.shape)} from the converted one. "
                "Is it the model that was converted?")
        if self.first is None:
            self.first = dense.clone()
        error, reference = difference(converted, dense), finite(dense)
        self.numbers += dense.numel()
        self.not_finite += int((~dense.isfinite()).sum())
        # Where a frame has another number of boxes, all of it is new.
        frozen = difference(self.first, dense) if self.first.shape == dense.shape else reference
        self.squares.append((mean_square(error), mean_square(reference), mean_square(frozen)))
        self._add_products(reference, finite(converted))
        if error.numel():
            largest = float(error.abs().max())
            self.max_abs = _larger(self.max_abs, largest)
            self.max_relative = _larger(self.max_relative,
                                        ratio(largest, float(reference.abs().max())))

    def _add_products(self, dense: Tensor, converted: Tensor) -> None:
        pairs = (dense, converted), (dense, dense), (converted, converted)
        for i, (a, b) in enumerate(pairs):
            self.products[i] += float((a * b).sum())

    def report(self) -> OutputReport:
        """Sum up."""
        rms = [math.sqrt(error) for error, _, _ in self.squares]
        error, size, frozen = (math.sqrt(statistics.fmean(part))
                               for part in zip(*self.squares, strict=True))
        worst = max(range(len(rms)), key=lambda i: math.inf if math.isnan(rms[i]) else rms[i])
        both, dense, converted = self.products
        lengths = math.sqrt(dense * converted)
        return OutputReport(
            name=self.name, max_abs=self.max_abs, max_relative=self.max_relative, rms=error,
            relative_rms=ratio(error, size), worst_frame=worst,
            worst_relative_rms=ratio(rms[worst], size), slope=slope(rms),
            cosine=both / lengths if lengths else math.nan, frozen_rms=frozen,
            frozen_relative_rms=ratio(frozen, size), tolerance=self.tolerance,
            max_abs_allowed=self.max_abs_allowed, frame_rms=rms,
            frame_frozen_rms=[math.sqrt(frozen) for _, _, frozen in self.squares],
            not_finite=ratio(self.not_finite, self.numbers))


def difference(value: Tensor, reference: Tensor) -> Tensor:
    """Return value - reference as float64: 0 where both are the same infinity or both NaN."""
    if not (value.is_floating_point() or value.is_complex()):
        return (value != reference).double()
    a, b = _numbers(value), _numbers(reference)
    same = (a == b) | (a.isnan() & b.isnan())
    return torch.where(same, 0.0, a - b)


def finite(value: Tensor) -> Tensor:
    """Return a tensor as float64 with 0 for what is not finite, which has no size to speak of."""
    numbers = _numbers(value)
    return torch.where(numbers.isfinite(), numbers, 0.0)


def _numbers(value: Tensor) -> Tensor:
    """Return a tensor as float64; of labels, which have no size, each counts 1."""
    if value.is_complex():
        return torch.view_as_real(value).double()
    return value.double() if value.is_floating_point() else torch.ones_like(value).double()


def _larger(one: float, other: float) -> float:
    return other if other > one or math.isnan(other) else one


def slope(values: Sequence[float]) -> float:
    """Return the least-squares slope of values against their index; 0 for fewer than two."""
    middle, mean = (len(values) - 1) / 2, statistics.fmean(values)
    spread = sum((i - middle) ** 2 for i in range(len(values)))
    if spread == 0:
        return 0.0
    return sum((i - middle) * (v - mean) for i, v in enumerate(values)) / spread
