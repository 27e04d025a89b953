"""Colab satisfies all requirements, the list is complete, and modules import no more than they need."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
REQUIREMENTS = [
    Requirement(line)
    for line in (ROOT / "requirements.txt").read_text().splitlines()
    if line and not line.startswith("#")
]


TRACKERS = {"tensorboard", "wandb"}  # optional: if one is missing, an error says what to install


def test_colab_satisfies_every_requirement_so_set_up_replaces_nothing_there():
    lines = (ROOT / "tests/data/colab-pip-freeze.txt").read_text().splitlines()[1:]
    shipped = {name.lower(): version for name, version in (line.split("==") for line in lines)}
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["dev"]
    trackers = [requirement for requirement in map(Requirement, extra) if requirement.name in TRACKERS]
    assert len(trackers) == len(TRACKERS), "the tests need both trackers"
    for requirement in [*REQUIREMENTS, *trackers]:
        assert requirement.name.lower() in shipped, f"Colab does not ship {requirement.name}"
        assert requirement.specifier.contains(shipped[requirement.name.lower()]), str(requirement)


def test_every_requirement_has_a_lower_bound_and_nothing_else():
    for requirement in REQUIREMENTS:
        assert re.fullmatch(r">=[\d.]+", str(requirement.specifier)), str(requirement)


def test_every_package_that_the_code_imports_is_required():
    imported = set()
    for path in (ROOT / "tinystories_lab").rglob("*.py"):
        imported |= set(re.findall(r"^\s*(?:import|from) (\w+)", path.read_text(), re.MULTILINE))
    required = {requirement.name.lower() for requirement in REQUIREMENTS} | {"yaml", "ipython"} | TRACKERS
    others = {name.lower() for name in imported} - set(sys.stdlib_module_names) - {"tinystories_lab", "google", "q"}
    assert others <= required, f"not in requirements.txt: {others - required}"


def loaded_by(*modules: str) -> set[str]:
    """Return the modules that a fresh Python has loaded after importing these."""
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_the_command_line_imports_no_matplotlib_no_widgets_and_no_trackers():
    loaded = loaded_by("tinystories_lab.__main__", "tinystories_lab.integrations.trackers")
    assert not loaded & {"matplotlib", "ipywidgets", "IPython", "tensorboard", "wandb"}


def test_training_and_generating_import_nothing_that_only_other_stages_need():
    assert not loaded_by("tinystories_lab.trainer", "tinystories_lab.generate") & {"datasets", "pandas", "jinja2"}


def test_ruff_reports_nothing():
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run([sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
