import ast
import re
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
REQUIREMENTS = [
    Requirement(line)
    for line in (ROOT / "requirements.txt").read_text().splitlines()
    if line and not line.startswith("#")
]


TRACKERS = {"tensorboard", "wandb"}  # used where they are there, and asked for in a sentence where they are not


def test_colab_satisfies_every_requirement_so_that_set_up_changes_nothing_there():
    lines = (ROOT / "tests/data/colab-pip-freeze.txt").read_text().splitlines()[1:]
    shipped = {name.lower(): version for name, version in (line.split("==") for line in lines)}
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["dev"]
    trackers = [requirement for requirement in map(Requirement, extra) if requirement.name in TRACKERS]
    assert len(trackers) == len(TRACKERS), "the tests need them"
    for requirement in [*REQUIREMENTS, *trackers]:
        assert requirement.name.lower() in shipped, f"Colab does not ship {requirement.name}"
        assert requirement.specifier.contains(shipped[requirement.name.lower()]), str(requirement)


def test_every_requirement_has_a_lower_bound_and_nothing_else():
    for requirement in REQUIREMENTS:
        assert re.fullmatch(r">=[\d.]+", str(requirement.specifier)), str(requirement)


def test_every_package_that_the_code_imports_is_required():
    imported = set()
    for path in (ROOT / "tinystories_lab").rglob("*.py"):
        imported |= set(re.findall(r"^\s*(?:import|from) (\w+)", path.read_text(), re.MULTILINE))
    required = {requirement.name.lower() for requirement in REQUIREMENTS} | {"yaml", "ipython"} | TRACKERS
    others = {name.lower() for name in imported} - set(sys.stdlib_module_names) - {"tinystories_lab", "google", "q"}
    assert others <= required, f"not in requirements.txt: {others - required}"


def test_importing_the_package_brings_no_figures_no_widgets_and_no_trackers():
    code = "import sys, tinystories_lab.__main__, tinystories_lab.trackers; print([m for m in ('matplotlib', 'ipywidgets', 'IPython', 'tensorboard', 'wandb') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_training_and_telling_import_nothing_that_only_other_stages_need():
    code = "import sys, tinystories_lab.trainer, tinystories_lab.generate; print([m for m in ('datasets', 'pandas') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_the_readme_names_every_module_and_none_imports_what_stands_below_it():
    rows = re.findall(r"^\| (`tinystories_lab/.*)", (ROOT / "README.md").read_text(), re.MULTILINE)
    *order, (_, *in_notebook) = (re.findall(r"`(?:tinystories_lab/)?(\w+)(?:\.py|/)`", row) for row in rows)
    order = list(chain.from_iterable(order))
    for position, name in enumerate(order):
        text = (ROOT / "tinystories_lab" / f"{name}.py").read_text()
        imports = re.findall(r"^from tinystories_lab\.(\w+) import", text, re.MULTILINE)
        below = [other for other in imports if order.index(other) >= position]
        assert not below, f"{name} imports {below}, which stand below it"
    for folder, named in ((ROOT / "tinystories_lab", order), (ROOT / "tinystories_lab" / "notebook", in_notebook)):
        assert sorted({path.stem for path in folder.glob("*.py")} - {"__init__"}) == sorted(named)


def test_the_picture_of_the_modules_has_each_once_and_its_arrows_are_what_is_imported():
    picture = re.search(r"^```mermaid\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE | re.DOTALL)[1]
    labels = dict(re.findall(r'^ +(\w+)\["<b>.*?</b><br>(.*)"\]$', picture, re.MULTILINE))
    prefix = {"notebook": "notebook."}
    drawn = [(prefix.get(room, "") + name, room) for room in labels for name in re.split(r", |<br>", labels[room])]
    room_of, imports = dict(drawn), {"-->": set(), "-.->": set()}
    modules = {path: path.relative_to(ROOT / "tinystories_lab") for path in (ROOT / "tinystories_lab").rglob("*.py")}
    names = {path: ".".join(short.with_suffix("").parts) for path, short in modules.items() if short.stem != "__init__"}
    assert sorted(names.values()) == sorted(name for name, _ in drawn)
    for path, name in names.items():
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("tinystories_lab."):
                other = room_of[node.module.removeprefix("tinystories_lab.")]
                imports["-->" if node in tree.body else "-.->"].add((room_of[name], other))
    arrows = {arrow: set(re.findall(rf"^ +(\w+) {arrow} (\w+)$", picture, re.MULTILINE)) for arrow in imports}
    assert arrows["-->"] <= imports["-->"] and arrows["-.->"] <= imports["-.->"], "an arrow that no import follows"

    def reached(room: str) -> set[str]:
        return {room}.union(*(reached(to) for start, to in arrows["-->"] if start == room))

    for start, to in imports["-->"] | (imports["-.->"] - arrows["-.->"]):
        assert to in reached(start), f"{start} imports from {to}, and no arrows lead there"


def test_ruff_finds_nothing():
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run([sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
