"""What the README tells a newcomer to type works."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from conftest import ROOT

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


def test_the_python_of_the_readme_runs(demo, tmp_path):
    folder, _ = demo
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    for shown, here in (("MVSA_Single", "data"), ("cache/mvsa-b7.h5", "features.h5"), ("runs/concat", "runs/concat")):
        code = code.replace(f'"{shown}"', repr(str(folder / here)))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "positive" in done.stdout


def test_every_command_shown_parses():
    """Flags that the README and the docs show exist: a command that does not parse ends with status 2."""
    texts = [README, *(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md")))]
    commands = {line for text in texts for line in re.findall(r"^ *python (\w+\.py [^#\n]+)", text, re.MULTILINE)}
    assert len(commands) > 5
    for command in commands:
        script, *arguments = command.split()
        code = (
            f"import sys; from frozenfusion import cli, options; sys.argv[0] = {script!r}\n"
            "kinds = dict(zip(('extract_features.py', 'train_head.py', 'evaluate.py'),"
            " (options.ExtractOptions, options.TrainOptions, options.EvaluateOptions)))\n"
            f"sys.exit(cli.run(kinds[{script!r}], lambda options: None, {arguments!r}))"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (command, done.stderr)


def test_links_inside_the_project_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "cache" / "README.md"]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_example_head_of_the_docs_is_a_head():
    import torch

    from frozenfusion.fusion import FUSION_HEADS, Inputs, build_head

    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "heads.md").read_text(), re.DOTALL)
    try:
        exec(compile(code, "heads.md", "exec"), {"__name__": "heads"})
        head = build_head("product", width=4, text_width=4, classes=3)
        present = torch.ones(2, dtype=torch.bool)
        assert head(Inputs(torch.ones(2, 4), torch.ones(2, 4), present, present)).logits.shape == (2, 3)
    finally:
        FUSION_HEADS.pop("product", None)
