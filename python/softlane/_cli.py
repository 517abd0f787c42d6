"""The commands that go through files of any size: score, softmax, log-softmax.

They hold one block at a time; the arrays' files and blocks are those of `softlane._files`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import softlane
from softlane import _arrays, _files

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from softlane._arrays import Array

BLOCK = 8 << 20  # bytes: what is read from it again should still be in the cache


# ---- softmax and log-softmax --------------------------------------------------------------------


def add_softmax_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="IN", help="array of logits: npy, npz or safetensors")
    parser.add_argument("output", metavar="OUT.npy", help="where the result goes")
    parser.add_argument(
        "--axis", type=int, default=-1, help="whose elements compete (default: the last)"
    )


def softmax(arguments: argparse.Namespace) -> int:
    """Write the softmax of an array; it may be larger than memory."""
    transform(softlane.softmax, arguments)
    return 0


def log_softmax(arguments: argparse.Namespace) -> int:
    """Write the log-softmax of an array; it may be larger than memory."""
    transform(softlane.log_softmax, arguments)
    return 0


def transform(function: Callable[..., Any], arguments: argparse.Namespace) -> None:
    _files.check_npy_name(arguments.output)
    logits = _files.open_array(arguments.input, "logits")
    dtype = _arrays.float_dtype(logits.dtype, arguments.input)
    if _arrays.is_bfloat16(dtype):  # for which npy files have no name
        dtype = _arrays.F32
    axes = _arrays.normalize_axes(arguments.axis, len(logits.shape))
    axis = axes[0] if axes else 0
    with _files.beside(arguments.output) as part:
        result = _files.create_npy(part, logits.shape, dtype, logits.order)
        for index in cut(logits, axis):
            out = result.block(index, "r+")
            function(logits.block(index), axis if axes else -1, dtype=dtype, out=out)


def cut(logits: _files.FileArray | _files.LoadedArray, axis: int) -> Iterator[_files.Index]:
    """Indices of blocks, with a progress bar on a terminal (where tqdm is installed)."""
    itemsize = logits.dtype.itemsize
    indices = _files.blocks(logits.shape, axis, itemsize, logits.order, BLOCK)
    if not sys.stderr.isatty():
        yield from indices
        return
    try:
        from tqdm import tqdm
    except ImportError:
        yield from indices
        return
    with tqdm(total=math.prod(logits.shape) * itemsize, unit="B", unit_scale=True) as bar:
        for index in indices:
            yield index
            lengths = (len(range(n)[s]) for n, s in zip(logits.shape, index, strict=True))
            bar.update(math.prod(lengths) * itemsize)


# ---- score --------------------------------------------------------------------------------------


def add_score_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("logits", metavar="LOGITS", help="npy, npz or safetensors")
    parser.add_argument(
        "targets", metavar="TARGETS", help="the classes, in the shape of the logits without --axis"
    )
    parser.add_argument(
        "--axis", type=int, default=-1, help="of the classes in the logits (default: the last)"
    )
    parser.add_argument(
        "--ignore-index", type=int, default=-100, help="target that is left out (default: -100)"
    )
    parser.add_argument(
        "--label-smoothing", type=float, default=0.0, help="share from 0 to 1 (default: 0)"
    )
    parser.add_argument("--per-token", metavar="OUT.npy", help="write each loss, 0 where left out")
    parser.add_argument("--plot", metavar="OUT.png", help="draw token losses and reliability")
    parser.add_argument(
        "--json", action="store_true", help="print a JSON object (null: not finite)"
    )


def score(arguments: argparse.Namespace) -> int:
    """Print loss, perplexity, accuracy and calibration error of logits against target classes."""
    logits = _files.open_array(arguments.logits, "logits")
    targets = _files.open_array(arguments.targets, "targets")
    dtype = _arrays.reduced_dtype(_arrays.float_dtype(logits.dtype, arguments.logits))
    axis = _arrays.normalize_axis(arguments.axis, len(logits.shape))
    samples = _arrays.without_axes(logits.shape, (axis,))
    if targets.dtype.kind not in "iu":
        raise TypeError(f"{arguments.targets} has dtype {targets.dtype}, expected an integer type")
    if targets.shape != samples:
        raise ValueError(
            f"{arguments.targets} has shape {targets.shape}, expected {samples}: "
            f"{arguments.logits} has {logits.shape}, without axis {axis}"
        )
    ignored, smoothing = arguments.ignore_index, arguments.label_smoothing
    tally = Tally()
    with ExitStack() as outputs:
        losses = picture = None
        if arguments.per_token is not None:
            _files.check_npy_name(arguments.per_token)
            _files.check_not_among(arguments.per_token, arguments.logits, arguments.targets)
            part = outputs.enter_context(_files.beside(arguments.per_token))
            losses = _files.create_npy(part, samples, dtype, logits.order)
        if arguments.plot is not None:
            _files.check_not_among(arguments.plot, arguments.logits, arguments.targets)
            require_matplotlib()
            picture = outputs.enter_context(_files.beside(arguments.plot))

        if logits.shape[axis] == 0:  # no blocks come, and no target is a class
            index = tuple(slice(0, n) for n in samples)
            y = targets.block(index)
            check_targets(y, y != ignored, 0, index, arguments.targets)
            tally.ignored = int(np.size(y))
        for index in cut(logits, axis):
            block = logits.block(index)
            sample_index = index[:axis] + index[axis + 1 :]
            y = targets.block(sample_index)
            used = y != ignored
            check_targets(y, used, logits.shape[axis], sample_index, arguments.targets)
            loss = softlane.cross_entropy(
                block, y, axis,
                ignore_index=ignored, label_smoothing=smoothing, reduction="none",
            )  # fmt: skip
            largest, predicted = first_largest(block, axis)
            surprise = softlane.cross_entropy(  # of the prediction: no class is ignored
                block, predicted, axis, ignore_index=-1, reduction="none"
            )
            is_hit = (predicted == y) & (largest == largest)  # NaN predicts nothing
            tally.add(loss[used], np.exp(-surprise[used], dtype=float), is_hit[used])
            tally.ignored += int(np.size(used) - np.count_nonzero(used))
            if losses is not None:
                losses.block(sample_index, "r+")[...] = loss
        if picture is not None:
            suffix = Path(arguments.plot).suffix.removeprefix(".")
            figure_of(tally).savefig(picture, format=suffix or "png")
    report(tally, as_json=arguments.json)
    return 0


def first_largest(block: Array, axis: int) -> tuple[Array, Array]:
    """The largest elements along an axis, NaN where there is one, and where the first of them is.

    `argmax` copies what it is given from a file, so a block that holds a long row goes in parts.
    """
    length = block.shape[axis]
    step = max(1, BLOCK * length // max(1, block.nbytes))

    def from_part(start: int) -> tuple[Array, Array]:
        part = block[(slice(None),) * axis + (slice(start, start + step),)]
        at = part.argmax(axis)
        found = np.take_along_axis(part, np.expand_dims(at, axis), axis).squeeze(axis)
        return found, at + start

    largest, position = from_part(0)
    for start in range(step, length, step):
        found, at = from_part(start)
        better = (found > largest) | ((found != found) & (largest == largest))
        largest = np.where(better, found, largest)
        position = np.where(better, at, position)
    return largest, position


def check_targets(y: Any, used: Any, classes: int, index: Any, path: str) -> None:
    """Softlane's own check, but with positions in the whole file."""
    bad = used & ((y < 0) | (y >= classes))
    if np.any(bad):
        first = np.unravel_index(np.argmax(bad), np.shape(bad))
        position = [s.start + int(i) for s, i in zip(index, first, strict=True)]
        raise IndexError(
            f"{path}{position if position else ''} is {y[first]}, "
            f"expected 0 <= target < {classes} or the ignored index"
        )


class Tally:
    """Sums over the tokens that came so far.

    The calibration error is the expected one over 15 bins of equal width in confidence, the
    probability of the predicted class (Guo, Pleiss, Sun, Weinberger, "On calibration of modern
    neural networks", ICML 2017).
    """

    bins = 15  # of confidence
    loss_bins, loss_width = 4000, 0.025  # nats; the last has what lies beyond, too

    def __init__(self) -> None:
        self.ignored = 0
        self.losses: list[float] = []  # the sum of each block
        self.tokens = np.zeros(self.bins, int)
        self.hits = np.zeros(self.bins, int)
        self.confidence = np.zeros(self.bins)  # summed
        self.histogram = np.zeros(self.loss_bins, int)

    def add(self, loss: Array, confidence: Array, is_hit: Array) -> None:
        """Count tokens: their losses, and the predictions' probabilities and success."""
        self.losses.append(float(np.sum(loss, dtype=float)))
        at = bin_of(confidence * self.bins, self.bins)
        self.tokens += np.bincount(at, minlength=self.bins)
        self.hits += np.bincount(at[is_hit], minlength=self.bins)
        self.confidence += np.bincount(at, confidence, self.bins)
        with np.errstate(over="ignore"):
            at = bin_of(loss / self.loss_width, self.loss_bins)
        self.histogram += np.bincount(at, minlength=self.loss_bins)

    def results(self) -> dict[str, float]:
        count = int(self.tokens.sum())
        if count == 0:
            loss = accuracy = error = math.nan
        else:
            loss = sum(self.losses) / count
            accuracy = float(self.hits.sum() / count)
            error = float(np.abs(self.hits - self.confidence).sum() / count)
        with np.errstate(over="ignore"):
            perplexity = float(np.exp(loss))
        return {
            "tokens": count,
            "ignored": self.ignored,
            "loss": loss,
            "perplexity": perplexity,
            "accuracy": accuracy,
            "calibration_error": error,
        }


def bin_of(values: Array, count: int) -> Array:
    """The whole part as an index below `count`; that of NaN is 0."""
    bins: Array = np.nan_to_num(values.clip(0, count - 1)).astype(int)
    return bins


def report(tally: Tally, *, as_json: bool) -> None:
    results = tally.results()
    if as_json:
        finite = {k: v if math.isfinite(v) else None for k, v in results.items()}
        print(json.dumps(finite))
        return
    print(f"tokens             {results['tokens']} ({results['ignored']} ignored)")
    print(f"loss               {results['loss']:.6f} nats")
    print(f"perplexity         {results['perplexity']:.6g}")
    print(f"accuracy           {results['accuracy']:.2%}")
    print(f"calibration error  {results['calibration_error']:.4f}")


# ---- the plot -----------------------------------------------------------------------------------


def require_matplotlib() -> None:
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise ImportError("--plot needs matplotlib: pip install 'softlane[cli]'") from None


def figure_of(tally: Tally) -> Figure:
    """A histogram of token losses, and how often predictions of a confidence are right."""
    from matplotlib.figure import Figure

    results = tally.results()
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)

    end = int(np.flatnonzero(tally.histogram).max(initial=0)) + 1
    merged = max(1, math.ceil(end / 60))  # some 60 bars
    counts = tally.histogram[: merged * math.ceil(end / merged)]
    counts = np.add.reduceat(counts, range(0, len(counts), merged))
    width = merged * tally.loss_width
    left.bar(np.arange(len(counts)) * width, counts, width, align="edge")
    left.axvline(results["loss"], color="black", linestyle="--", label="mean")
    left.set(xlabel="loss of a token (nats)", ylabel="tokens", title="Token losses")
    left.legend()

    some = tally.tokens > 0
    edges = np.arange(tally.bins)[some] / tally.bins
    right.bar(edges, tally.hits[some] / tally.tokens[some], 1 / tally.bins, align="edge")
    right.plot([0, 1], [0, 1], color="black", linestyle="--", label="perfectly calibrated")
    right.set(
        xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy",
        title=f"Reliability (calibration error {results['calibration_error']:.4f})",
    )  # fmt: skip
    right.legend()
    return figure
