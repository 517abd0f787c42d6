"""Arrays of more than 2^31 elements and rows longer than that: no 32-bit index anywhere. 5 GB each, one at a time."""

from __future__ import annotations

import numpy as np
import pytest

import softlane
from support import assert_same_bits

pytestmark = [pytest.mark.large, pytest.mark.timeout(3600)]
BEYOND = 2**31


def test_a_row_longer_than_that(isa: str) -> None:
    x = np.full(BEYOND + 77, -1000, np.float16)  # whose exponentials are 0
    places = [0, 5, BEYOND - 1, BEYOND, BEYOND + 1, BEYOND + 76]
    x[places] = row = np.array([0.5, 1, 2, 3, 1, 0.25], np.float16)
    assert_same_bits(softlane.logsumexp(x), softlane.logsumexp(row))
    for at, place in enumerate(places):
        if at in (0, 3, 5):
            got = softlane.cross_entropy(x, np.int64(place), reduction="sum")
            assert_same_bits(got, softlane.cross_entropy(row, at, reduction="sum"))
    with pytest.raises(IndexError):
        softlane.cross_entropy(x, x.size)
    softlane.softmax(x, out=x)
    assert_same_bits(x[places], softlane.softmax(row))
    assert np.count_nonzero(x) == len(places)


@pytest.mark.parametrize("axis", [0, 1])
def test_an_array_of_more_elements(isa: str, axis: int) -> None:
    shape = (2**15 + 1, 2**16 + 3)
    x = np.empty(shape, np.float16)
    pattern = (np.arange(shape[axis]) % 5).astype(np.float16)
    other = pattern[::-1]
    rows = x if axis == 1 else x.T
    rows[...] = pattern
    rows[-1] = other
    softlane.softmax(x, axis, out=x)
    expected = softlane.softmax(pattern)
    assert expected.all()
    for start in range(0, len(rows) - 1, 4096):
        part = rows[start : min(start + 4096, len(rows) - 1)]
        assert (part == expected).all()
    assert_same_bits(rows[-1].copy(), softlane.softmax(other))
