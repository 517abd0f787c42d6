"""Instructions per element of the kernels of AArch64, which no machine at hand can time.

``python bench/instructions.py build/aarch64/tests/cpp/kernel_cost`` counts them under
``qemu-aarch64``, which executes one at a time: the difference between one call and two.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence

from grid import FUNCTIONS

KERNELS = (*FUNCTIONS, "log_softmax_backward")
ROWS = 32


def executed(program: str, *arguments: object) -> int:
    """The number of instructions that a run of the emulated program executes."""
    command = ["qemu-aarch64", "-singlestep", "-d", "exec,nochain", "-D", "/dev/stdout", program]
    count = 0
    with subprocess.Popen([*command, *map(str, arguments)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            count += line.startswith(b"Trace")
    if process.returncode != 0:
        sys.exit(f"{program} {' '.join(map(str, arguments))}: exit status {process.returncode}")
    return count


def per_element(program: str, isa: str, kernel: str, dtype: str, n: int) -> float:
    once, twice = (executed(program, isa, kernel, dtype, ROWS, n, calls) for calls in (1, 2))
    return (twice - once) / (ROWS * n)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program", help="kernel_cost, built for AArch64")
    parser.add_argument("--isa", default="neon", help="neon (the default) or generic")
    parser.add_argument("--rows-of", default="3,16,64,1000", help="lengths of the rows")
    args = parser.parse_args(argv)
    lengths = [int(n) for n in args.rows_of.split(",")]
    print(f"| rows of | {' | '.join(KERNELS)} |")
    print(f"| --- |{' --- |' * len(KERNELS)}")
    for dtype in ("f32", "f64"):
        for n in lengths:
            counts = (per_element(args.program, args.isa, k, dtype, n) for k in KERNELS)
            cells = " | ".join(f"{count:.1f}" for count in counts)
            print(f"| {n}, float{dtype[1:]} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
