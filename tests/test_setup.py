"""colab_setup.sh, with a stand-in for Python that records what the script asks pip for."""

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYTHON = """#!/usr/bin/env bash
# Stands in for Python {version}: records pip calls, makes a .venv with a copy of itself, and answers the script's checks.
case "$*" in
    *"import google.colab"*) exit {not_colab} ;;
    *"sys.version_info"*) exit {unsupported} ;;
    *"import ensurepip"*) exit {no_venv} ;;
    "--version") echo "Python {version}" ;;
    "-m venv --clear "*) mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;;
    "-m pip list"*) echo "torch==2.11.0+cu128" ;;
    "-m pip install"*) echo "$*" >>"{log}" ;;
    *"find_spec"*) exit {incomplete} ;;
    *"torch.__version__"*) echo 2.13.0 ;;
esac
"""


@pytest.fixture
def setup(tmp_path):
    checkout, tools, log = tmp_path / "checkout", tmp_path / "tools", tmp_path / "pip.log"
    tools.mkdir()
    checkout.mkdir()
    for name in ("colab_setup.sh", "requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, checkout)

    def tool(name: str, script: str) -> str:
        path = tools / name
        path.write_text(script)
        path.chmod(path.stat().st_mode | stat.S_IEXEC)
        return str(path)

    def run(*arguments, version="3.12.1", colab=False, supported=True, venv=True, complete=True, **scripts):
        answers = {"incomplete": int(not complete)} | {
            "not_colab": int(not colab),
            "unsupported": int(not supported),
            "no_venv": int(not venv),
        }
        python = tool("python3", PYTHON.format(version=version, log=log, **answers))
        tool("nvidia-smi", scripts.pop("nvidia_smi", "#!/bin/sh\nexit 1\n"))
        for name, script in scripts.items():
            tool(name, script)
        environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "PYTHON": python}
        command = ["bash", str(checkout / "colab_setup.sh"), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        asked = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return done.returncode, done.stdout + done.stderr, asked

    return run


def test_without_a_gpu_the_exact_torch_release_with_a_cpu_build_is_requested(setup):
    status, said, asked = setup()
    assert status == 0 and "ready" in said
    assert asked == ["-m pip install --quiet torch==2.13.0", "-m pip install --quiet --editable ."]


def test_with_an_nvidia_gpu_torch_has_only_its_lower_bound(setup):
    _, _, asked = setup(nvidia_smi="#!/bin/sh\nexit 0\n")
    assert asked[0] == "-m pip install --quiet torch>=2.9"


def test_with_dev_the_requirements_of_the_tests_are_installed(setup):
    assert setup("--dev")[2][-1].endswith("--editable .[dev]")


def test_a_second_run_installs_nothing_unless_the_requirements_have_changed(setup, tmp_path):
    setup("--dev")
    for arguments in (["--dev"], []):  # an environment for the tests is enough for a run, too
        status, said, asked = setup(*arguments)
        assert (status, asked) == (0, []) and "set up before" in said
    with open(tmp_path / "checkout" / "requirements.txt", "a") as file:
        file.write("another>=1\n")
    assert setup("--dev")[2]


def test_an_environment_whose_packages_cannot_be_found_is_made_again_although_it_was_set_up_before(setup, tmp_path):
    setup()
    python = tmp_path / "checkout" / ".venv" / "bin" / "python"
    python.write_text(python.read_text().replace('*"find_spec"*) exit 0', '*"find_spec"*) exit 1'))
    (tmp_path / "checkout" / ".venv" / "left over").touch()
    status, said, asked = setup()
    assert status == 0 and len(asked) == 2 and "making .venv" in said
    assert setup()[2] == [], "now it is complete"


def test_packages_that_cannot_be_found_after_their_installation_are_named_and_nothing_counts_as_set_up(setup):
    for _ in range(2):
        status, said, asked = setup(complete=False)
        assert status == 1 and "delete .venv and run this again" in said and len(asked) == 2


def test_the_real_check_finds_what_is_installed_and_nothing_in_the_current_folder(tmp_path):
    (check,) = re.findall(r"-I -c '(.*?)'", (ROOT / "colab_setup.sh").read_text(), re.DOTALL)
    assert subprocess.run([sys.executable, "-I", "-c", check], cwd=tmp_path).returncode == 0
    bare = subprocess.run([sys.executable, "-S", "-I", "-c", check], cwd=ROOT)
    assert bare.returncode == 1, "without site-packages, only this folder has the package"


def test_an_environment_for_a_run_is_not_enough_for_the_tests(setup):
    setup()
    assert setup("--dev")[2]


def test_on_colab_it_installs_with_the_installed_versions_as_constraints(setup, tmp_path):
    status, said, (asked,) = setup(colab=True)
    assert status == 0 and "nothing that Colab ships was changed" in said
    assert "--constraint" in asked and asked.endswith(" .")
    assert "-e" not in asked.split() and "--editable" not in asked and "torch" not in asked
    assert not (tmp_path / "checkout" / ".venv").exists()


@pytest.mark.parametrize(
    ("arguments", "options", "sentence"),
    [
        (["--fast"], {}, "unknown option '--fast'"),
        ([], {"supported": False, "version": "3.9.2"}, "Python 3.11 to 3.13 is needed, found Python 3.9.2"),
        ([], {"venv": False}, "python3-venv"),
        ([], {"df": "#!/bin/sh\necho head\necho disk 9 9 1048576 99% /\n"}, "the disk has 1 GB free"),
    ],
)
def test_an_impossible_set_up_ends_with_one_sentence(setup, arguments, options, sentence):
    status, said, asked = setup(*arguments, **options)
    assert status == 1 and asked == []
    assert sentence in said and len(said.strip().splitlines()) == 1
