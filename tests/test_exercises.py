"""Every exercise of the notebooks works as it is described, and what its answer claims is true."""

import re

import nbformat
import pytest

from notebooks import NAMES, READ, code_cells, run_cells

EXERCISE = re.compile(
    r"^(\d+)\. In \*(.+?)\*, change `(.+?)` to `(.+?)`[.,](?:.*\n)+?"
    r"   <details><summary>Answer</summary>\n\n(?:   \S.*\n)+   </details>\n",
    re.MULTILINE,
)
WORDS = "int(coverage(list(counts.values()), 0.99).axes[0].get_legend().get_texts()[0].get_text().split()[0])"
CLAIMS = {  # what must be true after the changed cell has run; `before` has the variables from before the change
    ("01_prepare", 1): "report.duplicates == 2 and before['report'].duplicates == 1",
    ("01_prepare", 2): "shares[0][1] < before['shares'][0][1]",
    ("01_prepare", 3): f"700 < {WORDS} < 919",
    ("01_prepare", 4): "plan['steps'] == 36_621",
    ("02_tokenizer", 1): "vocabulary[-4:] == ['er', 'lo', 'low', 'Ġlow'] and 'newer' not in toy.get_vocab()",
    ("02_tokenizer", 2): "ratios[768] < ratios[max(ratios)]",
    ("02_tokenizer", 3): "stories['train'][0]['text'].startswith(tokenizer.decode(ids[:2]))",
    ("02_tokenizer", 4): "0.8 < seen.mean() < 0.92",
    ("02_tokenizer", 5): "abs(loss - before['loss'] - 0.17) < 0.01",
    ("03_train", 1): "untrained < too_large(x, y)[1].item() < before['too_large'](x, y)[1].item()",
    ("03_train", 2): "losses[-1] < before['losses'][-1] - 0.5",
    ("03_train", 3): "losses[1] != before['losses'][1]",
    ("03_train", 4): "len(losses) == 500 and losses[-1] < before['losses'][-1]",
    ("03_train", 5): "abs(row['train_loss'] - before['row']['train_loss']) < 1e-3",
    ("04_generate", 1): "'time' in rows[0][0] and rows[0][1] > 0.9",
    ("04_generate", 2): "probabilities == [1.0, 0.0, 0.0, 0.0]",
    ("04_generate", 3): "story == generate(model, tokenizer, prompts[0], 120, 0.8, 1, seed=8)",
    ("04_generate", 4): "list(twice) == [0.3, 0.8]",
    ("04_generate", 5): "list(generated) == [0.7, 0.8, 0.9]",
    ("04_generate", 6): "torch.allclose(scores[0], scores[20], atol=1e-3)",
    ("05_retrospective", 1): "round(math.exp(loss), 2) == 11.59 and round(loss / math.log(2) / size, 2) == 0.86",
    ("05_retrospective", 2): "final_row['train_loss'] > before['final_row']['train_loss']",
    ("05_retrospective", 3): "rater == 'a friend'",
    ("05_retrospective", 4): "folders[1].name.endswith('-half-half')",
    ("05_retrospective", 5): "round(hours, 1) == 11.9",
    ("06_beyond", 1): "max(map(len, beginnings)) <= 60",
    ("06_beyond", 2): "texts[0] == texts[1] != before['texts'][0]",
}
# They take long or show widgets, and no exercise needs them.
SKIPPED = {"provoke-patterns", "watch-merges", "budget-plan", "time-lapse", "playground-widget", "surprisal-colours"}
SKIPPED |= {"attention-on-a-name", "guest-playground", "trackers-both"}


def exercises_of(name: str) -> list[tuple[int, str, str, str]]:
    """Return the exercises of a notebook: (number, heading of the cell to change, old text, new text)."""
    text = READ[name].cells[-1].source.partition("## Exercises")[2]
    return [(int(number), *change) for number, *change in EXERCISE.findall(text)]


def cell_to_change(name: str, heading: str):
    """Return the code cell below this heading."""
    cells = READ[name].cells
    (place,) = [place for place, cell in enumerate(cells) if re.search(f"^## {re.escape(heading)}$", cell.source, re.M)]
    return next(cell for cell in cells[place:] if cell.cell_type == "code")


ALL = [(name, *exercise) for name in NAMES for exercise in exercises_of(name)]


@pytest.mark.parametrize("name", NAMES)
def test_every_exercise_changes_one_value_and_has_a_folded_answer(name):
    text = READ[name].cells[-1].source.partition("## Exercises")[2].partition("\n## ")[0]
    numbered = [int(number) for number in re.findall(r"^(\d+)\. ", text, re.MULTILINE)]
    assert [number for number, *_ in exercises_of(name)] == numbered == list(range(1, len(numbered) + 1))
    for _, heading, old, _ in exercises_of(name):
        assert cell_to_change(name, heading).source.count(old) == 1, f"{heading}: {old}"


def test_every_exercise_has_a_claim():
    assert [(name, number) for name, number, *_ in ALL] == list(CLAIMS)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Run all notebooks (conftest.py makes `tiny` smaller still). After a cell, run its exercises, and check their claims."""
    workspace, found = tmp_path_factory.mktemp("workspace"), {}
    for name in NAMES:
        cells, changed = [], {}
        for cell in (cell for cell in code_cells(name) if cell.id not in SKIPPED):
            cells.append(nbformat.v4.new_code_cell(cell.source))
            tasks = [task for task in exercises_of(name) if cell_to_change(name, task[1]).id == cell.id]
            if tasks:
                cells[-1].source += "\nbefore = {name: value for name, value in globals().items() if name != 'before'}"
            for number, _, old, new in tasks:  # later cells need the original values
                test = f"{cell.source.replace(old, new)}\nassert {CLAIMS[name, number]}\nglobals().update(before)"
                changed[number] = nbformat.v4.new_code_cell(test)
                cells.append(changed[number])
        run_cells(cells, workspace, allow_errors=True)
        ids = {cell.id for cell in changed.values()}
        found[name, 0] = [error for cell in cells if cell.id not in ids for error in errors_of(cell)]
        found |= {(name, number): errors_of(cell) for number, cell in changed.items()}
    return found


def errors_of(cell) -> list[str]:
    return [f"{it.ename}: {it.evalue}" for it in cell.outputs if it.output_type == "error"]


@pytest.mark.parametrize("name", NAMES)
def test_the_cells_run_between_the_exercises(name, outcomes):
    assert outcomes[name, 0] == []


@pytest.mark.parametrize(("name", "number"), CLAIMS, ids=lambda value: str(value))
def test_what_the_answer_claims_is_true(name, number, outcomes):
    assert outcomes[name, number] == []
