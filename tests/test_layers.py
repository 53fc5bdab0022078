"""The layout of the package: imports go downwards, and folders, files and functions stay small.

The layers and the forbidden imports are contracts of import-linter in pyproject.toml.
"""

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "diga_hpc"

MOST_FILES_IN_A_FOLDER = 14
MOST_MODULES_AT_THE_TOP = 7
MOST_LINES_IN_A_FILE = 400
MOST_LINES_IN_A_FUNCTION = 60


def run_python(code: str) -> subprocess.CompletedProcess:
    """In a process of its own: what this one has imported would hide what the code imports."""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


# ------------------------------------------------------------------------------------------ imports


def test_contracts_of_pyproject_are_kept():
    done = run_python("""
from importlinter.cli import lint_imports
raise SystemExit(lint_imports(no_cache=True, no_logo=True))
""")
    if done.returncode != 0:
        pytest.fail(done.stdout + done.stderr, pytrace=False)


def test_no_module_imports_itself_through_others():
    """Imports within functions count too: they hide a cycle, they do not cut it."""
    graph = grimp.build_graph("diga_hpc", cache_dir=None)
    in_a_cycle = [
        f"{importer} -> {imported}"
        for importer in sorted(graph.modules)
        for imported in sorted(graph.find_modules_directly_imported_by(importer))
        if graph.chain_exists(importer=imported, imported=importer)
    ]
    assert not in_a_cycle, "\n".join(["imports in a cycle:", *in_a_cycle])


@pytest.mark.parametrize(
    "name", ["config", "datasets", "images", "launch", "models", "run", "stages.plan"]
)
def test_importing_loads_no_torch(name: str):
    """With all modules of a folder, apart from those that exist to call what needs torch."""
    # models/ holds the networks: the list of them in its __init__.py is what must be light.
    excluded = {"diga_hpc.models.", "diga_hpc.launch.submit"}
    done = run_python(f"""
import importlib, pkgutil, sys
package = importlib.import_module("diga_hpc.{name}")
for module in pkgutil.walk_packages(getattr(package, "__path__", []), package.__name__ + "."):
    if not module.name.startswith({tuple(sorted(excluded))}):
        importlib.import_module(module.name)
print(*sorted({{"torch", "torchvision", "deepspeed", "triton"}} & set(sys.modules)))
""")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [], f"importing diga_hpc.{name} loads {done.stdout.strip()}"


# --------------------------------------------------------------------------------------------- size


def source_files(folder: Path) -> list[Path]:
    """Python files below the folder; links, as diga_hpc/kernels, are not followed."""
    return sorted(folder.rglob("*.py"))


def functions(path: Path) -> list[tuple[str, int]]:
    """Name and number of lines of each function, its docstring included, decorators not."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)]
    return [(node.name, node.end_lineno - node.lineno + 1) for node in nodes]


def test_folders_of_the_package_have_few_files():
    files = [path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    count = Counter(str(path.parent.relative_to(ROOT)) for path in files)
    assert {name: n for name, n in count.items() if n > MOST_FILES_IN_A_FOLDER} == {}


def test_the_top_level_has_few_modules():
    modules = sorted(path.name for path in PACKAGE.glob("*.py"))
    assert len(modules) <= MOST_MODULES_AT_THE_TOP, modules


@pytest.mark.parametrize("folder", ["diga_hpc", "benchmarks", "tests"])
def test_files_are_short(folder: str):
    lines = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for path in source_files(ROOT / folder)
    }
    assert {name: n for name, n in lines.items() if n > MOST_LINES_IN_A_FILE} == {}


@pytest.mark.parametrize("folder", ["diga_hpc", "benchmarks", "tests"])
def test_functions_are_short(folder: str):
    assert {
        f"{path.relative_to(ROOT)}: {name}": lines
        for path in source_files(ROOT / folder)
        for name, lines in functions(path)
        if lines > MOST_LINES_IN_A_FUNCTION
    } == {}
