"""The wheel: it is built from the sdist, holds every file of the package, and runs where it is
installed alone."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import cuvee

ROOT = Path(__file__).parents[2]


def call(*command: str | Path, folder: Path, python_path: str = "") -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": python_path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    build = (sys.executable, "-m", "hatchling", "build", "-d", folder, "-t")
    call(*build, "sdist", folder=ROOT)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    call(*build, "wheel", folder=folder / f"cuvee-{cuvee.__version__}")
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    source = ROOT / "src"
    files = {
        path.relative_to(source).as_posix()
        for path in (source / "cuvee").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert "cuvee/policies/universal/policy.safetensors" in files
    assert "cuvee/report/assets/page.html" in files
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("cuvee/")}
    assert packed == files


def test_an_installed_wheel_runs(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet")
    call(*pip, "--no-deps", "--no-index", wheel, folder=tmp_path)
    dependencies = ":".join(path for path in sys.path if path.endswith("site-packages"))
    program = python.with_name("cuvee")
    said = call(program, "--help", folder=tmp_path, python_path=dependencies)
    assert "demo" in said
    code = "from cuvee.policies.files import UNIVERSAL; print(UNIVERSAL)"
    where = call(python, "-c", code, folder=tmp_path, python_path=dependencies)
    assert where.startswith(str(tmp_path)), "not the package of this repository"
