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
    "data",
    "bundled/arithmetic",
    "tokens",
    "encoders",
    "pooling",
    "heads",
    "losses",
    "metrics",
]
LEAVES += ["runtime/device", "runtime/checkpoint", "runtime/tracking"]
SOURCES = [*sorted((ROOT / "minirlhf").rglob("*.py")), ROOT / "train.py"]


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
        "import sys, minirlhf; print([m for m in ('torch', 'numpy', 'mlflow') if m in sys.modules])"
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
            assert not names & {"pickle", "dill", "marshal", "shelve", "joblib", "subprocess"}
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
            assert node.arg != "trust_remote_code"


def test_the_core_stays_within_its_budget():
    core = [*(ROOT / "minirlhf").glob("*.py"), ROOT / "train.py"]
    assert sum(code_lines(path) for path in core) <= 1500


def code_lines(path: Path) -> int:
    """Lines that hold code: no blank lines, comments or docstrings."""
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
    return len(code - prose)
