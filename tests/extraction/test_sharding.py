"""Stage one in shards: by one worker or several, killed and gone on with, merged into what one machine makes."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import write_posts
from PIL import Image
from warm import Script

from frozenfusion.cli import extract as extract_command
from frozenfusion.data.pairs import load_pairs
from frozenfusion.extraction import sharding
from frozenfusion.extraction.claims import LEASE, Worker
from frozenfusion.extraction.config import ExtractConfig
from frozenfusion.extraction.extractor import ExtractSummary, extract, update_features
from frozenfusion.extraction.inspection import info, verify
from frozenfusion.extraction.merging import merge_shards
from frozenfusion.store import mapped
from frozenfusion.store.reader import FeatureStore
from frozenfusion.utils.errors import UsageError, UserError
from frozenfusion.utils.locks import lock_path
from frozenfusion.utils.plugins import import_plugin
from frozenfusion.vision.registry import BACKBONES

IMAGES, ROWS = 11, 3
NETWORK = {"backbone": "small", "image_size": 32, "batch_size": 2}
SMALL = """
import torch
from frozenfusion import register_backbone

@register_backbone("small")
def small(weights):
    torch.manual_seed(0)
    return torch.nn.Conv2d(3, 4, 16, stride=16)
"""


@pytest.fixture(scope="module", autouse=True)
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A network that takes no time, here and in other processes."""
    path = tmp_path_factory.mktemp("plugin") / "small.py"
    path.write_text(SMALL)
    import_plugin(str(path))
    yield path
    BACKBONES.remove("small")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_posts(tmp_path_factory.mktemp("shards") / "posts", IMAGES)


def run(data: Path, cache: Path, **options: object) -> ExtractSummary:
    return update_features(load_pairs(data), cache, ExtractConfig(**{**NETWORK, **options}))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def whole(data: Path) -> Path:
    """What one machine makes of it."""
    return run(data, data.parent / "whole.h5").cache


@pytest.fixture(scope="module")
def made(data: Path) -> Path:
    """The finished folder."""
    return run(data, data.parent / "made", shards=ROWS).cache


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "big"))


def shard_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.h5"))


def same(folder: Path, whole: Path) -> bool:
    one, other = FeatureStore(folder), FeatureStore(whole)
    return one.finished and all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("ids", "features", "status", "digest", "stat", "crc32", "check")
    )


ALL = [f"shard-{number:05}.h5" for number in range(4)]
FILES = sorted([*ALL, "ids.npy", "plan.json", "shard-00001.bad.csv"])


def test_shards_are_the_rows_of_one_file_and_merge_into_its_bytes(data: Path, whole: Path, made: Path, tmp_path: Path):
    assert same(made, whole)
    assert sorted(path.name for path in made.iterdir()) == FILES
    told = merge_shards(made, tmp_path / "merged" / "one.h5")
    assert "11 rows of 4 shards" in told
    assert (tmp_path / "merged" / "one.h5").read_bytes() == whole.read_bytes()
    assert (tmp_path / "merged" / "one.bad.csv").read_bytes() == whole.with_name("whole.bad.csv").read_bytes()
    assert sorted(path.name for path in (tmp_path / "merged").iterdir()) == ["one.bad.csv", "one.h5"]
    assert "4 of 4, each of 3 rows or less" in info(made)
    assert "all 10 rows are as they were written, and come from the 10 image files" in verify(made, data)


def test_no_pair_is_made_for_what_its_columns_tell(data: Path, made: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("frozenfusion.data.pair_columns.Pair", None)  # of ten million, each would take a kilobyte
    summary = run(data, tmp_path / "big", shards=ROWS)
    assert same(summary.cache, made)
    assert "11 pairs (unlabelled layout)" in str(summary)


def test_the_same_command_finds_nothing_to_compute_and_needs_no_shards_flag(data: Path, folder: Path):
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    summary = run(data, folder)
    assert summary.timing.images == 0
    assert "4 of 4 are there" in str(summary)
    assert summary.counts["ok"] == 10
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_shares_make_up_the_whole_in_any_order(data: Path, whole: Path, tmp_path: Path):
    folder = tmp_path / "big"
    assert "1 of 4 are there" in str(run(data, folder, shards=ROWS, shard="2/3"))
    assert shard_names(folder) == [ALL[1]]
    assert run(data, folder, shard="2/3").timing.images == 0
    run(data, folder, shards=ROWS, shard="1/3")
    assert shard_names(folder) == [ALL[0], ALL[1], ALL[3]]
    summary = run(data, folder, shard="7/9")  # there are fewer shards than shares
    assert (summary.timing.images, summary.counts["pending"]) == (0, 3)
    run(data, folder, shard="3/3")
    assert same(folder, whole)


def test_workers_beside_each_other_do_no_shard_twice(data: Path, whole: Path, tmp_path: Path):
    folder, images = tmp_path / "big", []
    run(data, folder, shards=2, shard="6/6")

    def work() -> None:
        images.append(run(data, folder).timing.images)

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sum(images) == IMAGES - 1
    assert same(folder, whole)
    assert not [path.name for path in folder.iterdir() if "claim" in path.name or path.name.endswith((".lock", "tial"))]


@pytest.fixture(scope="module")
def slow_data(data: Path) -> Path:
    """The same, but one image of the second shard takes minutes to decode."""
    folder = Path(shutil.copytree(data, data.parent / "slow" / "posts"))
    file = io.BytesIO()
    Image.new("L", (4000, 4000)).save(file, "JPEG", progressive=True)
    jpeg = file.getvalue()
    last = jpeg.rindex(b"\xff\xda")
    (folder / "p05.png").write_bytes(jpeg[:last] + jpeg[last:-2] * 20_000 + jpeg[-2:])
    return folder


def started(plugin: Path, data: Path, cache: Path, *arguments: str) -> Script:
    network = [word for option, value in NETWORK.items() for word in (f"--{option.replace('_', '-')}", value)]
    words = (data, "--cache", cache, "--image-seconds", 600, "--import", plugin, *network, *arguments)
    return Script("extract_features.py", *words)


def wait_for(process: Script, folder: Path, pattern: str) -> None:
    ends = time.monotonic() + 60
    while not list(folder.glob(pattern)):
        assert process.poll() is None, process.finish()
        assert time.monotonic() < ends
        time.sleep(0.02)


def test_killed_it_loses_its_claim_and_the_next_goes_on(
    plugin: Path, slow_data: Path, data: Path, whole: Path, tmp_path: Path
):
    folder = tmp_path / "big"
    process = started(plugin, slow_data, folder, "--shards", str(ROWS))
    wait_for(process, folder, "shard-00001.*.partial")
    assert "others are computing 1" in str(run(slow_data, folder))  # all but what the living one is at work on
    assert shard_names(folder) == [ALL[0], ALL[2], ALL[3]]
    process.send_signal(signal.SIGKILL)
    process.finish()
    assert list(folder.glob("*.claim-1"))
    shutil.copy2(data / "p05.png", slow_data / "p05.png")
    assert run(slow_data, folder).timing.images <= ROWS
    assert same(folder, whole)
    assert sorted(path.name for path in folder.iterdir()) == FILES


def test_a_worker_whose_lease_was_lost_finds_the_shard_done(data: Path, whole: Path, tmp_path: Path, caplog):
    folder = tmp_path / "big"
    run(data, folder, shards=ROWS, shard="4/4")
    stopped, goes_on, taken = threading.Event(), threading.Event(), []

    class Stopped(Worker):
        """Stands still after its first claim, as a machine that sleeps does, and its lease runs out."""

        def claim(self, shard, generations):
            claim = super().claim(shard, generations)
            if not stopped.is_set():
                lock = lock_path(folder / self.name)
                long_ago = time.time() - 2 * LEASE
                os.utime(lock, (long_ago, long_ago))
                taken.append(claim)
                stopped.set()
                goes_on.wait(60)
            return claim

    from frozenfusion.extraction import sharding

    def work() -> None:
        run(data, folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "Worker", Stopped)
        sleeper = threading.Thread(target=work)
        sleeper.start()
        assert stopped.wait(60)
    assert run(data, folder).timing.images == 9
    assert same(folder, whole)
    goes_on.set()
    sleeper.join()
    assert same(folder, whole)
    assert sorted(path.name for path in folder.iterdir()) == FILES


def test_what_a_dead_worker_left_is_gone_on_with(data: Path, whole: Path, folder: Path):
    path = folder / ALL[2]
    left = folder / "shard-00002.elsewhere-12-0123abcd.partial"
    path.rename(left)
    store = FeatureStore(left)
    span, row = store.spans["features"], store.spans["status"].offset
    with left.open("r+b") as file:
        file.seek(row + 1)
        file.write(b"\0")  # one row was never committed
        file.seek(span.offset + 5)
        file.write(b"\x77\x77")  # and one is damaged
    (folder / "shard-00002.claim-1").write_text("elsewhere-12-0123abcd")
    assert run(data, folder).timing.images == 2
    assert same(folder, whole)
    assert sorted(path.name for path in folder.iterdir()) == FILES


def test_what_a_dead_worker_left_in_ruins_is_begun_anew(data: Path, whole: Path, folder: Path):
    path = folder / ALL[2]
    path.unlink()
    (folder / "shard-00002.elsewhere-12-0123abcd.partial").write_bytes(b"\x89HDF\r\n\x1a\n and no more")
    (folder / "shard-00002.claim-1").touch()  # and one who died before it signed
    os.utime(folder / "shard-00002.claim-1", (0, 0))
    assert run(data, folder).timing.images == ROWS
    assert same(folder, whole)
    assert sorted(path.name for path in folder.iterdir()) == FILES


def test_the_claim_of_a_worker_elsewhere_counts_until_its_lease_ends(data: Path, folder: Path):
    (folder / ALL[2]).unlink()
    name = "elsewhere-12-0123abcd"
    lock = lock_path(folder / name)
    lock.touch()
    (folder / "shard-00002.claim-1").write_text(name)
    assert "others are computing 1" in str(run(data, folder))
    os.utime(lock, (time.time() - LEASE - 5,) * 2)
    assert run(data, folder).timing.images == ROWS
    assert sorted(path.name for path in folder.iterdir()) == FILES


def test_images_that_changed_are_computed_again_shard_by_shard(data: Path, folder: Path, tmp_path: Path):
    posts = Path(shutil.copytree(data, tmp_path / "posts"))
    shutil.copy(data / "p01.png", posts / "p09.png")
    assert run(posts, folder).timing.images == 0  # finished shards are kept as they are
    with pytest.raises(UserError, match=r"1 of 10 images .* --update computes them again"):
        verify(folder, posts)
    assert run(posts, folder, update=True).timing.images == 2  # and the one that cannot be read
    store = FeatureStore(folder)
    assert np.array_equal(store.features[9], store.features[1])
    shutil.copy(data / "p01.png", posts / "p04.png")
    assert run(posts, folder, retry_failed=True).counts["ok"] == IMAGES
    assert not list(folder.glob("*.bad.csv"))


def refused(data: Path, folder: Path, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        run(data, folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_another_plan_is_refused_with_the_difference(data: Path, folder: Path, tmp_path: Path):
    before = (folder / "plan.json").read_bytes()
    assert "rows per shard 3 → 4" in refused(data, folder, shards=4)
    assert "image_size 32 → 64" in refused(data, folder, image_size=64)
    posts = Path(shutil.copytree(data, tmp_path / "posts"))
    (posts / "p10.png").rename(posts / "q10.png")
    assert "other ids" in refused(posts, folder)
    shutil.copy(posts / "p00.png", posts / "p10.png")
    assert "pairs 11 → 12" in refused(posts, folder)
    assert (folder / "plan.json").read_bytes() == before


def test_data_that_lies_elsewhere_is_the_same(data: Path, folder: Path, tmp_path: Path):
    shutil.copytree(data, tmp_path / "mounted" / "here")
    assert run(tmp_path / "mounted" / "here", folder).timing.images == 0


def test_what_is_no_folder_of_shards_is_left_alone(data: Path, whole: Path, folder: Path, tmp_path: Path):
    foreign = tmp_path / "mine"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("x")
    for cache in (foreign, whole):
        assert f"{cache}: is there already, and no folder of shards" in refused(data, cache, shards=3)
    assert [path.name for path in foreign.iterdir()] == ["thesis.txt"]
    assert "give `shards` as well" in refused(data, tmp_path / "new", shard="1/2")
    assert "`rebuild=True` makes one file anew" in refused(data, folder, rebuild=True)
    assert "is there already" in refused(data, folder, resume="never")
    assert "nothing to resume" in refused(data, tmp_path / "new", shards=3, resume="always")
    with pytest.raises(UserError, match="no folder of shards"):
        merge_shards(foreign, tmp_path / "x.h5")


def test_a_shard_that_was_cut_off_is_told_and_computed_once_deleted(data: Path, whole: Path, folder: Path):
    path = folder / ALL[1]
    path.write_bytes(path.read_bytes()[:3000])
    told = refused(data, folder)
    assert told.startswith(f"{path}: ")
    assert f"delete it and run python extract_features.py DATA --cache {folder}" in told
    path.unlink()
    (folder / "ids.npy").write_bytes(b"")
    assert run(data, folder).timing.images == ROWS
    assert same(folder, whole)


def test_rows_that_rotted_are_found_and_never_merged(data: Path, folder: Path, tmp_path: Path):
    path = folder / ALL[3]
    offset = FeatureStore(path).spans["features"].offset
    with path.open("r+b") as file:
        file.seek(offset + 6)
        file.write(b"\x77\x77")
    for action in (lambda: verify(folder), lambda: merge_shards(folder, tmp_path / "one.h5")):
        with pytest.raises(UserError, match=r"1 of 10 rows are damaged .*\(p09\): delete or restore .*shard-00003.h5"):
            action()
    path.unlink()
    with pytest.raises(UserError, match="2 of 11 rows are pending"):
        merge_shards(folder, tmp_path / "one.h5")
    assert not (tmp_path / "one.h5").exists()


def test_a_merge_replaces_nothing(made: Path, whole: Path):
    before = whole.read_bytes()
    with pytest.raises(UserError, match="is there already"):
        merge_shards(made, whole)
    assert whole.read_bytes() == before


@pytest.mark.parametrize("shard", ["0/4", "5/4", "3", "a/b", "-1/4", "1/0"])
def test_shares_that_cannot_be_are_told(shard: str):
    with pytest.raises(UsageError, match="3/16"):
        ExtractConfig(shard=shard)


def test_strict_counts_what_cannot_be_used_and_not_what_others_compute(data: Path, tmp_path: Path):
    config = {"shards": ROWS, "strict": True}
    run(data, tmp_path / "big", shard="1/4", **config)
    with pytest.raises(UserError, match="1 of 11 images cannot be used"):
        run(data, tmp_path / "big", **config)
    assert FeatureStore(tmp_path / "big").finished


def test_where_the_file_system_has_no_hard_links_it_works_as_well(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def no_link(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links")

    monkeypatch.setattr(os, "link", no_link)
    run(data, tmp_path / "big", shards=ROWS)
    assert same(tmp_path / "big", whole)
    assert sorted(path.name for path in (tmp_path / "big").iterdir()) == FILES


def test_the_command_looks_and_merges(made: Path, data: Path, whole: Path, tmp_path: Path, capsys):
    def command(*words: object) -> tuple[int, str, str]:
        status = extract_command.main([str(word) for word in words], "extract_features.py")
        return (status, *capsys.readouterr())

    assert "4 of 4, each of 3 rows" in command(made, "--info")[1]
    assert "all 10 rows are as they were written" in command(made, "--verify")[1]
    assert "come from the 10 image files" in command(data, "--verify", "--cache", made)[1]
    status, told, _ = command(made, "--merge", tmp_path / "one.h5")
    assert (status, told) == (0, f"{tmp_path / 'one.h5'}: 11 rows of 4 shards, each checked against its checksum\n")
    assert (tmp_path / "one.h5").read_bytes() == whole.read_bytes()
    for words, mistake in (
        ((data, "--shards", 3), "--shards makes a folder of feature files: say which with --cache"),
        ((made, "--info", "--merge", "x.h5"), "--info and --merge look at a feature file in two ways"),
        ((made, "--merge", "x.h5", "--shard", "1/2"), "leave out --shard"),
        ((data, "--cache", "x", "--shards", 3, "--rebuild"), "--rebuild makes a feature file anew"),
    ):
        status, _, error = command(*words)
        assert status == 2
        assert mistake in error


def test_the_library_returns_the_folder_as_a_store(data: Path, folder: Path, whole: Path):
    store = extract(load_pairs(data), folder, config=ExtractConfig(**NETWORK))
    assert isinstance(store, FeatureStore)
    assert np.array_equal(store.gather([9, 1]), FeatureStore(whole).gather([9, 1]))
    plan = json.loads((folder / "plan.json").read_text())
    assert plan["bounds"] == [0, 3, 6, 9, 11]


def test_more_shards_than_can_be_read_as_one_are_refused_before_anything_is_written(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharding, "MOST_SHARDS", 3)
    with pytest.raises(UserError, match=r"11 images in shards of 3 are 4 files, .* `shards` of 4 or more"):
        run(data, tmp_path / "cache", shards=3)
    assert not (tmp_path / "cache").exists()
    assert run(data, tmp_path / "cache", shards=4).counts["pending"] == 0


@pytest.mark.parametrize(
    ("reason", "told"), [(errno.ENOMEM, r"4 shards: raise the limit .* larger `shards`"), (errno.EMFILE, "ulimit -n")]
)
def test_a_limit_of_the_system_is_no_fault_of_a_shard(
    made: Path, monkeypatch: pytest.MonkeyPatch, reason: int, told: str
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(mapped, "_mapped", refused)
    with pytest.raises(UserError, match=told) as raised:
        FeatureStore(made)
    assert "delete" not in str(raised.value)
