"""The instruction-set fixtures, markers and the hypothesis profiles of the suite."""

from __future__ import annotations

import os
from collections.abc import Iterator

import hypothesis
import pytest

from softlane import _core
from support import FUSED, using

MARKERS = {
    "slow": "takes more than ten seconds",
    "large": "needs more than 1 GB of memory",
    "exhaustive": "every float32 input; minutes (run with -m exhaustive)",
}
OPT_IN = ("large", "exhaustive")

hypothesis.settings.register_profile("local", deadline=None, max_examples=40)
hypothesis.settings.register_profile(
    "ci", deadline=None, max_examples=40, derandomize=True, database=None
)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_configure(config: pytest.Config) -> None:
    for name, text in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {text}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Opt-in tests run when -m names their marker."""
    wanted = config.getoption("-m")
    for item in items:
        for marker in OPT_IN:
            if item.get_closest_marker(marker) and marker not in wanted:
                item.add_marker(pytest.mark.skip(reason=f"opt-in: pytest -m {marker}"))


def _use(name: str) -> Iterator[str]:
    usable = _core.isas_usable()
    if name not in usable:
        pytest.skip(f"{name} is not usable on this machine (usable: {', '.join(usable)})")
    with using(name):
        yield name


@pytest.fixture(params=_core.isas_compiled())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each compiled instruction set in turn; those that this machine cannot run are skipped."""
    yield from _use(request.param)


@pytest.fixture(params=[name for name in _core.isas_compiled() if name in FUSED])
def fused_isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each compiled instruction set with fused multiply-add: those that promise the same bits."""
    yield from _use(request.param)
