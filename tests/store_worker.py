"""Writers for tests/store/test_store_survival.py that are really killed: this process forks them and sends SIGKILL.

python tests/store_worker.py PATH SEED KILLS: create, go on with, extend and rebuild one store until KILLS writers died,
checking after each death that every ok row is what it should be. Prints how many deaths found how much done.
"""

from __future__ import annotations

import collections
import functools
import os
import random
import signal
import sys
import time
import zlib
from pathlib import Path

import numpy as np

from frozenfusion.store import writer as store_module
from frozenfusion.store.reader import FeatureStore
from frozenfusion.store.status import MISSING, OK, PENDING
from frozenfusion.store.writer import StoreWriter

SHAPE = (96,)
FINGERPRINT = {"backbone": "stub", "image_size": 8}
REBUILT = {"backbone": "stub", "image_size": 16}


def names(count: int) -> list[str]:
    """Ids whose order mixes early and late ones, so that extending a store moves its rows."""
    return sorted(f"{zlib.crc32(bytes([i % 251, i // 251])):08x}" for i in range(count))


@functools.cache
def feature(name: str, image_size: int) -> np.ndarray:
    """What the row of `name` must hold."""
    seed = zlib.crc32(repr((name, image_size)).encode())
    return np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)


def is_missing(name: str) -> bool:
    return name.endswith("7")


def check(store: FeatureStore) -> None:
    """Fail unless every settled row is right, by its content and by its checksum."""
    for row in np.flatnonzero(store.status != PENDING):
        name = store.names([row])[0]
        assert store.status[row] == (MISSING if is_missing(name) else OK), f"{name} has status {store.status[row]}"
        expected = np.zeros(SHAPE) if is_missing(name) else feature(name, int(store.fingerprint["image_size"]))
        assert (store.features[row] == expected).all(), f"{name} is settled but its features are wrong"
        assert bytes(store.digest[row]) == digest(name)
    assert not len(store.damaged_rows())


def digest(name: str) -> bytes:
    return name.encode().ljust(16)


def fill(writer: StoreWriter, batch: int = 7) -> None:
    """Settle every pending row, in shuffled batches so that rows are not neighbours on the disk."""
    pending = np.random.default_rng(len(writer.store.ids)).permutation(np.flatnonzero(writer.store.status == PENDING))
    for start in range(0, len(pending), batch):
        rows = pending[start : start + batch]
        known = np.array([is_missing(name) for name in writer.store.names(rows)])
        for part, missing in ((rows[~known], False), (rows[known], True)):
            if not len(part):
                continue
            ids = writer.store.names(part)
            stats = np.ones((len(part), 2), np.int64)
            if missing:
                writer.mark(part, MISSING, [digest(name) for name in ids], stats)
            else:
                features = np.stack([feature(name, int(writer.store.fingerprint["image_size"])) for name in ids])
                writer.write(part, features, [digest(name) for name in ids], stats)


def write_slowly() -> None:
    """Pause before each write, so that most deaths fall between two of them."""
    pwrite = os.pwrite

    def slow(fd: int, content: bytes, offset: int) -> int:
        time.sleep(0.0003)
        return pwrite(fd, content, offset)

    os.pwrite = slow


def work(path: Path, count: int, rebuild: bool) -> None:
    """What a run of stage one does with its store: make it or go on with it, add what it lacks, fill it."""
    if rebuild:
        with StoreWriter.rebuild(path, names(count), SHAPE, np.float32, REBUILT) as writer:
            fill(writer)
            writer.publish()
    elif not path.exists():
        with StoreWriter.create(path, names(count), SHAPE, np.float32, FINGERPRINT) as writer:
            fill(writer)
    else:
        with StoreWriter.extend(path, names(count), FeatureStore(path).fingerprint) as writer:
            fill(writer)


def main(path: Path, seed: int, kills: int) -> None:
    chance = random.Random(seed)
    found: collections.Counter[str] = collections.Counter()
    store_module.SECONDS_BETWEEN_COMMITS = 0.003
    count = 100
    while sum(found.values()) < kills:
        if chance.random() < 0.4:
            count += 25
        if chance.random() < 0.1:
            path.unlink(missing_ok=True)
        rebuild = path.exists() and chance.random() < 0.15
        child = os.fork()
        if not child:
            write_slowly()
            work(path, count, rebuild)
            os._exit(0)
        time.sleep(chance.random() ** 2 * 0.08)
        if path.exists():
            check(FeatureStore(path))  # a reader beside the writer
        os.kill(child, signal.SIGKILL)
        _, how = os.waitpid(child, 0)
        assert os.WIFSIGNALED(how) or os.WEXITSTATUS(how) == 0, "a writer failed by itself"
        if not path.exists():
            found["nothing"] += 1
            continue
        store = FeatureStore(path)
        check(store)
        found["finished" if store.finished else "part"] += 1
    work(path, count, rebuild=False)
    print(count, dict(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
