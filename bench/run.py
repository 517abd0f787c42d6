"""Speed of softlane beside its peers and the machine's limits: python bench/run.py --help.

Every contender takes its turn in every round, in one process (one for each number of threads); what counts is the
median over the rounds of softlane's time divided by the other's in the same round.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import peers
from grid import DTYPES, FUNCTIONS, REDUCTIONS, TINY, Array, Case, Data, cases

SAMPLE = 200_000  # ns that a sample lasts at least
LONG_CALL = 20_000_000  # ns from which a call is its own warm-up
REUSE = 1 << 20  # bytes from which results go to existing arrays: below, allocation costs nothing
PAUSE = 0.003  # s until the threads of the contender before no longer spin
Cell = dict[str, Any]


# ---- measuring ----------------------------------------------------------------------------------


class Contender(NamedTuple):
    call: peers.Call
    threads: int


def sample(call: peers.Call, loops: int) -> float:
    """Nanoseconds per call."""
    started = time.perf_counter_ns()
    for _ in repeat(None, loops):
        call()
    return (time.perf_counter_ns() - started) / loops


def rounds_of(
    contenders: dict[str, Contender],
    budget: float,
    fewest: int,
    use_threads: Callable[[int], None],
) -> dict[str, list[float]]:
    """Times per call, one for each round; a random order in each."""
    once = {}
    for name, (call, threads) in contenders.items():
        use_threads(threads)
        call()
        once[name] = min(sample(call, 1) for _ in range(3 if budget else 1))
    times: dict[str, list[float]] = {name: [] for name in contenders}
    order, shuffle = list(contenders), random.Random(0).shuffle
    deadline = time.perf_counter() + budget
    gc.disable()
    for done in range(500):
        if done >= fewest and time.perf_counter() > deadline:
            break
        shuffle(order)
        for name in order:
            call, threads = contenders[name]
            use_threads(threads)
            if any(other.threads > 1 for other in contenders.values()):
                time.sleep(PAUSE)
            if once[name] < LONG_CALL:
                call()
            times[name].append(sample(call, max(1, math.ceil(SAMPLE / once[name]))))
    gc.enable()
    return times


def numbers(result: Any) -> list[Array]:
    """A contender's result, a pair or not, as arrays."""
    parts = result if isinstance(result, tuple) else (result,)
    if any("bfloat16" in str(getattr(part, "dtype", "")) for part in parts):
        parts = tuple(part.float() if hasattr(part, "float") else part for part in parts)
    return [np.asarray(part).astype(np.float32) for part in parts]


def agree(result: Any, expected: Any, case: Case) -> bool:
    """Whether a peer computes the same thing: a wrong axis or option shows, rounding does not."""
    loose = 0.05 if "16" in case.dtype else 1e-3
    return all(
        a.shape == b.shape and np.allclose(a, b, rtol=loose, atol=loose * np.abs(b).max())
        for a, b in zip(numbers(result), numbers(expected), strict=True)
    )


def peer_call(
    name: str, case: Case, data: Data, expected: Any
) -> tuple[peers.Call | None, str | None]:
    """The peer's call, or why there is none."""
    try:
        call = peers.PEERS[name](case, data)
        if agree(call(), expected, case):
            return call, None
        return None, "another result than softlane's"
    except peers.UnsupportedError:
        return None, None
    except Exception as error:  # whatever a peer's own stack raises for a dtype that it lacks
        return None, f"{type(error).__name__}: {str(error).splitlines()[0]}"


def variants(case: Case, threads: int) -> dict[str, tuple[Case, int]]:
    """Other calls of softlane that a cell is held against: name, case, threads."""
    found = {}
    if case.axis == 0:
        found["last axis"] = replace(case, axis=-1), threads
    if "16" in case.dtype:
        found["float32"] = replace(case, dtype="float32"), threads
    if threads > 1:
        found["one thread"] = case, 1
    return found


def measure(case: Case, names: list[str], args: argparse.Namespace) -> Cell:
    import softlane

    threads = int(args.threads)
    data = Data(case, reuse=case.bytes_in >= REUSE and not args.fresh)
    softlane.set_num_threads(threads)
    contenders = {"softlane": Contender(peers.softlane(case, data), threads)}
    expected = contenders["softlane"].call()
    if data.reuse:
        expected = [part.copy() for part in numbers(expected)]
        expected = tuple(expected) if len(expected) > 1 else expected[0]
    skipped = {}
    for name in names:
        call, why = peer_call(name, case, data, expected)
        if call:
            contenders[name] = Contender(call, 1)
        elif why:
            skipped[name] = why
    for name, call in peers.limits(case, data).items():
        contenders[name] = Contender(call, 1)
    for name, (other, count) in variants(case, threads).items():
        contenders[name] = Contender(peers.softlane(other, Data(other, data.reuse)), count)
    times = rounds_of(contenders, args.budget, args.rounds, softlane.set_num_threads)
    ours = times["softlane"]
    return asdict(case) | {
        "threads": threads,
        "isa": softlane.show_config(mode="dict")["isa"],
        "peers": [name for name in names if name in times],
        "times_ns": {name: statistics.median(found) for name, found in times.items()},
        "ratios": {
            name: statistics.median(a / b for a, b in zip(ours, found, strict=True))
            for name, found in times.items()
        },
        "rounds": len(ours),
        "skipped": skipped,
    }


# ---- reading the results ------------------------------------------------------------------------


def case_of(cell: Cell) -> Case:
    return Case(cell["function"], cell["dtype"], tuple(cell["shape"]), cell["axis"], cell["layout"])


def fastest_peer(cell: Cell) -> str | None:
    return max(cell["peers"], key=cell["ratios"].__getitem__, default=None)


def reading(cell: Cell) -> str | None:
    """The name of the fastest pure read."""
    found = [name for name in cell["ratios"] if name.startswith("read")]
    return max(found, key=cell["ratios"].__getitem__, default=None)


def geometric_mean(values: Iterable[float]) -> float:
    return statistics.geometric_mean(values)


def line(cell: Cell, names: list[str]) -> str:
    """A row of the table: nanoseconds per element (of three elements, per call), then ratios."""
    case, times, ratios = case_of(cell), cell["times_ns"], cell["ratios"]
    per = 1 if case.shape == TINY else case.size
    head = f"{case.function:24}{case.dtype:9} {case!s:22}{cell['threads']:2d}"
    values = [
        f"{times[name] / per:9.3f}" if name in times else f"{'-':>9}"
        for name in ("softlane", *names, "copy", reading(cell))
    ]
    best = fastest_peer(cell)
    tail = f"  {ratios[best]:5.2f} {best}" if best else ""
    own = "".join(
        f"  {ratios[name]:.2f} {name}"
        for name in ("last axis", "float32", "one thread", "np.exp")
        if name in ratios
    )
    return head + "".join(values) + tail + own


def header(names: list[str]) -> str:
    columns = "".join(f"{name[:8]:>9}" for name in ("softlane", *names, "copy", "read"))
    return f"{'function':24}{'dtype':9} {'shape':21}thr{columns}  ratio to the fastest peer; to softlane's own"


def summary(cells: list[Cell], cache: int) -> list[str]:
    """Geometric mean and worst cell of each group of ratios that has a bar."""
    lines = []

    def group(title: str, ratios: list[tuple[float, Cell]]) -> None:
        if ratios:
            value, worst = max(ratios, key=lambda pair: pair[0])
            mean = geometric_mean(ratio for ratio, _ in ratios)
            where = f"{worst['function']} {worst['dtype']} {case_of(worst)}"
            lines.append(f"{title:64}{len(ratios):4d}{mean:8.2f}{value:8.2f}  {where}")

    def to_peer(chosen: Iterable[Cell]) -> list[tuple[float, Cell]]:
        return [(c["ratios"][best], c) for c in chosen if (best := fastest_peer(c))]

    def to(name: str, chosen: Iterable[Cell]) -> list[tuple[float, Cell]]:
        return [(c["ratios"][name], c) for c in chosen if name in c["ratios"]]

    for threads in sorted({cell["threads"] for cell in cells}):
        lines += [
            "",
            f"{f'Ratios, {threads} thread(s)':64}{'n':>4}{'mean':>8}{'worst':>8}  worst cell",
        ]
        mine = [cell for cell in cells if cell["threads"] == threads]
        rows = [cell for cell in mine if tuple(cell["shape"]) != TINY]
        inside = [c for c in rows if case_of(c).bytes_moved <= cache]
        outside = [c for c in rows if case_of(c).bytes_in > cache]
        for function in FUNCTIONS:
            for dtype in DTYPES:
                chosen = [c for c in inside if (c["function"], c["dtype"]) == (function, dtype)]
                group(f"in cache, {function}, {dtype}, to the fastest peer", to_peer(chosen))
        wide = [c for c in inside if c["dtype"] in DTYPES[:2]]
        group("in cache, float32 and float64, to the fastest peer", to_peer(wide))
        group("all cells, to the fastest peer", to_peer(rows))
        for function in FUNCTIONS:
            chosen = [c for c in outside if c["function"] == function]
            if function in REDUCTIONS:
                reads = [(c["ratios"][name], c) for c in chosen if (name := reading(c))]
                group(f"beyond the cache, {function}, to the fastest read", reads)
            elif function != "softmax_backward":  # which moves three arrays
                group(f"beyond the cache, {function}, to np.copyto", to("copy", chosen))
        group("axis 0 to the last axis", to("last axis", mine))
        group("half types in cache, to float32", to("float32", inside))
        group("half types beyond the cache, to float32", to("float32", outside))
        gradients = [c for c in rows if c["function"] == "cross_entropy_with_grad"]
        group("loss and gradient, to torch", to("torch", gradients))
        tiny = [c for c in mine if tuple(c["shape"]) == TINY]
        group("a call on 3 elements, to np.exp", to("np.exp", tiny))
        group("a call on 3 elements, to torch", to("torch", tiny))
        group(
            "all threads to one, 10⁶ elements and more",
            [r for r in to("one thread", rows) if case_of(r[1]).size >= 1e6],
        )
        group(
            "all threads to one, fewer elements",
            [r for r in to("one thread", mine) if case_of(r[1]).size < 1e6],
        )
    missing = {
        (name, c["function"], c["dtype"], why) for c in cells for name, why in c["skipped"].items()
    }
    lines += ["", *(f"without {': '.join(what)}"[:120] for what in sorted(missing))]
    return lines


def cache_bytes() -> int:
    """Size of the last-level cache; 32 MiB where the system does not tell."""
    sizes = [0]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        number, unit = re.fullmatch(r"(\d+)([KM]?)", path.read_text().strip()).groups()  # type: ignore[union-attr]
        sizes.append(int(number) << {"": 0, "K": 10, "M": 20}[unit])
    return max(sizes) or 32 << 20


def machine() -> dict[str, Any]:
    import softlane

    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists() and (found := re.search(r"model name\s*: (.*)", info.read_text())):
        model = found[1]
    packages = ("numpy", "scipy", "torch", "onnxruntime", "jax", "jaxlib", "ml_dtypes")
    installed = [name for name in packages if importlib.util.find_spec(name)]
    return {
        "processor": model,
        "processors": os.cpu_count(),
        "last_level_cache": cache_bytes(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in installed},
        "softlane": softlane.show_config(mode="dict"),
        "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "date": time.strftime("%Y-%m-%d"),
    }


# ---- the command --------------------------------------------------------------------------------


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few cells, few rounds")
    parser.add_argument("--threads", default="1", help="numbers of threads, such as 1,2")
    parser.add_argument("--isa", help="instruction set of softlane (by default the best)")
    parser.add_argument("--only", help="regular expression for the start of 'function dtype shape'")
    parser.add_argument("--peers", help="such as torch,numpy (by default all that are installed)")
    parser.add_argument("--fresh", action="store_true", help="new arrays for large results too")
    parser.add_argument("--budget", type=float, help="seconds per cell (1; quick: 0.1)")
    parser.add_argument("--rounds", type=int, help="fewest rounds per cell (7; quick: 3)")
    parser.add_argument("--json", type=Path, help="write the results")
    parser.add_argument("--figures", type=Path, help="draw the figures into this directory")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.budget = args.budget or (0.1 if args.quick else 1.0)
    args.rounds = args.rounds or (3 if args.quick else 7)
    return args


def peer_names(args: argparse.Namespace) -> list[str]:
    installed = peers.installed()
    wanted = installed if args.peers is None else [name for name in args.peers.split(",") if name]
    if unknown := set(wanted) - set(installed):
        raise SystemExit(f"not installed: {', '.join(sorted(unknown))}; installed: {installed}")
    return wanted


def selected(case: Case, only: str | None) -> bool:
    return not only or bool(re.match(rf"(?:{only})\b", f"{case.function} {case.dtype} {case}"))


def work(args: argparse.Namespace) -> None:
    """One process: all cells for one number of threads."""
    names = peer_names(args)
    if "torch" in names:
        import torch

        torch.set_num_threads(int(args.threads))
    if "jax" in names:
        import jax

        jax.config.update("jax_enable_x64", True)  # type: ignore[no-untyped-call]
    cells = []
    for case in dict.fromkeys(cases(args.quick)):
        if not selected(case, args.only):
            continue
        cells.append(measure(case, names, args))
        print(line(cells[-1], names), flush=True)
    args.json.write_text(json.dumps({"machine": machine(), "cells": cells}))


def environment(threads: str, isa: str | None) -> dict[str, str]:
    """What has to be set before a library is loaded. NPROC sizes the pool of XLA."""
    counts = ("SOFTLANE_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC")
    return os.environ | dict.fromkeys(counts, threads) | ({"SOFTLANE_ISA": isa} if isa else {})


def main() -> None:
    args = arguments()
    if args.worker:
        work(args)
        return
    names = peer_names(args)
    print(f"ns per element; ratios are softlane's time / the other's\n{header(names)}", flush=True)
    cells: list[Cell] = []
    with tempfile.TemporaryDirectory() as directory:
        for threads in args.threads.split(","):
            part = Path(directory) / f"{threads}.json"
            again = [sys.executable, __file__, *sys.argv[1:], "--worker"]
            again += ["--threads", threads, "--json", str(part)]
            subprocess.run(again, env=environment(threads, args.isa), check=True)
            results = json.loads(part.read_text())
            cells += results["cells"]
            results["cells"] = cells
            if args.json:  # so that what is done is kept if the rest is stopped
                args.json.write_text(json.dumps(results, indent=1))
    print("\n".join(summary(cells, results["machine"]["last_level_cache"])))
    if args.figures:
        import figures

        figures.draw(results, args.figures)


if __name__ == "__main__":
    main()
