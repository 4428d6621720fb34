"""One bit of a store or a run is flipped, and everything that reads it says so or gives what it gave before."""

from __future__ import annotations

import contextlib
import io
import json
import random
import re
import struct
import traceback
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.faults.children import in_child
from benchmarks.faults.files import digest_of, snapshot
from benchmarks.faults.world import Words, World, main_of
from frozenfusion.store.reader import FeatureStore

STORE, TEXTS, RUN = "store", "texts", "run"
TOLD = {"pending": "told"}  # to be computed again, as after a kill
Ranges = list[tuple[int, int]]
Found = Callable[[], dict[str, str]]


class Flips:
    """A store, a run with a frozen text encoder that was trained on it, and the bits that can be flipped in them."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._before = (world.extract("all"), world.train("run", "concat", "--freeze-text", epochs=2))

    @cached_property
    def _texts(self) -> Path:
        """The outputs of the frozen text encoder."""
        self._world.prepare(self._before)
        return next(self._world.out.glob("*.text-*.h5"))

    @cached_property
    def parts(self) -> dict[str, tuple[Path, Ranges]]:
        """By name: a file, and which of its bytes."""
        self._world.prepare(self._before)
        out = self._world.out
        found: dict[str, tuple[Path, Ranges]] = {}
        for kind, path in ((STORE, out / "features.h5"), (TEXTS, self._texts)):
            found |= {f"{kind}:{name}": (path, ranges) for name, ranges in _parts_of_store(path).items()}
        for path in sorted((out / "run").rglob("*")):
            if path.is_dir() or path.suffix == ".png":
                continue
            name, size = f"{RUN}:{path.relative_to(out / 'run').as_posix()}", path.stat().st_size
            if path.suffix == ".safetensors":
                header = 8 + struct.unpack("<Q", path.read_bytes()[:8])[0]
                found |= {f"{name}:header": (path, [(0, header)]), f"{name}:tensors": (path, [(header, size)])}
            else:
                found[name] = (path, [(0, size)])
        return found

    def problems(self, part: str, number: int, seed: int) -> list[str]:
        """Flip bit `number` of those that the seed draws in a part: which readers do not notice, and are wrong."""
        path, ranges = self.parts[part]
        expected = self._expected
        self._world.prepare(self._before)
        place, bit = _draw(ranges, random.Random(f"{seed} {part} {number}"))
        content = bytearray(path.read_bytes())
        content[place] ^= 1 << bit
        path.write_bytes(content)
        ended = in_child(lambda: self._read(part))
        where = f"byte {place}, bit {bit}"
        if not isinstance(ended.result, dict):
            return [f"{where}: ends with status {ended.status}{' (hangs)' * ended.hung}: {ended.said[-300:]}"]
        problems = []
        for reader, (status, said, found) in ended.result.items():
            if "Traceback" in said:
                problems.append(f"{where}: {reader}: a traceback: {said.strip().splitlines()[-1][:200]}")
            elif status not in (0, 1, 2):
                problems.append(f"{where}: {reader}: status {status}")
            elif status and said.count("error: ") != 1:
                problems.append(f"{where}: {reader}: not one line of error: {said[-300:]!r}")
            elif not status and found not in (expected[reader], TOLD):
                names = sorted(
                    name for name in {**found, **expected[reader]} if found.get(name) != expected[reader].get(name)
                )
                problems.append(f"{where}: {reader}: not noticed, and different: {', '.join(names)}")
        return problems

    @cached_property
    def _expected(self) -> dict[str, Any]:
        """What all readers find in files as they were written."""
        found: dict[str, Any] = {}
        for kind in (STORE, TEXTS, RUN):
            self._world.prepare(self._before)
            readers = in_child(lambda kind=kind: self._read(kind)).result
            for reader, (status, said, of) in readers.items():
                if status:
                    raise SystemExit(f"error: {reader} fails without a fault: {said}")
                found[reader] = of
        return found

    def _read(self, part: str) -> dict[str, Any]:
        """What each reader that reads this kind of part says and finds: its status, its stderr, digests by name."""
        out = self._world.out
        world = self._world
        resume = world.train("run", "concat", "--freeze-text", epochs=3), (lambda: snapshot(out / "run"))
        kind = part.partition(":")[0]
        readers: dict[str, tuple[Words | Found, ...]]
        if kind == RUN:
            readers = {
                "evaluation": (world.evaluate("read"), self._evaluated),
                "evaluation of the last epoch": (world.evaluate("read", "--checkpoint", "last"), self._evaluated),
                "training that is resumed": resume,
                "--verify of the run": (("extract", str(out / "run"), "--verify"), lambda: snapshot(out / "run")),
            }
        elif kind == TEXTS:
            readers = {"--verify of texts": self._verifying(self._texts), "training that is resumed": resume}
        else:
            readers = {
                "--verify": self._verifying(out / "features.h5"),
                "evaluation": (world.evaluate("read"), self._evaluated),
                "training that is resumed": resume,
                "extraction that is resumed, then --verify": (
                    world.extract("all"),
                    *self._verifying(out / "features.h5"),
                ),
            }
        return {name: _result(*steps) for name, steps in readers.items()}

    def _verifying(self, path: Path) -> tuple[Words | Found, ...]:
        return ("extract", str(path), "--verify"), (lambda: _verified(path))

    def _evaluated(self) -> dict[str, str]:
        folder = self._world.folder / "read"
        return {name: digest_of(folder / name) for name in ("predictions.csv", "metrics.json")}


def _verified(path: Path) -> dict[str, str]:
    """What a store says that --verify has found no fault with; of pending rows it has told."""
    return {path.name: digest_of(path)} if FeatureStore(path).finished else TOLD


def _result(*steps: Words | Found) -> tuple[int, str, dict[str, str]]:
    """Do commands, until one fails, and look what they made: the last step."""
    said, found = io.StringIO(), {}
    with contextlib.redirect_stderr(said):
        try:
            status = next((status for words in steps[:-1] if (status := main_of(words[0])(list(words[1:])))), 0)
            found = {} if status else steps[-1]()
        except BaseException:
            traceback.print_exc()
            status = 70
    return status, said.getvalue(), found


_WITHOUT_PADDING = re.compile(rb"[^\0](?:\0{0,63}[^\0])*")  # zeros that fill up to the next alignment mean nothing


def _parts_of_store(path: Path) -> dict[str, Ranges]:
    """The bytes of a store by what they are: its columns, its attributes, and all that HDF5 keeps beside them."""
    store, content = FeatureStore(path), path.read_bytes()
    columns = {name: [(span.offset, span.end)] for name, span in store.spans.items()}
    texts = [json.dumps(store.fingerprint, sort_keys=True, ensure_ascii=False)]
    texts += [str(value) for value in store.attributes.values()]
    texts += ["fingerprint", "ids_crc32", "format_version", *store.attributes]
    attributes = [(start, start + len(code)) for text in texts if (start := content.find(code := text.encode())) >= 0]
    taken = sorted([*(range_ for ranges in columns.values() for range_ in ranges), *attributes])
    header, at = [], 0
    for start, end in [*taken, (len(content), len(content))]:
        header += [(at + part.start(), at + part.end()) for part in _WITHOUT_PADDING.finditer(content[at:start])]
        at = max(at, end)
    return {"HDF5": header, "attributes": attributes, **columns}


def _draw(ranges: Ranges, chance: random.Random) -> tuple[int, int]:
    """A byte of the ranges, and a bit of it."""
    place = chance.randrange(sum(end - start for start, end in ranges))
    for start, end in ranges:
        if place < end - start:
            return start + place, chance.randrange(8)
        place -= end - start
    raise AssertionError
