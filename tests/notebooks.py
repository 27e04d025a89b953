"""Keep the five notebooks in step: with the repository's name, and with what their deterministic cells print.

python tests/notebooks.py repository you/your-copy    writes the name into pyproject.toml, README.md and the notebooks
python tests/notebooks.py refresh                     runs all five on `tiny`, stores the outputs of marked cells only
"""

import os
import re
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
    for path in (ROOT / "pyproject.toml", ROOT / "README.md", *NOTEBOOKS):
        path.write_text(path.read_text(encoding="utf-8").replace(repository_in_force, name), encoding="utf-8")


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


if __name__ == "__main__":
    repository_in_force = repository()
    match sys.argv[1:]:
        case ["repository", name]:
            set_repository(name)
        case ["refresh"]:
            refresh()
        case _:
            sys.exit(__doc__)
