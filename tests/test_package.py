"""The wheel, the command that it installs, and the version of a release."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import tinystories_lab
from tinystories_lab.__main__ import main

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel without a network, from a copy, because a build leaves folders beside the sources."""
    pytest.importorskip("setuptools", minversion="77", reason="builds the wheel; a newer torch installs it")
    checkout, made = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("made")
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    for name in ("tinystories_lab", "notebooks", "tests"):
        ignored = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "screenshots")
        shutil.copytree(ROOT / name, checkout / name, ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", made]
    subprocess.run([*command, checkout], check=True, capture_output=True)
    (path,) = made.iterdir()
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """`installed(*arguments)` runs the command that the wheel installs, in an empty folder."""
    site, elsewhere = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("elsewhere")
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", site, wheel]
    subprocess.run(command, check=True, capture_output=True)

    def run(*arguments):
        command = [site / "bin" / "tinystories-lab", *arguments]
        environment = os.environ | {"PYTHONPATH": str(site)}
        return subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True), elsewhere

    return run


def test_the_wheel_contains_the_package_with_its_data_and_the_licence_and_nothing_else(wheel):
    package = {
        path for path in (ROOT / "tinystories_lab").rglob("*") if path.suffix in (".py", ".yaml", ".jinja", ".md")
    }
    about = f"tinystories_lab-{tinystories_lab.__version__}.dist-info"
    described = {f"{about}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "top_level.txt", "entry_points.txt")}
    with zipfile.ZipFile(wheel) as archive:
        assert set(archive.namelist()) == {
            *(path.relative_to(ROOT).as_posix() for path in package),
            *(described | {f"{about}/licenses/LICENSE"}),
        }
        metadata = archive.read(f"{about}/METADATA").decode()
    required = re.findall(r"^Requires-Dist: ([^;\n]+)$", metadata, re.MULTILINE)
    assert required == [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line[0] != "#"]


def test_the_installed_command_prepares_the_built_in_stories(installed):
    done, folder = installed("prepare", "--preset", "tiny", "--source", "toyland")
    assert done.returncode == 0, done.stderr
    assert (folder / "data" / "toyland-tiny" / "stories").is_dir()


def test_the_installed_command_ends_with_one_sentence_if_a_file_is_missing(installed):
    done, _ = installed("generate", "--preset", "tiny", "--source", "toyland")
    assert done.returncode == 1 and "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_help_shows_the_command_that_was_typed(installed, monkeypatch, capsys):
    assert installed("--help")[0].stdout.startswith("usage: tinystories-lab [-h]")
    monkeypatch.setattr(sys, "argv", [str(ROOT / "tinystories_lab" / "__main__.py")])  # as `python -m` sets it
    with pytest.raises(SystemExit):
        main(["--help"])
    assert capsys.readouterr().out.startswith("usage: python -m tinystories_lab [-h]")


def test_package_citation_and_changelog_agree_on_version_and_date():
    changes = re.findall(r"^## \[(.+)\] - (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert changes[0] == (tinystories_lab.__version__, str(citation["date-released"]))
    assert citation["version"] == tinystories_lab.__version__
    assert citation["license"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"]
