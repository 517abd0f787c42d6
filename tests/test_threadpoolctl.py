"""threadpoolctl finds softlane and limits it, for the calling thread, without a trace. Needs threadpoolctl."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import softlane
from softlane import _core
from support import output_of, threads

threadpoolctl: Any = pytest.importorskip("threadpoolctl", minversion="3.2")


def found() -> list[dict[str, Any]]:
    return [i for i in threadpoolctl.threadpool_info() if i["user_api"] == "softlane"]


def test_info() -> None:
    with threads(3):
        (info,) = found()
        assert info["num_threads"] == 3
    assert info["internal_api"] == "softlane"
    assert info["version"] == softlane.__version__
    assert Path(info["filepath"]).samefile(str(_core.__file__))


def test_limits() -> None:
    with threads(5):
        for limit in (1, 2):
            with threadpoolctl.threadpool_limits(limit):
                assert softlane.get_num_threads() == limit
                assert found()[0]["num_threads"] == limit
            assert softlane.get_num_threads() == 5
        with threadpoolctl.threadpool_limits({"softlane": 2}):
            assert softlane.get_num_threads() == 2
        with threadpoolctl.threadpool_limits(1, user_api="softlane"):
            assert softlane.get_num_threads() == 1
        with threadpoolctl.threadpool_limits(1, user_api="blas"):
            assert softlane.get_num_threads() == 5
        with threadpoolctl.threadpool_limits(9):
            assert softlane.get_num_threads() == 5, "a limit does not add threads"


def test_restored_limits_limit_nothing() -> None:
    """After the block the thread follows set_num_threads again; inside num_threads it keeps that."""
    with threads(2):
        with threadpoolctl.threadpool_limits(1):
            pass
        with threads(6):
            assert softlane.get_num_threads() == 6
        with softlane.num_threads(1):
            with threadpoolctl.threadpool_limits(1):
                pass
            with threads(6):
                assert softlane.get_num_threads() == 1


def test_only_the_calling_thread() -> None:
    with threads(4), ThreadPoolExecutor(1) as pool, threadpoolctl.threadpool_limits(1):
        assert pool.submit(softlane.get_num_threads).result() == 4


def test_other_modules_of_the_same_name() -> None:
    """Many packages have a _core; one that is loaded from a copy of ours is not ours either."""
    code = """
import ctypes, pathlib, shutil, tempfile
import threadpoolctl
from softlane import _core

with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
    other = shutil.copy(_core.__file__, directory)
    library = ctypes.CDLL(other)
    (info,) = [i for i in threadpoolctl.threadpool_info() if i["user_api"] == "softlane"]
    assert pathlib.Path(info["filepath"]).samefile(_core.__file__)
"""
    output_of(code)


def test_without_threadpoolctl() -> None:
    code = "import sys; sys.modules['threadpoolctl'] = {}; import softlane"
    for absent in ("None", "sys"):  # not installed, too old
        output_of(code.format(absent))


@pytest.mark.parametrize("order", ["softlane, threadpoolctl", "threadpoolctl, softlane"])
def test_importing_softlane_is_enough(order: str) -> None:
    code = "with threadpoolctl.threadpool_limits(1): print(softlane.get_num_threads())"
    assert output_of(f"import {order}\n{code}", SOFTLANE_NUM_THREADS="4") == "1\n"
