"""Speed of two revisions of softlane: python bench/compare.py REV_A REV_B ("." is the working tree).

Each is built into a directory of its own and runs in a process of its own; they take turns, sample by sample.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import peers
import run
from grid import FUNCTIONS, TINY, Case, Data, cases

ROOT = Path(__file__).parent.parent


def build(revision: str, directory: Path) -> Path:
    """Build and install a revision below `directory`; returns what goes to PYTHONPATH."""
    source, site = ROOT, directory / "site"
    if revision != ".":
        source = directory / "source"
        source.mkdir(parents=True)
        archive = subprocess.run(
            ["git", "-C", str(ROOT), "archive", revision], check=True, capture_output=True
        )
        subprocess.run(["tar", "-x", "-C", str(source)], input=archive.stdout, check=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(site),
    ]
    if all(importlib.util.find_spec(name) for name in ("scikit_build_core", "pybind11")):
        command.append("--no-build-isolation")
    print(f"building {revision}", file=sys.stderr, flush=True)
    subprocess.run([*command, str(source)], check=True)
    return site


class Worker:
    """A process with one revision, which answers a line of JSON with a line of JSON."""

    def __init__(self, site: Path, threads: int, isa: str | None) -> None:
        path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
        environment = run.environment(str(threads), isa) | {"PYTHONPATH": path}
        command = [sys.executable, __file__, "--worker", str(site)]
        self.process = subprocess.Popen(
            command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def ask(self, question: Any) -> Any:
        assert self.process.stdin
        assert self.process.stdout
        print(json.dumps(question), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())


def serve(site: str) -> None:
    """A case is answered with the time of its first calls in ns (None: there is no such function yet), a number of
    calls with their time in ns per call."""
    import softlane

    assert Path(softlane.__file__).is_relative_to(site), softlane.__file__
    call, once = None, 0.0
    for text in sys.stdin:
        question, answer = json.loads(text), None
        if isinstance(question, int):
            assert call
            if once < run.LONG_CALL:
                call()
            answer = run.sample(call, question)
        else:
            case = Case(**question | {"shape": tuple(question["shape"])})
            call = first_calls(case)
            if call:
                once = min(run.sample(call, 1) for _ in range(3))
                answer = once
        print(json.dumps(answer), flush=True)


def first_calls(case: Case) -> peers.Call | None:
    try:
        call = peers.softlane(case, Data(case, reuse=case.bytes_in >= run.REUSE))
        call()
    except (AttributeError, NotImplementedError, TypeError):
        return None
    return call


def compare(case: Case, workers: list[Worker], budget: float, fewest: int) -> list[list[float]]:
    """Times per call in each round, by worker."""
    once = [worker.ask(asdict(case)) for worker in workers]
    if None in once:
        return []
    loops = max(1, math.ceil(run.SAMPLE / min(once)))
    times: list[list[float]] = [[] for _ in workers]
    deadline = time.perf_counter() + budget
    turn = random.Random(0)
    while len(times[0]) < fewest or time.perf_counter() < deadline:
        for i in turn.sample(range(len(workers)), len(workers)):
            times[i].append(workers[i].ask(loops))
    return times


def main() -> None:
    if "--worker" in sys.argv:
        serve(sys.argv[-1])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("revisions", nargs=2, metavar="REVISION")
    parser.add_argument("--quick", action="store_true", help="few cells, few rounds")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--isa", help="instruction set (by default the best)")
    parser.add_argument("--only", default="", help="as in run.py")
    parser.add_argument("--budget", type=float, default=0.5, help="seconds per cell")
    parser.add_argument("--json", type=Path, help="write the results")
    args = parser.parse_args()
    budget, fewest = (0.1, 5) if args.quick else (args.budget, 11)
    cells, by_function = [], dict[str, list[float]]()
    with tempfile.TemporaryDirectory() as directory:
        sites = [build(name, Path(directory) / str(i)) for i, name in enumerate(args.revisions)]
        workers = [Worker(site, args.threads, args.isa) for site in sites]
        print(
            f"{'':56}{args.revisions[0][:12]:>13}{args.revisions[1][:12]:>13}   ratio (second / first)"
        )
        for case in dict.fromkeys(cases(args.quick)):
            if not run.selected(case, args.only):
                continue
            if times := compare(case, workers, budget, fewest):
                per = 1 if case.shape == TINY else case.size
                a, b = (statistics.median(found) / per for found in times)
                ratio = statistics.median(y / x for x, y in zip(*times, strict=True))
                print(
                    f"{case.function:24}{case.dtype:9} {case!s:22}{a:13.3f}{b:13.3f}{ratio:8.3f}",
                    flush=True,
                )
                by_function.setdefault(case.function, []).append(ratio)
                cells.append(asdict(case) | {"ns": [a * per, b * per], "ratio": ratio})
        for worker in workers:
            worker.process.communicate()
    for function in filter(by_function.get, FUNCTIONS):
        ratios = by_function[function]
        mean = run.geometric_mean(ratios)
        print(f"{function:24} mean {mean:.3f}, from {min(ratios):.3f} to {max(ratios):.3f}")
    if args.json:
        found = {"revisions": args.revisions, "threads": args.threads, "cells": cells}
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
