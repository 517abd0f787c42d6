"""score, softmax and log-softmax on files: values, formats, blocks, memory, what bad files leave behind."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import softlane
from softlane import _cli, _files
from softlane.__main__ import main
from support import (
    BFLOAT16,
    FLOATS,
    Array,
    DType,
    assert_same_bits,
    clean_environment,
    dtype_id,
    output_of,
    rng_for,
    run_python,
)

IGNORED = -100


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Several blocks for the small arrays here, and a directory where nothing may be left over."""
    monkeypatch.setattr(_cli, "BLOCK", 2000)
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.glob("**/*.part"))


def make(
    shape: tuple[int, ...] = (7, 5, 13), axis: int = -1, dtype: Any = np.float32
) -> tuple[Array, Array]:
    """Logits of mixed confidence, and targets of which the largest logit is right half the time."""
    rng = rng_for(shape, axis, np.dtype(dtype).name)
    logits = (rng.standard_normal(shape) * rng.uniform(0.5, 8, shape)).astype(dtype)
    best = logits.astype(float).argmax(axis)
    other = rng.integers(0, shape[axis], best.shape)
    targets = np.where(rng.random(best.shape) < 0.5, best, other)
    targets[rng.random(best.shape) < 0.2] = IGNORED
    return logits, targets


def expected_score(logits: Array, targets: Array, axis: int, smoothing: float) -> dict[str, float]:
    """The definitions, in float64 and token by token."""
    z = np.moveaxis(np.asarray(logits, float), axis, -1).reshape(-1, logits.shape[axis])
    losses, bins = [], [[0.0, 0.0] for _ in range(15)]
    hits = 0
    for row, y in zip(z, targets.reshape(-1), strict=True):
        if y == IGNORED:
            continue
        log_p = row - row.max() - math.log(math.fsum(np.exp(row - row.max())))
        losses.append(-(1 - smoothing) * log_p[y] - smoothing * log_p.mean())
        hit = bool(row.argmax() == y)
        hits += hit
        entry = bins[min(14, int(15 * math.exp(log_p.max())))]
        entry[0] += hit
        entry[1] += math.exp(log_p.max())
    count = len(losses)
    loss = math.fsum(losses) / count
    return {
        "tokens": count,
        "ignored": targets.size - count,
        "loss": loss,
        "perplexity": math.exp(loss),
        "accuracy": hits / count,
        "calibration_error": sum(abs(right - sure) for right, sure in bins) / count,
    }


def score(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["score", *arguments, "--json"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    result: dict[str, Any] = json.loads(printed.out)
    return result


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The line that a refused command prints."""
    before = sorted(os.listdir())
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("softlane: "), printed.err
    assert sorted(os.listdir()) == before, "something was left behind"
    return lines[0]


# ---- score --------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("dtype", [d for d in FLOATS if d != BFLOAT16], ids=dtype_id)
def test_score(capsys: pytest.CaptureFixture[str], dtype: DType, axis: int, order: Any) -> None:
    smoothing = 0.25
    logits, targets = make(axis=axis, dtype=dtype)
    np.save("logits.npy", np.asarray(logits, order=order))
    np.save("targets.npy", np.asarray(targets, order=order))
    got = score(
        capsys, "logits.npy", "targets.npy", f"--axis={axis}",
        f"--label-smoothing={smoothing}", "--per-token=losses.npy",
    )  # fmt: skip
    for key, value in expected_score(logits, targets, axis, smoothing).items():
        assert got[key] == pytest.approx(value, rel=1e-5), key
    assert_same_bits(
        np.load("losses.npy"),
        softlane.cross_entropy(logits, targets, axis, label_smoothing=smoothing, reduction="none"),
    )


def test_another_ignored_index(capsys: pytest.CaptureFixture[str]) -> None:
    """One that is a class: tokens that are predicted to be it still count with their confidence."""
    logits, targets = make()
    targets[targets == IGNORED] = 0
    np.savez("both.npz", logits=logits, targets=targets)
    got = score(capsys, "both.npz", "both.npz", "--ignore-index=0")
    renamed = np.where(targets == 0, IGNORED, targets)
    for key, value in expected_score(logits, renamed, -1, 0.0).items():
        assert got[key] == pytest.approx(value, rel=1e-5), key


def test_calibration_error_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    """Four predictions of 0.9, of which three are right, and two of 0.6, of which none is."""
    p = np.array([0.9, 0.9, 0.9, 0.9, 0.6, 0.6])
    np.save("logits.npy", np.log(np.stack([p, 1 - p], axis=1)))
    np.save("targets.npy", [0, 0, 0, 1, 1, 1])
    got = score(capsys, "logits.npy", "targets.npy")
    assert got["calibration_error"] == pytest.approx((4 * 0.15 + 2 * 0.6) / 6)
    assert got["accuracy"] == 0.5
    assert got["loss"] == pytest.approx(
        -(3 * math.log(0.9) + math.log(0.1) + 2 * math.log(0.4)) / 6
    )


def test_confidence_survives_an_offset(capsys: pytest.CaptureFixture[str]) -> None:
    """At 1e6 float32 has steps of 0.06, which a difference of logarithms would put into confidence."""
    np.save("logits.npy", np.full((10, 3), 1e6, np.float32))
    np.save("targets.npy", np.zeros(10, int))
    got = score(capsys, "logits.npy", "targets.npy")
    assert got["calibration_error"] == pytest.approx(2 / 3, rel=1e-6)


def test_text(capsys: pytest.CaptureFixture[str]) -> None:
    np.save("logits.npy", [[2.0, 1.0, 0.1], [0.5, 2.5, 0.3], [0.0, 0.0, 0.0]])
    np.save("targets.npy", [0, 2, IGNORED])
    assert main(["score", "logits.npy", "targets.npy"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        "tokens", "loss", "perplexity", "accuracy", "calibration",
    ]  # fmt: skip
    assert "2 (1 ignored)" in lines[0] and "1.418540 nats" in lines[1] and "50.00%" in lines[3]


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_specials(capsys: pytest.CaptureFixture[str], special: float) -> None:
    """What is not finite becomes null, which JSON knows; in an ignored row it hurts nobody."""
    logits, targets = make((6, 4))
    targets[:] = [0, 1, 2, 3, 0, IGNORED]
    logits[5] = special
    np.save("logits.npy", logits)
    np.save("targets.npy", targets)
    assert score(capsys, "logits.npy", "targets.npy")["loss"] > 0
    logits[3, 3] = special
    np.save("logits.npy", logits)
    got = score(capsys, "logits.npy", "targets.npy")
    assert got["loss"] is None and got["perplexity"] is None
    assert (got["calibration_error"] is None) == (special != -np.inf)


def test_nan_is_no_prediction(capsys: pytest.CaptureFixture[str]) -> None:
    logits = np.zeros((3, 4), np.float32)
    logits[0], logits[1, 2], logits[2, 1] = np.nan, np.nan, 5
    np.save("logits.npy", logits)
    np.save("targets.npy", [0, 2, 1])
    assert score(capsys, "logits.npy", "targets.npy")["accuracy"] == 1 / 3


@pytest.mark.parametrize("axis", [0, 1])
def test_rows_beyond_a_block(capsys: pytest.CaptureFixture[str], axis: int) -> None:
    """The largest logit is looked for part by part, with the first of equal ones before the others."""
    logits = np.zeros((4, 3000), np.float32)
    logits[0, [700, 2999]], logits[1, 2999], logits[2, [10, 2500]] = 9, 9, [1, np.nan]
    np.save("logits.npy", np.moveaxis(logits, 1, axis))
    np.save("targets.npy", [700, 2999, 10, 0])
    assert score(capsys, "logits.npy", "targets.npy", "--axis", str(axis))["accuracy"] == 3 / 4


@pytest.mark.parametrize("shape", [(0, 4), (3, 4), (2, 0)])
def test_nothing_to_score(capsys: pytest.CaptureFixture[str], shape: tuple[int, ...]) -> None:
    np.save("logits.npy", np.zeros(shape))
    np.save("targets.npy", np.full(shape[0], IGNORED))
    got = score(capsys, "logits.npy", "targets.npy")
    assert got["tokens"] == 0 and got["ignored"] == shape[0]
    assert got["loss"] is got["accuracy"] is got["calibration_error"] is None


# ---- formats ------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(capsys: pytest.CaptureFixture[str], save: Callable[..., None]) -> None:
    logits, targets = make()
    save("both.npz", other=np.zeros(3), targets=targets, logits=logits)
    save("one.npz", anything=logits)
    expected = expected_score(logits, targets, -1, 0.0)["loss"]
    assert score(capsys, "both.npz", "both.npz")["loss"] == pytest.approx(expected)
    assert score(capsys, "one.npz", "both.npz")["loss"] == pytest.approx(expected)


@pytest.mark.parametrize("dtype", FLOATS, ids=dtype_id)
def test_safetensors(capsys: pytest.CaptureFixture[str], dtype: DType) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    logits, targets = make(dtype=dtype)
    metadata = {"made": "here"}
    numpy.save_file({"logits": logits, "targets": targets}, "both.safetensors", metadata)
    expected = expected_score(logits, targets, -1, 0.0)["loss"]
    got = score(capsys, "both.safetensors", "both.safetensors")
    assert got["loss"] == pytest.approx(expected, rel=1e-5)
    assert main(["softmax", "both.safetensors", "p.npy"]) == 0
    result = np.float32 if dtype == BFLOAT16 else dtype  # npy has no bfloat16
    assert_same_bits(np.load("p.npy"), softlane.softmax(logits, dtype=result))


def test_safetensors_integers(capsys: pytest.CaptureFixture[str]) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    logits, _ = make((5, 6))
    for code in "bBhHiIlL":
        targets = np.arange(5).astype(code)
        numpy.save_file({"logits": logits, "targets": targets}, "both.safetensors")
        got = score(capsys, "both.safetensors", "both.safetensors")
        assert got["loss"] == pytest.approx(expected_score(logits, np.arange(5), -1, 0.0)["loss"])


# ---- softmax and log-softmax --------------------------------------------------------------------


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int16, "?", ">f4"])
@pytest.mark.parametrize("name", ["softmax", "log-softmax"])
def test_elementwise(name: str, dtype: Any, axis: int, order: Any) -> None:
    logits = make()[0].astype(dtype)
    np.save("logits.npy", np.asarray(logits, order=order))
    assert main([name, "logits.npy", "out.npy", f"--axis={axis}"]) == 0
    function = softlane.softmax if name == "softmax" else softlane.log_softmax
    got = np.load("out.npy", mmap_mode="r")
    assert_same_bits(got, function(logits, axis))
    assert got.flags.f_contiguous == (order == "F")


@pytest.mark.parametrize("shape", [(), (5,), (0, 3), (3, 0)])
def test_small_shapes(shape: tuple[int, ...]) -> None:
    logits = rng_for(shape).standard_normal(shape)
    np.save("logits.npy", logits)
    assert main(["softmax", "logits.npy", "out.npy"]) == 0
    assert_same_bits(np.load("out.npy"), softlane.softmax(logits))


def test_over_the_input() -> None:
    logits, _ = make((50, 100))
    np.save("x.npy", logits)
    assert main(["softmax", "x.npy", "x.npy"]) == 0
    assert_same_bits(np.load("x.npy"), softlane.softmax(logits))


def test_the_output_has_the_usual_permissions() -> None:
    np.save("x.npy", np.zeros(3))
    assert main(["softmax", "x.npy", "out.npy"]) == 0
    assert os.stat("out.npy").st_mode == os.stat("x.npy").st_mode


# ---- blocks -------------------------------------------------------------------------------------


@given(
    shape=st.lists(st.integers(0, 9), min_size=1, max_size=4).map(tuple),
    axis=st.integers(0, 3),
    order=st.sampled_from(["C", "F"]),
    most=st.integers(1, 3000),
)
def test_blocks_cover_everything_once(
    shape: tuple[int, ...], axis: int, order: Any, most: int
) -> None:
    axis %= len(shape)
    counts = np.zeros(shape, int, order)
    addresses = np.arange(counts.size).reshape(shape, order=order)
    starts = []
    for index in _files.blocks(shape, axis, 8, order, most):
        counts[index] += 1
        assert counts[index].shape[axis] == shape[axis]
        starts.append(addresses[index].min())
    assert (counts == 1).all()
    assert starts == sorted(starts), "not in the order of the file"


def test_blocks_are_small() -> None:
    for shape, axis in [((1000, 50, 8), -1), ((4, 9000, 8), 2), ((30, 20, 4000), 1)]:
        cut = list(_files.blocks(shape, axis % 3, 4, "C", 100_000))
        sizes = [math.prod(len(range(n)[s]) for n, s in zip(shape, i, strict=True)) for i in cut]
        assert max(sizes) <= 25_000
        assert len(cut) <= 2.5 * math.prod(shape) / 25_000


def test_columns_are_not_cut_below_a_page() -> None:
    widths = [i[1].stop - i[1].start for i in _files.blocks((50_000, 4096), 0, 4, "C", 1 << 20)]
    assert set(widths) == {1024}


MEMORY = """
import resource, sys
from softlane.__main__ import main
assert main(["softmax", "small.npy", "out.npy"]) == 0
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for arguments in (["softmax", "big.npy", "out.npy"], ["score", "big.npy", "targets.npy"]):
    assert main(arguments) == 0
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux")
def test_memory() -> None:
    """Of 400 MB and their softmax never more than some blocks are in the process."""
    shape = (1000, 100_000)
    np.lib.format.open_memmap("big.npy", "w+", np.float32, shape)
    np.save("small.npy", np.zeros((100, 30_000), np.float32))
    np.save("targets.npy", np.zeros(1000, np.int32))
    *_, grown = output_of(MEMORY).splitlines()
    assert int(grown) < 60


# ---- refusals -----------------------------------------------------------------------------------


def write(name: str, content: bytes) -> str:
    Path(name).write_bytes(content)
    return name


def saved(array: Any) -> str:
    np.save("x.npy", array)
    return "x.npy"


def npy_file(shape: str) -> str:
    """An npy file whose header says so."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return write("x.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)


def several() -> str:
    np.savez("x.npz", np.ones(3), np.ones(3))
    return "x.npz"


def directory() -> str:
    os.mkdir("d.npy")
    return "d.npy"


def truncated(name: str, **arrays: Any) -> str:
    np.savez("whole.npz", **arrays) if name.endswith("npz") else np.save("whole.npy", arrays["a"])
    content = Path("whole" + Path(name).suffix).read_bytes()
    os.remove("whole" + Path(name).suffix)
    return write(name, content[: len(content) * 2 // 3])


def safetensors_file(header: Any, data: bytes = b"") -> str:
    text = json.dumps(header).encode()
    return write("x.safetensors", len(text).to_bytes(8, "little") + text + data)


BAD: dict[str, tuple[Callable[[], str], str]] = {
    "missing": (lambda: "missing.npy", "No such file"),
    "a directory": (directory, "directory"),
    "empty": (lambda: write("x.npy", b""), "is no npy"),
    "text": (lambda: write("x.npy", b"1 2 3\n4 5 6\n"), "is no npy"),
    "a pickle": (lambda: write("x.npy", b"\x80\x04K\x01."), "is no npy"),
    "only the magic": (lambda: write("x.npy", b"\x93NUMPY"), "x.npy"),
    "a future version": (lambda: write("x.npy", b"\x93NUMPY\x07\x00" + bytes(99)), "version"),
    "a broken header": (lambda: write("x.npy", b"\x93NUMPY\x01\x00\x05\x00{'de'"), "x.npy"),
    "truncated npy": (lambda: truncated("x.npy", a=np.zeros((99, 9))), "truncated"),
    "truncated npz": (lambda: truncated("x.npz", a=np.zeros((99, 9))), "x.npz"),
    "not a zip": (lambda: write("x.npz", b"PK\x03\x04 and more"), "x.npz"),
    "a negative length": (
        lambda: write("x.npy", Path(saved(np.zeros((9, 9)))).read_bytes().replace(b"(9, 9)", b"(-9,9)")),
        "x.npy: the array has shape (-9, 9)",
    ),
    "objects": (lambda: saved(np.array([None, 1])), "objects"),
    "complex": (lambda: saved(np.zeros((3, 3), complex)), "complex128"),
    "strings": (lambda: saved(np.array([["a", "b"]])), "<U1"),
    "two unnamed": (several, "'arr_0'"),
    "long header": (lambda: write("x.safetensors", b"\xff" * 3 + bytes(5) + b"{}"), "header"),
    "no JSON": (lambda: write("x.safetensors", b"\x03" + bytes(7) + b"{a}"), "x.safetensors"),
    "unknown dtype": (
        lambda: safetensors_file({"a": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}),
        "F8_E4M3",
    ),
    "wrong offsets": (
        lambda: safetensors_file({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}),
        "4 bytes for a tensor of shape (2,)",
    ),
    "truncated safetensors": (
        lambda: safetensors_file({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}),
        "truncated",
    ),
    "no header entries": (
        lambda: safetensors_file({"a": {"dtype": "F32"}}),
        "lacks 'data_offsets'",
    ),
    "data before its begin": (
        lambda: safetensors_file({"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}),
        "begins at byte -8",
    ),
    "negative shape": (
        lambda: safetensors_file({"a": {"dtype": "F32", "shape": [2, -1], "data_offsets": [0, -8]}}),
        "has shape (2, -1)",
    ),
    "shape of floats": (
        lambda: safetensors_file({"a": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}}),
        "has shape (2.0,)",
    ),
    "enormous, but empty": (lambda: npy_file("(0, 99999999999999999999999)"), "has shape (0, 9"),
    "shape of bools": (lambda: npy_file("(True, 4)"), "x.npy"),
    "no npy header": (lambda: npy_file("x"), "header cannot be read"),
    "bfloat16 in npy": (lambda: saved(np.zeros((3, 3), "V2")), "safetensors"),
}  # fmt: skip


def test_symbolic_links() -> None:
    """The file that OUT leads to is replaced, not the link."""
    logits, _ = make()
    np.save("logits.npy", logits)
    Path("folder").mkdir()
    Path("link.npy").symlink_to(Path("folder/out.npy"))
    assert main(["softmax", "logits.npy", "link.npy"]) == 0
    assert Path("link.npy").is_symlink()
    assert_same_bits(np.load("folder/out.npy"), softlane.softmax(logits), "through a link")


def test_inputs_are_not_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    logits, targets = make()
    np.save("logits.npy", logits)
    np.save("targets.npy", targets)
    for option in ("--per-token", "--plot"):
        line = refused(capsys, "score", "logits.npy", "targets.npy", option, "./targets.npy")
        assert "and of an input" in line
    assert (np.load("targets.npy") == targets).all()


def test_targets_without_classes(capsys: pytest.CaptureFixture[str]) -> None:
    np.save("logits.npy", np.zeros((3, 0)))
    np.save("targets.npy", [IGNORED, 0, IGNORED])
    line = refused(capsys, "score", "logits.npy", "targets.npy")
    assert "targets.npy[1] is 0, expected 0 <= target < 0" in line


def test_too_little_memory(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logits, _ = make()
    np.save("logits.npy", logits)

    def failing(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 4 TiB")

    monkeypatch.setattr(softlane, "softmax", failing)
    assert "not enough memory" in refused(capsys, "softmax", "logits.npy", "out.npy")


@pytest.mark.parametrize("kind", BAD)
def test_bad_files(capsys: pytest.CaptureFixture[str], kind: str) -> None:
    make_file, text = BAD[kind]
    path = make_file()
    np.save("targets.npy", [0, 0, 0])
    for command in ("softmax", "log-softmax"):
        assert text in refused(capsys, command, path, "out.npy")
    line = refused(capsys, "score", path, "targets.npy", "--per-token", "out.npy")
    assert text in line and path in line


def test_bad_targets(capsys: pytest.CaptureFixture[str]) -> None:
    logits, targets = make((400, 7))
    np.save("logits.npy", logits)
    for bad, text in [
        (targets.astype(float), "has dtype float64, expected an integer type"),
        (
            targets[:-1],
            "has shape (399,), expected (400,): logits.npy has (400, 7), without axis 1",
        ),
        (logits, "has dtype float32, expected an integer type"),
    ]:
        np.save("targets.npy", bad)
        assert text in refused(capsys, "score", "logits.npy", "targets.npy")
    targets[397] = 7
    np.save("targets.npy", targets)
    arguments = ["score", "logits.npy", "targets.npy", "--per-token=losses.npy"]
    line = refused(capsys, *arguments)
    assert "targets.npy[397] is 7, expected 0 <= target < 7 or the ignored index" in line
    targets[:] = 3
    targets[9] = -1
    np.save("targets.npy", targets)
    Path("losses.npy").write_text("before")
    assert "targets.npy[9] is -1" in refused(capsys, *arguments)
    assert Path("losses.npy").read_text() == "before"


def test_bad_target_between_axes(capsys: pytest.CaptureFixture[str]) -> None:
    logits, targets = make((6, 5, 40), 1)
    targets[4, 33] = 5
    np.save("logits.npy", np.asfortranarray(logits))
    np.save("targets.npy", targets)
    line = refused(capsys, "score", "logits.npy", "targets.npy", "--axis=1")
    assert "targets.npy[4, 33] is 5" in line


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("--axis=2", "axis 2 is out of bounds"),
        ("--label-smoothing=1.5", "label_smoothing is 1.5"),
        ("--per-token=losses.bin", "losses.bin is the name of the output, expected one that ends"),
        ("--per-token=nowhere/losses.npy", "nowhere/losses.npy: No such file"),
        ("--per-token=directory.npy", "directory.npy: is a directory"),
    ],
)
def test_bad_options(capsys: pytest.CaptureFixture[str], option: str, text: str) -> None:
    logits, targets = make((30, 7))
    np.save("logits.npy", logits)
    np.save("targets.npy", targets)
    os.mkdir("directory.npy")
    assert text in refused(capsys, "score", "logits.npy", "targets.npy", option)


def test_a_full_disk(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def allocate(_file: int, _offset: int, _length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", allocate, raising=False)
    np.save("x.npy", np.zeros((30, 7)))
    assert "out.npy: No space left" in refused(capsys, "softmax", "x.npy", "out.npy")


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
@pytest.mark.parametrize(
    ("number", "status", "text"),
    [("SIGINT", 130, "softlane: interrupted\n"), ("SIGTERM", 143, ""), ("SIGHUP", 129, "")],
)
def test_an_interrupt_leaves_nothing(number: str, status: int, text: str) -> None:
    """In the middle of the work, with the unfinished output beside."""
    np.save("x.npy", np.zeros((30, 7)))
    done = run_python(
        f"""
import os, signal, sys
import softlane
from softlane.__main__ import main

def interrupt(*arguments, **options):
    assert len(os.listdir()) == 2
    os.kill(os.getpid(), signal.{number})

# A shell's background jobs ignore some of them.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
softlane.softmax = interrupt
sys.exit(main(["softmax", "x.npy", "out.npy"]))
"""
    )
    assert (done.returncode, done.stderr) == (status, text)
    assert os.listdir() == ["x.npy"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo("x.npy")
    writer = os.open("x.npy", os.O_RDWR)
    os.write(writer, b"1 2 3\n4 5 6\n")  # or a reader would wait for ever
    assert "x.npy is a pipe, expected a file" in refused(capsys, "softmax", "x.npy", "out.npy")
    os.close(writer)


# ---- plot, progress, installed command ----------------------------------------------------------


@pytest.mark.parametrize(("name", "magic"), [("p.png", b"\x89PNG"), ("p.svg", b"<?xml")])
def test_plot(capsys: pytest.CaptureFixture[str], name: str, magic: bytes) -> None:
    pytest.importorskip("matplotlib")
    logits, targets = make()
    np.savez("both.npz", logits=logits, targets=targets)
    score(capsys, "both.npz", "both.npz", "--plot", name)
    assert Path(name).read_bytes().startswith(magic)


@pytest.mark.parametrize("loss", [np.nan, 0.0, 1e5])
def test_plot_of_odd_losses(capsys: pytest.CaptureFixture[str], loss: float) -> None:
    pytest.importorskip("matplotlib")
    np.save("logits.npy", [[loss, 0.0]])
    np.save("targets.npy", [1])
    score(capsys, "logits.npy", "targets.npy", "--plot=p.png")
    np.save("targets.npy", [IGNORED])
    score(capsys, "logits.npy", "targets.npy", "--plot=q.png")
    assert Path("p.png").exists() and Path("q.png").exists()


def test_what_the_plot_shows() -> None:
    """Bars of the histogram hold every token; those of the diagram the accuracy in each bin."""
    pytest.importorskip("matplotlib")
    tally = _cli.Tally()
    loss = np.array([0.01, 0.5, 3.0, 250.0])
    tally.add(loss, np.array([0.95, 0.95, 0.5, np.nan]), np.array([True, False, True, False]))
    figure: Any = _cli.figure_of(tally)
    left, right = (axes.patches for axes in figure.axes)
    assert sum(bar.get_height() for bar in left) == 4
    found = {round(bar.get_x() * 15): bar.get_height() for bar in right}
    assert found == {0: 0.0, 7: 1.0, 14: 0.5}


def test_plot_without_matplotlib(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    np.save("logits.npy", np.zeros((2, 3)))
    np.save("targets.npy", [0, 1])
    assert "softlane[cli]" in refused(capsys, "score", "logits.npy", "targets.npy", "--plot=p.png")
    score(capsys, "logits.npy", "targets.npy")


def test_a_plot_that_matplotlib_cannot_write(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    np.save("logits.npy", np.zeros((2, 3)))
    np.save("targets.npy", [0, 1])
    arguments = ["score", "logits.npy", "targets.npy", "--per-token=o.npy", "--plot=p.abc"]
    assert "abc" in refused(capsys, *arguments)


def test_progress(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tqdm")
    np.save("x.npy", np.zeros((300, 70), np.float32))
    assert main(["softmax", "x.npy", "out.npy"]) == 0
    assert capsys.readouterr().err == "", "a bar, but no terminal"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["softmax", "x.npy", "out.npy"]) == 0
    shown = capsys.readouterr().err
    assert "100%" in shown and "84.0k/84.0k" in shown
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert main(["softmax", "x.npy", "out.npy"]) == 0
    assert capsys.readouterr().err == ""


def test_as_programs() -> None:
    np.save("x.npy", np.zeros((3, 4)))
    programs = [[sys.executable, "-W", "error", "-m", "softlane"]]
    script = shutil.which("softlane", path=Path(sys.executable).parent)
    programs += [[script]] if script else []
    for program in programs:
        for arguments, status in ((["x.npy", "p.npy"], 0), (["y.npy", "p.npy"], 2), (["x.npy"], 2)):
            done = subprocess.run(
                [*program, "softmax", *arguments],
                env=clean_environment(), capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip
            assert done.returncode == status, done.stderr
            assert "Traceback" not in done.stderr
        assert_same_bits(np.load("p.npy"), np.full((3, 4), 0.25))
        os.remove("p.npy")


def test_no_command_imports_what_is_optional() -> None:
    code = """
import sys
import numpy as np
from softlane.__main__ import main
np.save("x.npy", np.zeros((3, 4)))
np.save("y.npy", np.zeros(3, int))
assert main(["score", "x.npy", "y.npy"]) == 0
assert not {"tqdm", "matplotlib", "safetensors", "ml_dtypes"} & set(sys.modules)
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
