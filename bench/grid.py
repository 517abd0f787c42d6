"""What is measured: the cases (function, dtype, shape, axis, memory layout) and their arrays. Knows no contender."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

FUNCTIONS = (
    "softmax",
    "log_softmax",
    "logsumexp",
    "cross_entropy",
    "cross_entropy_with_grad",
    "softmax_backward",
)
REDUCTIONS = ("logsumexp", "cross_entropy")
DTYPES = ("float32", "float64", "float16", "bfloat16")
ROWS = (
    (64, 1000),
    (1024, 1000),
    (1000, 17),
    (65_536, 3),
    (16_384, 16),
    (4096, 64),
    (16, 50_257),
    (16, 128_256),
    (128, 128_256),
    (1, 10_000_000),
)
LAYOUTS = (  # shape, axis, layout: what is not rows one after another
    ((1000, 1000), 0, "C"),
    ((16, 100_000), 0, "C"),
    ((100_000, 16), 0, "C"),
    ((1000, 1000), -1, "F"),
    ((1000, 1000), -1, "step 2"),
    ((1024, 100), 0, "step 2"),
)
OPTIONS = (  # functions, shape, "layout": what calls have beside the logits
    (("softmax", "log_softmax", "logsumexp"), (65_536, 4), "masked"),
    (("softmax", "log_softmax", "logsumexp"), (1024, 1000), "masked"),
    (("cross_entropy", "cross_entropy_with_grad"), (104_857, 10), "soft"),
    (("cross_entropy", "cross_entropy_with_grad"), (1024, 1000), "soft"),
)
# For the figures, in float32: rows of any length in 2²⁰ elements, and arrays of any size in rows of 4096.
LENGTHS = (3, 4, 8, 10, 16, 17, 32, 64, 100, 256, 1000, 4096, 32_768, 131_072, 1 << 20)
BY_LENGTH = [((1 << 20) // n, n) for n in LENGTHS]
BY_SIZE = [(n, 4096) for n in (4, 16, 64, 256, 1024, 4096, 8192)]
TINY = (3,)  # the time of a whole call
QUICK = ((64, 1000), (65_536, 3), (4096, 64))


@dataclass(frozen=True)
class Case:
    """One cell of the grid.

    `layout`: C or F order; "step 2", every other column of a C array; "masked", with a mask that
    leaves one of five out; "soft", with probabilities for targets.
    """

    function: str
    dtype: str
    shape: tuple[int, ...]
    axis: int = -1
    layout: str = "C"

    def __str__(self) -> str:
        shape = "×".join(map(str, self.shape))
        layout = "" if self.layout == "C" else f" {self.layout}"
        return f"{shape}{' axis 0' if self.axis == 0 else ''}{layout}"

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes_in(self) -> int:
        arrays = 2 if self.function == "softmax_backward" else 1
        return arrays * self.size * (2 if "16" in self.dtype else int(self.dtype[-2:]) // 8)

    @property
    def bytes_moved(self) -> int:
        """What has to be read from and written to memory at least, reductions' results left out."""
        arrays = 2 if self.function == "softmax_backward" else 1
        written = 0 if self.function in REDUCTIONS else self.bytes_in // arrays
        return self.bytes_in + written


def dtype_of(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        import ml_dtypes

        name = ml_dtypes.bfloat16
    found: np.dtype[Any] = np.dtype(name)
    return found


class Data:
    """The arrays of a case. Every contender gets the same; `reuse` asks for results in existing arrays."""

    def __init__(self, case: Case, reuse: bool) -> None:
        self.case = case
        self.reuse = reuse
        self.rng = np.random.default_rng(case.size)
        self.x = self._noise(3.0)

    def _noise(self, scale: float) -> Array:
        shape = self.case.shape
        if self.case.layout == "step 2":
            shape = (*shape[:-1], 2 * shape[-1])
        values = self.rng.standard_normal(shape, np.float32)
        values *= scale
        array = values.astype(
            dtype_of(self.case.dtype), order="F" if self.case.layout == "F" else "C"
        )
        return array[..., ::2] if self.case.layout == "step 2" else array

    @cached_property
    def targets(self) -> Array:
        shape = list(self.case.shape)
        classes = shape.pop(self.case.axis)
        return self.rng.integers(0, classes, shape)

    @cached_property
    def mask(self) -> Array:
        mask = self.rng.random(self.case.shape) < 0.8
        mask[..., 0] = True
        return mask

    @cached_property
    def index(self) -> tuple[Array, ...]:
        """Where the targets stand in a two-dimensional x."""
        samples = np.arange(len(self.targets))
        return (self.targets, samples) if self.case.axis == 0 else (samples, self.targets)

    @cached_property
    def grad_output(self) -> Array:
        return self._noise(1.0)

    def _probabilities(self, x: Array) -> Array:
        x = x.astype(np.float32)
        p = np.exp(x - x.max(self.case.axis, keepdims=True))
        p /= p.sum(self.case.axis, keepdims=True)
        y = self._noise(0.0)
        y[...] = p
        return y

    @cached_property
    def probabilities(self) -> Array:
        return self._probabilities(self.x)

    @cached_property
    def soft_targets(self) -> Array:
        return self._probabilities(self._noise(3.0))


def cases(quick: bool = False) -> Iterator[Case]:
    """The grid, without its threads."""
    for function in FUNCTIONS:
        if function in ("softmax", "log_softmax", "logsumexp"):
            yield from (Case(function, dtype, TINY) for dtype in DTYPES[:2])
        for dtype in DTYPES[:2] if quick else DTYPES:
            yield from (Case(function, dtype, shape) for shape in (QUICK if quick else ROWS))
        for dtype in DTYPES[:1] if quick else DTYPES[:2]:
            yield from (Case(function, dtype, *where) for where in LAYOUTS[: 1 if quick else None])
            yield from (
                Case(function, dtype, shape, -1, layout)
                for functions, shape, layout in OPTIONS
                if function in functions
            )
        if not quick:
            yield from (Case(function, "float32", shape) for shape in [*BY_LENGTH, *BY_SIZE])
