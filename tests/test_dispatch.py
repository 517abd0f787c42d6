"""Which instruction set runs: SOFTLANE_ISA, show_config, the test hook."""

from __future__ import annotations

import ast
import platform
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import softlane
from softlane import _core
from support import output_of, run_python

ORDER = ["avx512", "avx2", "neon", "generic"]
KEYS = {"version", "isa", "isas_usable", "isas_compiled", "threads", "compiler"}


def test_sets_are_listed_best_first() -> None:
    compiled, usable = _core.isas_compiled(), _core.isas_usable()
    assert compiled == [name for name in ORDER if name in compiled]
    assert usable == [name for name in compiled if name in usable]
    assert "generic" in usable


def test_the_best_usable_set_is_the_default() -> None:
    code = "from softlane import _core; print(_core.get_isa() == _core.isas_usable()[0])"
    assert output_of(code).strip() == "True"
    assert output_of(code, SOFTLANE_ISA="").strip() == "True"


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="needs /proc/cpuinfo")
def test_usable_sets_are_those_of_the_processor() -> None:
    flags = set(re.findall(r"\w+", Path("/proc/cpuinfo").read_text()))
    needed = {
        "avx2": {"avx2", "fma", "f16c"},
        "avx512": {"avx512f", "avx512dq", "avx512bw", "avx512vl"},
    }
    for name in _core.isas_compiled():
        if name in needed and platform.machine() == "x86_64":
            assert (name in _core.isas_usable()) == (needed[name] <= flags)


@pytest.mark.parametrize("name", _core.isas_usable())
def test_the_environment_forces_a_set(name: str) -> None:
    code = (
        "import softlane, numpy as np; c = softlane.show_config(mode='dict'); "
        "assert abs(softlane.softmax(np.zeros(8))[0] - 0.125) < 1e-15; print(c['isa'])"
    )
    assert output_of(code, SOFTLANE_ISA=name).strip() == name


@pytest.mark.parametrize("name", ["no_such_set", "AVX-512", "sse2", "avx2,generic", " "])
def test_an_unknown_set_is_an_import_error_that_lists_the_usable(name: str) -> None:
    done = run_python("import softlane", SOFTLANE_ISA=name)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError"), done.stderr
    assert "SOFTLANE_ISA" in last and name in last
    for usable in _core.isas_usable():
        assert usable in last


@pytest.mark.parametrize("name", [n for n in ORDER if n not in _core.isas_usable()])
def test_an_unusable_set_is_an_import_error_too(name: str) -> None:
    done = run_python("import softlane", SOFTLANE_ISA=name)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode != 0 and last.startswith("ImportError") and name in last
    assert _core.isas_usable()[0] in last


def test_set_isa_refuses_what_is_not_usable() -> None:
    before = _core.get_isa()
    for name in ("no_such_set", ""):
        with pytest.raises(ValueError, match=_core.isas_usable()[0]):
            _core.set_isa(name)
    assert _core.get_isa() == before


def test_show_config_as_a_dict(isa: str) -> None:
    config: Any = softlane.show_config(mode="dict")
    assert set(config) >= KEYS
    assert config["isa"] == isa
    assert list(config["isas_usable"]) == _core.isas_usable()
    assert list(config["isas_compiled"]) == _core.isas_compiled()
    assert config["threads"] == softlane.get_num_threads()
    assert config["version"] == softlane.__version__ == _core.__version__
    assert isinstance(config["compiler"], str) and config["compiler"] == _core.compiler()


def test_show_config_prints_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert softlane.show_config() is None
    printed = capsys.readouterr().out
    config: Any = softlane.show_config(mode="dict")
    for key in ("version", "isa", "compiler"):
        assert str(config[key]) in printed
    assert softlane.show_config(mode="print") is None
    assert capsys.readouterr().out == printed


def test_the_version_is_that_of_the_distribution() -> None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        assert version("softlane") == softlane.__version__
    except PackageNotFoundError:
        pytest.skip("softlane is not installed as a distribution")
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", softlane.__version__)


def test_the_public_names() -> None:
    expected = {
        "softmax",
        "log_softmax",
        "logsumexp",
        "cross_entropy",
        "cross_entropy_with_grad",
        "softmax_backward",
        "log_softmax_backward",
        "get_num_threads",
        "set_num_threads",
        "num_threads",
        "show_config",
        "reference",
    }
    assert expected <= set(softlane.__all__)
    for name in softlane.__all__:
        getattr(softlane, name)


def test_importing_softlane_imports_neither_torch_nor_dask() -> None:
    code = (
        "import sys; import softlane; "
        "print([m for m in ('torch', 'dask', 'jax', 'ml_dtypes', 'scipy') if m in sys.modules])"
    )
    assert ast.literal_eval(output_of(code)) == []


def test_every_set_gives_the_same_up_to_the_last_places() -> None:
    x = np.linspace(-20, 20, 1001)
    results = []
    for name in _core.isas_usable():
        before = _core.get_isa()
        _core.set_isa(name)
        results.append(softlane.softmax(x))
        _core.set_isa(before)
    for other in results[1:]:
        np.testing.assert_array_max_ulp(other, results[0], 4)
