"""Leaves can be copied alone; nothing heavy is imported early; nothing dangerous is called."""

import ast
import io
import shutil
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LEAVES = [
    "settings",
    "layouts",
    "tokens",
    "encoders",
    "pooling",
    "heads",
    "losses",
    "metrics",
    "bundled/arithmetic",
    "policy/objectives",
    "runtime/checkpoint",
    "runtime/command_line",
    "runtime/device",
    "runtime/features",
    "runtime/rows",
    "runtime/precision",
    "runtime/ranks",
    "runtime/run_folder",
    "runtime/tracking",
]
SOURCES = [*sorted((ROOT / "minirlhf").rglob("*.py")), ROOT / "train.py"]
# Imports go down only: a file may import from its own floor or a lower one.
FLOORS = {
    "runtime": 0,
    "bundled": 0,
    "report": 2,
    "policy": 3,
    "commands": 3,
    "experiments": 3,
}
BOOK, TOP = 1, 4
# Files that start programs of their own: `python train.py`, or an import to be timed.
STARTERS = {"compare.py", "benchmark.py"}


def floor(path: Path) -> int:
    """The floor of a file of the package, or of train.py."""
    if path.name in ("train.py", "__main__.py"):
        return TOP
    folder = path.relative_to(ROOT / "minirlhf").parts[0]
    return FLOORS.get(folder, BOOK)


def imported_files(path: Path) -> set[Path]:
    """The files of the package that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [
                node.module,
                *(f"{node.module}.{alias.name}" for alias in node.names),
            ]
        else:
            continue
        for module in modules:
            file = (ROOT / module.replace(".", "/")).with_suffix(".py")
            if module.startswith("minirlhf") and file.is_file():
                found.add(file)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_imports_go_down_only(path):
    for other in imported_files(path):
        assert floor(other) <= floor(path), f"{path} imports {other}, which is above it"


def test_no_imports_go_in_a_circle():
    graph = {path: imported_files(path) for path in SOURCES}

    def visit(path: Path, way: tuple) -> None:
        assert path not in way, [step.name for step in (*way, path)]
        for other in graph[path]:
            visit(other, (*way, path))

    for path in SOURCES:
        visit(path, ())


def test_nothing_dynamic_hides_an_import():
    """The one import by name is that of `python -m minirlhf NAME`."""
    for path in SOURCES:
        if path.name != "__main__.py":
            assert "import_module" not in path.read_text(), path


@pytest.mark.parametrize("leaf", LEAVES)
def test_a_leaf_imports_no_sibling_and_nothing_heavy(leaf):
    tree = ast.parse((ROOT / "minirlhf" / f"{leaf}.py").read_text())

    def modules(nodes):
        for node in nodes:
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0
                yield node.module

    assert not any(name.startswith("minirlhf") for name in modules(ast.walk(tree)))
    allowed = sys.stdlib_module_names | {"torch"}
    assert all(name.split(".")[0] in allowed for name in modules(tree.body))


@pytest.mark.parametrize("leaf", LEAVES)
def test_a_leaf_alone_in_an_empty_folder_runs_its_example(leaf, tmp_path):
    copied = Path(shutil.copy(ROOT / "minirlhf" / f"{leaf}.py", tmp_path))
    assert ">>>" in copied.read_text()
    command = [sys.executable, "-I", "-m", "doctest", copied.name]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, ""), run.stdout + run.stderr


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, minirlhf; "
        "print([m for m in ('torch', 'numpy', 'mlflow') if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"


def test_help_imports_nothing_heavy():
    code = (
        "import sys, train\ntry: train.main(['--help'])\n"
        "except SystemExit: print([m for m in ('torch', 'numpy', 'mlflow') if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip().endswith("[]")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_nothing_is_unpickled_or_executed(path):
    forbidden = {"eval", "exec", "compile", "__import__", "system", "popen"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            assert not names & {"pickle", "dill", "marshal", "shelve", "joblib"}
            assert "subprocess" not in names or path.name in STARTERS
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in forbidden
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in {
                ("torch", "load"),
                ("torch", "save"),
                ("os", "system"),
                ("os", "popen"),
            }
        if isinstance(node, ast.keyword):
            assert node.arg != "shell"
            if node.arg == "trust_remote_code":
                assert is_false(node.value)
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "trust_remote_code":
                    assert is_false(value)


def is_false(node: ast.expr) -> bool:
    """True for the constant False."""
    return isinstance(node, ast.Constant) and node.value is False


def test_whatever_is_loaded_is_told_to_trust_no_code():
    """Left out, transformers would ask on the standard input, and a pipe of data may answer y."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", None) or getattr(node.func, "id", None)
            arguments = {keyword.arg for keyword in node.keywords}
            new_one = name == "SentenceTransformer" and "modules" in arguments
            if name in ("from_pretrained", "SentenceTransformer") and not new_one:
                assert "trust_remote_code" in arguments, f"{path}, line {node.lineno}"


BOOK_FILES = [
    path
    for path in SOURCES
    if floor(path) == BOOK or path.name == "train.py" or path.parent.name == "policy"
]


@pytest.mark.parametrize("path", BOOK_FILES, ids=lambda path: path.name)
def test_a_function_of_the_book_fits_on_one_screen(path):
    """60 lines of code; 120 for the one function of train.py that holds the whole run."""
    lines = code_lines(path)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            own = lines & set(range(node.lineno, node.end_lineno + 1))
            limit = 120 if (path.name, node.name) == ("train.py", "run") else 60
            assert len(own) <= limit, f"{node.name} has {len(own)} lines of code"


def code_lines(path: Path) -> set[int]:
    """The numbers of the lines that hold code: no blank lines, comments or docstrings."""
    source = path.read_text()
    prose = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(
            node
        ):
            prose |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    code = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.string.strip() and token.type != tokenize.COMMENT:
            code |= set(range(token.start[0], token.end[0] + 1))
    return code - prose
