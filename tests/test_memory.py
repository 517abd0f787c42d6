"""Memory beyond the output: at most 1 MiB of scratch a thread, whatever the layout or dtype (measured as peak RSS)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support import BFLOAT16, output_of

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc/self/clear_refs"
)

# What the allocator, the interpreter and the pool's stacks may take besides.
SLACK_MIB = 0.5

PROGRAM = """
import json, re, sys
import numpy as np
import softlane

threads, mib = int(sys.argv[1]), int(sys.argv[2])
softlane.set_num_threads(threads)

def status(name):
    with open("/proc/self/status") as file:
        return int(re.search(name + r":\\s+(\\d+)", file.read()).group(1)) / 1024

def growth(call):
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts anew
    before = status("VmRSS")
    call()
    return status("VmHWM") - before

def make(dtype, rows):
    n = mib * 2**20 // np.dtype(dtype).itemsize // rows
    return np.ones((rows, n), dtype)

found = {"a copy": growth(lambda: make("float32", 16).copy())}
dtypes = ["float32", "float64", "float16", "int8"] + ([] if sys.argv[3] == "-" else [sys.argv[3]])
for name in dtypes:
    if name == "bfloat16":
        import ml_dtypes
        dtype = np.dtype(ml_dtypes.bfloat16)
    else:
        dtype = np.dtype(name)
    result = np.dtype(np.float64) if name == "int8" else dtype
    for rows in (16, 4096):
        if name == "int8" and rows == 16:
            continue
        x = make(dtype, rows) if name != "int8" else make(dtype, rows)[:, ::8].copy()
        out = np.ones(x.shape, result)
        mask = np.ones(x.shape[1:], bool)
        label = f"{name} {x.shape}"
        views = {"rows": x, "columns": x.T, "reversed": x[:, ::-1], "step": x[:, ::2]}
        if name == "float32":
            views["swapped"] = x.view(x.dtype.newbyteorder())
        if name != "int8":
            room = np.ones(x.nbytes + 1, np.uint8)
            views["unaligned"] = np.ndarray(x.shape, dtype, buffer=room.data, offset=1)
        for layout, view in views.items():
            target = {"columns": out.T, "step": out[:, ::2]}.get(layout, out)
            for axis in (0, 1):
                key = f"{label} {layout} axis {axis}"
                found["softmax " + key] = growth(lambda: softlane.softmax(view, axis, out=target))
                single = {"float16": np.float32, "bfloat16": np.float32}.get(name, result)
                less = np.ones(view.shape[1 - axis], single)
                found["logsumexp " + key] = growth(
                    lambda: softlane.logsumexp(view, axis, out=less)
                )
        found["softmax, all axes, " + label] = growth(lambda: softlane.softmax(x, None, out=out))
        found["softmax of x.T, all axes, " + label] = growth(
            lambda: softlane.softmax(x.T, None, out=out.T)
        )
        deep, deep_out = (a.reshape(4, rows // 4, -1) for a in (x, out))
        for axis in (1, (0, 2)):
            key = f"{deep.shape} axis {axis} {name}"
            found["softmax " + key] = growth(lambda: softlane.softmax(deep, axis, out=deep_out))
            found["sum " + key] = growth(lambda: softlane.logsumexp(deep, axis)) - (
                deep.size / np.prod([deep.shape[a] for a in np.atleast_1d(axis)]) * 8 / 2**20
            )
        found["where " + label] = growth(lambda: softlane.softmax(x, where=mask, out=out))
        y = np.zeros(rows, int)
        found["cross_entropy " + label] = growth(lambda: softlane.cross_entropy(x, y))
        found["gradient " + label] = growth(
            lambda: softlane.cross_entropy_with_grad(x, y, label_smoothing=0.1, grad_out=out)
        )
        if name == "float32":
            w = np.ones(x.shape[1], dtype)
            found["b " + label] = growth(lambda: softlane.logsumexp(x, b=out))
            found["class weights " + label] = growth(lambda: softlane.cross_entropy(x, y, weight=w))
            found["probabilities " + label] = growth(
                lambda: softlane.cross_entropy_with_grad(
                    x, x, z_loss=0.1, softcap=30.0, weight=w, grad_out=out
                )
            )
            found["statistics " + label] = growth(
                lambda: softlane.cross_entropy(x, y, return_stats=True)
            )
        if name != "int8":
            found["backward " + label] = growth(
                lambda: softlane.softmax_backward(out, out, out=out)
            )
            found["in place " + label] = growth(lambda: softlane.log_softmax(x, out=x))
print(json.dumps(found))
"""


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("threads", "mib"),
    [(2, 16), pytest.param(1, 256, marks=pytest.mark.large)],
    ids=["two threads, 16 MiB", "one thread, 256 MiB"],
)
def test_scratch(threads: int, mib: int) -> None:
    printed = output_of(
        PROGRAM,
        str(threads),
        str(mib),
        BFLOAT16.name if BFLOAT16 is not None else "-",
        timeout=3500,
    )
    found = json.loads(printed)
    assert len(found) > 50
    assert found.pop("a copy") > 1.9 * mib, "the measure does not see a temporary copy"
    limit = threads + SLACK_MIB
    print(
        f"{len(found)} calls, at most {max(found.values()):.2f} MiB: {max(found, key=found.__getitem__)}"
    )
    too_much = {k: round(v, 2) for k, v in found.items() if v > limit}
    assert not too_much, f"more than {limit} MiB: {too_much}"
