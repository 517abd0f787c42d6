"""Worst errors, in ulp, of softlane and its peers: python bench/accuracy.py --help.

Inputs and oracle are those of the tests. Errors of logsumexp and of the losses of half types are in ulp of the dtype
that the contender returns: float32 for softlane, the half type for others.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.append(str(Path(__file__).parent.parent / "tests"))
import peers
from grid import Array, Case, Data
from run import machine

import oracle
import softlane
import support
from oracle import Exact

LENGTHS = (*range(1, 71), 127, 128, 129, 1000, 4096, 50_257, 128_256, 1_000_000)
ORDINARY = ("scale 1", "scale 10", "offset 1", "offset -1")  # logits as models have them
CONTENDERS = ("torch", "scipy", "onnxruntime", "numpy")
FACTORS = {"label_smoothing": 0.1}


class Given(Data):
    """Arrays that were chosen instead of drawn."""

    def __init__(self, x: Array) -> None:
        rng = support.rng_for("accuracy", x.shape)
        self.reuse = False
        self.x = x
        self.targets = np.asarray(np.argmax(x, axis=-1))  # the largest class, the last, the first
        self.targets[1::3], self.targets[2::3] = x.shape[1] - 1, 0
        self.index = (np.arange(len(x)), self.targets)
        self.finite = np.where(x == -np.inf, support.to_dtype(-3.0, x.dtype), x)
        self.weight = support.to_dtype(0.5 + np.arange(x.shape[1]) % 7, x.dtype)
        self.grad_output = support.to_dtype(rng.standard_normal(x.shape), x.dtype)
        self.probabilities = oracle.softmax(x).value.astype(x.dtype)


class Function(NamedTuple):
    """What is measured: the exact result, softlane's, and those of peers that bench/peers.py does not have."""

    exact: Callable[[Given], Exact]
    softlane: Callable[[Given], Any]
    peer: Callable[[str, Given], Any]


def peer(function: str) -> Callable[[str, Given], Any]:
    """The contender of the speed measurements."""

    def call(name: str, d: Given) -> Any:
        result = peers.PEERS[name](Case(function, d.x.dtype.name, d.x.shape), d)()
        return result[1] if function == "cross_entropy_with_grad" else result

    return call


def peer_loss(name: str, d: Given) -> Any:
    """Per sample; by torch's own function, otherwise from log_softmax."""
    if name == "torch":
        return torch_loss(d.x, d, False)[0]
    return -peer("log_softmax")(name, d)[d.index]


def torch_loss(x: Array, d: Given, weighted: bool) -> tuple[Any, Any]:
    """Losses, and the gradient of their mean."""
    import torch

    logits = peers.tensor(x).requires_grad_()
    options = FACTORS | {"weight": peers.tensor(d.weight)} if weighted else {}
    function, targets = torch.nn.functional.cross_entropy, torch.from_numpy(d.targets)
    losses = function(logits, targets, reduction="none", **options)
    mean = function(logits, targets, **options)
    return losses.detach(), torch.autograd.grad(mean, logits)[0]


def weighted(part: int) -> Callable[[str, Given], Any]:
    def call(name: str, d: Given) -> Any:
        if name != "torch":
            raise peers.UnsupportedError
        return torch_loss(d.finite, d, True)[part]

    return call


def weights(d: Given) -> dict[str, Any]:
    return FACTORS | {"weight": d.weight}


FUNCTIONS = {
    "softmax": Function(
        lambda d: oracle.softmax(d.x), lambda d: softlane.softmax(d.x), peer("softmax")
    ),
    "log_softmax": Function(
        lambda d: oracle.log_softmax(d.x), lambda d: softlane.log_softmax(d.x), peer("log_softmax")
    ),
    "logsumexp": Function(
        lambda d: oracle.logsumexp(d.x)[0], lambda d: softlane.logsumexp(d.x), peer("logsumexp")
    ),
    "cross-entropy": Function(
        lambda d: oracle.cross_entropy(d.x, d.targets).loss,
        lambda d: softlane.cross_entropy(d.x, d.targets, reduction="none"),
        peer_loss,
    ),
    "its gradient": Function(
        lambda d: oracle.cross_entropy(d.x, d.targets, reduction="mean").grad,
        lambda d: softlane.cross_entropy_with_grad(d.x, d.targets)[1],
        peer("cross_entropy_with_grad"),
    ),
    "weighted, smoothed": Function(
        lambda d: oracle.cross_entropy(d.finite, d.targets, **weights(d)).loss,
        lambda d: softlane.cross_entropy(d.finite, d.targets, reduction="none", **weights(d)),
        weighted(0),
    ),
    "its gradient, weighted": Function(
        lambda d: oracle.cross_entropy(d.finite, d.targets, reduction="mean", **weights(d)).grad,
        lambda d: softlane.cross_entropy_with_grad(d.finite, d.targets, **weights(d))[1],
        weighted(1),
    ),
    "softmax_backward": Function(
        lambda d: oracle.softmax_backward(d.grad_output, d.probabilities),
        lambda d: softlane.softmax_backward(d.grad_output, d.probabilities),
        peer("softmax_backward"),
    ),
}


def inputs(dtype: support.DType, quick: bool) -> Iterator[tuple[list[str], Array]]:
    """Kinds and rows, for each length; the longest rows in few kinds."""
    for n in LENGTHS[::6] if quick else LENGTHS:
        names, x = support.make_rows(dtype, n)
        some = slice(None, None, 1 if n < 4096 else 4 if n < 50_000 else 16 if n < 500_000 else 60)
        chosen = [names.index(name) for name in dict.fromkeys([*ORDINARY[:1], *names[some]])]
        yield [names[i] for i in chosen], x[chosen]


def as_array(result: Any) -> Array:
    """A torch tensor of bfloat16 too."""
    if "torch.bfloat16" in str(getattr(result, "dtype", "")):
        result = result.float().numpy().astype(support.BFLOAT16)
    return np.asarray(result)


class Errors:
    """All errors of a contender in a function and dtype."""

    def __init__(self) -> None:
        self.parts: list[Array] = []
        self.worst, self.where, self.ordinary = -1.0, "", 0.0

    def add(self, error: Array, names: list[str]) -> None:
        rows = error.reshape(len(names), -1).astype(np.float32)
        self.parts.append(rows.ravel())
        each = rows.max(axis=1)
        at = int(np.argmax(each))
        if each[at] > self.worst:
            self.worst, self.where = float(each[at]), f"{names[at]}, {error.shape}"
        for name, value in zip(names, each, strict=True):
            if name in ORDINARY:
                self.ordinary = max(self.ordinary, float(value))

    def summary(self) -> dict[str, Any]:
        p999 = np.percentile(np.concatenate(self.parts), 99.9, method="nearest")
        return {
            "worst": self.worst,
            "p99.9": float(p999),
            "ordinary": self.ordinary,
            "where": self.where,
        }


Results = dict[str, dict[str, dict[str, dict[str, Any]]]]  # dtype, function, contender


def measure(quick: bool) -> Results:
    names = [name for name in CONTENDERS if name in peers.installed()]
    isas = softlane.show_config(mode="dict")["isas_usable"]
    found: dict[tuple[str, str, str], Errors] = defaultdict(Errors)
    for dtype in [*support.WIDE, *support.HALVES]:
        for kinds, x in inputs(dtype, quick):
            given = Given(x)
            for title, function in FUNCTIONS.items():
                exact = function.exact(given)
                known: dict[bytes, Array] = {}  # instruction sets that agree are measured once
                for name in [*(f"softlane {isa}" for isa in isas), *names]:
                    got = result_of(function, name, given)
                    if got is not None:
                        key = got.tobytes()
                        if key not in known:
                            known[key] = oracle.ulp_error(got, exact.value, exact.scale)
                        found[dtype.name, title, name].add(known[key], kinds)
    results: Results = defaultdict(lambda: defaultdict(dict))
    for (dtype_name, title, name), errors in found.items():
        results[dtype_name][title][name] = errors.summary()
    return results


def result_of(function: Function, name: str, given: Given) -> Array | None:
    package, _, isa = name.partition(" ")
    with support.using(isa) if isa else nullcontext():
        try:
            result = function.softlane(given) if isa else function.peer(package, given)
        except peers.UnsupportedError:
            return None
        except Exception as error:  # whatever a peer's own stack raises for a dtype that it lacks
            if isa or isinstance(error, (AttributeError, IndexError)):
                raise
            return None
    return as_array(result)


def number(value: float) -> str:
    if np.isinf(value):
        return "∞"
    return f"{value:.2f}" if value < 100 else f"{value:.0f}" if value < 1e5 else f"{value:.0e}"


def table(results: Results) -> str:
    """Markdown: worst error over all inputs (its 99.9th percentile; worst over ordinary logits)."""
    names = list(dict.fromkeys(n for by in results.values() for f in by.values() for n in f))
    lines = [f"| dtype | function | {' | '.join(names)} |", "| --- " * (len(names) + 2) + "|"]
    for dtype, functions in results.items():
        for title, by_name in functions.items():
            shown = [
                f"{number(e['worst'])} ({number(e['p99.9'])}; {number(e['ordinary'])})"
                if (e := by_name.get(name))
                else ""
                for name in names
            ]
            lines.append(f"| {dtype} | {title} | {' | '.join(shown)} |")
    return "\n".join(lines)


def draw(results: Results, path: Path) -> None:
    """Bars of the worst errors, a panel for each dtype; a tick at the worst over ordinary logits."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from figures import COLORS

    top = 1e9
    figure, axes = plt.subplots(len(results), 1, figsize=(11, 2.6 * len(results)), sharex=True)
    figure.set_layout_engine("constrained")
    for ax, (dtype, functions) in zip(np.atleast_1d(axes), results.items(), strict=True):
        names = list(dict.fromkeys(name for by_name in functions.values() for name in by_name))
        width = 0.8 / len(names)
        for i, name in enumerate(names):
            bars = [(x, f[name]) for x, f in enumerate(functions.values()) if name in f]
            at = [x + (i - (len(names) - 1) / 2) * width for x, _ in bars]
            color = COLORS[name.split()[0]]
            alpha = 1 - 0.3 * i if name.startswith("softlane") else 1
            heights = [max(0.3, min(top, e["worst"])) for _, e in bars]
            ax.bar(at, heights, width, bottom=0, color=color, alpha=alpha, label=name)
            ordinary = [max(0.3, min(top, e["ordinary"])) for _, e in bars]
            ax.plot(at, ordinary, "_", color="black", ms=9)
        ax.axhline(oracle.BARS[dtype], color="black", lw=0.8, ls=":")
        ax.set(yscale="log", ylim=(0.25, top), ylabel=f"{dtype}: ulp")
        ax.set_xticks(range(len(functions)), list(functions), rotation=12, ha="right")
    figure.suptitle(
        "Worst error over all inputs (black ticks: over ordinary logits; dotted: the contract)"
    )
    handles, labels = np.atleast_1d(axes)[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="every sixth length")
    parser.add_argument("--json", type=Path, help="write the results")
    parser.add_argument("--figure", type=Path, help="draw the bars into this file")
    args = parser.parse_args()
    started = time.perf_counter()
    with np.errstate(all="ignore"):
        results = measure(args.quick)
    print(table(results))
    print(
        f"\nulp: worst (99.9th percentile; worst over ordinary logits). {time.perf_counter() - started:.0f} s"
    )
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(), "errors": results}, indent=1))
    if args.figure:
        draw(results, args.figure)


if __name__ == "__main__":
    main()
