"""The package as a stranger meets it: short modules, and no public name that is not explained and used elsewhere."""

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tinystories_lab"
MODULES = {path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): path for path in PACKAGE.rglob("*.py")}
MODULES = {name: path for name, path in MODULES.items() if path.name != "__init__.py"}
LONGEST = 170


def public(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    """The public functions, classes and constants that these statements define."""
    found = {}
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            found[statement.name] = statement
        for target in getattr(statement, "targets", [getattr(statement, "target", None)]):
            found |= {part.id: statement for part in ast.walk(target or ast.Pass()) if isinstance(part, ast.Name)}
    return {name: statement for name, statement in found.items() if not name.startswith("_")}


def code_of(notebook: Path) -> str:
    """A notebook's code cells, without what is not Python."""
    cells = json.loads(notebook.read_text())["cells"]
    code = "".join("".join(cell["source"]) + "\n" for cell in cells if cell["cell_type"] == "code")
    return re.sub(r"^( *)[%!].*", r"\1pass", code, flags=re.MULTILINE)


def used_by(code: str) -> set[tuple[str, str]]:
    """Names of the package that a piece of code imports, or reads as `module.name`: (module, name)."""
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
    """Names in the annotations of a module's public functions, constants, methods and fields: what they take and give."""
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
    readme = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    notebooks = map(code_of, (ROOT / "notebooks").glob("*.ipynb"))
    files = [*MODULES.values(), *(ROOT / "tests" / "benchmarks").glob("*.py")]
    return set().union(*map(used_by, [*readme, *notebooks, *(path.read_text() for path in files)]))


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_used_outside_of_its_module_or_is_what_one_takes_or_gives(module, used):
    code = MODULES[module].read_text()
    named = {name for owner, name in used if owner == module} | in_signatures(code)
    for name, definition in public(ast.parse(code).body).items():
        if name in named and isinstance(definition, ast.Assign):  # what a constant in use holds
            named |= {node.id for node in ast.walk(definition.value) if isinstance(node, ast.Name)}
    unused = [name for name in public(ast.parse(code).body) if name not in named]
    assert module.endswith("__main__") or not unused, f"{unused} are used by {module} alone: begin them with _"


@pytest.mark.parametrize("module", MODULES)
def test_every_public_function_and_class_and_their_methods_are_documented(module):
    defined = public(ast.parse(MODULES[module].read_text()).body)
    for name, statement in list(defined.items()):
        if isinstance(statement, ast.ClassDef):
            defined |= {f"{name}.{method}": inner for method, inner in public(statement.body).items()}
    functions = {name: it for name, it in defined.items() if isinstance(it, ast.FunctionDef | ast.ClassDef)}
    bare = [name for name, statement in functions.items() if not ast.get_docstring(statement)]
    assert not bare, f"{bare} of {module} have no docstring"


@pytest.mark.parametrize("module", MODULES)
def test_no_module_is_long(module):
    lines = len(MODULES[module].read_text().splitlines())
    assert lines <= LONGEST, f"{module} has {lines} lines: it has two ideas, or more than it needs"
