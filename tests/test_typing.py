"""What the overloads promise: mypy compares it with the types written here, the tests with the results."""

from __future__ import annotations

import array
from typing import TYPE_CHECKING, Any, get_args, get_origin

import numpy as np
from numpy.typing import NDArray

import softlane
from softlane import CrossEntropyStats, cross_entropy, cross_entropy_with_grad, logsumexp

if TYPE_CHECKING:
    from typing_extensions import assert_type

    Buffer = array.array[float]
else:
    Buffer = array.array

    def assert_type(value: Any, kind: Any) -> None:
        origin = get_origin(kind) or kind
        assert isinstance(value, origin), (value, kind)
        if origin is tuple:
            for item, item_kind in zip(value, get_args(kind), strict=True):
                assert_type(item, item_kind)


Arrays = NDArray[Any]
Scalar = np.floating[Any]
X = np.array([[2.0, 1.0, 0.1], [0.5, 2.5, 0.3]])
Y = np.array([0, 2])


def test_elementwise() -> None:
    for function in (softlane.softmax, softlane.log_softmax):
        assert_type(function(X), Arrays)
        assert_type(function([[1, 2], [3, 4]], 0, where=X[:, :2] > 1, out=None), Arrays)
        assert_type(function(3.0), Scalar)
    assert_type(softlane.softmax([1.0, 2.0], out=array.array("d", [0, 0])), Buffer)
    for backward in (softlane.softmax_backward, softlane.log_softmax_backward):
        assert_type(backward(X, X), Arrays)
        assert_type(backward(X, X, out=X.copy()), np.ndarray[tuple[Any, ...], np.dtype[Any]])
    for segments in (softlane.segment_softmax, softlane.segment_logsumexp):
        assert_type(segments(X[0], [0, 1, 3]), Arrays)


def test_logsumexp() -> None:
    assert_type(logsumexp(X, None), np.inexact[Any])
    assert_type(logsumexp(X, axis=None, b=2.0), np.inexact[Any])
    assert_type(logsumexp(X, None, return_sign=True), tuple[np.inexact[Any], np.inexact[Any]])
    assert_type(logsumexp(X, None, keepdims=True), Arrays)
    assert_type(logsumexp(X, keepdims=True, return_sign=True), tuple[Arrays, Arrays])
    assert_type(logsumexp(X, out=array.array("d", [0, 0])), Buffer)


def test_losses() -> None:
    assert_type(cross_entropy(X, Y), Scalar)
    assert_type(cross_entropy(X, Y, 1, weight=X[0], reduction="sum", temperature=2.0), Scalar)
    assert_type(cross_entropy(X, Y, reduction="none"), Arrays)
    assert_type(cross_entropy(X[0], 2, reduction="none"), Scalar)
    assert_type(cross_entropy(X, Y, return_stats=True), tuple[Scalar, CrossEntropyStats])
    losses = cross_entropy(X, Y, reduction="none", label_smoothing=0.1, return_stats=True)
    assert_type(losses, tuple[Arrays, CrossEntropyStats])
    out = array.array("d", [0, 0])
    assert_type(cross_entropy(X, Y, reduction="none", out=out), Buffer)


def test_losses_with_gradients() -> None:
    assert_type(cross_entropy_with_grad(X, Y), tuple[Scalar, Arrays])
    into = cross_entropy_with_grad(X, Y, reduction="none", grad_out=np.empty((2, 3)))
    assert_type(into, tuple[Arrays, Arrays])
    assert_type(cross_entropy_with_grad(X[0], 2, reduction="none"), tuple[Scalar, Arrays])
    with_stats = cross_entropy_with_grad(X, Y, return_stats=True)
    assert_type(with_stats, tuple[Scalar, Arrays, CrossEntropyStats])
