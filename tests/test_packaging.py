"""The wheel holds what the package needs at run time, and nothing else."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "diga_hpc"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built in a scratch folder: a `build/` in the checkout adds stale modules to later wheels."""
    scratch = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [
            *(sys.executable, "setup.py", "--quiet"),
            *("egg_info", "--egg-base", scratch),
            *("build", "--build-base", scratch / "build"),
            *("bdist_wheel", "--bdist-dir", scratch / "content", "--dist-dir", scratch),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    (path,) = scratch.glob("*.whl")
    return zipfile.ZipFile(path)


def test_every_module_is_in_the_wheel(wheel: zipfile.ZipFile):
    linked = [PACKAGE / "kernels", PACKAGE / "configs", PACKAGE / "slurm"]
    assert all(folder.is_symlink() for folder in linked)
    modules = {*PACKAGE.rglob("*.py"), *linked[0].glob("*.py")}
    recipes = set(linked[1].glob("*.yaml"))
    scripts = {linked[2] / "env.sh", linked[2] / "ranks.sh"}
    expected = {str(p.relative_to(ROOT)) for p in {*modules, *recipes, *scripts}}
    found = {name for name in wheel.namelist() if not name.split("/")[0].endswith(".dist-info")}
    assert found == expected | {"diga_hpc/py.typed"}


def test_an_installed_package_runs_outside_the_checkout(wheel: zipfile.ZipFile, tmp_path: Path):
    """From a folder without links to the checkout, as pip leaves it."""
    wheel.extractall(tmp_path)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    imported = run("-c", "import diga_hpc.kernels; print(diga_hpc.kernels.__file__)")
    assert imported.startswith(str(tmp_path / "diga_hpc/kernels"))
    recipe = tmp_path / "diga_hpc/configs/demo.yaml"
    assert "label_space: streets" in run("-m", "diga_hpc", "show", str(recipe))


def test_metadata_names_the_licence(wheel: zipfile.ZipFile):
    (metadata,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
    assert "License: Apache-2.0\n" in wheel.read(metadata).decode()
    assert any(name.endswith("/LICENSE") for name in wheel.namelist())
