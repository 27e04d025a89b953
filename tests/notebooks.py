"""Keep the notebooks consistent: the name of the repository, and the outputs of deterministic cells.

python tests/notebooks.py repository you/your-copy    replace the name everywhere, in README.md too
python tests/notebooks.py refresh                     run all on `tiny`, and store the outputs of marked cells only
python tests/notebooks.py strip                       remove outputs, counts and a front end's metadata, as before a commit
python tests/notebooks.py pictures                    run all on `tiny` in a browser, and save notebooks/images/
"""

import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import nbformat
import yaml
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]
READ = {path.stem: nbformat.read(path, as_version=4) for path in NOTEBOOKS}


def code_cells(name: str) -> list:
    """Return the code cells of a notebook."""
    return [cell for cell in READ[name].cells if cell.cell_type == "code"]


def run_cells(cells: list, workspace: Path, allow_errors: bool = False, **environment: str) -> None:
    """Run cells in a new kernel, with `tiny` in this workspace. They get their outputs."""
    notebook = nbformat.v4.new_notebook(cells=cells)
    variables = {"TINYSTORIES_LAB_WORKSPACE": str(workspace), "TINYSTORIES_LAB_PRESET": "tiny", **environment}
    resources = {"metadata": {"path": str(ROOT / "notebooks")}}
    # Sometimes pyzmq misses that a cell has ended until the timeout, which is no error then. Without one, it waits forever.
    client = NotebookClient(notebook, timeout=90, allow_errors=allow_errors, resources=resources)
    client.execute(env={**os.environ, **variables})


def repository() -> str:
    """Return owner/name, as given in pyproject.toml."""
    url = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    return url.removeprefix("https://github.com/")


def set_repository(name: str) -> None:
    """Replace the repository's name everywhere. Raises ValueError for a name that is not owner/name."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ValueError(f"the repository is {name!r}; it must be owner/name, such as you/tinystories_lab")
    old = repository()
    for path in (*(ROOT / name for name in ("pyproject.toml", "README.md", "CITATION.cff")), *NOTEBOOKS):
        path.write_text(path.read_text(encoding="utf-8").replace(old, name), encoding="utf-8")


def strip(paths: list[Path]) -> None:
    """Run nbstripout as before a commit: remove all traces of a run, except outputs of cells tagged keep_output."""
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    subprocess.run([sys.executable, "-m", "nbstripout", *hooks[0]["args"], *paths], check=True)


def refresh() -> None:
    """Run the notebooks in order in a fresh workspace and write them back, stripped."""
    with tempfile.TemporaryDirectory() as workspace:
        variables = {"TINYSTORIES_LAB_WORKSPACE": workspace, "TINYSTORIES_LAB_PRESET": "tiny"}
        command = [sys.executable, "-m", "nbconvert", "--to=notebook", "--execute", "--inplace", *NOTEBOOKS]
        subprocess.run(command, env=os.environ | variables, check=True)
    strip(NOTEBOOKS)


# notebook: (cell, picture, part of the output, states of its widget). A state is what is pressed before it is shown: (part
# of the widget, key, how often). The states are joined in one picture.
OUTPUT = ".jp-Cell-outputArea"
PICTURES = {
    "01_prepare": [("opening-plot", "openings", OUTPUT, [[]]), ("word-plot", "words", OUTPUT, [[]])],
    "02_tokenizer": [
        ("watch-merges", "merges", OUTPUT, [[], [("", "PageUp", 3)], [("", "End", 1)]]),
        ("window-diagram", "windows", OUTPUT, [[]]),
    ],
    "03_train": [
        ("train-loop", "live_run", OUTPUT, [[]]),
        ("provoke-patterns", "patterns", "img", [[]]),
        ("time-lapse", "timelapse", OUTPUT, [[], [("", "ArrowRight", 3)], [("", "ArrowRight", 2)], [("", "End", 1)]]),
    ],
    "04_generate": [
        ("playground-widget", "playground", OUTPUT, [[(".playground-token", "ArrowRight", 15)]]),
        (
            "playground-widget",
            "playground_states",
            ".playground-probabilities",
            [[], [(".playground-temperature", "ArrowRight", 10)], [(".playground-top_k", "Home", 1)]],
        ),
        ("surprisal-colours", "surprisal", OUTPUT, [[]]),
        ("attention-on-a-name", "attention", OUTPUT, [[]]),
    ],
    "05_retrospective": [
        ("curve-plot", "loss_by_tokens", "img", [[]]),
        ("rate-form", "rating", OUTPUT, [[]]),
        ("two-runs", "two_runs", "img", [[]]),
    ],
    "06_beyond": [("load-guest", "guest", OUTPUT, [[]])],
}
WIDEST = 1_000  # pixels of a saved picture


def pictures() -> None:
    """Run all notebooks on `tiny` in a browser, as a learner does, and save PICTURES in notebooks/images/."""
    from browser import PATIENCE, cell, find_chromium, jupyter_lab, open_notebook, run, slider, wait_until_all_ran
    from PIL import Image
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder:
        lab, home = Path(folder, "lab"), Path(folder, "home")
        shutil.copytree(ROOT / "notebooks", lab / "notebooks")
        with jupyter_lab(lab, home, PYTHONPATH=str(ROOT)) as address, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1080, "height": 1500}, device_scale_factor=1.5)
            page.set_default_timeout(5 * PATIENCE)  # notebook 3 runs as a whole, with a full `tiny`
            for name, wanted in PICTURES.items():
                open_notebook(page, address, f"notebooks/{name}.ipynb")
                run(page, "Run All Cells")
                wait_until_all_ran(page)
                page.add_style_tag(
                    content=".jp-OutputPrompt, .jp-Collapser, .jp-OutputArea-promptOverlay { display: none }"
                )
                for cell_id, image, part, states in wanted:
                    shown, shots = cell(page, READ[name], cell_id), []
                    for state in states:
                        for place, key, times in state:
                            for _ in range(times):
                                slider(shown.locator(place) if place else shown).first.press(key)
                                page.wait_for_timeout(500)
                        shots.append(Image.open(io.BytesIO(shown.locator(part).last.screenshot())).convert("RGB"))
                    wide, high = [shot.width for shot in shots], [shot.height for shot in shots]
                    is_row = len(shots) > 1 and sum(wide) <= 1.6 * WIDEST  # narrow states stand side by side
                    size = (sum(wide), max(high)) if is_row else (max(wide), sum(high))
                    strip = Image.new("RGB", size, "white")
                    for place, shot in enumerate(shots):
                        strip.paste(shot, (sum(wide[:place]), 0) if is_row else (0, sum(high[:place])))
                    if not is_row:
                        strip.thumbnail((WIDEST, 10 * WIDEST))
                    strip.quantize(128).save(ROOT / "notebooks" / "images" / f"{image}.png", optimize=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["repository", name]:
            set_repository(name)
        case ["refresh"]:
            refresh()
        case ["strip"]:
            strip(NOTEBOOKS)
        case ["pictures"]:
            pictures()
        case _:
            sys.exit(__doc__)
