"""The prose of the project has no misspelled word and no dead link."""

import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import pytest

from notebooks import NOTEBOOKS, ROOT

PROSE = [
    *ROOT.glob("*.md"),
    *(path for name in (".github", "tests") for path in (ROOT / name).rglob("*.md")),
    *NOTEBOOKS,
]
LINK = re.compile(r"\]\(<?([^)\s>]+)|\b(?:href|src)=[\"']([^\"']+)")


def text_of(path: Path) -> str:
    """Return the prose of a file, without its code."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = nbformat.reads(text, as_version=4).cells
        text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return re.sub(r"^```.*?^```|`[^`\n]+`", "`code`", text, flags=re.MULTILINE | re.DOTALL)


def links_of(path: Path) -> list[str]:
    return [address or attribute for address, attribute in LINK.findall(text_of(path))]


def anchors_of(path: Path) -> set[str]:
    """Return the anchors of a file, which GitHub and Jupyter derive from its headings, each in its own way."""
    headings = re.findall(r"^#+ (.*?)\s*$", text_of(path), re.MULTILINE)
    on_github = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return on_github | ({heading.replace(" ", "-") for heading in headings} if path.suffix == ".ipynb" else set())


def test_no_word_is_misspelled():
    files = [
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "CITATION.cff",
        "LICENSE",
        "colab_setup.sh",
        "pyproject.toml",
    ]
    folders = [".ci", ".github", "notebooks", "tests", "tinystories_lab"]
    command = [sys.executable, "-m", "codespell_lib", "--check-hidden", ".pre-commit-config.yaml", *files, *folders]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", PROSE, ids=lambda path: path.name)
def test_every_link_has_a_target(path):
    for link in links_of(path):
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            assert parts.scheme == "https" and re.fullmatch(r"[\w-]+(\.[\w-]+)+", parts.netloc), link
            continue
        target = path.parent / parts.path if parts.path else path
        assert target.exists(), f"{link}: {target} does not exist"
        if parts.fragment:
            assert parts.fragment in anchors_of(target), f"{link}: {target.name} has no such heading"


def test_every_picture_is_used():
    shown = {(path.parent / link).resolve() for path in PROSE for link in links_of(path) if "://" not in link}
    assert set((ROOT / "notebooks" / "images").iterdir()) <= shown
