"""The package installs: its wheel holds what it needs, asks for ranges, and works without the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from email.parser import BytesParser
from pathlib import Path
from zipfile import ZipFile

import pytest
from conftest import ROOT
from packaging.requirements import Requirement

from frozenfusion import __version__

TEMPLATES = ("parts.html", "report.css", "report.html")
# What the command `frozenfusion` does for each line of words, in one process: each would import for seconds.
THE_WHOLE_WAY = """
import frozenfusion as ff
from frozenfusion.cli.main import main

print(ff.__file__)
for words in (
    "extract data --cache features.h5 --backbone efficientnet-b0 --weights random --image-size 32 --device cpu",
    "train data --cache features.h5 --run run --text-encoder data/text-encoder --text-weights random --epochs 1"
    " --device cpu",
    "evaluate run data --cache features.h5 --device cpu",
):
    assert main(words.split()) == 0
print(ff.load_pairs("data"))
print(ff.FeatureStore("features.h5").shape)
"""


def call(*command: str | Path, cwd: Path) -> str:
    """What a command prints, called where it cannot see the checkout."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built of a copy: the build leaves folders beside what it builds."""
    source = tmp_path_factory.mktemp("source")
    for folder in ("frozenfusion", "tests", "benchmarks"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (*ROOT.glob("*.py"), ROOT / "pyproject.toml", ROOT / "README.md", ROOT / "LICENSE"):
        shutil.copy(file, source)
    # without build isolation, which would fetch setuptools
    call(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", "built", ".", cwd=source)
    (built,) = (source / "built").iterdir()
    return built


@pytest.fixture(scope="module")
def asked_for(wheel):
    """The requirements that the wheel names, those of extras left out."""
    with ZipFile(wheel) as file:
        (name,) = [name for name in file.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = BytesParser().parsebytes(file.read(name))
    requirements = map(Requirement, metadata.get_all("Requires-Dist"))
    return {each.name: each.specifier for each in requirements if "extra" not in str(each.marker)}


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Folder of the commands of a new environment, which has the wheel, and borrows all else from this one."""
    base = tmp_path_factory.mktemp("environment")
    call(sys.executable, "-m", "venv", "--without-pip", base, cwd=base)
    scripts, packages = (Path(sysconfig.get_path(kind, vars={"base": str(base)})) for kind in ("scripts", "purelib"))
    install = ("install", "--no-deps", "--no-index", wheel)
    call(sys.executable, "-m", "pip", "--python", scripts / "python", *install, cwd=base)
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (packages / "borrowed.pth").write_text("\n".join(borrowed), encoding="utf-8")
    return scripts


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    with ZipFile(wheel) as file:
        names = set(file.namelist())
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "frozenfusion").rglob("*.py")}
    templates = {f"frozenfusion/evaluation/report/templates/{name}" for name in TEMPLATES}
    about = {name for name in names if name.split("/")[0].endswith(".dist-info")}
    assert names - about == modules | templates | {"frozenfusion/py.typed"}


def test_it_asks_for_ranges_in_which_the_pinned_versions_lie(asked_for):
    pinned = set()
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines():
        text = line.partition("#")[0].strip()
        if text:
            requirement = Requirement(text)
            (pin,) = requirement.specifier
            assert pin.operator == "=="
            assert asked_for[requirement.name].contains(pin.version), text
            pinned.add(requirement.name)
    assert pinned == asked_for.keys()
    for name, specifier in asked_for.items():
        operators = {each.operator for each in specifier}
        assert ">=" in operators, name
        assert operators <= {">=", "<"}, name


def test_it_works_without_the_checkout(installed, tmp_path):
    def frozenfusion(*arguments):
        return call(installed / "frozenfusion", *arguments, cwd=tmp_path)

    assert frozenfusion("--version") == f"frozenfusion {__version__}\n"
    frozenfusion("sample", "data", "--pairs", "40")
    told = call(installed / "python", "-c", THE_WHOLE_WAY, cwd=tmp_path).splitlines()
    assert Path(told[0]).is_relative_to(installed.parent)
    assert any(line.startswith("Pairs(") for line in told)
    assert told[-1] == "(1280,)"
    assert (tmp_path / "run" / "evaluation" / "report.html").stat().st_size > 1000  # the templates came along
