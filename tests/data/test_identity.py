"""Which image files are those that rows were computed from, and what feature files are called."""

from __future__ import annotations

import dataclasses
import os
import shlex
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frozenfusion.cli.extract import ExtractOptions
from frozenfusion.cli.parsing import parse
from frozenfusion.data import identity
from frozenfusion.data.identity import compare_files, require_same_images
from frozenfusion.data.images import file_digest
from frozenfusion.data.pairs import Pair
from frozenfusion.data.places import NO_FILE, image_stat
from frozenfusion.extraction.config import ExtractConfig
from frozenfusion.store.command import default_cache, extraction_command, is_default_cache
from frozenfusion.store.reader import FeatureStore
from frozenfusion.store.status import MISSING, UNREADABLE
from frozenfusion.store.writer import StoreWriter
from frozenfusion.utils.errors import UserError

IDS = [f"p{number}" for number in range(8)]


@pytest.fixture
def pairs(tmp_path: Path) -> list[Pair]:
    """Eight image files, each with its name as its content."""
    for id in IDS:
        (tmp_path / id).write_text(id)
    return [Pair(id, "text", tmp_path / id, None, None) for id in IDS]


@pytest.fixture
def store(tmp_path: Path, pairs: list[Pair]) -> FeatureStore:
    """Rows of them: p0 to p5 are ok, p5's without a digest; p6 could not be read, p7 was not there."""
    ok = range(6)
    digests = [file_digest(id.encode()) for id in IDS[:5]] + [bytes(16)]
    with StoreWriter.create(tmp_path / "x.h5", IDS, (2,), "float32", {"backbone": "small"}) as writer:
        writer.write(ok, np.ones((6, 2)), digests, [image_stat(pairs[row].image) for row in ok])
        writer.mark([6], UNREADABLE, [file_digest(b"p6")], [image_stat(pairs[6].image)])
        writer.mark([7], MISSING)
    pairs[7].image.unlink()
    return FeatureStore(tmp_path / "x.h5")


def check(store: FeatureStore, pairs: list[Pair]) -> None:
    require_same_images(store, store.rows([pair.id for pair in pairs]), pairs, "my data")


def test_only_files_that_have_changed_are_read(store: FeatureStore, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch):
    read = []
    monkeypatch.setattr(identity, "image_bytes", lambda path, limit: read.append(path.name) or b"?")
    check(store, pairs)
    assert not read
    os.utime(pairs[2].image, ns=(1, 1))
    with pytest.raises(UserError, match=r"1 of the 8 pairs .* \(p2\): python extract_features.py 'my data' .*--update"):
        check(store, pairs)
    assert read == ["p2"]


def test_what_has_another_time_and_the_same_content_is_the_same(store: FeatureStore, pairs: list[Pair], caplog):
    for pair in pairs[:7]:
        os.utime(pair.image, ns=(1, 1))
    check(store, pairs)
    assert not caplog.records
    found = compare_files(store, np.arange(8), lambda place: pairs[place].image)
    assert (found.there, found.changed.tolist(), found.same.tolist()) == (6, [], [0, 1, 2, 3, 4, 6])
    assert [tuple(stat) for stat in found.stats] == [image_stat(pairs[place].image) for place in found.same]
    part = compare_files(store, np.array([-1, 1, -1, 3, -1, -1, -1, -1]), lambda place: pairs[place].image, every=True)
    assert (part.there, part.same.tolist()) == (2, [1, 3])


def test_rows_without_a_digest_and_files_that_cannot_be_looked_at_are_passed_over(
    store: FeatureStore, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch
):
    pairs[5].image.write_text("another picture, but nobody knows of which the row is")
    pairs[0].image.unlink()
    pairs[1].image.unlink()
    pairs[1].image.mkdir()
    assert image_stat(pairs[1].image) == NO_FILE
    os.utime(pairs[2].image, ns=(1, 1))

    def refused(path: Path, limit: int) -> bytes:
        raise PermissionError

    monkeypatch.setattr(identity, "image_bytes", refused)
    check(store, pairs)


def test_a_file_too_large_to_read_is_not_the_one_that_was_read(
    store: FeatureStore, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(identity, "MAX_FILE_BYTES", 20)
    pairs[3].image.write_bytes(bytes(21))
    with pytest.raises(UserError, match="p3"):
        check(store, pairs)


def test_images_that_came_later_are_told(store: FeatureStore, pairs: list[Pair], caplog: pytest.LogCaptureFixture):
    pairs[6].image.write_text("mended")
    pairs[7].image.write_text("found")
    check(store, pairs[:6])
    assert not caplog.records  # only pairs that are used
    check(store, pairs)
    assert "2 images could not be used" in caplog.text
    assert "(p6, p7)" in caplog.text


NAMES = st.text("ab-_.2[*é ", min_size=1, max_size=6).filter(lambda name: name.strip(".") == name)


@given(NAMES, NAMES, st.sampled_from(["efficientnet-b0", "my-net.v2", "b7"]))
def test_a_default_file_is_told_from_those_of_other_data(data: str, other: str, backbone: str):
    cache = default_cache(f"posts/{data}.csv", backbone)
    assert cache.parent == Path("cache")
    assert is_default_cache(cache, f"posts/{data}.csv")
    assert is_default_cache(cache, f"{other}.csv") == (other == data)
    assert not is_default_cache(cache.with_name(f"{cache.stem}.text-0123456789ab.h5"), f"posts/{data}.csv")
    assert not is_default_cache(cache.with_name(f"{cache.stem}.bad.csv"), f"posts/{data}.csv")


def test_a_folder_has_the_name_that_it_is_reached_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "v1.0" / "data").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "v1.0" / "data")
    assert default_cache("..", "efficientnet-b7").name == "v1.0-b7.h5"
    assert default_cache(".", "efficientnet-b7").name == "data-b7.h5"


def test_a_command_has_the_options_that_the_fingerprint_tells():
    command = extraction_command("my data", "x.h5", {}, "imagenet")
    assert command == "python extract_features.py 'my data' --cache x.h5"
    fingerprint = {"backbone": "efficientnet-b0", "pooling": "none", "image_size": 64, "resampling": "x, jpeg draft"}
    words = shlex.split(extraction_command("my data", "x.h5", fingerprint, "a file.pth", "--update"))[2:]
    found = parse(ExtractOptions, words)
    changed = {"backbone": "efficientnet-b0", "pool": "none", "image_size": 64, "jpeg_draft": True}
    expected = ExtractConfig(**changed, weights="a file.pth", update=True)
    assert all(getattr(found, field.name) == getattr(expected, field.name) for field in dataclasses.fields(expected))


def test_a_command_names_every_option_that_is_not_the_default():
    usual = ExtractConfig()
    fingerprint = {"backbone": usual.backbone, "pooling": usual.pool, "image_size": 224}
    fingerprint |= {"precision": usual.precision, "dtype": usual.dtype}
    assert "--" not in extraction_command("d", "x.h5", fingerprint, usual.weights).replace("--cache", "")
