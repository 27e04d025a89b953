"""The structure of the package: a core that stands alone, layers above it, and no unused public name."""

import ast
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tinystories_lab"
MODULES = {path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): path for path in PACKAGE.rglob("*.py")}
MODULES = {name: path for name, path in MODULES.items() if path.name != "__init__.py"}
README = (ROOT / "README.md").read_text()


def public(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    """Return the public functions, classes and constants that these statements define."""
    found = {}
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            found[statement.name] = statement
        for target in getattr(statement, "targets", [getattr(statement, "target", None)]):
            found |= {part.id: statement for part in ast.walk(target or ast.Pass()) if isinstance(part, ast.Name)}
    return {name: statement for name, statement in found.items() if not name.startswith("_")}


def code_of(notebook: Path) -> str:
    """Return the Python code of a notebook, without magics and shell commands."""
    cells = json.loads(notebook.read_text())["cells"]
    code = "".join("".join(cell["source"]) + "\n" for cell in cells if cell["cell_type"] == "code")
    return re.sub(r"^( *)[%!].*", r"\1pass", code, flags=re.MULTILINE)


def used_by(code: str) -> set[tuple[str, str]]:
    """Return the names of the package that this code imports or reads as `module.name`: (module, name)."""
    tree = ast.parse(code)
    modules, used = {}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE.name):
            for alias in node.names:
                used.add((node.module, alias.name))
                modules[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            used.add((modules[node.value.id], node.attr))
    return used


def in_signatures(code: str) -> set[str]:
    """Return the names in the annotations of a module's public functions, constants, methods and fields."""
    definitions = list(public(ast.parse(code).body).values())
    definitions += [inner for it in definitions if isinstance(it, ast.ClassDef) for inner in public(it.body).values()]
    named = set()
    for it in definitions:
        parts = [it.args, it.returns] if isinstance(it, ast.FunctionDef) else [getattr(it, "annotation", None)]
        for node in ast.walk(ast.Module([part for part in parts if part], [])):
            named |= {node.id} if isinstance(node, ast.Name) else set()
            named |= {node.value} if isinstance(node, ast.Constant) else set()
    return named


@pytest.fixture(scope="module")
def used() -> set[tuple[str, str]]:
    readme = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    notebooks = map(code_of, (ROOT / "notebooks").glob("*.ipynb"))
    files = [*MODULES.values(), *(ROOT / "tests" / "benchmarks").glob("*.py")]
    return set().union(*map(used_by, [*readme, *notebooks, *(path.read_text() for path in files)]))


def test_every_public_name_outside_the_core_is_used_by_another_file_or_in_a_signature(used):
    unused = []
    for module, path in MODULES.items():
        code = path.read_text()
        named = {name for owner, name in used if owner == module} | in_signatures(code)
        for name, definition in public(ast.parse(code).body).items():
            if name in named and isinstance(definition, ast.Assign):  # names in a constant that is used
                named |= {node.id for node in ast.walk(definition.value) if isinstance(node, ast.Name)}
        if part_of(module) not in CORE | {"__main__"}:  # others may build on the core
            unused += [f"{module}.{name}" for name in public(ast.parse(code).body) if name not in named]
    assert not unused, "used in their own module only: start these names with _"


def test_every_public_function_class_and_method_has_a_docstring():
    bare = []
    for module, path in MODULES.items():
        defined = public(ast.parse(path.read_text()).body)
        for name, statement in list(defined.items()):
            if isinstance(statement, ast.ClassDef):
                defined |= {f"{name}.{method}": inner for method, inner in public(statement.body).items()}
        functions = {name: it for name, it in defined.items() if isinstance(it, ast.FunctionDef | ast.ClassDef)}
        bare += [f"{module}.{name}" for name, statement in functions.items() if not ast.get_docstring(statement)]
    assert not bare


# --- the layers

CORE = {"model", "tokenizer", "loader", "config", "optim", "trainer", "checkpoint", "generate", "device", "files"}
CORE |= {"progress"}
LAYERS = [CORE, {"run", "data", "durability"}, {"analysis"}, {"integrations"}, {"pipeline"}, {"notebook", "__main__"}]
LAYER_OF = {part: layer for layer, parts in enumerate(LAYERS) for part in parts}


def part_of(module: str) -> str:
    """Return the part that a module belongs to: a file, or a folder."""
    return module.split(".")[1]


def imports_of(module: str) -> set[str]:
    """Return the modules of the package that a module imports, anywhere in its file."""
    nodes = ast.walk(ast.parse(MODULES[module].read_text()))
    named = {node.module: node.names for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    found = {name for name in named if name in MODULES}
    return found | {f"{name}.{alias.name}" for name, names in named.items() for alias in names} & MODULES.keys()


def lines_of(modules: Iterable[str]) -> int:
    return sum(len(MODULES[module].read_text().splitlines()) for module in modules)


def test_imports_go_one_way_and_the_core_imports_only_itself():
    for module in MODULES:
        for other in imports_of(module):
            assert LAYER_OF[part_of(other)] <= LAYER_OF[part_of(module)], f"{module} imports {other}"


def test_no_chain_of_imports_is_longer_than_eight_files():
    @cache
    def chain_length(module: str) -> int:
        return 1 + max(map(chain_length, imports_of(module)), default=0)

    longest = max(MODULES, key=chain_length)
    assert chain_length(longest) <= 8, f"the chain from {longest} has {chain_length(longest)} files"


def test_the_core_has_at_most_2110_lines_and_the_package_7000():
    assert lines_of(module for module in MODULES if part_of(module) in CORE) <= 2_110
    assert lines_of(MODULES) <= 7_000


def test_the_readmes_example_trains_and_generates_with_the_core_alone(tmp_path, data_dir):
    (example,) = re.findall(r"^```python\n(.*?trainer\.train.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert 8 <= len(example.splitlines()) <= 12, "about ten lines"
    shutil.copytree(data_dir, tmp_path / "data" / "toyland-tiny")
    others = [f"tinystories_lab.{part}" for part in LAYER_OF if part not in CORE]
    check = f"import sys; assert not [m for m in {others} if m in sys.modules], 'more than the core was imported'"
    code = re.sub(r"total_steps=\d+", "total_steps=3", example) + check
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Once upon a time" in done.stdout
