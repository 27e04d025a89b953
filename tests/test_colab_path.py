"""A Colab learner runs all notebooks on three machines: the first is taken away, the others start empty."""

import os
import re
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
from kernels import SMALL, kernels_start_with
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

from notebooks import NOTEBOOKS, ROOT, repository
from tinystories_lab.durability.mirror import _DATA_FILES, _MIRROR_SLOTS, _RUN_FILES

COLAB = """
from pathlib import Path
from tinystories_lab.notebook import colab
colab._COLAB_ROOT, colab._DRIVE = Path({content!r}, "tinystories_lab"), Path({content!r}, "drive")
"""
# google.colab.drive: the mount is lost with the machine, and the stored files stay.
DRIVE = """
from pathlib import Path

def mount(mountpoint, force_remount=False):
    Path(mountpoint).mkdir(exist_ok=True)
    if not Path(mountpoint, "MyDrive").exists():
        Path(mountpoint, "MyDrive").symlink_to({storage!r})

def flush_and_unmount():
    Path({content!r}, "drive", "MyDrive").unlink()
"""
# The machine is taken away during training, once a checkpoint is on Drive, at a moment that no step or save determines.
TAKEN_AWAY = """
import os, signal, threading, time

def contains(path, text):
    return path.exists() and text in path.read_text()

def wait_for_the_end():
    run = Path("runs", "toyland-tiny")
    while not (
        contains(colab._COLAB_ROOT / run / "loss.jsonl", '"step": 90')
        and contains(colab._DRIVE / "MyDrive" / "tinystories_lab" / run / "manifest.json", '"step"')
    ):
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL)

threading.Thread(target=wait_for_the_end, daemon=True).start()
"""
# The package can be imported only after pip has installed it.
NOT_INSTALLED = """
import os, sys

class NotInstalled:
    def __init__(self):
        ours = [name for name in sys.modules if name.partition(".")[0] == "tinystories_lab"]
        self.modules = {{name: sys.modules.pop(name) for name in ours}}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "tinystories_lab":
            if not os.path.exists({installed!r}):
                raise ModuleNotFoundError(f"No module named {{name!r}}")
            sys.meta_path.remove(self)
            sys.modules.update(self.modules)
            return sys.modules[name].__spec__

sys.meta_path.insert(0, NotInstalled())
"""
GIT = """#!/bin/sh
echo "git $*" >>{log}
for folder; do :; done
mkdir "$folder" && cd {root} && cp -r colab_setup.sh pyproject.toml requirements.txt tinystories_lab "$folder"
"""
PYTHON = """#!/bin/sh
case "$*" in
    "-m pip"*)
        echo "pip ${{*#-m pip }}" >>{log}
        case "$*" in *"pip install"*) [ ! -e {offline} ] && touch {installed} ;; esac ;;
    *) exec {python} "$@" ;;
esac
"""


class Learner:
    """Runs the notebooks in kernels whose /content, Drive, git and pip are stand-ins below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.content, self.storage, self.log = folder / "content", folder / "storage", folder / "installed.log"
        self.installed, self.offline = folder / "installed", folder / "offline"
        self.storage.mkdir()
        self.folder, self.machines = folder, 0
        places = {"log": self.log, "root": ROOT, "python": sys.executable}
        places |= {"installed": self.installed, "offline": self.offline}
        for path, text in {
            "tools/git": GIT.format(**places),
            "tools/python3": PYTHON.format(**places),
            "modules/google/__init__.py": "",
            "modules/google/colab/__init__.py": "",
            "modules/google/colab/drive.py": DRIVE.format(content=str(self.content), storage=str(self.storage)),
        }.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
            (folder / path).chmod(0o755)

    def new_machine(self) -> None:
        shutil.rmtree(self.content, ignore_errors=True)
        for path in (self.log, self.installed):
            path.unlink(missing_ok=True)
        self.content.mkdir()

    def opens(self, name: str, *scripts: str, cells: int | None = None) -> str:
        """Run all cells of a notebook, or the first of them. Return all of their output."""
        self.machines += 1
        here, hidden = COLAB.format(content=str(self.content)), NOT_INSTALLED.format(installed=str(self.installed))
        environment = kernels_start_with(self.folder / f"ipython-{self.machines}", SMALL, here, *scripts, hidden)
        environment |= {
            "COLAB_RELEASE_TAG": "release",
            "TINYSTORIES_LAB_WORKSPACE": "",
            "PATH": f"{self.folder / 'tools'}:{os.environ['PATH']}",
            "PYTHON": "python3",
            "PYTHONPATH": f"{self.folder / 'modules'}:{ROOT}",
        }
        (path,) = (path for path in NOTEBOOKS if path.stem.startswith(name))
        text = path.read_text(encoding="utf-8").replace("/content/", f"{self.content}/")
        notebook = nbformat.reads(text.replace(repository(), "ada/my-copy"), as_version=4)
        notebook.cells = notebook.cells[:cells]
        # A kernel on a busy machine has once lost a reply: the time-out turns waiting for ever into an error.
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(self.content)}}).execute(
            env={**os.environ, **environment}
        )
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        return "\n".join(output.get("text") or str(output.get("data")) for output in outputs)

    def on_drive(self) -> list[str]:
        return sorted(str(path.relative_to(self.storage)) for path in self.storage.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def learner(tmp_path_factory):
    return Learner(tmp_path_factory.mktemp("colab"))


@pytest.fixture(scope="module")
def first_machine(learner):
    """Run notebooks 1 to 3. The machine is taken away during training, with all of its files."""
    learner.new_machine()
    output = [learner.opens("01"), learner.opens("02")]
    with pytest.raises(DeadKernelError):
        learner.opens("03", TAKEN_AWAY)
    return output, learner.log.read_text()


@pytest.fixture(scope="module")
def second_machine(learner, first_machine):
    """Run notebooks 3 to 5 on an empty machine."""
    learner.new_machine()
    return [learner.opens("03"), learner.opens("04"), learner.opens("05")], learner.on_drive()


@pytest.fixture(scope="module")
def third_machine(learner, second_machine):
    """Run the last notebook alone, on another empty machine."""
    learner.new_machine()
    return learner.opens("05"), learner.on_drive()


def test_the_set_up_cell_clones_once_and_replaces_nothing_that_colab_ships(learner, first_machine):
    output, log = first_machine
    assert (
        "installed tinystories_lab into Colab's Python" in output[0]
        and "nothing that Colab ships was changed" in output[0]
    )
    assert "colab_setup.sh" not in output[1], "once per machine is enough"
    clone, listed, installed = log.splitlines()
    assert clone == f"git clone --quiet --depth 1 https://github.com/ada/my-copy {learner.content}/lab"
    assert listed.startswith("pip list") and installed.startswith("pip install --quiet --constraint ")


def test_the_set_up_cell_installs_until_the_package_can_be_imported_and_needs_a_whole_clone(tmp_path):
    learner = Learner(tmp_path)
    learner.new_machine()
    (learner.content / "lab").mkdir()
    (learner.content / "lab" / "colab_setup.sh").write_text("an interrupted clone")
    learner.offline.touch()
    for _ in range(2):
        with pytest.raises(CellExecutionError, match="No module named 'tinystories_lab"):
            learner.opens("01", cells=2)
    learner.offline.unlink()
    learner.opens("01", cells=2)
    learner.opens("02", cells=2)
    assert [line.split()[:2] for line in learner.log.read_text().splitlines()] == [
        ["git", "clone"],
        *[["pip", "list"], ["pip", "install"]] * 3,
    ]
    assert (learner.content / "lab-incomplete" / "colab_setup.sh").read_text() == "an interrupted clone"


def test_after_the_machine_is_taken_away_training_resumes_on_the_next_one(second_machine):
    (training, *_), _ = second_machine
    assert "restored the run from " in training
    resumed = re.search(r"resumed at step (\d+), saved \d+ minutes ago", training)
    assert 0 < int(resumed[1]) < 150
    assert re.search(r">mirrored</div><b>to step \d+", training), "during training"
    assert "mirrored to step 150" in training and "flush=True" in training, "at the end"


def test_the_other_notebooks_find_the_run_on_the_same_machine(second_machine):
    (_, generate, retrospective), _ = second_machine
    assert not any("restored the run from" in output for output in (generate, retrospective))
    assert "mirrored to step 150" in generate


def test_on_an_empty_machine_the_last_notebook_restores_the_run_from_drive(third_machine):
    output, _ = third_machine
    assert "restored the run from " in output and "mirrored to step 150" in output


def test_drive_has_the_same_few_files_after_each_machine(second_machine, third_machine):
    _, before = second_machine
    _, after = third_machine
    assert before == after
    data, run = (f"tinystories_lab/{kind}/toyland-tiny/" for kind in ("data", "runs"))
    few = {data + name for name in (*_DATA_FILES, "manifest.json")}
    few |= {
        run + name for name in (*_RUN_FILES, *_MIRROR_SLOTS, *_MIRROR_SLOTS.values(), "manifest.json", "writer.json")
    }
    assert few - set(after) == {run + "ratings.jsonl"} and set(after) <= few, (
        "all files except the ratings, because nobody rated a story"
    )
