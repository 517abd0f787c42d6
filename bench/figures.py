"""Figures of the results that run.py writes: python bench/figures.py results.json directory."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from grid import BY_LENGTH, BY_SIZE, DTYPES, FUNCTIONS
from matplotlib.colors import LogNorm
from run import Cell, case_of, fastest_peer, reading

COLORS = {
    "softlane": "#c1121f",
    "torch": "#e07a1f",
    "onnxruntime": "#2a6f97",
    "jax": "#6a994e",
    "scipy": "#7b5ea7",
    "fastest peer": "#2a6f97",
    "numpy": "#9c8061",
    "copy": "#777777",
    "read": "#bbbbbb",
}


Point = tuple[float, float]


def panels(
    title: str, x_label: str, y_label: str, lines: dict[tuple[str, str], list[Point]]
) -> Any:
    """A panel for each function; `lines` by function and contender."""
    figure, axes = plt.subplots(2, 3, figsize=(12, 7), sharex=True, layout="constrained")
    figure.suptitle(title)
    for function, ax in zip(FUNCTIONS, axes.flat, strict=True):
        for (name, contender), points in lines.items():
            if name == function:
                x, y = zip(*sorted(points), strict=True)
                style = "--" if contender in ("copy", "read") else ".-"
                width = 2.5 if contender == "softlane" else 1.2
                ax.plot(x, y, style, color=COLORS[contender], lw=width, label=contender)
        ax.loglog()
        ax.set(title=function, xlabel=x_label, ylabel=y_label)
        ax.grid(alpha=0.3)
    handles = {
        text: line
        for ax in axes.flat
        for line, text in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=len(handles) or 1)
    return figure


def chosen(cells: list[Cell], shapes: list[tuple[int, int]]) -> list[Cell]:
    rows = [cell for cell in cells if cell["axis"] == -1 and cell["layout"] == "C"]
    return [cell for cell in rows if cell["dtype"] == "float32" and tuple(cell["shape"]) in shapes]


def by_length(cells: list[Cell]) -> Any:
    """Time per element against the length of the row."""
    lines: dict[tuple[str, str], list[Point]] = defaultdict(list)
    for cell in chosen(cells, BY_LENGTH):
        case = case_of(cell)
        shown = {name: name for name in ("softlane", *cell["peers"], "copy")} | {
            "read": reading(cell)
        }
        for label, name in shown.items():
            if name:
                time = cell["times_ns"][name] / case.size
                lines[case.function, label].append((case.shape[-1], time))
    return panels("float32, 2²⁰ elements, one thread", "row length", "ns per element", lines)


def roofline(cells: list[Cell]) -> Any:
    """Achieved bandwidth (bytes that have to move, by time) against that of a copy and of a read."""
    lines: dict[tuple[str, str], list[Point]] = defaultdict(list)
    for cell in chosen(cells, BY_SIZE):
        case, times = case_of(cell), cell["times_ns"]
        array, moved = 4 * case.size, case.bytes_moved
        achieved = {"softlane": moved / times["softlane"], "copy": 2 * array / times["copy"]}
        if best := fastest_peer(cell):
            achieved["fastest peer"] = moved / times[best]
        if read := reading(cell):
            achieved["read"] = array / times[read]
        for name, bandwidth in achieved.items():
            lines[case.function, name].append((moved, bandwidth))
    return panels("float32, rows of 4096, one thread", "bytes moved", "GB/s achieved", lines)


def heat_map(cells: list[Cell]) -> Any:
    """Softlane's time over that of the fastest peer, for each cell."""
    swept = {*BY_LENGTH, *BY_SIZE}
    cells = [cell for cell in cells if cell["peers"] and tuple(cell["shape"]) not in swept]
    columns = list(dict.fromkeys(str(case_of(cell)) for cell in cells))
    found = {(cell["function"], cell["dtype"], str(case_of(cell))): cell for cell in cells}
    rows = [(f, d) for f in FUNCTIONS for d in DTYPES if any(key[:2] == (f, d) for key in found)]
    size = (2 + 0.45 * len(columns), 1.8 + 0.28 * len(rows))
    figure, ax = plt.subplots(figsize=size, layout="constrained")
    values = [[float("nan")] * len(columns) for _ in rows]
    for y, row in enumerate(rows):
        for x, column in enumerate(columns):
            cell = found.get((*row, column))
            if cell and (best := fastest_peer(cell)):
                values[y][x] = cell["ratios"][best]
                ax.text(x, y, f"{values[y][x]:.2f}", ha="center", va="center", fontsize=6)
    image = ax.imshow(values, cmap="RdYlGn_r", norm=LogNorm(1 / 4, 4), aspect="auto")
    ax.set_xticks(range(len(columns)), columns, rotation=60, ha="right", fontsize=7)
    ax.set_yticks(range(len(rows)), [" ".join(row) for row in rows], fontsize=7)
    ax.set_title(
        "softlane's time / the fastest peer's, one thread (green: softlane is faster)", fontsize=9
    )
    ticks = [1 / 4, 1 / 2, 1, 2, 4]
    bar = figure.colorbar(image, ax=ax, ticks=ticks, fraction=0.03)
    bar.ax.set_yticklabels([f"{tick:g}" for tick in ticks])
    bar.minorticks_off()
    return figure


def draw(results: dict[str, Any], directory: Path) -> None:
    """Write speed_by_row_length.png, speed_ratio.png and speed_roofline.png: one thread, the first ISA."""
    directory.mkdir(parents=True, exist_ok=True)
    cells = [cell for cell in results["cells"] if cell["threads"] == results["cells"][0]["threads"]]
    for figure, name in (
        (by_length(cells), "speed_by_row_length"),
        (heat_map(cells), "speed_ratio"),
        (roofline(cells), "speed_roofline"),
    ):
        figure.savefig(directory / f"{name}.png", dpi=130)
        plt.close(figure)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
