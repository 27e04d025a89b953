"""The notebooks in a real browser: JupyterLab, Chromium, and the hands of a learner. Pictures go to tests/screenshots/."""

import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
from browser import (
    ERRORS,
    FINISHED,
    PATIENCE,
    SCREENSHOTS,
    cell,
    choose,
    find_chromium,
    jupyter_lab,
    open_notebook,
    run_all,
    slider,
    take_picture,
)
from kernels import SMALL, kernels_start_with
from playwright.sync_api import expect, sync_playwright

from notebooks import NOTEBOOKS, ROOT

REQUIRED = os.environ.get("TINYSTORIES_LAB_BROWSER") == "required"  # as in CI: nothing is skipped
pytestmark = pytest.mark.skipif(
    not find_chromium() and not REQUIRED, reason="no Chromium here (on Debian: apt-get install chromium)"
)
READ = {path.stem: nbformat.read(path, as_version=4) for path in NOTEBOOKS}
MAKE_A_RUN = """
from tinystories_lab import stages
for stage in stages.STAGES.values():
    stage(presets.plan_workspace("."))
"""


@pytest.fixture(scope="module")
def learner(tmp_path_factory):
    """A folder with copies of the notebooks beside a finished run, and one with its data alone, not yet trained on."""
    home = tmp_path_factory.mktemp("learner")
    for workspace in ("finished", "untrained"):
        shutil.copytree(ROOT / "notebooks", home / workspace / "notebooks")
    here = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SMALL + MAKE_A_RUN]
    subprocess.run(command, cwd=home / "finished", env=here, check=True, capture_output=True)
    shutil.copytree(home / "finished" / "data", home / "untrained" / "data")
    return home


@pytest.fixture(scope="module")
def address(learner, tmp_path_factory):
    home = tmp_path_factory.mktemp("jupyter")
    environment = {"PYTHONPATH": str(ROOT), "TINYSTORIES_LAB_WORKSPACE": ""}  # so that each folder is a workspace
    with jupyter_lab(learner, home, **kernels_start_with(home / "ipython", SMALL), **environment) as address:
        yield address


@pytest.fixture(scope="module")
def chromium():
    SCREENSHOTS.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])


@pytest.fixture
def page(chromium):
    context = chromium.new_context(viewport={"width": 1200, "height": 900})
    context.set_default_timeout(PATIENCE)
    context.route("https://**", lambda route: route.abort())  # badges and news: no test reaches out
    expect.set_options(timeout=PATIENCE)
    yield context.new_page()
    context.close()


def test_the_playground_follows_its_sliders(page, address):
    open_notebook(page, address, "finished/notebooks/04_generate.ipynb")
    run_all(page)
    expect(page.locator(ERRORS)).to_have_count(0)
    playground = cell(page, READ["04_generate"], "playground-widget")
    take_picture(page, "04_playground", playground)
    before = playground.inner_text()
    slider(playground, "temperature").press("ArrowRight")
    expect(playground).not_to_have_text(before)


def test_training_stopped_by_hand_goes_on_where_it_was_when_the_cell_is_run_again(page, address):
    open_notebook(page, address, "untrained/notebooks/03_train.ipynb")
    training = cell(page, READ["03_train"], "train-loop")
    choose(page, "Run", "Run All Cells")
    expect(training).to_contain_text(re.compile(r"[1-9]\d/150"))
    page.locator("[data-command='notebook:interrupt-kernel']").click()
    expect(training).to_contain_text("KeyboardInterrupt")
    take_picture(page, "03_stopped", training)

    training.locator(".jp-InputArea-prompt").first.click()
    choose(page, "Run", "Run Selected Cell and All Below")
    expect(training).to_contain_text(re.compile(r"resumed at step [1-9]\d"))
    page.wait_for_function(FINISHED)
    expect(page.locator(ERRORS)).to_have_count(0)
    expect(training).to_contain_text("150/150")
    take_picture(page, "03_resumed_and_finished", training)
