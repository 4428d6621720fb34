"""Images that are no files of their own: in tables, in tars, in object stores."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import tarfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from conftest import ROOT, write_manifest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import frozenfusion as ff
from frozenfusion.cli import extract as command
from frozenfusion.data import places, remote, table_files, tars
from frozenfusion.data.places import RemoteFile, TableCell, TarMember, place_of
from frozenfusion.data.splits import split_pairs
from frozenfusion.evaluation.report.page import thumbnail
from frozenfusion.extraction import loop
from frozenfusion.extraction.sharding import agree_on_plan
from frozenfusion.model.raw import RawImages
from frozenfusion.store.status import MISSING, OK, UNREADABLE
from frozenfusion.utils.errors import UsageError, UserError
from frozenfusion.vision.backbone import Backbone, build_backbone

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

ROWS = 12
NONE, EMPTY, OTHER = 3, 5, 7
CLASSES = ["cat", "dog", "emu"]


def png(number: int) -> bytes:
    content = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 255, (20, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


IMAGES: list[bytes | None] = [png(number) for number in range(ROWS)]
IMAGES[NONE], IMAGES[EMPTY], IMAGES[OTHER] = None, b"", b"%PDF"  # which needs no process that decodes


def table(images: Sequence[bytes | None] = IMAGES, **more: Any) -> Any:
    """A table as `datasets` has it: pictures with their paths, classes as numbers."""
    features = {"label": {"names": CLASSES, "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    columns = {
        "image": pa.array(
            [None if image is None else {"bytes": image, "path": f"{row}.png"} for row, image in enumerate(images)],
            pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        ),
        "text": [f"text {row}" for row in range(len(images))],
        "label": [row % 3 for row in range(len(images))],
    }
    made = pa.table(columns | more)
    return made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as file:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return path


def shard(images: Sequence[bytes | None] = IMAGES) -> list[tuple[str, bytes]]:
    members = []
    for row, image in enumerate(images):
        members += [(f"k/{row:03}.PNG", image)] if image is not None else []
        members += [(f"k/{row:03}.txt", f"text {row}".encode()), (f"k/{row:03}.cls", CLASSES[row % 3].encode())]
    return members


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return build_backbone("efficientnet-b0", "random", image_size=32)


@pytest.fixture(autouse=True)
def one_backbone(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the building of a network in each test."""
    monkeypatch.setattr("frozenfusion.extraction.extractor.build_backbone", lambda *_, **__: backbone)


def extract(pairs: ff.Pairs, cache: Path, **changes: Any) -> ff.FeatureStore:
    given = {"image_size": 32, "batch_size": 4, "device": "cpu", "runtime": "eager", "workers": 4} | changes
    return ff.extract(pairs, cache, backbone="efficientnet-b0", weights="random", config=ff.ExtractConfig(**given))


@pytest.fixture(scope="module")
def as_files(tmp_path_factory: pytest.TempPathFactory, backbone: Backbone) -> np.ndarray:
    """What the images give as files: statuses, digests and features, one row after the other."""
    folder = tmp_path_factory.mktemp("files")
    lines = ["id,text,image"]
    for row, image in enumerate(IMAGES):
        lines.append(f"{row:02},text {row},{row}.png")
        if image is not None:
            (folder / f"{row}.png").write_bytes(image)
    (folder / "posts.csv").write_text("\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("frozenfusion.extraction.extractor.build_backbone", lambda *_, **__: backbone)
        return contents(extract(ff.load_pairs(folder / "posts.csv"), folder / "f.h5"))


def contents(store: ff.FeatureStore) -> np.ndarray:
    return np.hstack([store.status[:, None], store.digest, store.gather(np.arange(store.n))])


def failure(path: Path | str, **given: Any) -> str:
    with pytest.raises(UserError) as caught:
        ff.load_pairs(path, **given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def reasons(cache: Path) -> list[str]:
    lines = cache.with_name(f"{cache.stem}.bad.csv").read_text().splitlines()[1:]
    return [f"{status}: {reason}" for _, _, status, reason in csv.reader(lines)]


# Tables


def in_parquet(folder: Path) -> Path:
    pq.write_table(table().slice(0, 7), folder / "train-0.parquet", row_group_size=3)
    pq.write_table(table().slice(7), folder / "train-1.parquet", row_group_size=2)
    return folder


def in_plain_cells(folder: Path) -> Path:
    pq.write_table(table(image=pa.array(IMAGES, pa.large_binary())), folder / "plain.parquet")
    return folder / "plain.parquet"


def in_arrow(folder: Path) -> Path:
    """As `Dataset.save_to_disk` does."""
    with pa.ipc.new_stream(folder / "data-0.arrow", table().schema) as stream:
        stream.write_table(table(), max_chunksize=5)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-0.arrow"}], "_split": None}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def in_tars(folder: Path) -> Path:
    tar(folder / "x-000.tar", shard()[:11])
    tar(folder / "x-001.tar", shard()[11:])
    return folder / "x-{000..001}.tar"


def in_memory(folder: Path) -> str:
    """In an object store, of which fsspec has one that ends with the process."""
    store = fsspec.filesystem("memory")
    for row, image in enumerate(IMAGES):
        if image is not None:
            store.pipe_file(f"/all/pictures/{row}.png", image)
    lines = [f'{{"id": "{row:02}", "text": "text {row}", "image": "pictures/{row}.png"}}' for row in range(ROWS)]
    store.pipe_file("/all/posts.jsonl", "\n".join(lines).encode())
    return "memory://all/posts.jsonl"


WAYS = {
    in_parquet: "table",
    in_plain_cells: "manifest",
    in_arrow: "table",
    in_tars: "webdataset",
    in_memory: "manifest",
}


@pytest.mark.parametrize("put", WAYS, ids=lambda put: put.__name__)
def test_images_give_the_rows_that_they_give_as_files_wherever_they_are(tmp_path: Path, as_files: np.ndarray, put: Any):
    pairs = ff.load_pairs(put(tmp_path))
    assert (pairs.layout, len(pairs)) == (WAYS[put], ROWS)
    assert [pair.text for pair in pairs] == [f"text {row}" for row in range(ROWS)]  # ids keep the order of the rows
    for pair in pairs:
        if isinstance(pair.image, places.Place):
            assert place_of(pair.image.address) == pair.image
    cache = tmp_path / "features.h5"
    np.testing.assert_array_equal(contents(extract(pairs, cache)), as_files)
    (missing, *others) = reasons(cache)
    assert missing in ("missing: no image in its row", "missing: no such file")
    assert others == ["unreadable: empty file", "unreadable: a PDF file, not an image"]
    assert thumbnail(pairs[0].image) is not None
    assert thumbnail(pairs[OTHER].image) is None


def test_a_folder_of_tables_has_the_classes_and_splits_that_it_says(tmp_path: Path):
    for name in ("train-00000-of-00001", "validation", "test/0000", "more"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(table(), tmp_path / f"{name}.parquet")
    pairs = ff.load_pairs(tmp_path)
    assert pairs.label_names == tuple(CLASSES)
    assert {pair.split for pair in pairs} == {"train", "val", "test", None}
    assert pairs.ids[0] == "more-00000000"
    assert pairs.select(["test-0000-00000004"])[0].label == 1
    one = ff.load_pairs(tmp_path / "t*" / "*.parquet")
    assert one.ids == [f"test-0000-{row:08}" for row in range(ROWS)]
    assert "no file is called so" in failure(tmp_path / "x*.parquet")


def test_splits_of_a_saved_data_set_are_its_folders(tmp_path: Path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        in_arrow(tmp_path / split)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    pairs = ff.load_pairs(tmp_path)
    assert [pair.split for pair in pairs] == ["test"] * ROWS + ["train"] * ROWS
    for told in ('{"splits": ["../x"]}', '{"splits": [1]}', "[]"):
        (tmp_path / "dataset_dict.json").write_text(told)
        assert "dataset_dict.json" in failure(tmp_path)


@pytest.mark.parametrize(
    ("label", "told"), [([9] + [0] * 11, "row 1: label 9 is none of its 3 classes"), ([-1] * ROWS, None)]
)
def test_numbers_of_classes_are_their_names_or_none(tmp_path: Path, label: list[int], told: str | None):
    pq.write_table(table(label=label), tmp_path / "t.parquet")
    if told is None:
        assert set(ff.load_pairs(tmp_path / "t.parquet").labels) == {-1}
    else:
        assert told in failure(tmp_path / "t.parquet")


def test_ids_of_the_table_s_own_may_be_in_any_order(tmp_path: Path, as_files: np.ndarray):
    order = np.random.default_rng(0).permutation(ROWS)
    ids = [f"{row:02}" for row in order]
    pq.write_table(table([IMAGES[row] for row in order], id=ids), tmp_path / "t.parquet", row_group_size=2)
    np.testing.assert_array_equal(contents(extract(ff.load_pairs(tmp_path / "t.parquet"), tmp_path / "f.h5")), as_files)


@settings(max_examples=15)
@given(sizes=st.lists(st.integers(0, 300), min_size=1, max_size=30), group=st.integers(1, 12), data=st.data())
def test_any_cell_can_be_read_at_any_time(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], group: int, data: st.DataObject
):
    path = tmp_path_factory.mktemp("cells") / "t.parquet"
    cells = [bytes([row]) * size for row, size in enumerate(sizes)]
    pq.write_table(table(cells), path, row_group_size=group)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_files, "KEPT_BYTES", data.draw(st.integers(0, 600)))
        patch.setattr(table_files, "BATCH_ROWS", data.draw(st.integers(1, 5)))
        for row in data.draw(st.lists(st.integers(0, len(cells) - 1), max_size=20)):
            assert TableCell(path, row, "image").read(300) == cells[row]
    rows = list(range(len(cells))) * 2
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda row: TableCell(path, row, "image").read(300), rows)) == cells * 2


def test_an_untouched_table_is_not_read_again_and_a_changed_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, cache = in_plain_cells(tmp_path), tmp_path / "f.h5"
    before = contents(extract(ff.load_pairs(path), cache))
    read: list[int] = []
    cell_bytes = places.cell_bytes
    monkeypatch.setattr(places, "cell_bytes", lambda *given: (read.append(given[1]), cell_bytes(*given))[1])
    extract(ff.load_pairs(path), cache)
    assert not read
    changed = [*IMAGES[:-1], png(99)]
    pq.write_table(table(image=pa.array(changed, pa.large_binary())), path)
    after = contents(extract(ff.load_pairs(path), cache))
    assert set(range(ROWS)) - {NONE} <= set(read)
    assert (before[:-1] == after[:-1]).all()
    assert (before[-1] != after[-1]).any()


def test_a_huge_image_is_refused_and_a_damaged_table_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("frozenfusion.data.images.MAX_FILE_BYTES", 1000)
    for put in (in_plain_cells, in_tars):
        cache = tmp_path / f"{put.__name__}.h5"
        counts = extract(ff.load_pairs(put(tmp_path)), cache).counts()
        assert counts["refused"] == ROWS - 3
    path = tmp_path / "plain.parquet"
    pairs = ff.load_pairs(path)
    content = path.read_bytes()
    path.write_bytes(content[:4] + bytes(3000) + content[3004:])
    assert extract(pairs, tmp_path / "damaged.h5").counts()["unreadable"] > 0
    path.write_bytes(content[:-30])
    assert "cannot be read as Parquet" in failure(path)


def test_a_damaged_row_group_costs_no_image_of_another(tmp_path: Path):
    path, cells = tmp_path / "t.parquet", [os.urandom(50) for _ in range(12)]
    pq.write_table(table(cells), path, row_group_size=4)
    chunk = pq.ParquetFile(path).metadata.row_group(1).column(0)
    content = bytearray(path.read_bytes())
    content[chunk.data_page_offset : chunk.data_page_offset + 40] = bytes(40)
    path.write_bytes(content)
    read: list[bytes | None] = []
    for row in (*range(12), 3, 9):
        try:
            read.append(TableCell(path, row, "image").read(50))
        except OSError:
            read.append(None)
    assert read == [*cells[:4], *[None] * 4, *cells[8:], cells[3], cells[9]]


# Tars


NAME = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"], exclude_characters="/\\."), min_size=1)


@settings(max_examples=10)
@given(
    keys=st.lists(NAME, min_size=1, max_size=6, unique=True),
    sizes=st.lists(st.integers(0, 3000), min_size=6, max_size=6),
    form=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    part=st.floats(0, 1),
)
def test_whole_members_of_a_tar_count_wherever_it_is_cut(
    tmp_path_factory: pytest.TempPathFactory, keys: list[str], sizes: list[int], form: int, part: float
):
    path = tmp_path_factory.mktemp("tar") / "x.tar"
    ends: dict[str, tuple[int, bytes]] = {}
    with tarfile.open(path, "w", format=form) as file:
        for key, size in zip(keys, sizes, strict=False):
            content = os.urandom(size)
            member = tarfile.TarInfo(f"{'folder/' * 20}{key}.jpg")
            member.size = size
            file.addfile(member, io.BytesIO(content))
            ends[f"{'folder-' * 20}{key}"] = (file.offset - (-size % 512), content)
    whole = path.read_bytes()
    size = int(part * len(whole))
    path.write_bytes(whole[:size])
    expected = {key: content for key, (end, content) in ends.items() if end <= size}
    try:
        pairs = ff.load_pairs(path)
    except UserError:  # not a single header is whole
        assert not expected
        return
    assert pairs.ids == sorted(expected)
    assert {pair.id: pair.image.read(3000) for pair in pairs} == expected


def test_a_tar_s_json_tells_what_other_members_do_not(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    about = {"caption": "from json", "label": "dog", "split": "val"}
    members = [("a.json", json.dumps(about).encode()), ("a.jpg", b"1"), ("a.png", b"2"), ("b.txt", b"alone")]
    path = tar(tmp_path / "x.tar", members)
    with tarfile.open(path, "a") as file:
        link = tarfile.TarInfo("c.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)
    one, other = ff.load_pairs(path, columns={"text": "caption"})
    assert (one.text, one.label, one.split, one.image.name) == ("from json", 0, "val", "a.jpg")
    assert (other.id, other.text) == ("b", "alone")
    assert "1 links, devices and sparse files are passed over" in caplog.text


def test_what_a_tar_holds_beside_its_images_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tars, "MAX_HELD_BYTES", 7)
    assert len(ff.load_pairs(tar(tmp_path / "x.tar", [("a.jpg", b"1" * 9), ("a.txt", b"2345678")]))) == 1
    assert "more than 7 bytes beside its images" in failure(tar(tmp_path / "x.tar", [("a.txt", b"23456789")]))


def test_what_is_no_ordinary_tar_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    packed = tmp_path / "x.tar.gz"
    packed.write_bytes(b"")
    assert "decompress it" in failure(packed)
    (tmp_path / "x.tar").write_bytes(b"no tar" * 300)
    assert "not a tar archive" in failure(tmp_path / "x.tar")
    assert "twice" in failure(tar(tmp_path / "x.tar", [("a.jpg", b"1"), ("a.jpg", b"2")]))
    assert "not valid JSON" in failure(tar(tmp_path / "x.tar", [("a.jpg", b"1"), ("a.json", b"{")]))
    header = tarfile.TarInfo("long")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 2 * tars.MAX_HEADER_BYTES
    whole = tar(tmp_path / "x.tar", [("a.jpg", b"1")]).read_bytes()[:1024]
    (tmp_path / "x.tar").write_bytes(whole + header.tobuf() + bytes(3 * tars.MAX_HEADER_BYTES))
    assert ff.load_pairs(tmp_path / "x.tar").ids == ["a"]
    assert "damaged or cut short" in caplog.text
    for kind, name in ((tarfile.REGTYPE, "b.bin"), (tarfile.REGTYPE, "b.txt"), (tarfile.GNUTYPE_LONGNAME, "long")):
        caplog.clear()
        header = tarfile.TarInfo(name)  # that leads back to itself
        header.type, header.size = kind, -512
        (tmp_path / "x.tar").write_bytes(whole + header.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
        assert [pair.text for pair in ff.load_pairs(tmp_path / "x.tar")] == [""]
        assert "damaged or cut short" in caplog.text


def test_files_that_braces_name_have_to_be_there(tmp_path: Path):
    in_tars(tmp_path)
    assert len(ff.load_pairs(tmp_path / "x-{000..001}.tar")) == ROWS
    assert "x-002.tar: no such file" in failure(tmp_path / "x-{000..002}.tar")
    assert "stands for more than" in failure(tmp_path / "x-{0..9999999}.tar")
    assert "stands for more than" in failure(tmp_path / "x-{0..99999}" / "{0..99999}.tar")


# Object stores


@pytest.fixture
def store() -> Iterator[Any]:
    found = fsspec.filesystem("memory")
    yield found
    found.store.clear()


def posts(path: Path, *images: str) -> Path:
    path.write_text("\n".join(["id,text,image", *(f"{row:02},a,{image}" for row, image in enumerate(images))]))
    return path


def test_a_manifest_here_reaches_out_only_if_it_may(tmp_path: Path, store: Any):
    store.pipe_file("/there/1.png", png(1))
    path = posts(tmp_path / "posts.csv", "memory://there/1.png")
    assert "`remote=True` lets images be anywhere in object stores" in failure(path)
    pairs = ff.load_pairs(path, remote=True)
    assert pairs[0].image == RemoteFile("memory://there/1.png")
    assert extract(pairs, tmp_path / "f.h5").counts()["ok"] == 1
    for address, told in (
        ("http://169.254.169.254/latest", "only s3://"),
        ("file:///etc/passwd", "is not below"),
        ("memory://there/../1.png", "is no address"),
        ("simplecache::s3://there/1.png", "only s3://"),
    ):
        assert told in failure(posts(path, address), remote=True)
    assert ff.load_pairs(posts(path, (tmp_path / "1.png").as_uri()))[0].image == tmp_path / "1.png"


def test_a_manifest_in_a_store_is_copied_part_by_part(store: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(remote, "_COPIED_AT_ONCE", 7)
    store.pipe_file("/all/m.csv", b"id,text,image\n1,a,1.png\n2,b,2.png\n")
    assert [pair.text for pair in ff.load_pairs("memory://all/m.csv")] == ["a", "b"]
    reach = type(store).cat_file

    def cat_file(self: Any, path: str, **given: Any) -> bytes:
        self.pipe_file("/all/m.csv", b"id,text,image\n1,a,1.png\n3,c,3.png\n")
        return reach(self, path, **given)

    monkeypatch.setattr(type(store), "cat_file", cat_file)
    assert "memory://all/m.csv: was changed while it was read" in failure("memory://all/m.csv")
    monkeypatch.setattr(remote, "MAX_TABLE_BYTES", 5)
    assert "more than 5, which no file of this kind has" in failure("memory://all/m.csv")


def test_a_manifest_in_a_store_names_what_is_beside_it(store: Any):
    for image, told in (
        ("memory://all/posts/1.png", None),
        ("memory://all/other/1.png", "is not below memory://all/posts"),
        ("../1.png", "leaves"),
        ("s3://all/posts/1.png", "is not below"),
    ):
        store.pipe_file("/all/posts/m.csv", f"id,text,image\n1,a,{image}\n".encode())
        if told is None:
            assert ff.load_pairs("memory://all/posts/m.csv")[0].image == RemoteFile(image)
        else:
            assert told in failure("memory://all/posts/m.csv")
    store.pipe_file("/all/posts/m.csv", b"id,text,image\n1,a\n")
    assert "memory://all/posts/m.csv:2: malformed line" in failure("memory://all/posts/m.csv")
    assert "memory://all/none.csv: no such file" in failure("memory://all/none.csv")
    assert "no .parquet or .tar files are there" in failure("memory://all/posts")


def test_tables_and_tars_of_a_store_are_read_in_place(tmp_path: Path, store: Any, as_files: np.ndarray):
    in_parquet(tmp_path)
    in_tars(tmp_path)
    for path in tmp_path.iterdir():
        store.pipe_file(f"/deep/in/{path.name}", path.read_bytes())
    for address in ("memory://deep/in", "memory://deep/in/x-{000..001}.tar", "memory://deep/in/x-*.tar"):
        pairs = ff.load_pairs(address)
        assert all(place_of(pair.image.address) == pair.image for pair in pairs if isinstance(pair.image, places.Place))
        found = contents(extract(pairs, tmp_path / "f.h5", rebuild=True))
        np.testing.assert_array_equal(found, as_files)


def test_a_data_set_of_the_hub_is_its_parquet_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Hub(MemoryFileSystem):
        """A hub as far as its addresses go."""

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return f"/{path.removeprefix('hf://').strip('/')}"

    hub = Hub(skip_instance_cache=True)
    monkeypatch.setattr("frozenfusion.utils.remote.file_system", lambda scheme: hub)
    assert "hf://datasets/USER/NAME@refs/convert/parquet" in failure("hf://datasets/one/posts")
    in_plain_cells(tmp_path)
    for name in ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet", "README.md"):
        hub.pipe_file(f"/datasets/one/posts/{name}", (tmp_path / "plain.parquet").read_bytes())
    pairs = ff.load_pairs("hf://datasets/one/posts")
    assert pairs[0].id == "data-test-00000-of-00001-00000000"
    assert [pair.split for pair in pairs] == ["test"] * ROWS + ["train"] * ROWS
    assert pairs[0].image.read(10**6) == IMAGES[0]
    hub.store.clear()


def test_a_network_that_is_down_marks_no_image(tmp_path: Path, store: Any, monkeypatch: pytest.MonkeyPatch):
    names = [f"{row:02}.png" for row in range(24)]
    for row, name in enumerate(names):
        store.pipe_file(f"/net/{name}", png(row))
    store.pipe_file("/net/m.csv", posts(tmp_path / "m.csv", *names).read_bytes())
    pairs, cache = ff.load_pairs("memory://net/m.csv"), tmp_path / "f.h5"
    down: list[str] = names[2:]
    reach = type(store).cat_file

    def cat_file(self: Any, path: str, **given: Any) -> bytes:
        if Path(path).name in down:
            raise ConnectionError("no route to the store")
        return reach(self, path, **given)

    monkeypatch.setattr(type(store), "cat_file", cat_file)
    with pytest.raises(UserError, match=r"cannot be reached, as the 19 before it \(no route to the store\)"):
        extract(pairs, cache)
    assert ff.FeatureStore(cache).counts()["pending"] >= 22
    down[:] = names[:1]
    assert extract(pairs, cache).counts() == {
        "pending": 0,
        "ok": 23,
        "missing": 0,
        "unreadable": 1,
        "refused": 0,
        "crashed": 0,
    }
    assert reasons(cache) == ["unreadable: no route to the store"]
    down.clear()
    assert extract(pairs, cache).counts()["ok"] == 24
    down[:] = names
    with pytest.raises(UserError, match="cannot be reached"):
        extract(pairs.subset(pairs.ids[:3]), tmp_path / "few.h5")


def test_a_bucket_of_s3_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    given = {"ENDPOINT_URL": f"http://{host}:{port}", "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b"}
    for name, value in given.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    try:
        s3 = fsspec.filesystem("s3")
        s3.mkdir("bucket")
        for row in range(3):
            s3.pipe_file(f"bucket/posts/{row}.png", png(row) if row else b"")
        lines = posts(tmp_path / "m.csv", "0.png", "1.png", "s3://bucket/posts/2.png", "none.png").read_bytes()
        s3.pipe_file("bucket/posts/m.csv", lines)
        pairs = ff.load_pairs("s3://bucket/posts/m.csv")
        found = extract(pairs, tmp_path / "f.h5")
        assert found.status.tolist() == [UNREADABLE, OK, OK, MISSING]
        digests = found.digest.copy()
        s3.pipe_file("bucket/posts/1.png", png(9))
        changed = (extract(pairs, tmp_path / "f.h5").digest != digests).any(axis=1)
        assert changed.tolist() == [False, True, False, False]
    finally:
        server.stop()


# What is the same for all of them


def test_raw_images_are_read_where_they_are(tmp_path: Path, backbone: Backbone, as_files: np.ndarray):
    """As `PairClassifier.predict` reads the images of pairs that come without features."""
    for put in (in_parquet, in_tars):
        images = [pair.image for pair in ff.load_pairs(put(tmp_path))]
        raw = RawImages(images, backbone, torch.device("cpu"))
        assert raw.present.tolist() == (as_files[:, 0] == OK).tolist()
        np.testing.assert_allclose(raw[np.arange(ROWS)], as_files[:, 17:], atol=1e-4)


@pytest.mark.parametrize("put", [in_parquet, in_plain_cells, in_arrow, in_tars])
def test_shards_agree_wherever_the_data_is_mounted(tmp_path: Path, backbone: Backbone, put: Any):
    plans = []
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        pairs, cache = ff.load_pairs(put(tmp_path / place)), tmp_path / f"{place}.cache"
        plans.append(agree_on_plan(pairs, cache, ff.ExtractConfig(), backbone.feature_shape, backbone.fingerprint, {}))
    assert plans[0] == plans[1]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.csv", b"id,Caption,img,text\n1,hello,1.png,other\n"),
        ("p.jsonl", b'{"id": "1", "caption": "hello", "img": "1.png", "text": "other"}'),
        ("p.parquet", None),
    ],
)
def test_columns_may_be_called_otherwise(tmp_path: Path, name: str, content: bytes | None):
    if content is None:
        columns = {"id": ["1"], "caption": ["hello"], "img": ["1.png"], "text": ["other"]}
        pq.write_table(pa.table(columns), tmp_path / name)
    else:
        (tmp_path / name).write_bytes(content)
    (pair,) = ff.load_pairs(tmp_path / name, columns={"text": "caption", "image": "img"})
    assert (pair.text, pair.image) == ("hello", tmp_path / "1.png")
    assert "no column words" in failure(tmp_path / name, columns={"text": "words"})
    assert command.main([str(tmp_path / name), "--columns", "text=caption,text=img"]) == 2
    with pytest.raises(UsageError, match="`columns` say what a table calls"):
        ff.load_pairs(tmp_path / name, columns={"caption": "text"})
    for wrong in (["text"], {"text": 3}):
        with pytest.raises(UsageError, match="`columns` are names by ours"):
            ff.load_pairs(tmp_path / name, columns=wrong)


@pytest.mark.parametrize(
    ("image", "more", "told"),
    [
        ([[[1, 2]]], {}, "t.parquet: column image holds list<element: list<element: int64>>, and not the bytes"),
        ([[[1, 2]]], {"id": ["1"]}, "and not the bytes of picture files (binary) or their paths (string)"),
        (["iVBORw0KGgo"], {}, "t.parquet: column image holds string, so its cells are paths of picture files"),
    ],
)
def test_images_of_another_kind_are_told_as_such(tmp_path: Path, image: list[Any], more: dict[str, Any], told: str):
    pq.write_table(pa.table({"image": image, "text": ["a"], **more}), tmp_path / "t.parquet")
    assert told in failure(tmp_path / "t.parquet")


@pytest.mark.parametrize("name", ["p.csv", "p.jsonl", "p.parquet"])
def test_what_is_not_read_is_told_where_no_pair_has_a_label(tmp_path: Path, name: str):
    write_manifest(tmp_path / name, [{"id": "1", "text": "a", "image": "1.png", "mood": "good", "lang": "en"}])
    with pytest.raises(UserError, match=r"no pair has a label: `columns` says .* as label=COLUMN, .* are mood, lang$"):
        split_pairs(ff.load_pairs(tmp_path / name))


def test_data_in_a_store_is_told_by_its_address(tmp_path: Path, store: Any):
    store.pipe_file("/all/m.csv", b"id,text,image\n1,a,1.png\n")
    pairs = ff.load_pairs("memory://all/m.csv")
    with pytest.raises(UserError, match=r"^memory://all/m\.csv: no pair has a label"):
        split_pairs(pairs)
    store.pipe_file("/all/m.csv", b"id,text,image\n")
    assert failure("memory://all/m.csv").startswith("memory://all: no pairs are listed")
    store.pipe_file("/all/m.csv", b"id,text,image\n1,a,../1.png\n")
    assert "leaves memory://all: give paths" in failure("memory://all/m.csv")
    assert "every process has a memory:// of its own" in failure("memory://none/m.csv")


def test_the_command_line_takes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    made = table().rename_columns(["img", "caption", "label"])
    pq.write_table(made, tmp_path / "t.parquet")
    flags = ["--cache", str(tmp_path / "f.h5"), "--backbone", "efficientnet-b0", "--weights", "random"]
    flags += ["--image-size", "32", "--device", "cpu", "--runtime", "eager", "--batch-size", "4"]
    flags += ["--columns", "text=caption,image=img"]
    assert command.main([str(tmp_path), *flags]) == 0
    assert "9 ok, 1 missing, 2 unreadable" in capsys.readouterr().out
    assert command.main([str(tmp_path), "--verify", "--cache", flags[1], "--columns", "text=caption,image=img"]) == 0
    assert "come from the 9 image files that are there" in capsys.readouterr().out
    assert command.main([str(tmp_path), "--columns", "caption"]) == 2
    assert "--columns are NAME=COLUMN" in capsys.readouterr().err


def test_the_python_of_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "data.md").read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("cat.jpg").write_bytes(png(0))
    found: dict[str, Any] = {}
    exec(example, found)
    assert [(pair.id, pair.text, pair.image.read(9999)) for pair in found["pairs"]] == [
        ("posts-00000000", "a cat", png(0))
    ]


def test_links_out_of_a_folder_of_tables_are_not_followed(tmp_path: Path):
    (tmp_path / "data").mkdir()
    in_plain_cells(tmp_path)
    (tmp_path / "data" / "t.parquet").symlink_to(tmp_path / "plain.parquet")
    assert len(ff.load_pairs(tmp_path / "data")) == ROWS
    for path in (tmp_path / "data", tmp_path / "data" / "*.parquet"):
        assert "links are not followed" in failure(path, follow_links=False)


def test_pictures_in_data_are_no_folder_of_tables(tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "1.png").write_bytes(png(1))
    in_plain_cells(tmp_path)
    assert ff.load_pairs(tmp_path).layout == "unlabelled"


def test_features_are_not_taken_by_the_number_of_a_row(tmp_path: Path):
    """Those of clip-retrieval are found by the names of image files, which cells have none of."""
    for name in ("img_emb", "metadata"):
        (tmp_path / "clip" / name).mkdir(parents=True)
    np.save(tmp_path / "clip" / "img_emb" / "img_emb_0.npy", np.zeros((1, 4), np.float32))
    pq.write_table(pa.table({"image_path": ["/there/0.jpg"]}), tmp_path / "clip" / "metadata" / "metadata_0.parquet")
    pairs = ff.load_pairs(in_plain_cells(tmp_path))
    with pytest.raises(UserError, match="has a row for none of the 12 pairs"):
        ff.extract(pairs, tmp_path / "f.h5", from_arrays=tmp_path / "clip")


FILES = st.sampled_from([Path("/data/a.tar"), Path("a b#1/2.parquet"), "s3://bucket/a#b.tar", "hf://datasets/a/b.tar"])
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@given(
    st.one_of(
        st.builds(TableCell, FILES, st.integers(0, 2**40), NAMES),
        st.builds(TarMember, FILES, st.integers(0, 2**60), st.integers(0, 2**40), NAMES),
        st.builds(RemoteFile, st.sampled_from(["s3://b/k", "gs://b/a b/#1.jpg", "hf://datasets/a/b@main/c.jpg"])),
    )
)
def test_an_address_is_turned_back_into_its_place(place: places.Place):
    assert place_of(place.address) == place
    assert place.address.isprintable()


@pytest.mark.parametrize("address", ["", "a.jpg", "/etc/passwd", "http://a/b", "tar:a.tar#1/x", "table:a.parquet#x/y"])
def test_what_is_no_address_is_no_place(address: str):
    with pytest.raises(ValueError, match="is no image's address"):
        place_of(address)


def test_as_many_images_are_read_at_once_as_there_are_workers(
    tmp_path: Path, store: Any, monkeypatch: pytest.MonkeyPatch
):
    """A store is waited for in threads, of which there may be more than cores or images of a batch."""
    monkeypatch.setattr(loop, "BATCHES_AHEAD", 1)
    for row in range(8):
        store.pipe_file(f"/many/{row}.png", png(row))
    store.pipe_file("/many/m.csv", posts(tmp_path / "m.csv", *(f"{row}.png" for row in range(8))).read_bytes())
    together, reach = threading.Barrier(8, timeout=60), type(store).cat_file

    def cat_file(self: Any, path: str, **given: Any) -> bytes:
        together.wait()
        return reach(self, path, **given)

    pairs = ff.load_pairs("memory://many/m.csv")
    monkeypatch.setattr(type(store), "cat_file", cat_file)
    assert extract(pairs, tmp_path / "f.h5", batch_size=2, workers=8).counts()["ok"] == 8
