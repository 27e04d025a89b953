"""The notebooks in JupyterLab and Chromium, used as a learner uses them. Pictures go to tests/screenshots/."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean

import nbformat
import pytest
from browser import (
    PATIENCE,
    SCREENSHOTS,
    cell,
    changes,
    find_chromium,
    jupyter_lab,
    open_notebook,
    reopen_on_a_phone,
    run,
    slider,
    take_picture,
    too_wide,
    wait_until_all_ran,
)
from kernels import SMALL, kernels_start_with
from playwright.sync_api import expect, sync_playwright

from notebooks import NOTEBOOKS, ROOT
from tinystories_lab.analysis.evaluation import format_value
from tinystories_lab.analysis.ratings import _GENERATED_STORIES, _REAL_STORIES, QUESTIONS
from tinystories_lab.files import read_log, read_rows

STORIES = _GENERATED_STORIES + _REAL_STORIES
REQUIRED = os.environ.get("TINYSTORIES_LAB_BROWSER") == "required"  # as in CI, where no test may be skipped
pytestmark = pytest.mark.skipif(
    not find_chromium() and not REQUIRED, reason="no Chromium here (on Debian: apt-get install chromium)"
)
READ = {path.stem: nbformat.read(path, as_version=4) for path in NOTEBOOKS}
PARTS = ("prompt", "temperature", "top_k", "top_p", "length", "seed", "token")
PARTS += ("generate", "stop", "status", "story", "probabilities")
MAKE_A_RUN = """
from tinystories_lab import pipeline, run
for stage in pipeline.STAGES.values():
    stage(run.plan_workspace("."))
"""


@pytest.fixture(scope="module")
def learner(tmp_path_factory):
    """Two copies of the notebooks, one beside a finished run and one beside its data alone."""
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
    context.route("https://**", lambda route: route.abort())  # badges and news: no test uses the network
    expect.set_options(timeout=PATIENCE)
    yield context.new_page()
    context.close()


def check_on_a_phone(page, address, path):
    """Check that nothing must be scrolled sideways, and save a picture of the whole notebook."""
    reopen_on_a_phone(page, address, path)
    take_picture(page, f"{Path(path).stem}_on_a_phone")
    assert too_wide(page) == []


@pytest.mark.parametrize("name", ["01_prepare", "02_tokenizer"])
def test_the_first_two_notebooks_run_and_fit_on_a_phone(page, address, name):
    path = f"finished/notebooks/{name}.ipynb"
    open_notebook(page, address, path)
    run(page, "Run All Cells")
    wait_until_all_ran(page)
    if name == "02_tokenizer":
        merging = cell(page, READ[name], "watch-merges")
        for _ in range(3):
            with changes(merging.locator(".jp-OutputArea").first):
                slider(merging).press("PageUp")
        take_picture(page, "02_merges_on_a_sentence", merging)
    check_on_a_phone(page, address, path)


def test_training_stopped_by_hand_resumes_when_the_cell_is_run_again(page, address, learner):
    path = "untrained/notebooks/03_train.ipynb"
    open_notebook(page, address, path)
    training = cell(page, READ["03_train"], "train-loop")
    run(page, "Run All Cells")
    log = learner / "untrained" / "runs" / "toyland-tiny" / "loss.jsonl"
    end = time.monotonic() + PATIENCE / 1000
    while not log.exists() or '"step": 20,' not in log.read_text():
        assert time.monotonic() < end, "training should have begun"
        page.wait_for_timeout(50)
    page.locator("[data-command='notebook:interrupt-kernel']").click()
    expect(training).to_contain_text("stopped and saved; run this cell again to continue")
    wait_until_all_ran(page, well=False)
    take_picture(page, "03_stopped", training)

    training.locator(".jp-InputArea-prompt").first.click()
    run(page, "Run Selected Cell and All Below")
    expect(training).to_contain_text(re.compile(r"resumed at step [1-9]\d"))
    wait_until_all_ran(page)
    expect(training).to_contain_text("150/150")
    take_picture(page, "03_resumed_and_finished", training)
    steps = [row["step"] for row in read_log(log)]
    assert steps == sorted(set(steps)) and steps[-1] == 150
    check_on_a_phone(page, address, path)


def test_the_playground_changes_probabilities_and_stop_ends_a_story(page, address):
    path = "finished/notebooks/04_generate.ipynb"
    open_notebook(page, address, path)
    run(page, "Run All Cells")
    wait_until_all_ran(page)
    playground = cell(page, READ["04_generate"], "playground-widget")
    part = {name: playground.locator(f".playground-{name}") for name in PARTS}
    expect(part["status"]).to_contain_text(re.compile("ended by itself|reached its length"))
    take_picture(page, "04_playground", playground)

    with changes(part["probabilities"]):
        part["prompt"].get_by_role("combobox").fill("Lily found a big")  # after which the model has a choice
        part["prompt"].get_by_role("combobox").press("Enter")
    expect(part["status"]).to_contain_text("Not generated yet: press Generate.")
    for name, key in (("temperature", "ArrowRight"), ("top_p", "ArrowLeft"), ("top_k", "Home")):
        with changes(part["probabilities"]):
            slider(part[name]).press(key)
    expect(part["probabilities"]).to_contain_text("100.0%")  # top_k is 1 now
    take_picture(page, "04_only_the_likeliest", playground)

    slider(part["length"]).press("End")
    expect(part["length"]).to_contain_text("500")
    part["generate"].press("Enter")  # a mouse is not needed
    expect(part["status"]).to_contain_text("so far")
    lengths = []
    for _ in range(3):
        with changes(part["story"]):
            pass  # the story grows by itself
        lengths.append(len(part["story"].inner_text()))
    page.screenshot(path=SCREENSHOTS / "04_generating.png")
    part["stop"].click()
    expect(part["status"]).to_contain_text("You stopped it.")
    assert lengths == sorted(set(lengths)), "the story should be longer at each look"
    assert 0 < int(re.search(r"(\d+) tokens", part["status"].inner_text())[1]) < 500
    expect(part["generate"]).to_be_enabled()

    for place in range(2, 5):
        with changes(part["probabilities"]), changes(part["story"]):
            slider(part["token"]).press("ArrowRight")
        expect(part["token"]).to_contain_text(str(place))
        expect(part["probabilities"]).to_contain_text("was drawn")
    take_picture(page, "04_stopped_and_walked", playground)
    page.emulate_media(color_scheme="dark")
    expect(page.locator("body")).to_have_attribute("data-jp-theme-light", "false")
    expect(page.locator("#jupyterlab-splash")).to_have_count(0)
    take_picture(page, "04_in_the_dark", playground)
    page.emulate_media(color_scheme="light")
    check_on_a_phone(page, address, path)


def test_stories_are_rated_blind_and_averaged(page, address, learner):
    path = "finished/notebooks/05_retrospective.ipynb"
    open_notebook(page, address, path)
    run(page, "Run All Cells")
    wait_until_all_ran(page)
    form = cell(page, READ["05_retrospective"], "rate-form")
    part = {name: form.locator(f".rating-{name}") for name in ("progress", "story", "next", *QUESTIONS)}
    part["next"].click()
    expect(form).to_contain_text("not saved: ")  # nothing has been rated yet
    for number in range(1, STORIES + 1):
        expect(part["progress"]).to_contain_text(f"story {number} of {STORIES}")
        for question, mark in zip(QUESTIONS, marks_of(number), strict=True):
            for _ in range(mark + 1):  # the slider starts one step below 0, at no mark
                slider(part[question]).press("ArrowRight")
            expect(part[question].locator(".widget-readout")).to_have_text(str(mark))
        if number == 4:
            take_picture(page, "05_rating_the_fourth", form)
        part["next"].click()
    expect(part["progress"]).to_contain_text(f"All {STORIES} stories are rated")
    take_picture(page, "05_rated_and_averaged", form)

    numbers = part["story"].locator("td").filter(has_text=re.compile(r"^\d[\d.]*$"))
    aligned = numbers.evaluate_all("cells => cells.map(cell => getComputedStyle(cell).textAlign)")
    assert aligned == ["right"] * 18, "mean, spread and count for three questions and two authors"

    rows = read_rows(learner / "finished" / "runs" / "toyland-tiny" / "ratings.jsonl")
    assert [[row[question] for question in QUESTIONS] for row in rows] == [
        list(marks_of(number)) for number in range(1, STORIES + 1)
    ]
    for by in ("model", "real"):
        mean = format_value(fmean(row["coherence"] for row in rows if row["by"] == by))
        expect(part["story"]).to_contain_text(re.compile(rf"coherence\s*{by}\s*{re.escape(mean)}"))
    check_on_a_phone(page, address, path)


def marks_of(number):
    """Return the marks for a story: grammar, coherence and fun."""
    return 5, number % 6, 0
