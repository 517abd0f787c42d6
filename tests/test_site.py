"""The documentation: its examples run where what they import is installed; it builds without warnings."""

from __future__ import annotations

import doctest
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support import clean_environment
from test_docs import FLAGS

DOCS = Path(__file__).resolve().parent.parent / "docs"
pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="no docs beside the tests")


def sections() -> list[tuple[str, str]]:
    """The sections with examples: file and heading, and the text."""
    return [
        (f"{path.name}, {section.splitlines()[0].lstrip('# ')}", section)
        for path in sorted(DOCS.glob("*.md"))
        for section in re.split(r"^(?=#+ )", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        if ">>>" in section
    ]


@pytest.mark.parametrize(
    ("name", "text"), [pytest.param(*section, id=section[0]) for section in sections()]
)
def test_examples(name: str, text: str) -> None:
    for module in set(re.findall(r"^>>> (?:import|from) (\w+)", text, re.MULTILINE)):
        pytest.importorskip(module)
    test = doctest.DocTestParser().get_doctest(text, {}, name, name, 0)
    printed: list[str] = []
    result = doctest.DocTestRunner(optionflags=FLAGS).run(test, out=printed.append)
    assert result.failed == 0, "".join(printed)


def test_every_page_has_its_place() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    for path in DOCS.glob("*.md"):
        assert path.stem == "index" or re.search(rf"^{path.stem}$", index, re.MULTILINE), path


@pytest.mark.slow
def test_it_builds_without_warnings(tmp_path: Path) -> None:
    for module in (
        "sphinx",
        "myst_parser",
        "latex2mathml",
        "numpydoc",
        "pydata_sphinx_theme",
        "dask",
    ):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module}: pip install '.[docs]'")
    source, site = tmp_path / "docs", tmp_path / "site"  # a copy, into which pages are generated
    shutil.copytree(DOCS, source, ignore=shutil.ignore_patterns("_build", "generated"))
    for included in ("CHANGELOG.md", "HACKING.md", "bench/NOTES.md"):
        (tmp_path / included).parent.mkdir(exist_ok=True)
        shutil.copy(DOCS.parent / included, tmp_path / included)
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", str(source), str(site)],
        env=clean_environment(), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for page in ("index", "api", "generated/softlane.softmax"):
        assert (site / f"{page}.html").stat().st_size > 5000
