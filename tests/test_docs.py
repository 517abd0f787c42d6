"""The examples in the docstrings and in the README run and print what they say; every public name is documented."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from types import ModuleType

import pytest

import softlane
from softlane import _core
from support import using

FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
README = Path(__file__).resolve().parent.parent / "README.md"
# Adapters import packages that may be missing; __main__ runs a program.
LEFT_OUT = {"torch", "dask", "__main__", "_core"}


def modules() -> list[str]:
    found = [m.name for m in pkgutil.iter_modules(softlane.__path__) if m.name not in LEFT_OUT]
    return ["softlane", *(f"softlane.{name}" for name in found)]


def load(name: str) -> ModuleType:
    return importlib.import_module(name)


@pytest.mark.parametrize("name", modules())
def test_docstring_examples(name: str) -> None:
    result = doctest.testmod(load(name), optionflags=FLAGS)
    assert result.failed == 0


@pytest.mark.parametrize("name", ["softlane", "softlane.reference"])
def test_the_public_modules_have_examples(name: str) -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    assert sum(len(t.examples) for t in finder.find(load(name))) >= 10


@pytest.mark.skipif(not README.exists(), reason="no README beside the tests")
def test_readme_examples(isa: str) -> None:
    result = doctest.testfile(str(README), module_relative=False, optionflags=FLAGS)
    assert result.failed == 0
    assert result.attempted >= 5


@pytest.mark.skipif(not README.exists(), reason="no README beside the tests")
def test_readme_names_exist() -> None:
    text = README.read_text(encoding="utf-8")
    for name in set(re.findall(r"\bsoftlane\.([a-z_]+)\(", text)):
        assert hasattr(softlane, name), name
    for name in softlane.__all__:
        assert name in text, f"{name} is missing in the README"


SECTIONS = ("Parameters", "Returns", "Examples")


@pytest.mark.parametrize(
    "name", [n for n in softlane.__all__ if callable(getattr(softlane, n)) and n[0].islower()]
)
def test_docstrings_are_numpydoc(name: str) -> None:
    function = getattr(softlane, name)
    text = inspect.getdoc(function) or ""
    parameters = inspect.signature(function).parameters
    for section in SECTIONS:
        if section == "Parameters" and not parameters:
            continue
        if section == "Returns" and name in ("set_num_threads", "num_threads"):
            continue
        assert f"{section}\n{'-' * len(section)}" in text, f"{name} lacks {section}"
    for parameter in parameters:
        assert re.search(rf"\b{parameter}\b", text), f"{name} does not explain {parameter}"


def test_examples_hold_on_every_instruction_set() -> None:
    for name in _core.isas_usable():
        with using(name):
            assert doctest.testmod(softlane, optionflags=FLAGS).failed == 0, name
