"""Thread counts, the environment, concurrent calls, fork and spawn, the GIL: everything with a time limit."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import softlane
from support import (
    assert_same_bits,
    clean_environment,
    output_of,
    rng_for,
    run_python,
    threads,
)

pytestmark = pytest.mark.timeout(120)
PRINT_THREADS = "import softlane; print(softlane.get_num_threads())"
has_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = softlane.get_num_threads()
    yield
    softlane.set_num_threads(before)


# Counts


def test_set_and_get() -> None:
    for count in (1, 2, 5, 64, 1):
        softlane.set_num_threads(count)
        assert softlane.get_num_threads() == count
        assert softlane.show_config(mode="dict")["threads"] == count
    numpy_integer: Any = np.int64(3)
    softlane.set_num_threads(numpy_integer)
    assert softlane.get_num_threads() == 3


def test_the_context_manager_limits_the_calling_thread_only() -> None:
    softlane.set_num_threads(4)
    seen: list[int] = []
    with softlane.num_threads(2):
        assert softlane.get_num_threads() == 2
        worker = threading.Thread(target=lambda: seen.append(softlane.get_num_threads()))
        worker.start()
        worker.join()
        with softlane.num_threads(1):
            assert softlane.get_num_threads() == 1
        assert softlane.get_num_threads() == 2
    assert seen == [4]
    assert softlane.get_num_threads() == 4


def test_the_context_manager_ends_with_an_exception() -> None:
    softlane.set_num_threads(4)
    with pytest.raises(ZeroDivisionError), softlane.num_threads(2):
        raise ZeroDivisionError
    assert softlane.get_num_threads() == 4


def test_the_context_manager_gives_right_results() -> None:
    x = rng_for("threads").standard_normal((300, 3000))
    expected = softlane.softmax(x)
    for count in (1, 2, 3):
        with softlane.num_threads(count):
            assert_same_bits(softlane.softmax(x), expected)


def test_a_bad_count_changes_nothing() -> None:
    softlane.set_num_threads(3)
    for bad in (0, -2):
        with pytest.raises(ValueError, match=str(bad)):
            softlane.set_num_threads(bad)
        with pytest.raises(ValueError, match=str(bad)), softlane.num_threads(bad):
            pass
    assert softlane.get_num_threads() == 3


# The environment


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"SOFTLANE_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "2"}, 2),
        ({"SOFTLANE_NUM_THREADS": "5", "OMP_NUM_THREADS": "2"}, 5),
        ({"SOFTLANE_NUM_THREADS": "", "OMP_NUM_THREADS": "2"}, 2),
        ({"SOFTLANE_NUM_THREADS": "1"}, 1),
    ],
    ids=str,
)
def test_environment_variables(environment: dict[str, Any], expected: int) -> None:
    assert int(output_of(PRINT_THREADS, **environment)) == expected


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs sched_getaffinity")
def test_the_default_is_the_cpus_that_the_process_may_use() -> None:
    assert int(output_of(PRINT_THREADS)) == len(os.sched_getaffinity(0))
    pinned = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); " + PRINT_THREADS
    assert int(output_of(pinned)) == 1


@pytest.mark.parametrize("value", ["many", "0", "-3", "2.5x", "99999999999999999999"])
def test_nonsense_in_the_environment_does_not_break_the_import(value: str) -> None:
    done = run_python(PRINT_THREADS, SOFTLANE_NUM_THREADS=value)
    if done.returncode == 0:
        assert int(done.stdout) >= 1
    else:
        assert "SOFTLANE_NUM_THREADS" in done.stderr


# Concurrent calls


def test_concurrent_calls_give_the_same_bits(isa: str) -> None:
    rng = rng_for("concurrent")
    inputs = [rng.standard_normal((200 + i, 997)).astype(np.float32) for i in range(8)]
    expected = [softlane.softmax(x) for x in inputs]
    losses = [softlane.cross_entropy_with_grad(x, np.zeros(len(x), int)) for x in inputs]

    def work(i: int) -> bool:
        x = inputs[i % 8]
        for _ in range(3):
            assert_same_bits(softlane.softmax(x), expected[i % 8])
            loss, grad = softlane.cross_entropy_with_grad(x, np.zeros(len(x), int))
            assert_same_bits(loss, losses[i % 8][0])
            assert_same_bits(grad, losses[i % 8][1])
        return True

    with threads(2), ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(24), timeout=60))


def test_changing_the_count_while_calls_run() -> None:
    x = rng_for("changing").standard_normal((400, 1000))
    expected = softlane.softmax(x)
    stop = threading.Event()

    def change() -> None:
        count = 1
        while not stop.is_set():
            softlane.set_num_threads(count)
            count = count % 5 + 1

    changers = [threading.Thread(target=change) for _ in range(4)]
    for changer in changers:
        changer.start()
    try:
        for _ in range(60):
            assert_same_bits(softlane.softmax(x), expected)
    finally:
        stop.set()
        for changer in changers:
            changer.join(10)


def test_an_error_in_one_thread_leaves_the_others_alone() -> None:
    x = rng_for("errors").standard_normal((9000, 50))
    good = np.zeros(9000, int)
    bad = good.copy()
    bad[8999] = 50
    expected = softlane.cross_entropy(x, good)

    def work(i: int) -> bool:
        if i % 2:
            with pytest.raises(IndexError):
                softlane.cross_entropy(x, bad)
        else:
            assert_same_bits(softlane.cross_entropy(x, good), expected)
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(100), timeout=60))


def test_a_thread_that_ends_leaves_the_pool_usable() -> None:
    x = rng_for("ended").standard_normal((2000, 500))
    expected = softlane.softmax(x)
    results: list[Any] = []
    with threads(3):
        for _ in range(5):
            worker = threading.Thread(target=lambda: results.append(softlane.softmax(x)))
            worker.start()
            worker.join(30)
            assert_same_bits(results[-1], expected)
            assert_same_bits(softlane.softmax(x), expected)


WORKERS = """
import os, sys
import numpy as np
import softlane
x = np.zeros(tuple(map(int, sys.argv[1:])), np.float32)
before = len(os.listdir("/proc/self/task"))
softlane.softmax(x, out=x)
print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(
    not os.path.isdir("/proc/self/task"), reason="this system does not list threads"
)
@pytest.mark.parametrize(
    ("rows", "classes", "workers"),
    [
        (1, 330_000, 2),  # a row that is shared by as many threads as it is worth
        (1, 3_000_000, 7),
        (3, 2_000_000, 7),  # three rows by eight threads each, in less time than one by one
        (7, 330_000, 6),  # a thread for each row is quicker than two for one after the other
        (8, 330_000, 7),
        (1, 240_000, 0),
    ],
)
def test_long_rows_have_the_threads_that_they_are_worth(
    isa: str, rows: int, classes: int, workers: int
) -> None:
    if isa == "generic" and rows < 7:  # it has no stripes, so a thread for each row
        workers = rows - 1
    printed = output_of(
        WORKERS, str(rows), str(classes), SOFTLANE_NUM_THREADS="8", SOFTLANE_ISA=isa
    )
    assert int(printed) == workers


def test_calls_at_interpreter_exit() -> None:
    code = (
        "import atexit, numpy as np, softlane; x = np.ones((2000, 500)); softlane.set_num_threads(3)\n"
        "softlane.softmax(x); atexit.register(lambda: print(softlane.softmax(x)[0, 0]))"
    )
    assert abs(float(output_of(code)) - 0.002) < 1e-12


def test_32_threads_at_once(isa: str) -> None:
    rng = rng_for("32")
    inputs = [rng.standard_normal((30 + 40 * (i % 5), 501)).astype("fd"[i % 2]) for i in range(32)]
    expected = [(softlane.softmax(x), softlane.logsumexp(x, 0)) for x in inputs]
    together = threading.Barrier(32)

    def work(i: int) -> None:
        together.wait(30)
        for _ in range(5):
            assert_same_bits(softlane.softmax(inputs[i]), expected[i][0])
            assert_same_bits(softlane.logsumexp(inputs[i], 0), expected[i][1])

    with threads(4), ThreadPoolExecutor(32) as pool:
        list(pool.map(work, range(32), timeout=60))


def test_calls_inside_a_call() -> None:
    """A call converts its arguments by their own methods, which may call too."""
    x = rng_for("inside").standard_normal((600, 500))
    expected = softlane.softmax(x)

    class Inner:
        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            with softlane.num_threads(2):
                assert_same_bits(softlane.softmax(x), expected)
            return x

    with threads(3):
        assert_same_bits(softlane.softmax(Inner()), expected)


# The end of the process, and other interpreters in it

BUSY = """
import sys, threading, time
import numpy as np
import softlane
softlane.set_num_threads(3)
x = np.ones((4000, 500))
def work():
    while True:
        softlane.softmax(x)
for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.2)
print("done", flush=True)
"""


@pytest.mark.parametrize("end", ["", "sys.exit(0)", "import os; os._exit(0)"])
def test_exit_while_the_pool_is_busy(end: str) -> None:
    for _ in range(3):
        assert output_of(BUSY + end, timeout=30) == "done\n"


INSIDE = """
try:
    import softlane
    assert softlane.softmax([0.0, 0.0])[0] == 0.5
    print("works", flush=True)
except (ImportError, RuntimeWarning, UserWarning) as error:
    print("refused:", str(error).splitlines()[0], flush=True)
"""
SUBINTERPRETER = """
import sys
import softlane
if sys.version_info >= (3, 13):
    import _interpreters as interpreters
    other = interpreters.create("legacy")
else:
    import _xxsubinterpreters as interpreters
    other = interpreters.create(isolated=False)
interpreters.run_string(other, sys.argv[1])
interpreters.destroy(other)
assert softlane.softmax([0.0, 0.0])[0] == 0.5
print("after")
"""


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="CPython's interpreters")
def test_a_subinterpreter() -> None:
    """It works there or says why not, and goes on working here."""
    first, last = output_of(SUBINTERPRETER, INSIDE).splitlines()
    assert first == "works" or first.startswith("refused:")
    assert last == "after"


# The GIL


def progress_during(call: Callable[[], Any]) -> tuple[float, float]:
    """The longest pause of another Python thread while the call runs, and the call's time."""
    pauses: list[float] = [0.0]
    stop, started = threading.Event(), threading.Event()

    def tick() -> None:
        last = time.perf_counter()
        while not stop.is_set():
            started.set()
            time.sleep(0.0005)
            now = time.perf_counter()
            pauses[0] = max(pauses[0], now - last)
            last = now

    ticker = threading.Thread(target=tick)
    ticker.start()
    started.wait(10)
    begin = time.perf_counter()
    call()
    taken = time.perf_counter() - begin
    stop.set()
    ticker.join(10)
    return pauses[0], taken


@pytest.mark.parametrize("name", ["softmax", "logsumexp", "cross_entropy", "softmax_backward"])
def test_the_gil_is_released(name: str) -> None:
    """Another Python thread goes on while a call of some tenths of a second runs."""
    x = np.ones((400, 40_000), np.float16)
    out = np.empty_like(x)
    targets = np.zeros(400, int)
    calls: dict[str, Callable[[], Any]] = {
        "softmax": lambda: softlane.softmax(x, temperature=0.7, out=out),
        "logsumexp": lambda: softlane.logsumexp(x, b=out, where=True),
        "cross_entropy": lambda: softlane.cross_entropy(x, targets, label_smoothing=0.1),
        "softmax_backward": lambda: softlane.softmax_backward(x, x, out=out),
    }

    def repeated() -> None:
        calls[name]()

    out[...] = 1
    with softlane.num_threads(1):
        taken = progress_during(repeated)[1]
        if taken < 0.02:
            x = np.ones((4000, 40_000), np.float16)
            out = np.ones_like(x)
            targets = np.zeros(4000, int)
        for _ in range(5):  # the machine may be busy
            pause, taken = progress_during(repeated)
            if pause < max(0.5 * taken, 0.005):
                return
    pytest.fail(f"another thread stood still for {pause:.4f} s of {taken:.4f} s")


# Fork and spawn

FORK = """
import os, signal, sys
import numpy as np
import softlane

signal.alarm(40)
softlane.set_num_threads(3)
x = np.random.default_rng(0).standard_normal((3000, 500))
expected = softlane.softmax(x).tobytes() if {warm} else None
children = []
for i in range(4):
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        ok = True
        for _ in range(3):
            got = softlane.softmax(x)
            ok = ok and abs(got.sum() - 3000) < 1e-6
            ok = ok and (expected is None or got.tobytes() == expected)
        ok = ok and softlane.get_num_threads() == 3
        grandchild = os.fork()
        if grandchild == 0:
            signal.alarm(20)
            os._exit(0 if softlane.softmax(x).tobytes() == got.tobytes() else 1)
        ok = ok and os.waitpid(grandchild, 0)[1] == 0
        os._exit(0 if ok else 1)
    children.append(child)
    if expected is not None:
        assert softlane.softmax(x).tobytes() == expected
statuses = [os.waitpid(child, 0)[1] for child in children]
assert statuses == [0, 0, 0, 0], statuses
softlane.softmax(x)
print("done")
"""


@has_fork
@pytest.mark.parametrize("warm", [True, False], ids=["after a parallel call", "before any call"])
def test_fork(warm: bool) -> None:
    """A child works, and its own children, whether or not the parent's pool has started."""
    assert output_of(FORK.format(warm=warm)).strip() == "done"


@has_fork
@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs /proc/self/task")
def test_a_forked_child_has_threads_again() -> None:
    code = """
import os, signal
import numpy as np
import softlane

signal.alarm(40)
softlane.set_num_threads(3)
x = np.ones((4000, 1000))
softlane.softmax(x)
parent = len(os.listdir("/proc/self/task"))
child = os.fork()
if child == 0:
    before = len(os.listdir("/proc/self/task"))
    softlane.softmax(x)
    after = len(os.listdir("/proc/self/task"))
    os._exit(0 if before == 1 and after == parent else 1)
assert os.waitpid(child, 0)[1] == 0
assert parent >= 3, parent
"""
    output_of(code, OPENBLAS_NUM_THREADS="1")


@has_fork
def test_fork_while_another_thread_computes() -> None:
    code = """
import os, signal, threading, warnings
import numpy as np
import softlane

warnings.simplefilter("ignore", DeprecationWarning)  # fork of a process with threads
signal.alarm(60)
softlane.set_num_threads(3)
x = np.ones((3000, 500), np.float32)
stop = False

def work():
    while not stop:
        softlane.softmax(x)

worker = threading.Thread(target=work)
worker.start()
statuses = []
for _ in range(20):
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        got = softlane.softmax(x)
        os._exit(0 if abs(float(got[0].sum()) - 1) < 1e-5 else 1)
    statuses.append(os.waitpid(child, 0)[1])
stop = True
worker.join()
assert statuses == [0] * 20, statuses
print("done")
"""
    assert output_of(code, timeout=90).strip() == "done"


MULTIPROCESSING = """
import multiprocessing, signal, sys
import numpy as np
import softlane

def work(seed):
    signal.alarm(30)
    x = np.random.default_rng(seed).standard_normal((800, 1000))
    return softlane.softmax(x).tobytes(), softlane.get_num_threads()

if __name__ == "__main__":
    signal.alarm(60)
    softlane.set_num_threads(3)
    expected = [work(seed)[0] for seed in range(4)]
    with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:
        got = pool.map_async(work, range(4)).get(50)
    assert [g[0] for g in got] == expected
    if sys.argv[1] == "fork":
        assert all(g[1] == 3 for g in got)
    print("done")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="uses signal.alarm")
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(method: str, tmp_path: Any) -> None:
    script = tmp_path / "work.py"
    script.write_text(MULTIPROCESSING)
    done = subprocess.run(
        [sys.executable, str(script), method],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "done"
