"""Ordinary calls skip the checks in Python: they give what the general path gives, and they do skip them."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

import softlane
from support import FLOATS, Array

PLAIN = ("_plain_softmax", "_plain_logsumexp", "_plain_cross_entropy", "_plain_backward")
SHAPES = [(3,), (0,), (4, 3), (0, 3), (3, 0), (2, 3, 4), (2, 0, 3)]


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returns or raises, with the layout of arrays."""
    try:
        result = call()
    except Exception as error:
        return type(error), str(error)
    parts = result if isinstance(result, tuple) else (result,)
    return [(type(p), p.dtype, p.shape, p.strides, p.tobytes()) for p in parts]


def logits_of(shape: tuple[int, ...], dtype: Any) -> Iterator[Array]:
    x = np.random.default_rng(1).standard_normal(shape).astype(dtype)
    x.flags.writeable = False
    yield x
    yield np.asfortranarray(x)
    yield x.astype(x.dtype.newbyteorder())
    yield np.concatenate([x, x])[::2][: len(x)]


def targets_of(x: Array, axis: int) -> Iterator[Any]:
    shape = np.moveaxis(x, axis, -1).shape[:-1]
    y = np.random.default_rng(2).integers(0, max(1, x.shape[axis]), shape)
    yield from (y.astype(d) for d in ("b", "B", "i4", ">i4", "u8", "?", "f4"))
    yield y
    yield np.asfortranarray(y)
    yield np.full(shape, -100)
    yield np.full(shape, 7)
    yield y[..., None]
    yield y.tolist()
    yield softlane.softmax(x, axis)


def calls(x: Array, axis: int) -> Iterator[Callable[[], Any]]:
    kinds = (1.0, 0.5, 2, np.float64(3), True, 0.0, -1.0, float("nan"), float("inf"), None, "1")
    for t in kinds:
        for name in ("softmax", "log_softmax"):
            yield partial(getattr(softlane, name), x, axis, temperature=t)
            for y in (x, x.astype("d"), x[1:]):
                yield partial(getattr(softlane, f"{name}_backward"), x, y, axis, temperature=t)
    yield partial(softlane.logsumexp, x, axis)
    for name in ("cross_entropy", "cross_entropy_with_grad"):
        loss = getattr(softlane, name)
        for y, r in itertools.product(targets_of(x, axis), ("mean", "sum", "none", "no", None)):
            yield partial(loss, x, y, axis, reduction=r)
        y = next(targets_of(x, axis))
        for t in kinds:
            yield partial(loss, x, y, axis, temperature=t, reduction="none")
            yield partial(loss, x, y, axis, label_smoothing=t)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_plain_calls_give_what_the_general_path_gives(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for dtype, axis in itertools.product(FLOATS, range(-len(shape), len(shape))):
        if dtype.kind == "V":
            continue  # bfloat16 is never plain
        for x in logits_of(shape, dtype):
            for number, call in enumerate(calls(x, axis)):
                plain = outcome(call)
                with monkeypatch.context() as patch:
                    for name in PLAIN:
                        patch.setattr(softlane, name, lambda *_: None)
                    general = outcome(call)
                assert plain == general, f"call {number} of {dtype} {x.shape} axis {axis}"


@pytest.mark.parametrize("name", PLAIN)
def test_ordinary_calls_are_plain(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the defaults are passed on."""
    answers = []
    real = getattr(softlane, name)

    def watched(*arguments: Any) -> Any:
        answers.append(real(*arguments))
        return answers[-1]

    monkeypatch.setattr(softlane, name, watched)
    x, y = np.zeros((2, 3), np.float32), np.array([0, 1])
    by_name: dict[str, list[tuple[Callable[..., Any], tuple[Array, ...]]]] = {
        "_plain_softmax": [(softlane.softmax, (x,)), (softlane.log_softmax, (x,))],
        "_plain_logsumexp": [(softlane.logsumexp, (x,))],
        "_plain_cross_entropy": [
            (softlane.cross_entropy, (x, y)),
            (softlane.cross_entropy_with_grad, (x, y)),
        ],
        "_plain_backward": [
            (softlane.softmax_backward, (x, x)),
            (softlane.log_softmax_backward, (x, x)),
        ],
    }
    made = by_name[name]
    for function, arguments in made:
        parameters = inspect.signature(function).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        function(*arguments)
        function(*arguments, **defaults)
    assert len(answers) == 2 * len(made)
    assert all(answer is not None for answer in answers)
