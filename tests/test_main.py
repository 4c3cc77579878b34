"""What ``python -m nbbp`` prints and how it ends."""

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

import nbbp
from nbbp import __main__ as command_line
from nbbp import diagnostics

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments, cwd, **variables):
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return subprocess.run(
        [sys.executable, "-m", "nbbp", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": paths, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_information_names_everything_a_bug_report_needs(tmp_path):
    done = run(cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(None, 1) for line in done.stdout.splitlines() if line[:1].strip())
    assert lines["nbbp"].startswith(nbbp.__version__)
    for label in ("python", "numpy", "scipy", "numba", "llvmlite", "system", "processor", "features", "BLAS"):
        assert lines[label].strip(), label
    assert "bits" in lines["vectors"]
    assert int(lines["threads"].split(",")[0]) >= 1
    assert "CUDA devices" in done.stdout
    assert "MiB" in lines["cache"]
    assert done.stdout.isascii() or not str(diagnostics.PACKAGE).isascii()


def test_wrong_command_ends_with_2_and_the_usage(capsys):
    with pytest.raises(SystemExit) as ended:
        command_line.main(["polish"])
    assert ended.value.code == 2
    assert "usage: python -m nbbp" in capsys.readouterr().err


def test_help_and_version_end_with_0(capsys):
    for argument, expected in (("--help", "warmup"), ("--version", nbbp.__version__)):
        with pytest.raises(SystemExit) as ended:
            command_line.main([argument])
        assert ended.value.code == 0
        assert expected in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"), [([], ["float32", "float64"]), (["--dtype", "float64"], ["float64"])]
)
def test_warmup_compiles_the_precisions_asked_for(arguments, expected, monkeypatch, capsys):
    compiled = []
    monkeypatch.setattr(nbbp, "warmup", compiled.extend)
    assert command_line.main(["warmup", *arguments]) == 0
    assert compiled == expected
    printed = capsys.readouterr()
    assert "compiled in" in printed.out
    assert "compiling" in printed.err


@pytest.mark.slow
def test_warmup_fills_the_cache_so_that_a_second_one_compiles_nothing(tmp_path):
    done = run("warmup", "--dtype", "float32", cwd=tmp_path, NUMBA_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    cached = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.nb[ic]")}
    assert cached
    done = run("warmup", "--dtype", "float32", cwd=tmp_path, NUMBA_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.nb[ic]")} == cached


def test_cache_folders_are_where_numba_was_told(monkeypatch):
    folders = diagnostics.cache_folders()
    assert folders
    assert all(folder.is_relative_to(os.environ["NUMBA_CACHE_DIR"]) for folder in folders)


def test_cache_size_counts_machine_code_only(tmp_path):
    (tmp_path / "kernel.nbi").write_bytes(b"12345")
    (tmp_path / "kernel.1.nbc").write_bytes(b"123")
    (tmp_path / "module.pyc").write_bytes(b"not counted")
    assert diagnostics.cache_size([tmp_path, tmp_path / "missing"]) == (2, 8)


def test_openblas_kernels_without_a_library(tmp_path):
    assert diagnostics._openblas_kernels(tmp_path / "scipy") is None


def test_cuda_devices_without_numba_cuda(monkeypatch):
    monkeypatch.setattr(diagnostics.importlib.util, "find_spec", lambda name: None)
    assert "not installed" in diagnostics.cuda_devices()


def test_cuda_devices_never_fails(monkeypatch):
    def is_available():
        raise OSError("driver too old")

    broken = types.SimpleNamespace(is_available=is_available)
    monkeypatch.setattr(diagnostics.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "numba.cuda", broken)
    monkeypatch.setattr("numba.cuda", broken, raising=False)
    assert diagnostics.cuda_devices() == "none usable: OSError: driver too old"


def test_cuda_devices_are_named(monkeypatch):
    device = types.SimpleNamespace(name=b"A GPU", compute_capability=(9, 0))
    present = types.SimpleNamespace(is_available=lambda: True, list_devices=lambda: [device])
    monkeypatch.setattr(diagnostics.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "numba.cuda", present)
    monkeypatch.setattr("numba.cuda", present, raising=False)
    assert diagnostics.cuda_devices() == "A GPU (compute capability 9.0)"


def test_cpu_name_falls_back_where_the_system_does_not_tell(monkeypatch):
    monkeypatch.setattr(diagnostics.sys, "platform", "unknown")
    assert diagnostics.cpu_name().strip()
