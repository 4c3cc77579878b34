"""The package as it is installed and read: metadata, contents, layers of the house, cost of importing."""

import ast
import configparser
import importlib.metadata
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import nbbp

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(file for folder in ("nbbp", "tests", "demos", "profiling") for file in (ROOT / folder).rglob("*.py"))

# What a module must not import, itself or anything in it. Imports only go down: descriptions know no
# engine, engines know no descriptions and not each other, and scalars know nothing.
DESCRIPTIONS = (
    "nbbp.augmentation",
    "nbbp.layers",
    "nbbp.losses",
    "nbbp.optimizers",
    "nbbp.initializers",
    "nbbp.description",
    "nbbp.metrics",
    "nbbp.network",
    "nbbp.nodes",
    "nbbp.progress",
    "nbbp.schedules",
    "nbbp.formula_data",
    "nbbp.formulas",
)
ENGINES = ("nbbp.cpu", "nbbp.cuda")
# Graphs of single numbers know nothing of networks. Descriptions may write a formula out (nbbp.tracing); running
# graphs is above them, as engines are.
GRAPHS = ("nbbp.autodiff", "nbbp.arena", "nbbp.arithmetic", "nbbp.tracing", "nbbp.graph_drawing")
RUNS_GRAPHS = ("nbbp.autodiff", "nbbp.arena", "nbbp.graph_drawing")
MUST_NOT_IMPORT = {
    **dict.fromkeys(DESCRIPTIONS, (*ENGINES, *RUNS_GRAPHS, "nbbp.program", "nbbp.model")),
    **dict.fromkeys(GRAPHS, (*DESCRIPTIONS, "nbbp.cuda", "nbbp.program", "nbbp.model")),
    "nbbp.scalars": (*DESCRIPTIONS, *ENGINES, *GRAPHS, "nbbp.program", "nbbp.model", "nbbp.validation"),
    "nbbp.program": ("nbbp.model",),
    "nbbp.cpu": (*DESCRIPTIONS, *GRAPHS, "nbbp.cuda", "nbbp.program", "nbbp.model"),
    "nbbp.cuda": (*DESCRIPTIONS, *GRAPHS, "nbbp.cpu", "nbbp.program", "nbbp.model"),
}


def imported(file):
    """Full names of the modules (and of what is taken from them) that `file` imports."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def is_within(name, prefix):
    return name == prefix or name.startswith(prefix + ".")


def subprocess_output(code, **variables):
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths, **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_version_is_the_installed_one():
    try:
        installed = importlib.metadata.version("nbbp")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("runs from the source tree, not installed")
    assert nbbp.__version__ == installed


def test_public_names_exist():
    for name in nbbp.__all__:
        assert hasattr(nbbp, name), name
    assert sorted(set(nbbp.__all__)) == sorted(nbbp.__all__)


def test_pyproject_only_names_the_build_system():
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("[")] == ["[build-system]"]


def test_run_time_dependencies_are_what_the_package_imports():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    required = {line.split(">=")[0] for line in settings["options"]["install_requires"].split()}
    roots = {name.split(".")[0] for file in (ROOT / "nbbp").rglob("*.py") for name in imported(file)}
    third_party = roots - set(sys.stdlib_module_names) - {"nbbp"}
    # llvmlite is numba's own, of the version that numba asks for; the others are for whoever has them: cuda-bindings
    # comes with numba-cuda, nvmath with extras of its own.
    assert third_party - {"llvmlite", "matplotlib", "nvmath", "pandas", "cuda"} <= required
    assert required <= third_party


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_files_stay_short(file):
    n_lines = len(file.read_text(encoding="utf-8").splitlines())
    assert n_lines <= 400


@pytest.mark.parametrize("layer", MUST_NOT_IMPORT)
def test_imports_only_go_down(layer):
    package = ROOT.joinpath(*layer.split("."))
    files = sorted(package.rglob("*.py")) if package.is_dir() else [package.with_suffix(".py")]
    for file in files:
        for name in imported(file):
            for forbidden in MUST_NOT_IMPORT[layer]:
                assert not is_within(name, forbidden), f"{file} imports {name}"


def test_importing_loads_nothing_that_is_only_sometimes_needed():
    code = "import sys, nbbp; print(*sorted(sys.modules))"
    loaded = set(subprocess_output(code).split())
    assert not loaded & {"matplotlib", "pandas", "safetensors", "torch", "jax", "sklearn", "nbbp.cuda", "numba.cuda"}


@pytest.mark.slow
def test_importing_costs_little_more_than_numba(tmp_path):
    code = "import time, numba; begin = time.process_time(); import nbbp; print(time.process_time() - begin)"
    kept = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path)}
    subprocess_output(code, **kept)  # what is compiled on import, bytecode and machine code, is cached from here on
    assert min(float(subprocess_output(code, **kept)) for _ in range(5)) <= 0.15


@pytest.mark.slow
def test_wheel_holds_the_package_and_its_data(tmp_path):
    pytest.importorskip("setuptools", minversion="64")
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    shutil.copytree(ROOT / "nbbp", tree / "nbbp", ignore=shutil.ignore_patterns("__pycache__", ".*"))
    done = subprocess.run(
        [sys.executable, "-c", "from setuptools import build_meta; print(build_meta.build_wheel('.'))"],
        cwd=tree,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tree.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {str(file.relative_to(tree).as_posix()) for file in (tree / "nbbp").rglob("*") if file.is_file()}
    assert names == expected
    assert any(name.startswith("nbbp/digits/") for name in names)
