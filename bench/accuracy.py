"""Worst errors, in ulp, of softlane and its peers: python bench/accuracy.py --help.

Functions, inputs and oracle are those of the tests. Errors are in ulp of the dtype that the contender returns: for
logsumexp and the losses of half types that is float32 for softlane, the half type for others.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).parent.parent / "tests"))
import peers
from grid import Array, Case, Data
from run import machine

import functions
import oracle
import softlane
import support
from functions import FUNCTIONS, LONG, LONG_KINDS, MEDIUM, SHORT, Errors, Rows
from oracle import Exact

ORDINARY = ("scale 1", "scale 10", "offset 1", "offset -1")  # logits as models have them
CONTENDERS = ("torch", "scipy", "onnxruntime", "numpy")


class Given(Data):
    """Rows as the contenders of the speed measurements take them."""

    def __init__(self, r: Rows, temperature: float = 1.0) -> None:
        self.reuse = False
        self.x = r.x if temperature == 1 else (r.x / temperature).astype(r.x.dtype)
        self.targets, self.grad_output = r.targets, r.g
        self.index = (np.arange(len(r.x)), r.targets)
        self.probabilities = r.p


Peer = Callable[[str, Rows], Any]


def peer(function: str, temperature: float = 1.0) -> Peer:
    def call(name: str, r: Rows) -> Any:
        given = Given(r, temperature)
        return peers.PEERS[name](Case(function, r.x.dtype.name, r.x.shape), given)()

    return call


def peer_loss(name: str, r: Rows) -> Any:
    """Per sample; by torch's own function, otherwise from log_softmax."""
    if name == "torch":
        return torch_loss(r.x, peers.tensor(r.targets), {})[0]
    return -as_array(peer("log_softmax")(name, r))[np.arange(len(r.x)), r.targets]


def peer_gradient(name: str, r: Rows) -> Any:
    """Of the sum of the losses; by autograd, otherwise softmax less one at the target."""
    if name == "torch":
        return torch_loss(r.x, peers.tensor(r.targets), {})[1]
    p = as_array(peer("softmax")(name, r)).copy()
    p[np.arange(len(r.x)), r.targets] -= p.dtype.type(1)
    return p


def torch_loss(x: Array, targets: Any, options: dict[str, Any]) -> tuple[Any, Any]:
    import torch

    logits = peers.tensor(x.copy()).requires_grad_()
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none", **options)
    return losses.detach(), torch.autograd.grad(losses.sum(), logits)[0]


def weighted(part: int) -> Peer:
    def call(name: str, r: Rows) -> Any:
        if name != "torch":
            raise peers.UnsupportedError
        options = r.options | {"weight": peers.tensor(r.options["weight"])}
        return torch_loss(r.finite, peers.tensor(r.targets), options)[part]

    return call


def probable(part: int) -> Peer:
    def call(name: str, r: Rows) -> Any:
        if name != "torch":
            raise peers.UnsupportedError
        return torch_loss(r.finite, peers.tensor(r.t), {})[part]

    return call


def unsupported(name: str, r: Rows) -> Any:
    raise peers.UnsupportedError


def log_softmax_backward(name: str, r: Rows) -> Any:
    if name != "torch":
        raise peers.UnsupportedError
    import torch

    g, y = peers.tensor(r.g), peers.tensor(r.lp)
    return torch.ops.aten._log_softmax_backward_data(g, y, 1, y.dtype)


PEERS: dict[str, Peer] = {
    "softmax": peer("softmax"),
    "softmax, temperature 0.3": peer("softmax", 0.3),
    "log_softmax": peer("log_softmax"),
    "logsumexp": peer("logsumexp"),
    "cross-entropy": peer_loss,
    "its gradient": peer_gradient,
    "weighted, smoothed": weighted(0),
    "its gradient, weighted": weighted(1),
    "probability targets": probable(0),
    "their gradient": probable(1),
    "z_loss": unsupported,
    "its gradient, z_loss": unsupported,
    "softmax_backward": peer("softmax_backward"),
    "log_softmax_backward": log_softmax_backward,
}


def as_array(result: Any) -> Array:
    """A torch tensor of bfloat16 too."""
    if "torch.bfloat16" in str(getattr(result, "dtype", "")):
        result = result.float().numpy().astype(support.BFLOAT16)
    return np.asarray(result)


def result_of(title: str, name: str, rows: Rows) -> Array | None:
    """None where the peer lacks the function or dtype."""
    try:
        return as_array(PEERS[title](name, rows))
    except peers.UnsupportedError:
        return None
    except (AttributeError, IndexError):
        raise
    except Exception:  # whatever a peer's own stack raises for a dtype that it lacks
        return None


def inputs(dtype: support.DType, quick: bool) -> Iterator[tuple[list[str], Rows]]:
    """Every kind of each length; long rows in the kinds to which the length matters."""
    for n in (*SHORT, *MEDIUM)[:: 6 if quick else 1]:
        yield from functions.batches(dtype, n)
    if not quick:
        for n in LONG:
            yield from functions.batches(dtype, n, LONG_KINDS)
        yield from functions.batches(dtype, 1_000_000, LONG_KINDS[:4])


class Results:
    """Errors by dtype, function and contender: over all inputs, ordinary logits, and what a search found."""

    def __init__(self) -> None:
        self.all: dict[tuple[str, str, str], Errors] = defaultdict(Errors)
        self.ordinary: dict[tuple[str, str, str], Errors] = defaultdict(Errors)
        self.climb: dict[tuple[str, str, str], Errors] = defaultdict(Errors)

    def add(
        self, key: tuple[str, str, str], got: Array, exact: Exact, kinds: list[str] | None
    ) -> None:
        error = oracle.ulp_error(got, exact.value, exact.scale)
        if kinds is None:
            self.climb[key].add(error, str)
            return
        self.all[key].add(error, lambda row: f"{kinds[row]}, {exact.value.shape}")
        usual = [i for i, kind in enumerate(kinds) if kind in ORDINARY]
        if usual:
            self.ordinary[key].add(error[usual], lambda row: kinds[usual[row]])

    def summary(self) -> list[dict[str, Any]]:
        return [
            {
                "dtype": dtype,
                "function": title,
                "contender": name,
                "worst": errors.worst,
                "p99.9": errors.percentile(99.9),
                "ordinary": self.ordinary[dtype, title, name].worst,
                "climb": self.climb[dtype, title, name].worst,
                "where": errors.where,
            }
            for (dtype, title, name), errors in self.all.items()
        ]


def measure(quick: bool, rounds: int) -> list[dict[str, Any]]:
    names = [name for name in CONTENDERS if name in peers.installed()]
    results = Results()
    for dtype in [*support.WIDE, *support.HALVES]:
        for kinds, rows in inputs(dtype, quick):
            for title, function in FUNCTIONS.items():
                exact = function.exact(rows)
                for isas, got in functions.distinct(function, rows):
                    for isa in isas:
                        results.add((dtype.name, title, f"softlane {isa}"), got, exact, kinds)
                for name in names:
                    found = result_of(title, name, rows)
                    if found is not None:
                        results.add((dtype.name, title, name), found, exact, kinds)
        for title, function in FUNCTIONS.items():
            for n in (2, 3, 5, 9, 17, 40, 100):
                for rows in functions.climb(function, dtype, n, rounds, title):
                    exact = function.exact(rows)
                    for isas, got in functions.distinct(function, rows):
                        for isa in isas:
                            key = (dtype.name, title, f"softlane {isa}")
                            results.add(key, got, exact, None)
    return results.summary()


def uncovered() -> dict[str, dict[str, float]]:
    """What the contract leaves out, in ulp of the result itself: ordinary rows of 100."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for dtype in support.WIDE:
        x = support.to_dtype(3 * support.rng_for("uncovered").standard_normal((2000, 100)), dtype)
        rows = Rows(x)
        y, lp = rows.targets, oracle.log_softmax(x)
        errors: dict[str, tuple[Any, Any]] = {}

        results = [got for _, got in functions.distinct(FUNCTIONS["softmax"], rows)]
        share = np.mean(results[0] != results[-1])
        found["share of softmax's elements that differ on `generic`"][dtype.name] = float(share)
        errors["softmax on `generic`, away from that on the others"] = results[-1], results[0]
        near = lp.value.astype(dtype)
        exact = oracle.logsumexp(near)[0].value
        away = float(np.abs(softlane.logsumexp(near) - exact).max())
        found["logsumexp of log-probabilities, which is near 0 (absolute)"][dtype.name] = away
        smooth = {"label_smoothing": 0.1}
        _, grad = softlane.cross_entropy_with_grad(x, y, reduction="sum", **smooth)
        exact = oracle.cross_entropy(x, y, **smooth).grad.value
        errors["gradient with label smoothing, where it is near 0"] = grad, exact
        signed = support.to_dtype(rows.g, dtype)
        loss = softlane.cross_entropy(x, signed, reduction="none")
        errors["loss with targets of both signs"] = loss, oracle.cross_entropy(x, signed).loss.value
        loss = softlane.cross_entropy(x, y, softcap=5.0, reduction="none")
        errors["loss with a soft cap of 5"] = (
            loss,
            oracle.cross_entropy(x, y, softcap=5.0).loss.value,
        )
        for name, (got, value) in errors.items():
            found[name][dtype.name] = float(oracle.ulp_error(got, value).max())
    return found


def number(value: float) -> str:
    if np.isinf(value):
        return "∞"
    return f"{value:.2f}" if value < 10 else f"{value:.0f}" if value < 1e5 else f"{value:.0e}"


Found = list[dict[str, Any]]


def by_package(found: Found) -> dict[tuple[str, str], dict[str, dict[str, float]]]:
    """The worst by dtype and function, then package: softlane on any instruction set."""
    worst: dict[tuple[str, str], dict[str, dict[str, float]]] = defaultdict(dict)
    for entry in found:
        cell = worst[entry["dtype"], entry["function"]].setdefault(
            entry["contender"].split()[0], {"ordinary": 0.0, "worst": 0.0, "climb": 0.0}
        )
        for key in cell:
            cell[key] = max(cell[key], entry[key])
    return worst


def table(found: Found) -> str:
    """Markdown: worst over ordinary logits, and over all inputs (with those that the search for bad rows found)."""
    names = ("softlane", *dict.fromkeys(e["contender"] for e in found if " " not in e["contender"]))
    lines = [f"| | {' | '.join(names)} |", "| --- " * (len(names) + 1) + "|"]
    for (dtype, title), cells in by_package(found).items():
        shown = [
            f"{number(e['ordinary'])} / {number(max(e['worst'], e['climb']))}"
            if (e := cells.get(name))
            else ""
            for name in names
        ]
        lines.append(f"| {dtype} {title} | {' | '.join(shown)} |")
    return "\n".join(lines)


def own_table(found: Found) -> str:
    """Markdown: softlane's worst, its 99.9th percentile, and the worst of the search, on each instruction set."""
    own = [e for e in found if " " in e["contender"]]
    isas = list(dict.fromkeys(e["contender"].split()[1] for e in own))
    lines = [f"| | {' | '.join(isas)} | worst at |", "| --- " * (len(isas) + 2) + "|"]
    cells: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for entry in own:
        cells[f"{entry['dtype']} {entry['function']}"].append(entry)
    for title, entries in cells.items():
        shown = " | ".join(f"{e['worst']:.2f} ({e['p99.9']:.2f}) {e['climb']:.2f}" for e in entries)
        lines.append(f"| {title} | {shown} | {max(entries, key=lambda e: e['worst'])['where']} |")
    return "\n".join(lines)


def draw(found: Found, path: Path) -> None:
    """Bars of the worst errors, a panel for each dtype; a tick at the worst over ordinary logits."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from figures import COLORS

    top = 1e9
    cells = by_package(found)
    dtypes = list(dict.fromkeys(dtype for dtype, _ in cells))
    figure, axes = plt.subplots(len(dtypes), 1, figsize=(10, 2.2 * len(dtypes)), sharex=True)
    figure.set_layout_engine("constrained")
    names = list(dict.fromkeys(name for by_name in cells.values() for name in by_name))
    width = 0.8 / len(names)
    for ax, dtype in zip(np.atleast_1d(axes), dtypes, strict=True):
        by_title = {title: c for (d, title), c in cells.items() if d == dtype}
        for i, name in enumerate(names):
            bars = [(x, c[name]) for x, c in enumerate(by_title.values()) if name in c]
            at = [x + (i - (len(names) - 1) / 2) * width for x, _ in bars]
            heights = [min(top, max(e["worst"], e["climb"])) for _, e in bars]
            ax.bar(at, heights, width, color=COLORS[name], label=name)
            ax.plot(at, [min(top, e["ordinary"]) for _, e in bars], "_", color="black", ms=8)
        ax.axhline(oracle.BARS[dtype], color="black", lw=0.8, ls=":")
        ax.set(yscale="log", ylim=(0.25, top), ylabel=f"{dtype}: ulp")
        ax.set_xticks(
            range(len(by_title)), list(by_title), rotation=30, ha="right", rotation_mode="anchor"
        )
    figure.suptitle(
        "Worst error over all inputs (ticks: over ordinary logits; dotted: softlane's contract)",
        fontsize=10,
    )
    handles, labels = np.atleast_1d(axes)[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="every sixth length, no long rows")
    parser.add_argument("--climb", type=int, default=40, help="rounds of the search for bad rows")
    parser.add_argument("--json", type=Path, help="write the results, or read them with --draw")
    parser.add_argument("--figure", type=Path, help="draw the bars into this file")
    parser.add_argument("--draw", action="store_true", help="show earlier results again")
    args = parser.parse_args()
    started = time.perf_counter()
    if args.draw:
        read = json.loads(args.json.read_text())
        found, beyond = read["errors"], read["uncovered"]
    else:
        with np.errstate(all="ignore"):
            found, beyond = measure(args.quick, args.climb), uncovered()
        if args.json:
            results = {"machine": machine(), "errors": found, "uncovered": beyond}
            args.json.write_text(json.dumps(results, indent=1))
    print("ulp, worst over ordinary logits / over all inputs\n\n" + table(found))
    print("\nsoftlane: worst (99.9th percentile), worst of the search\n\n" + own_table(found))
    print("\nnot covered, in ulp of the result itself\n")
    for what, values in beyond.items():
        print(f"- {what}: " + ", ".join(f"{d} {value:.3g}" for d, value in values.items()))
    print(f"\n{time.perf_counter() - started:.0f} s")
    if args.figure:
        draw(found, args.figure)


if __name__ == "__main__":
    main()
