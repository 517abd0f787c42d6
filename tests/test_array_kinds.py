"""Arrays of other libraries, where installed: the same bits as the ndarray, no copies where none are needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import softlane
from softlane import _arrays
from support import BFLOAT16, Array, assert_same_bits, rng_for

X = (rng_for("kinds").standard_normal((6, 5)) * 3).astype(np.float32)
Y = np.array([0, 4, 2, 2, 1, 3])


def check_all(given: Any, values: Array, classes: Any = Y) -> None:
    """Every function takes it, and gives what it gives for the ndarray, as an ndarray."""
    for axis in range(values.ndim):
        for function in (softlane.softmax, softlane.log_softmax, softlane.logsumexp):
            assert_same_bits(function(given, axis), function(values, axis))
    got = softlane.softmax(given)
    assert type(got) is np.ndarray
    if values.shape == X.shape:
        loss, grad = softlane.cross_entropy_with_grad(given, classes)
        expected_loss, expected_grad = softlane.cross_entropy_with_grad(values, Y)
        assert_same_bits(loss, expected_loss)
        assert_same_bits(grad, expected_grad)
        assert_same_bits(
            softlane.softmax_backward(given, got), softlane.softmax_backward(values, got)
        )


def is_view(given: Any, memory: Array) -> bool:
    return np.shares_memory(_arrays.as_array(given, "x"), memory)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_jax(dtype: str) -> None:
    jnp = pytest.importorskip("jax.numpy")
    if dtype == "bfloat16" and BFLOAT16 is None:
        pytest.skip("needs ml_dtypes")
    given = jnp.asarray(X, dtype)
    values = np.asarray(given)
    assert values.dtype.name == dtype
    check_all(given, values, jnp.asarray(Y))
    assert_same_bits(given, values)
    assert isinstance(jnp.asarray(softlane.softmax(given)), type(given))


def test_dlpack_alone() -> None:
    """What has neither a buffer nor __array__."""

    class Exporter:
        def __dlpack__(self, **options: Any) -> Any:
            return X.__dlpack__(**options)

        def __dlpack_device__(self) -> tuple[int, int]:
            return X.__dlpack_device__()

    check_all(Exporter(), X)
    assert is_view(Exporter(), X)


@pytest.mark.parametrize("dtype", ["float64", "Float64", "float64[pyarrow]", "int32"])
def test_pandas_series(dtype: str) -> None:
    pandas = pytest.importorskip("pandas")
    if "pyarrow" in dtype:
        pytest.importorskip("pyarrow")
    row = np.array([3.0, 1.0, -2.0])
    given = pandas.Series(row, index=["a", "b", "c"]).astype(dtype)
    check_all(given, row.astype("int32" if dtype == "int32" else "float64"))


def test_pandas() -> None:
    pandas = pytest.importorskip("pandas")
    given = pandas.DataFrame(X, columns=list("abcde"))
    check_all(given, X, pandas.Series(Y))
    assert is_view(given, given.to_numpy())
    with pytest.raises(TypeError, match="x has dtype object, expected float16"):
        softlane.softmax(pandas.DataFrame({"a": ["x"], "b": [1.0]}))
    gap = softlane.softmax(pandas.Series([1.0, None, 2.0], dtype="Float64"))
    assert np.isnan(gap).all()
    weights = pandas.Series(np.arange(1.0, 6.0))
    assert_same_bits(
        softlane.cross_entropy(given, Y, weight=weights),
        softlane.cross_entropy(X, Y, weight=weights.to_numpy()),
    )


def test_xarray() -> None:
    xarray = pytest.importorskip("xarray")
    given = xarray.DataArray(X, dims=("sample", "class"))
    check_all(given, X, xarray.DataArray(Y, dims="sample"))
    assert is_view(given, X)
    assert_same_bits(softlane.softmax(given.T, axis=0), softlane.softmax(X.T, axis=0))
    inside = given > 0
    assert_same_bits(softlane.softmax(given, where=inside), softlane.softmax(X, where=X > 0))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "uint64"])
def test_arrow(dtype: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    row = np.arange(7).astype(dtype)
    given = pyarrow.array(row)
    check_all(given, row)
    assert is_view(given, given.to_numpy())
    check_all(pyarrow.chunked_array([row[:3], row[3:]]), row)


def test_arrow_tables() -> None:
    pyarrow = pytest.importorskip("pyarrow")
    check_all(pyarrow.Tensor.from_numpy(X), X, pyarrow.array(Y))
    lists = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(X.reshape(-1)), 5)
    check_all(lists.flatten().to_numpy().reshape(-1, 5), X)
    with pytest.raises(TypeError, match="x has dtype object"):
        softlane.softmax(lists)
    assert np.isnan(softlane.softmax(pyarrow.array([1.0, None]))).all()


@pytest.mark.parametrize("mode", ["r", "c", "r+"])
def test_memmap(tmp_path: Any, mode: Any) -> None:
    np.save(tmp_path / "x.npy", X)
    given = np.load(tmp_path / "x.npy", mmap_mode=mode)
    assert type(given) is np.memmap
    check_all(given, X)
    if mode == "r+":
        assert softlane.softmax(given, out=given) is given
        given.flush()
        assert_same_bits(np.load(tmp_path / "x.npy"), softlane.softmax(X))


MODULES: dict[str, Callable[[Any], Any]] = {
    "jax.numpy": lambda m: m.asarray(X),
    "pandas": lambda m: m.DataFrame(X),
    "xarray": lambda m: m.DataArray(X),
    "pyarrow": lambda m: m.Tensor.from_numpy(X),
}


@pytest.mark.parametrize("module", MODULES)
def test_inputs_are_not_written(module: str) -> None:
    given = MODULES[module](pytest.importorskip(module))
    before = np.array(given)
    softlane.softmax(given)
    softlane.cross_entropy_with_grad(given, Y)
    assert_same_bits(np.asarray(given), before)
