"""What the system refuses: threads and memory. Each in a process of its own, under a limit."""

from __future__ import annotations

import sys

import pytest

from support import output_of

pytestmark = [
    pytest.mark.skipif(
        not sys.platform.startswith("linux"), reason="needs Linux's limits and /proc"
    ),
    pytest.mark.timeout(200),
]

COMMON = """
import gc, os, re, resource, sys
import numpy as np
import softlane
from softlane import _core

def tasks():
    return len(os.listdir("/proc/self/task"))

def status(name):
    with open("/proc/self/status") as file:
        return int(re.search(name + r":\\s+(\\d+)", file.read()).group(1)) * 1024

def limited(room):
    "The address space may grow by this many bytes."
    resource.setrlimit(resource.RLIMIT_AS, (status("VmSize") + room, resource.RLIM_INFINITY))

def unlimited():
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

x = np.random.default_rng(0).standard_normal((4000, 260)).astype(np.float32)
y = np.arange(4000) % 260
def results():
    return [
        softlane.softmax(x), softlane.softmax(x, 0), softlane.logsumexp(x), softlane.logsumexp(x, 0),
        *softlane.cross_entropy_with_grad(x, y), softlane.softmax_backward(x, x),
    ]
softlane.set_num_threads(1)
expected = [np.array(r) for r in results()]
before = tasks()
"""

# ---- threads --------------------------------------------------------------------------------------------------------

# A user other than root, whom the limit does not bind; the interpreter has been loaded by now.
NO_PROCESSES = """
if os.getuid() == 0:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
"""
# glibc takes the size of new threads' stacks from RLIMIT_STACK as the process starts.
LARGE_STACKS = """
import os, resource, sys
if "again" not in sys.argv:
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    if hard != resource.RLIM_INFINITY and hard < 1 << 32:
        print("SKIP: stacks cannot be made large")
        sys.exit()
    resource.setrlimit(resource.RLIMIT_STACK, (1 << 32, hard))
    os.execv(sys.executable, [*sys.orig_argv[:-1], sys.argv[1], "again"])
"""
SERIAL = """
import threading
try:
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()
except RuntimeError:
    pass
else:
    print("SKIP: the limit does not bind")
    sys.exit()
softlane.set_num_threads(4)
for _ in range(20):
    for got, wanted in zip(results(), expected, strict=True):
        assert np.array_equal(got, wanted)
try:
    softlane.cross_entropy(x, np.full(4000, 260))
except IndexError:
    pass
else:
    raise AssertionError("a bad target is accepted")
print(tasks() - before)
"""
AGAIN = """
softlane.set_num_threads(4)
for got, wanted in zip(results(), expected, strict=True):
    assert np.array_equal(got, wanted)
print(tasks() - before)
"""


def test_the_pool_has_threads_without_a_limit() -> None:
    assert output_of(COMMON + AGAIN) == "3\n"


@pytest.mark.parametrize("kind", ["processes", "memory for their stacks"])
def test_without_threads_calls_run_serially(kind: str) -> None:
    if kind == "processes":
        program = COMMON + NO_PROCESSES + SERIAL
    else:
        program = LARGE_STACKS + COMMON + "limited(1 << 29)\n" + SERIAL
    assert run_limited(program) == "0\n"


def test_threads_come_back_with_the_memory_for_them() -> None:
    program = LARGE_STACKS + COMMON + "limited(1 << 29)\n" + SERIAL + "unlimited()\n" + AGAIN
    assert run_limited(program) == "0\n3\n"


def run_limited(program: str) -> str:
    printed = output_of(program, "first", timeout=100, OPENBLAS_NUM_THREADS="1")
    if printed.startswith("SKIP"):
        pytest.skip(printed.strip())
    return printed


# ---- memory ---------------------------------------------------------------------------------------------------------

# glibc then takes every block of 128 KiB or more from the system, and gives it back.
FRESH = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_ARENA_MAX": "1", "MALLOC_TOP_PAD_": "0"}

RESULT = """
softlane.set_num_threads(int(sys.argv[1]))
big = np.broadcast_to(np.float32(1), (1 << 26,))
for call in (softlane.softmax, softlane.log_softmax, lambda x: softlane.softmax_backward(x, x),
             lambda x: softlane.cross_entropy_with_grad(x, 0),
             lambda x: softlane.logsumexp(x.reshape(-1, 1))):
    limited(64 << 20)
    for _ in range(3):
        try:
            call(big)
        except MemoryError:
            pass
        else:
            raise AssertionError("the result fits")
    unlimited()
for got, wanted in zip(results(), expected, strict=True):
    assert np.array_equal(got, wanted)
print("right")
"""


@pytest.mark.parametrize("threads", ["1", "2"])
def test_no_memory_for_the_result(threads: str) -> None:
    assert output_of(COMMON + RESULT, threads, OPENBLAS_NUM_THREADS="1") == "right\n"


SCRATCH = """
kind = sys.argv[1]
_core.set_isa(sys.argv[2])
swapped = x[:8].astype(">f4")
half = x[:8].astype(np.float16)
long = np.broadcast_to(np.float32(1), (2, 40000))
weight = np.ones(30000, np.float32)
wide = np.zeros((2, 30000), np.float32)
mask = x > 0
calls = {
    "packed rows": (swapped, lambda out: softlane.softmax(swapped, out=out)),
    "half precision": (half, lambda out: softlane.softmax(half, out=out)),
    "chunks": (np.zeros((2, 80000), np.float32)[:, ::2],
               lambda out: softlane.log_softmax(long, out=out)),
    "weights": (wide, lambda out: softlane.cross_entropy_with_grad(
        wide, [0, 1], weight=weight, grad_out=out)),
    "a mask": (x, lambda out: softlane.softmax(x, where=mask, out=out)),
}
like, call = calls[kind]
out = np.full_like(like, 7)
limited(0)
refused = 0
for _ in range(5):
    try:
        call(out)
    except MemoryError:
        refused += 1
unlimited()
assert (out == 7).all(), "written to before the error"
call(out)
assert (out != 7).all()
print(refused)
"""


@pytest.mark.parametrize("kind", ["packed rows", "chunks", "weights", "a mask"])
def test_no_memory_for_scratch(isa: str, kind: str) -> None:
    """A thread's scratch is taken on its first use: MemoryError, nothing written, and right after that."""
    printed = output_of(COMMON + SCRATCH, kind, isa, OPENBLAS_NUM_THREADS="1", timeout=60, **FRESH)
    assert printed == "5\n"


LEAKS = """
softlane.set_num_threads(2)
arrays = [x, y, np.empty_like(x), np.ones(260), x > -100, np.full(4000, 260), np.zeros((4000, 259))]
swapped = x.astype(">f4")
def errors():
    x_, y_, out, weight, mask, bad, narrow = arrays
    for call in (
        lambda: softlane.cross_entropy(x_, bad, weight=weight, where=mask),
        lambda: softlane.cross_entropy_with_grad(x_, bad, grad_out=out),
        lambda: softlane.cross_entropy(swapped, y_, where=~mask),
        lambda: softlane.softmax(x_, out=narrow),
        lambda: softlane.softmax(x_, where=narrow),
        lambda: softlane.softmax(x_, 7),
        lambda: softlane.logsumexp(x_, b=narrow),
        lambda: softlane.softmax_backward(x_, narrow),
        lambda: _core.softmax(x_, narrow, (0,), None, 1.0, False, 0),
        lambda: _core.softmax(x_, out, (5,), None, 1.0, False, 0),
        lambda: _core.softmax(x_, out, (0,), narrow, 1.0, False, 0),
        lambda: _core.softmax(x_, out, (0,), mask, "a", False, 0),
        lambda: _core.softmax(x_, b"abc", (0,), mask, 1.0, False, 0),
        lambda: _core.logsumexp(x_, out, None, (0,), None, None, 0),
        lambda: _core.softmax_backward(x_, out, narrow, (0,), 1.0, False, 0),
        lambda: _core.softmax(x_),
        lambda: _core.set_isa("sse9"),
    ):
        try:
            call()
        except (TypeError, ValueError, IndexError, BufferError):
            continue
        raise AssertionError("no error")
for _ in range(30):
    errors()
gc.collect()
counts = [sys.getrefcount(a) for a in arrays]
resident, blocks = status("VmRSS"), sys.getallocatedblocks()
for _ in range(600):
    errors()
gc.collect()
assert [sys.getrefcount(a) for a in arrays] == counts
print((status("VmRSS") - resident) >> 10, sys.getallocatedblocks() - blocks)
held = bytearray(4 * 400000)
try:
    softlane.softmax(memoryview(held).cast("f"), out=memoryview(bytes(8)))
except (TypeError, ValueError):
    pass
gc.collect()
held.append(0)  # BufferError if an export were still held
"""


def test_errors_leak_nothing() -> None:
    """600 times 17 errors: the same reference counts, not a block a round nor 2 MiB more, no export held."""
    kib, blocks = map(int, output_of(COMMON + LEAKS, timeout=100).split())
    assert kib < 2048
    assert blocks < 600  # the interpreter's own caches take up to half of that, fewer every time
