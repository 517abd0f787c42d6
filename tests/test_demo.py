"""python -m softlane: the demo's numbers and its time, info, the installed command."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import softlane
from softlane import _core
from support import clean_environment


def run(
    *arguments: str, timeout: float = 60, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "softlane", *arguments],
        env=clean_environment(**environment),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        cwd=cwd,
    )


@pytest.mark.parametrize("name", _core.isas_usable())
def test_demo(name: str, tmp_path: Path) -> None:
    begin = time.perf_counter()
    done = run("demo", cwd=tmp_path, SOFTLANE_ISA=name)
    taken = time.perf_counter() - begin
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    text = done.stdout
    assert "1.41853976" in text
    assert "0.66524096" in text and "nan" in text, "softmax_naive beside softmax"
    assert name in text
    lines = [line for line in text.splitlines() if "accuracy" in line.lower()]
    found = re.findall(r"(\d+\.\d+)\s*(%?)", " ".join(lines))
    accuracies = [float(value) / (100 if percent else 1) for value, percent in found]
    assert accuracies, text
    assert 0.95 < max(accuracies) <= 1, lines
    assert min(accuracies) > 0.9, lines
    assert taken < 5, f"the demo took {taken:.1f} s"


def test_the_loss_falls() -> None:
    text = run("demo").stdout
    losses = [float(v) for v in re.findall(r"loss\D{0,20}(\d+\.\d+)", text, re.IGNORECASE)]
    table = [float(v) for v in re.findall(r"^\s*\d+\s+(\d+\.\d+)", text, re.MULTILINE)]
    falling = max((losses, table), key=len)
    assert len(falling) >= 3, text
    assert falling[-1] < falling[0] / 2


def test_info() -> None:
    done = run("info")
    assert done.returncode == 0, done.stderr
    assert softlane.__version__ in done.stdout
    assert _core.isas_usable()[0] in done.stdout and _core.compiler() in done.stdout
    forced = run("info", SOFTLANE_ISA="generic", SOFTLANE_NUM_THREADS="3")
    assert "generic" in forced.stdout and "3" in forced.stdout


def test_help_and_unknown_commands() -> None:
    done = run("--help")
    assert done.returncode == 0 and "demo" in done.stdout and "info" in done.stdout
    done = run("no_such_command")
    assert done.returncode == 2 and "no_such_command" in done.stderr


def test_the_data_of_the_demo() -> None:
    path = Path(softlane.__file__).parent / "data" / "iris.csv"
    assert 2000 < path.stat().st_size < 10_000
    rows = [line for line in path.read_text().splitlines() if line and line[0].isdigit()]
    assert len(rows) == 150
