"""Keep the five notebooks in step: with the repository's name, and with what their deterministic cells print.

python tests/notebooks.py repository you/your-copy    writes the name into pyproject.toml, README.md and the notebooks
python tests/notebooks.py refresh                     runs all five on `tiny`, stores the outputs of marked cells only
python tests/notebooks.py pictures                    runs 3 and 4 on `tiny` in a browser, keeps what README.md shows of them
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
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CHECKED = "# NBVAL_CHECK_OUTPUT"
METADATA = {  # the same in all five, and nothing a front end adds
    "accelerator": "GPU",
    "colab": {"gpuType": "T4"},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def repository() -> str:
    """owner/name, from the one place that holds it: pyproject.toml."""
    url = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    return url.removeprefix("https://github.com/")


def set_repository(name: str) -> None:
    """Replace the repository's name everywhere. Raises ValueError for a name that is not owner/name."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ValueError(f"{name!r} is not owner/name, such as you/tinystories_lab")
    old = repository()
    for path in (ROOT / "pyproject.toml", ROOT / "README.md", *NOTEBOOKS):
        path.write_text(path.read_text(encoding="utf-8").replace(old, name), encoding="utf-8")


def strip(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Drop what running leaves behind: outputs (except of marked cells), counts, and metadata."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            checked = CHECKED in cell.source
            cell.execution_count = 1 if checked else None  # nbval takes a cell without a count for one that never ran
            cell.outputs = cell.outputs if checked else []
            for output in cell.outputs:
                output.pop("execution_count", None)
                if "metadata" in output:
                    output.metadata = {}
    return notebook


def refresh() -> None:
    """Run the notebooks in order in a fresh workspace and write them back, stripped."""
    with tempfile.TemporaryDirectory() as workspace:
        os.environ |= {"TINYSTORIES_LAB_WORKSPACE": workspace, "TINYSTORIES_LAB_PRESET": "tiny"}
        for path in NOTEBOOKS:
            notebook = nbformat.read(path, as_version=4)
            NotebookClient(notebook, resources={"metadata": {"path": str(path.parent)}}).execute()
            nbformat.write(strip(notebook), path)
            print(f"refreshed {path.name}")


def pictures() -> None:
    """Train and tell as a learner does, and keep notebooks/images/live_run.png and playground.png."""
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
            page.set_default_timeout(PATIENCE)
            for name, cell_id in (("03_train", "train-loop"), ("04_generate", "playground-widget")):
                open_notebook(page, address, f"notebooks/{name}.ipynb")
                run(page, "Run All Cells")
                wait_until_all_ran(page)
                shown = cell(page, nbformat.read(lab / "notebooks" / f"{name}.ipynb", 4), cell_id)
                if name == "04_generate":
                    for _ in range(15):  # to a token that could have been another
                        with changes(shown.locator(".playground-odds")):
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
        case ["pictures"]:
            pictures()
        case _:
            sys.exit(__doc__)
