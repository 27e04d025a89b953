"""Keep the notebooks consistent: the name of the repository, and the outputs of deterministic cells.

python tests/notebooks.py repository you/your-copy    replace the name everywhere, in README.md too
python tests/notebooks.py refresh                     run all on `tiny`, and store the outputs of marked cells only
python tests/notebooks.py strip                       remove outputs, counts and a front end's metadata, as before a commit
python tests/notebooks.py pictures                    run 3 and 4 on `tiny` in a browser, and save README.md's pictures
"""

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
    NotebookClient(notebook, allow_errors=allow_errors, resources=resources).execute(env={**os.environ, **variables})


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


def pictures() -> None:
    """Train and generate as a learner does, and save notebooks/images/live_run.png and playground.png."""
    from browser import (
        PATIENCE,
        cell,
        changes,
        find_chromium,
        jupyter_lab,
        open_notebook,
        run,
        slider,
        wait_until_all_ran,
    )
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder:
        lab, home, environment = Path(folder, "lab"), Path(folder, "home"), {"PYTHONPATH": str(ROOT)}
        shutil.copytree(ROOT / "notebooks", lab / "notebooks")
        for stage in ("prepare", "tokenizer"):
            command = [sys.executable, "-m", "tinystories_lab", stage, "--preset", "tiny"]
            subprocess.run(command, cwd=lab, env=os.environ | environment, check=True)
        with jupyter_lab(lab, home, **environment) as address, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1080, "height": 1500}, device_scale_factor=1.5)
            page.set_default_timeout(5 * PATIENCE)  # notebook 3 runs as a whole, with a full `tiny`
            for name, cell_id in (("03_train", "train-loop"), ("04_generate", "playground-widget")):
                open_notebook(page, address, f"notebooks/{name}.ipynb")
                run(page, "Run All Cells")
                wait_until_all_ran(page)
                shown = cell(page, nbformat.read(lab / "notebooks" / f"{name}.ipynb", 4), cell_id)
                if name == "04_generate":
                    for _ in range(15):  # to a token with other likely candidates
                        with changes(shown.locator(".playground-probabilities")):
                            slider(shown.locator(".playground-token")).press("ArrowRight")
                image = {"03_train": "live_run", "04_generate": "playground"}[name]
                part = shown.locator(".jp-OutputArea-output").first
                part.screenshot(path=ROOT / "notebooks" / "images" / f"{image}.png")


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
