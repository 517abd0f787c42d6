"""softlane.dask: the plain functions' values under any chunks, laziness, a cluster of processes. Needs dask."""

from __future__ import annotations

import doctest
import importlib
import inspect
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import oracle
import softlane
from support import (
    FLOATS,
    Array,
    DType,
    assert_same_bits,
    dtype_id,
    make_rows,
    output_of,
    rng_for,
    run_python,
)

da: Any = pytest.importorskip("dask.array", reason="softlane.dask needs dask, not installed")
adapter: Any = importlib.import_module("softlane.dask")

SHAPE = (4, 5, 8)
CHUNKS = [(4, 5, 8), (2, 5, 8), (4, 2, 8), (4, 5, 3), (3, 2, 5), (2, 1, 1)]


@pytest.fixture(autouse=True)
def single_threaded() -> Iterator[None]:
    with importlib.import_module("dask").config.set(scheduler="synchronous"):
        yield


def make(dtype: Any = np.float64, shape: tuple[int, ...] = SHAPE) -> Array:
    return (rng_for(shape).standard_normal(shape) * 4).astype(dtype)


def make_targets(shape: tuple[int, ...], axis: int) -> Array:
    rng = rng_for(shape, axis)
    samples = np.delete(shape, axis)
    targets = rng.integers(0, shape[axis], samples)
    targets[rng.random(samples) < 0.2] = -100
    return targets


# ---- values -------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("axis", [0, 1, -1, (0, 2), (1, 2), None, ()])
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_any_chunks_and_axes(name: str, axis: Any, chunks: tuple[int, ...]) -> None:
    x = make()
    got = getattr(adapter, name)(da.from_array(x, chunks), axis)
    expected = getattr(softlane, name)(x, axis)
    assert got.shape == expected.shape and got.dtype == expected.dtype
    np.testing.assert_allclose(got.compute(), expected, rtol=9e-16, atol=9e-16)
    if name != "logsumexp":
        assert got.chunks == da.from_array(x, chunks).chunks


@pytest.mark.parametrize("chunks", CHUNKS[:3])
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_whole_rows_have_the_same_bits(name: str, chunks: tuple[int, ...]) -> None:
    x = make(np.float32)
    mask = x > -1
    got = getattr(adapter, name)(da.from_array(x, chunks), where=mask, temperature=0.7).compute()
    assert_same_bits(got, getattr(softlane, name)(x, where=mask, temperature=0.7))


@pytest.mark.parametrize(("length", "columns"), [(65, 1), (65, 7), (65, 64), (1000, 300)])
@pytest.mark.parametrize("dtype", FLOATS, ids=dtype_id)
def test_accuracy(dtype: DType, length: int, columns: int) -> None:
    """On rows that have hurt an implementation somewhere, and far from the largest logit."""
    _, x = make_rows(dtype, length)
    bound = 0.51 if dtype.itemsize == 2 else 2.0
    for temperature in (1.0, 0.7):
        for name in ("softmax", "log_softmax"):
            got = getattr(adapter, name)(da.from_array(x, (20, columns)), temperature=temperature)
            exact = getattr(oracle, name)(x, temperature=temperature)
            errors = oracle.ulp_error(got.compute(), exact.value, exact.scale)
            assert errors.max() <= bound, (name, temperature)
    exact, _ = oracle.logsumexp(x)
    got = adapter.logsumexp(da.from_array(x, (20, columns)))
    assert oracle.ulp_error(got.compute(), exact.value, exact.scale).max() <= 2.0
    wide = x.astype(float)
    for y in (wide.argmax(-1), np.arange(len(x))):
        loss = adapter.cross_entropy(da.from_array(x, (20, columns)), y, reduction="none")
        exact = oracle.cross_entropy(x, y, reduction="none").loss
        assert oracle.ulp_error(loss.compute(), exact.value, exact.scale).max() <= 2.0


def test_sums_near_the_smallest_numbers() -> None:
    """Rounded to what float64 has there at every merge, they would lose some units."""
    x = -713.5 + np.random.default_rng(5).uniform(0, 2, (300, 130))
    x[:, 0] = 0
    for columns in (2, 5, 20):
        exact = oracle.log_softmax(x)
        got = adapter.log_softmax(da.from_array(x, (300, columns)))
        assert oracle.ulp_error(got.compute(), exact.value, exact.scale).max() <= 2.0


def test_digits_of_confident_rows() -> None:
    x = np.zeros((1, 6))
    x[0, 2] = 40.0
    for chunks in (1, 2, 3, 6):
        chunked = da.from_array(x, (1, chunks))
        np.testing.assert_allclose(
            adapter.log_softmax(chunked).compute()[0, 2], -5 * np.exp(-40.0), rtol=1e-14
        )
        loss = adapter.cross_entropy(chunked, [2]).compute()
        np.testing.assert_allclose(loss, 5 * np.exp(-40.0), rtol=1e-14)


SPECIAL_ROWS = [
    [-np.inf, -np.inf, -np.inf, -np.inf],
    [-np.inf, -np.inf, 1.0, 2.0],
    [1.0, 2.0, -np.inf, -np.inf],
    [np.inf, 1.0, 2.0, 3.0],
    [np.inf, 1.0, np.inf, 3.0],
    [np.nan, 1.0, 2.0, 3.0],
    [1.0, np.nan, np.inf, 3.0],
    [-np.inf, 1.0, 2.0, np.inf],
    [-np.inf, 1e308, -1e308, 0.0],
]


@pytest.mark.parametrize("columns", [1, 2, 4])
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_specials(name: str, columns: int) -> None:
    x = np.array(SPECIAL_ROWS)
    got = getattr(adapter, name)(da.from_array(x, (2, columns))).compute()
    np.testing.assert_allclose(got, getattr(softlane, name)(x), rtol=1e-14)


@pytest.mark.parametrize("columns", [1, 2, 4])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_specials_of_the_loss(smoothing: float, columns: int) -> None:
    x = np.array(SPECIAL_ROWS)
    for y in ([0] * 9, [3] * 9, [2, 1, 3, 0, 2, 1, -100, -100, 1]):
        expected = softlane.cross_entropy(x, y, label_smoothing=smoothing, reduction="none")
        got = adapter.cross_entropy(
            da.from_array(x, (2, columns)), y, label_smoothing=smoothing, reduction="none"
        )
        np.testing.assert_allclose(got.compute(), expected, rtol=1e-14)


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
@pytest.mark.parametrize("dtype", [*FLOATS, np.dtype(np.int16)], ids=dtype_id)
def test_where(name: str, dtype: DType) -> None:
    """What is masked may hold anything; a row that is masked entirely has no probabilities."""
    x = make().astype(dtype)
    mask = rng_for("mask").random(x.shape) < 0.6
    mask[0, 0] = False
    if dtype.kind != "i":
        x[~mask] = np.nan
    expected = getattr(softlane, name)(x, where=mask)
    expected_dtype, expected = expected.dtype, expected.astype(float)
    for given in (mask, da.from_array(mask, (1, 5, 8))):
        got = getattr(adapter, name)(da.from_array(x, (3, 2, 3)), where=given).compute()
        rtol = {8: 1e-13, 4: 1e-6, 2: 1e-2}[expected_dtype.itemsize]
        np.testing.assert_allclose(got.astype(float), expected, rtol=rtol, atol=1e-15)
    row = da.from_array(mask[0, :1], (1, 3))
    got = getattr(adapter, name)(da.from_array(x, (3, 2, 3)), where=row).compute()
    assert np.isneginf(got).all() if name != "softmax" else (got == 0).all()


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_cross_entropy(reduction: str, axis: int, chunks: tuple[int, ...]) -> None:
    x, y = make(), make_targets(SHAPE, axis)
    rng = rng_for("weights")
    options: list[dict[str, Any]] = [
        {},
        {"label_smoothing": 0.1, "temperature": 1.7},
        {
            "weight": rng.uniform(0, 2, x.shape[axis]) * (rng.random(x.shape[axis]) < 0.8),
            "sample_weight": rng.uniform(0, 2, y.shape[-1]),
            "label_smoothing": 0.3,
            "ignore_index": 2,
        },
    ]
    for option in options:
        targets = np.where(y == -100, option.get("ignore_index", -100), y)
        expected = softlane.cross_entropy(x, targets, axis, reduction=reduction, **option)
        for given in (targets, da.from_array(targets, (3, 5))):
            chunked = da.from_array(x, chunks)
            got = adapter.cross_entropy(chunked, given, axis, reduction=reduction, **option)
            assert got.shape == np.shape(expected) and got.dtype == expected.dtype
            np.testing.assert_allclose(got.compute(), expected, rtol=1e-13)


@pytest.mark.parametrize("dtype", [*FLOATS, np.dtype(np.int8)], ids=dtype_id)
def test_dtypes(dtype: DType) -> None:
    x, y = make(dtype), make_targets(SHAPE, -1)
    chunked = da.from_array(x, (3, 2, 3))
    for name in ("softmax", "log_softmax", "logsumexp"):
        for asked in (None, np.float16, np.float64):
            got = getattr(adapter, name)(chunked, dtype=asked)
            expected = getattr(softlane, name)(x, dtype=asked)
            assert got.dtype == got.compute().dtype == expected.dtype
            np.testing.assert_allclose(
                got.compute().astype(float), expected.astype(float), rtol=2e-2, atol=1e-7
            )
    for asked in (None, np.float16, np.float64):
        for reduction in ("none", "mean"):
            got = adapter.cross_entropy(chunked, y, dtype=asked, reduction=reduction)
            expected = softlane.cross_entropy(x, y, dtype=asked, reduction=reduction)
            assert got.dtype == got.compute().dtype == expected.dtype
            np.testing.assert_allclose(got.compute(), expected, rtol=2e-3)


@pytest.mark.parametrize("dtype", ["b", "B", "H", "q", "Q"])
def test_integer_targets(dtype: str) -> None:
    x, y = make(), np.clip(make_targets(SHAPE, -1), 0, None).astype(dtype)
    got = adapter.cross_entropy(da.from_array(x, (3, 2, 3)), y).compute()
    np.testing.assert_allclose(got, softlane.cross_entropy(x, y), rtol=1e-14)


def test_nothing() -> None:
    """No samples, no classes, everything ignored, a chunk without elements, no dimensions."""
    x = da.zeros((0, 6), chunks=(1, 3))
    assert adapter.softmax(x).compute().shape == (0, 6)
    assert adapter.logsumexp(x).compute().shape == (0,)
    assert np.isneginf(adapter.logsumexp(da.zeros((3, 0))).compute()).all()
    targets = np.full(2, -100)
    assert np.isnan(adapter.cross_entropy(da.zeros((2, 6), chunks=2), targets).compute())
    total = adapter.cross_entropy(da.zeros((2, 6), chunks=2), targets, reduction="sum")
    assert total.compute() == 0
    chunked = da.from_array(make(shape=(2, 6)), chunks=((2,), (2, 0, 4)))
    for name in ("softmax", "log_softmax", "logsumexp"):
        expected = getattr(softlane, name)(make(shape=(2, 6)))
        np.testing.assert_allclose(getattr(adapter, name)(chunked).compute(), expected)
    loss = adapter.cross_entropy(chunked, [5, 0]).compute()
    np.testing.assert_allclose(loss, softlane.cross_entropy(make(shape=(2, 6)), [5, 0]))
    assert adapter.softmax(da.from_array(np.array(3.0))).compute() == 1


# ---- laziness and the graph ---------------------------------------------------------------------


def fail_if_called(block: Array) -> Array:
    raise AssertionError("computed")


def test_nothing_is_computed_before_compute() -> None:
    x = da.zeros((8, 8), chunks=2).map_blocks(fail_if_called, dtype=float, meta=np.empty((0, 0)))
    results = [
        adapter.softmax(x), adapter.log_softmax(x), adapter.logsumexp(x, None),
        adapter.cross_entropy(x, da.zeros(8, dtype=int, chunks=2)),
    ]  # fmt: skip
    for result in results:
        with pytest.raises(AssertionError, match="computed"):
            result.compute()


class Chunks:
    """Records how large the chunks are that the functions of softlane.dask are given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        for name in ("_state", "_merge", "_parts_of_rows", "_loss_state", "_losses", "_log_sum"):
            monkeypatch.setattr(adapter, name, self.recording(getattr(adapter, name)))

    def recording(self, function: Any) -> Any:
        def record(*arguments: Any, **options: Any) -> Any:
            result = function(*arguments, **options)
            seen = [a for a in (*arguments, result) if isinstance(a, np.ndarray)]
            self.sizes.extend(a.size for a in seen)
            return result

        return record


def test_the_class_axis_is_never_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    """No task sees more than a chunk, and the tree merges at most some states at a time."""
    chunks = Chunks(monkeypatch)
    x = make(shape=(2, 6400))
    chunked = da.from_array(x, (1, 100))
    expected = {"softmax": softlane.softmax(x), "logsumexp": softlane.logsumexp(x)}
    for name, values in expected.items():
        np.testing.assert_allclose(getattr(adapter, name)(chunked).compute(), values, rtol=1e-12)
    loss = adapter.cross_entropy(chunked, [3, 6000])
    np.testing.assert_allclose(loss.compute(), softlane.cross_entropy(x, [3, 6000]), rtol=1e-13)
    assert len(chunks.sizes) > 500
    assert max(chunks.sizes) == 100


# ---- errors -------------------------------------------------------------------------------------


def test_chunks_of_unknown_lengths() -> None:
    logits = da.zeros((6, 4), chunks=(3, 2))
    some = logits[:, 0] == 0
    with pytest.raises(ValueError, match="compute_chunk_sizes"):
        softlane.dask.cross_entropy(logits[some], da.zeros(6, dtype=int, chunks=3)[some])


def test_errors_at_once() -> None:
    x = da.zeros((4, 6), chunks=2)
    with pytest.raises(TypeError, match="x has dtype complex128"):
        adapter.softmax(x.astype(complex))
    with pytest.raises(TypeError, match="dtype is int64"):
        adapter.softmax(x, dtype=int)
    with pytest.raises(TypeError, match="where has dtype float64, expected bool"):
        adapter.logsumexp(x, where=x)
    with pytest.raises(ValueError, match="broadcast"):
        adapter.softmax(x, where=np.ones(5, bool))
    with pytest.raises(ValueError, match="temperature is"):
        adapter.log_softmax(x, temperature=0.0)
    with pytest.raises(ValueError, match="out of bounds"):
        adapter.softmax(x, 2)
    with pytest.raises(TypeError, match="targets has dtype float64, expected an integer type"):
        adapter.cross_entropy(x, x)
    with pytest.raises(ValueError, match=r"targets has shape \(6,\), expected \(4,\): logits"):
        adapter.cross_entropy(x, np.zeros(6, int))
    with pytest.raises(ValueError, match=r"weight has shape \(4,\), expected \(6,\)"):
        adapter.cross_entropy(x, np.zeros(4, int), weight=np.ones(4))
    with pytest.raises(ValueError, match="reduction is 'all'"):
        adapter.cross_entropy(x, np.zeros(4, int), reduction="all")


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("bad", [6, -1])
def test_a_bad_target_is_named(bad: int, reduction: str) -> None:
    y = np.zeros((5, 4), int)
    y[3, 2] = bad
    loss = adapter.cross_entropy(da.zeros((5, 4, 6), chunks=2), y, reduction=reduction)
    with pytest.raises(IndexError, match=rf"targets\[3, 2\] is {bad}, expected 0 <= target < 6"):
        loss.compute()


def test_import() -> None:
    code = "import sys, softlane; assert 'dask' not in sys.modules; import softlane.dask"
    output_of(code + "; assert softlane.dask.softmax")
    done = run_python("import sys; sys.modules['dask'] = None; import softlane.dask")
    assert "pip install 'softlane[dask]'" in done.stderr


def test_docstrings() -> None:
    assert doctest.testmod(adapter, optionflags=doctest.NORMALIZE_WHITESPACE).failed == 0
    for name in adapter.__all__:
        function = getattr(adapter, name)
        text = inspect.getdoc(function) or ""
        for section in ("Parameters", "Returns", "Examples"):
            assert f"{section}\n{'-' * len(section)}" in text
        plain = inspect.signature(getattr(softlane, name)).parameters
        for parameter in inspect.signature(function).parameters.values():
            assert parameter.name in text
            assert parameter.default == plain[parameter.name].default


# ---- a cluster of processes ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A client of two worker processes, of 512 MB each."""
    distributed = pytest.importorskip("distributed", reason="needs dask[distributed]")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own dependencies
        with (
            distributed.LocalCluster(
                n_workers=2,
                threads_per_worker=1,
                processes=True,
                memory_limit="512MB",
                dashboard_address=None,
            ) as workers,
            distributed.Client(workers) as client,
        ):
            yield client


@pytest.mark.parametrize("chunks", [(100, 1000), (20, 1000), (100, 300), (30, 170)])
def test_on_a_cluster(cluster: Any, chunks: tuple[int, int]) -> None:
    x, y = make(shape=(100, 1000)), make_targets((100, 1000), -1)
    chunked = da.from_array(x, chunks)
    results = [
        adapter.softmax(chunked), adapter.log_softmax(chunked), adapter.logsumexp(chunked),
        adapter.cross_entropy(chunked, y, label_smoothing=0.1),
    ]  # fmt: skip
    expected = [
        softlane.softmax(x), softlane.log_softmax(x), softlane.logsumexp(x),
        softlane.cross_entropy(x, y, label_smoothing=0.1),
    ]  # fmt: skip
    got = cluster.gather(cluster.compute(results))
    for ours, plain in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours, plain, rtol=2e-15)


def growing(block_info: Any = None) -> Array:
    """Row i, column j: log(j + 1) + i. The sum of a row's exponentials is e^i n (n + 1) / 2."""
    (i, i_end), (j, j_end) = block_info[None]["array-location"]
    columns = np.log(np.arange(j + 1, j_end + 1, dtype=np.float32))
    return columns + np.arange(i, i_end, dtype=np.float32)[:, None]


@pytest.mark.slow
def test_larger_than_the_memory_of_the_workers(cluster: Any) -> None:
    """1.1 GB, for two workers of 512 MB."""
    rows, classes = 275, 1_000_000
    x = da.map_blocks(
        growing, chunks=((25,) * 11, (50_000,) * 20), dtype=np.float32, meta=np.empty((0, 0), "f4")
    )
    assert x.nbytes == 1_100_000_000
    exact = np.arange(rows) + np.log(classes * (classes + 1) / 2)
    y = np.full(rows, classes - 1)
    log_sums = adapter.logsumexp(x, dtype=np.float64)
    loss = adapter.cross_entropy(x, y, dtype=np.float64)
    target = np.log(np.float32(classes))
    sums = adapter.softmax(x).sum(axis=1, dtype=np.float64)
    got = cluster.gather(cluster.compute([log_sums, loss]))
    np.testing.assert_allclose(got[0], exact, rtol=1e-6)
    np.testing.assert_allclose(got[1], np.mean(exact - np.arange(rows)) - target, rtol=1e-6)
    np.testing.assert_allclose(cluster.gather(cluster.compute(sums)), 1, rtol=1e-6)
