"""The form of the notebooks on disk. That they run is checked by nbval, cell by cell."""

import ast
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import micro
import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

from tinystories_lab.files import read_log

sys.path.insert(0, str(Path(__file__).parent))
from notebooks import NAMES, READ, ROOT, code_cells, repository, run_cells, strip

METADATA = {  # the same in all, without what a front end adds
    "accelerator": "GPU",
    "colab": {"gpuType": "T4"},
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def test_the_notebooks_are_the_five_stages_in_order_and_a_sixth():
    assert NAMES == ["01_prepare", "02_tokenizer", "03_train", "04_generate", "05_retrospective", "06_beyond"]


@pytest.mark.parametrize("name", NAMES)
class TestEachNotebook:
    def test_it_is_valid_and_its_cells_have_unique_ids(self, name):
        nbformat.validate(READ[name])
        ids = [cell.id for cell in READ[name].cells]
        assert len(set(ids)) == len(ids)
        assert all(re.fullmatch(r"[a-z-]+", cell_id) for cell_id in ids), "ids are words, so that diffs stay small"

    def test_it_has_no_stray_outputs_counts_or_metadata(self, name):
        assert READ[name].metadata == METADATA
        for cell in READ[name].cells:
            marked = cell.cell_type == "code" and cell.source.startswith("# NBVAL_CHECK_OUTPUT")
            assert cell.metadata == ({"tags": ["keep_output"]} if marked else {}), cell.id
            assert cell.get("execution_count") is None and bool(cell.get("outputs")) == marked, (
                f"{cell.id}: a marked cell needs an output to compare with, and no other cell may have one"
            )
            for output in cell.get("outputs", []):
                assert not output.get("metadata") and output.get("execution_count") is None, cell.id

    def test_stripping_it_after_a_run_in_a_front_end_gives_back_the_committed_file(self, name, tmp_path):
        used, saved = nbformat.from_dict(READ[name]), tmp_path / "saved.ipynb"
        used.metadata |= {"widgets": {"application/vnd.jupyter.widget-state+json": {}}}
        used.metadata.language_info |= {"version": "3.12.1", "pygments_lexer": "ipython3", "mimetype": "text/x-python"}
        used.metadata.colab |= {"provenance": []}
        for count, cell in enumerate(used.cells):
            cell.metadata |= {"editable": True, "id": "x1", "colab": {"height": 9}, "execution": {}}
            if cell.cell_type == "code":
                cell.execution_count = count
                cell.outputs = cell.outputs or [nbformat.v4.new_output("stream", text="seen")]
        nbformat.write(used, saved)
        assert saved.read_bytes() != (ROOT / "notebooks" / f"{name}.ipynb").read_bytes()
        strip([saved])
        assert saved.read_bytes() == (ROOT / "notebooks" / f"{name}.ipynb").read_bytes()

    def test_it_opens_with_its_badge_and_what_you_will_learn(self, name):
        first = READ[name].cells[0].source
        assert f"colab.research.google.com/github/{repository()}/blob/main/notebooks/{name}.ipynb" in first
        assert "You will\n" in first and "**Time and hardware.**" in first

    def test_set_up_and_choices_are_the_same_as_in_the_others(self, name):
        assert [c.source for c in code_cells(name)[:2]] == [c.source for c in code_cells(NAMES[0])[:2]]
        assert f'REPOSITORY = "{repository()}"' in code_cells(name)[0].source

    def test_it_links_to_the_next_notebook(self, name):
        following = NAMES[NAMES.index(name) + 1 :][:1]
        assert all(f"({next_name}.ipynb)" in READ[name].cells[-1].source for next_name in following)

    def test_no_cell_defines_a_function_or_a_class(self, name):
        for cell in code_cells(name):
            assert not re.search(r"^\s*(class|def) ", cell.source, re.MULTILINE), cell.id

    def test_it_has_15_to_30_cells_and_short_code(self, name):
        lines = [len([line for line in cell.source.splitlines() if line.strip()]) for cell in code_cells(name)]
        words = sum(len(cell.source.split()) for cell in READ[name].cells if cell.cell_type == "markdown")
        assert 15 <= len(READ[name].cells) <= 30
        assert median(lines) <= 6 and max(lines) <= 20 and words >= 5 * sum(lines)

    def test_text_precedes_each_code_cell(self, name):
        cells = READ[name].cells
        assert all(before.cell_type == "markdown" for before, cell in pairwise(cells) if cell.cell_type == "code")

    def test_it_says_once_where_the_figures_after_you_should_see_were_measured(self, name):
        text = "\n".join(cell.source for cell in READ[name].cells if cell.cell_type == "markdown")
        assert text.count("**You should see**") >= 2
        assert re.search(r"^\*\*Measured\.\*\* Figures after \*You should see\* .*CPU cores", text, re.MULTILINE)
        assert "(measured on" not in text

    def test_every_assertion_has_a_message(self, name):
        for cell in code_cells(name):
            for statement in ast.walk(ast.parse(re.sub(r"^( *)[!%].*", r"\1pass", cell.source, flags=re.MULTILINE))):
                assert not isinstance(statement, ast.Assert) or statement.msg, cell.id

    def test_it_ends_with_common_failures_exercises_and_the_files_written(self, name):
        headings = re.findall(r"^## (.*)", "\n".join(cell.source for cell in READ[name].cells[-4:]), re.MULTILINE)
        assert headings[-3:-1] == ["Common failures", "Exercises"] and headings[-1].startswith("What was written")

    def test_it_has_five_words_of_text_per_line_of_code(self, name):
        words = sum(len(cell.source.split()) for cell in READ[name].cells if cell.cell_type == "markdown")
        assert words >= 5 * sum(len(cell.source.splitlines()) for cell in code_cells(name))


def test_on_a_new_machine_each_notebook_names_the_one_to_run_first(tmp_path):
    needed = dict(zip(NAMES[1:], ["01_prepare", "02_tokenizer", "03_train", "03_train", "03_train"], strict=True))
    first = {name: code_cells(name)[2:3] for name in needed}
    first = {name: [nbformat.from_dict(cell) for cell in cells] for name, cells in first.items()}
    set_up = code_cells(NAMES[0])[:2]  # the same in all, so one kernel is enough
    run_cells([*set_up, *(cell for cells in first.values() for cell in cells)], tmp_path, allow_errors=True)
    for name, cells in first.items():
        (error,) = [output for cell in cells for output in cell.outputs if output.output_type == "error"]
        assert error.ename == "FileNotFoundError" and f"run {needed[name]}" in error.evalue, name


@pytest.mark.parametrize("name", ["final.pt", "last.pt"])
def test_04_generates_from_last_pt_if_training_is_not_finished(name, uninterrupted, data_dir, tmp_path):
    run_dir = tmp_path / "runs" / "toyland-tiny"
    run_dir.mkdir(parents=True)
    for path in (uninterrupted() / "last.pt", uninterrupted() / name, data_dir / "tokenizer.json"):
        shutil.copy(path, run_dir)
    cells = [nbformat.from_dict(cell) for cell in code_cells("04_generate")[:4]]
    run_cells(cells, tmp_path)
    said = str(cells[2].outputs)
    assert (
        ("Training is not finished" in said) == (name == "last.pt")
        and f"{name}, " in said
        and "bars" in cells[3].source
    )


def test_the_set_up_cell_looks_for_the_last_file_that_git_writes():
    (name,) = re.findall(r'exists\("/content/lab/(.*?)"\)', code_cells(NAMES[0])[0].source)
    paths = [*ROOT.glob("*"), *(path for path in (ROOT / name).parent.rglob("*") if "__pycache__" not in path.parts)]
    assert name == max(path.relative_to(ROOT).as_posix() for path in paths if path.suffix != ".egg-info")


def source_of(name: str, cell_id: str) -> str:
    return next(cell.source for cell in READ[name].cells if cell.id == cell_id)


def test_the_check_of_03_says_what_to_do_for_any_total_steps(uninterrupted):
    names = {"read_log": read_log, "lab": SimpleNamespace(run_dir=uninterrupted()), "model_config": micro.MODEL}
    for total_steps, advice in ((24, "step 12 of 24: run the training cell again"), (6, "past total_steps 6: raise")):
        with pytest.raises(AssertionError, match=advice):
            exec(
                source_of("03_train", "curve-plot"),
                names | {"config": replace(micro.TRAIN, total_steps=total_steps), "untrained": 9.0},
            )


def test_a_cell_that_writes_to_the_data_folder_holds_its_lock():
    tree = ast.parse("\n".join(source_of("02_tokenizer", cell) for cell in ("train-bpe", "write-bins")))
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.With)]
    assert all(ast.unparse(block.items[0]) == "data_lock(lab.data_dir)" for block in blocks)
    writes = {"save_tokenizer": 1, "write_bin": 2}
    for where in (tree, ast.Module(blocks, [])):
        called = [node.func.id for node in ast.walk(where) if isinstance(node, ast.Call) and hasattr(node.func, "id")]
        assert {name: called.count(name) for name in writes} == writes


@pytest.mark.skipif(not repository().startswith("OWNER/"), reason="the repository is set")
def test_on_colab_an_unset_repository_is_refused_before_anything_is_downloaded(tmp_path):
    not_installed = nbformat.v4.new_code_cell("import sys\nsys.modules['tinystories_lab'] = None")
    with pytest.raises(CellExecutionError, match="Set REPOSITORY above"):
        run_cells([not_installed, *code_cells(NAMES[0])[:1]], tmp_path, COLAB_RELEASE_TAG="release")


def test_one_command_sets_the_repository_everywhere(tmp_path):
    for name in ("notebooks", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "CITATION.cff"):
        shutil.copy(ROOT / name, tmp_path)
    command = [sys.executable, str(tmp_path / "tests" / "notebooks.py"), "repository"]
    assert subprocess.run([*command, "ada/my-copy"]).returncode == 0
    for path in (*tmp_path.glob("*.*"), *(tmp_path / "notebooks").glob("*.ipynb")):
        assert "ada/my-copy" in path.read_text() and repository() not in path.read_text(), path.name
    failed = subprocess.run([*command, "no-owner"], capture_output=True, text=True)
    assert failed.returncode and "owner/name" in failed.stderr
