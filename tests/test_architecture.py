"""The house: packages build on each other in one direction, faces are lazy, modules are small, the map is complete."""

from __future__ import annotations

import ast
import re

import pytest
from conftest import ROOT, run_python

PACKAGE = ROOT / "frozenfusion"

# Each floor may use the floors below it, and rooms of a floor each other only as far as they are in order.
FLOORS = (
    ("utils",),
    ("store", "fusion"),
    ("data", "text"),
    ("vision",),
    ("model",),
    ("extraction", "evaluation"),
    ("training",),
    ("joint",),
    ("cli",),
)
MOST_LINES = 320
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def imports_of(path):
    """Modules of the package that a file imports, anywhere in it, if only for a type checker."""
    for node in ast.walk(ast.parse((PACKAGE / path).read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or node.level:
            continue
        if (node.module or "").split(".")[0] == "frozenfusion":
            for alias in node.names:
                whole = f"{node.module}.{alias.name}".split(".")[1:]
                target = PACKAGE.joinpath(*whole)
                yield ".".join(whole if target.is_dir() or target.with_suffix(".py").exists() else whole[:-1])


def name_of(path):
    return ".".join(path.with_suffix("").parts)


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_a_room_uses_only_rooms_of_its_own_floor_or_below(path):
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    room = path.parts[0]
    if room not in floor:  # the doors: __main__ and the face
        return
    for imported in filter(None, imports_of(path)):
        other = imported.split(".")[0]
        assert other == room or floor[other] < floor[room], f"{path} imports {imported}"


def test_no_module_imports_itself_in_a_circle():
    graph = {name_of(path): set(imports_of(path)) & {name_of(other) for other in MODULES} for path in MODULES}
    done = set()
    while graph.keys() - done:
        free = {name for name in graph.keys() - done if graph[name] <= done}
        assert free, f"in a circle, or above one: {sorted(graph.keys() - done)}"
        done |= free


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_a_module_stays_small(path):
    assert len((PACKAGE / path).read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_the_map_names_every_package_and_nothing_else():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)/` \|", text, re.MULTILINE)
    assert sorted(rows) == sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists())


def test_every_module_that_the_map_names_exists():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for name in re.findall(r"`((?:\w+/)+\w+\.py)`", text):
        assert (PACKAGE / name).exists() or (ROOT / name).exists(), name


def test_faces_hand_out_what_they_promise_and_load_torch_only_then():
    code = (
        "import importlib, pkgutil, sys, frozenfusion\n"
        "names = [m.name for m in pkgutil.walk_packages(frozenfusion.__path__, 'frozenfusion.') if m.ispkg]\n"
        "faces = [frozenfusion, *map(importlib.import_module, names)]\n"
        "assert not {'torch', 'transformers', 'h5py', 'PIL', 'sklearn'} & set(sys.modules), sorted(sys.modules)\n"
        "for face in faces:\n"
        "    for name in dir(face):\n"
        "        assert getattr(face, name) is not None or name.startswith('__')\n"
        "assert callable(frozenfusion.extract) and callable(frozenfusion.train) and callable(frozenfusion.evaluate)\n"
    )
    run_python(code)


def test_importing_changes_nothing_of_the_process():
    code = (
        "import os, sys, warnings, logging, threading, signal\n"
        "import numpy, torch, transformers, PIL.Image, h5py, matplotlib, sklearn, jinja2\n"
        "import filelock, tqdm, tyro, safetensors\n"
        "from transformers import AutoModel, AutoTokenizer, PreTrainedModel\n"
        "import efficientnet_pytorch, huggingface_hub\n"
        "os.umask(0o027)\n"
        "def state():\n"
        "    return (list(warnings.filters), logging.getLogger('PIL').handlers, logging.root.handlers,\n"
        "            threading.active_count(), torch.backends.cudnn.allow_tf32, torch.get_num_threads(),\n"
        "            torch.get_rng_state().tolist(),\n"
        "            signal.getsignal(signal.SIGINT), PIL.Image._initialized, PIL.Image.MAX_IMAGE_PIXELS)\n"
        "before = state()\n"
        "flips = []\n"
        "os.umask, kept = lambda mask: flips.append(mask) or kept(mask), os.umask\n"
        "import pkgutil, importlib, frozenfusion\n"
        "for module in pkgutil.walk_packages(frozenfusion.__path__, 'frozenfusion.'):\n"
        "    if module.name != 'frozenfusion.__main__': importlib.import_module(module.name)\n"
        "assert state() == before, (state(), before)\n"
        "assert not flips\n"
    )
    run_python(code)


def test_scripts_are_thin_doors():
    for script in ("extract_features.py", "train_head.py", "evaluate.py"):
        assert len((ROOT / script).read_text(encoding="utf-8").splitlines()) < 20
