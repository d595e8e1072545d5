"""What is released: its files, and that it works where nothing else of us is."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import clipad_sklearn

ROOT = Path(__file__).parents[1]
# What comes from building, running and developing.
LEFT_OUT = shutil.ignore_patterns(
    *(".git", "__pycache__", ".*_cache", ".venv", "build", "dist", "*.egg-info"),
    *("_build", "auto_examples", "runs", ".hypothesis"),
)


def run(*command: str | Path, cwd: Path, **env: str) -> str:
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, and the wheel built from it."""
    pytest.importorskip("build")
    source = tmp_path_factory.mktemp("source") / "clipad"
    shutil.copytree(ROOT, source, ignore=LEFT_OUT)
    out = tmp_path_factory.mktemp("dist")
    # Without isolation no index is needed.
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, cwd=source)
    return out


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    [wheel] = dist.glob("*.whl")
    return wheel


def test_wheel_holds_the_package_only(wheel: Path) -> None:
    assert wheel.stat().st_size < 15e6
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    tops = {name.split("/")[0] for name in names}
    info = f"clipad_sklearn-{clipad_sklearn.__version__}.dist-info"
    assert tops == {"clipad_sklearn", info}
    package = ROOT / "clipad_sklearn"
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if name.startswith("clipad_sklearn/")} == expected
    assert {
        "clipad_sklearn/py.typed",
        "clipad_sklearn/_cli/report.html",
        "clipad_sklearn/tiny/open_clip_config.json",
        "clipad_sklearn/tiny/open_clip_model.safetensors",
        f"{info}/licenses/LICENSE",
        f"{info}/entry_points.txt",
    } <= names


def test_source_distribution_holds_the_tests_too(dist: Path) -> None:
    [path] = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "CITATION.cff",
        "CONTRIBUTING.md",
        "conftest.py",
        "pyproject.toml",
        ".ci/run",
        "tests/conftest.py",
        "tests/test_release.py",
        "tests/data/saved_0.1.0/prompt.joblib",
        "tests/downstream/pyproject.toml",
        "docs/conf.py",
        "training/train.py",
    } <= names
    assert not any("__pycache__" in name for name in names)


def test_metadata(dist: Path) -> None:
    pytest.importorskip("twine")
    files = sorted(dist.iterdir())
    run(sys.executable, "-m", "twine", "check", "--strict", *files, cwd=dist)


def test_one_version_everywhere() -> None:
    version = clipad_sklearn.__version__
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f'\nversion: "{version}"\n' in citation


def test_lowest_versions_are_those_of_the_metadata() -> None:
    """tests/lowest.txt pins what the continuous integration tests."""
    lines = (ROOT / "tests" / "lowest.txt").read_text().split()
    pins = dict(line.split("==") for line in lines if "==" in line)
    for text in importlib.metadata.requires("clipad-sklearn"):
        needed = Requirement(text)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        pin, (bound,) = pins[needed.name], needed.specifier
        assert bound.operator == ">="
        assert (pin + ".0.0").startswith(bound.version + "."), f"{text}, not {pin}"


def test_in_an_environment_of_its_own(wheel: Path, tmp_path: Path) -> None:
    """The wheel, and a package that depends on it, with its command."""
    downstream = tmp_path / "downstream"
    shutil.copytree(ROOT / "tests" / "downstream", downstream, ignore=LEFT_OUT)
    pip = [sys.executable, "-m", "pip"]
    build = [*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    run(*build, "--wheel-dir", tmp_path, downstream, cwd=tmp_path)
    [other] = tmp_path.glob("inspection_line-*.whl")

    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=tmp_path)
    scripts = venv / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / "python"
    install = [*pip, "--python", python, "install", "--quiet", "--no-deps"]
    run(*install, wheel, other, cwd=tmp_path)
    # torch and the rest are those of this environment: gigabytes that are here.
    script = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(run(python, "-c", script, cwd=tmp_path).strip())
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")

    script = "import clipad_sklearn; print(clipad_sklearn.__file__)"
    found = Path(run(python, "-c", script, cwd=tmp_path, PYTHONPATH="").strip())
    assert found == packages / "clipad_sklearn" / "__init__.py"
    command = scripts / "inspection-line"
    said = run(command, "detector.joblib", cwd=tmp_path, PYTHONPATH="")
    assert re.fullmatch(r"AUROC \d\.\d\d, \d+% right\n", said)
    said = run(scripts / "clipad", "--version", cwd=tmp_path, PYTHONPATH="")
    assert said == f"clipad {clipad_sklearn.__version__}\n"
