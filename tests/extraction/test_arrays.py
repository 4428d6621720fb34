"""Features from elsewhere: every kind of file, what is wrong with them, and the way on to a trained model."""

from __future__ import annotations

import csv
import io
import shutil
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from PIL import Image

import frozenfusion as ff
from frozenfusion.cli import extract as command
from frozenfusion.extraction.inspection import info, verify
from frozenfusion.store.status import MISSING, OK

N, LACKING = 48, {"p003", "p047"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def features():
    """By id, in an order of their own: a row of doubles that half tells the label; two ids are lacking."""
    random = np.random.default_rng(0)
    ids = [f"p{number:03}" for number in random.permutation(N) if f"p{number:03}" not in LACKING]
    ids += ["of-no-pair"]
    return {id: random.normal(size=8) + 3 * np.eye(8)[sum(map(ord, id)) % 3] for id in ids}


def saved(folder, kind, features):
    """The features as a file of a kind; its path."""
    ids, rows = list(features), np.array(list(features.values()))
    if kind == "npz":
        np.savez(folder / "f.npz", ids=ids, features=rows)
    elif kind == "compressed, ids as bytes":
        np.savez_compressed(folder / "f.npz", ids=np.array(ids, "S"), features=rows.astype(">f8"))
    elif kind.startswith("npy"):
        np.save(folder / "f.npy", rows)
        text = "\n".join(ids) if kind.endswith("txt") else "n,id\n" + "".join(f"1,{id}\n" for id in ids)
        (folder / f"f.{kind[-3:]}").write_text(text)
        return folder / "f.npy"
    elif kind == "parquet":
        pq.write_table(pa.table({"id": ids, "caption": ids, "vector": list(rows)}), folder / "f.parquet")
        return folder / "f.parquet"
    elif kind == "parquet, fixed":
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), 8)
        pq.write_table(pa.table({"id": ids, "other": list(rows), "features": vectors}), folder / "f.parquet")
        return folder / "f.parquet"
    return folder / "f.npz"


KINDS = ("npz", "compressed, ids as bytes", "npy txt", "npy csv", "parquet", "parquet, fixed")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_each_pair_its_own_row(kind, data, features, tmp_path):
    store = ff.extract(ff.load_pairs(data), tmp_path / "s.h5", from_arrays=saved(tmp_path, kind, features))
    assert store.counts() == {"pending": 0, "ok": N - 2, "missing": 2, "unreadable": 0, "refused": 0, "crashed": 0}
    for row, id in enumerate(store.names()):
        assert store.status[row] == (MISSING if id in LACKING else OK)
        assert np.array_equal(store.features[row], np.float32(features.get(id, np.zeros(8))))
    with (tmp_path / "s.bad.csv").open(newline="") as file:
        assert {(row["id"], row["reason"][:6]) for row in csv.DictReader(file)} == {(id, "not in") for id in LACKING}


def test_a_folder_of_clip_retrieval_is_matched_by_the_images_names(tmp_path):
    lines = ["id,image,text", *(f"post-{n},pictures/{n}.jpg,hello" for n in range(5))]
    (tmp_path / "pairs.csv").write_text("\n".join(lines))
    for folder in ("img_emb", "metadata"):
        (tmp_path / "clip" / folder).mkdir(parents=True)
    for part, numbers in (("00", (4, 0)), ("01", (2, 1))):
        np.save(tmp_path / f"clip/img_emb/img_emb_{part}.npy", np.float16([[number, 7] for number in numbers]))
        names = {"image_path": [f"/somewhere/else/{number}.jpg" for number in numbers]}
        pq.write_table(pa.table(names), tmp_path / f"clip/metadata/metadata_{part}.parquet")
    store = ff.extract(ff.load_pairs(tmp_path / "pairs.csv"), tmp_path / "s.h5", from_arrays=tmp_path / "clip")
    assert store.features[:, 0].tolist() == [0, 1, 2, 0, 4]
    assert store.status.tolist() == [OK, OK, OK, MISSING, OK]
    (tmp_path / "clip/metadata/metadata_01.parquet").unlink()
    with pytest.raises(ff.UserError, match=r"metadata_01.parquet: is not there"):
        ff.extract(ff.load_pairs(tmp_path / "pairs.csv"), tmp_path / "s.h5", from_arrays=tmp_path / "clip")


GOOD = {"ids": ["p000", "p001"], "features": np.ones((2, 3))}
WRONG = {
    "shape (n,)": ({"features": np.ones(2)}, "expected a row for each image"),
    "four dimensions": ({"features": np.ones((2, 1, 1, 3))}, "expected a row for each image"),
    "no columns": ({"features": np.ones((2, 0))}, "expected a row for each image"),
    "complex": ({"features": np.ones((2, 3), complex)}, "expected real numbers"),
    "texts": ({"features": np.array([["a"], ["b"]])}, "expected real numbers"),
    "by columns": ({"features": np.asfortranarray(np.ones((2, 3)))}, "stored by columns"),
    "not a number": ({"features": np.array([[1.0], [np.nan]])}, "of p001 are not finite"),
    "too large": ({"features": np.array([[1.0], [1e300]])}, "of p001 reach 1e.300, more than float32 holds"),
    "id twice": ({"ids": ["p001", "p001"]}, "id 'p001' comes twice, in rows 1 and 2"),
    "id missing": ({"ids": ["p001", ""]}, "row 2 has no id"),
    "too few ids": ({"ids": ["p001"]}, "1 ids for 2 rows"),
    "ids of another data set": ({"ids": ["a", "b"]}, "for none of the 48 pairs"),
    "ids as objects": ({"ids": np.array(["p000", "p001"], object)}, "Python objects, which are not unpickled"),
    "ids as fractions": ({"ids": np.ones(2)}, "expected one text or whole number"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_told_in_one_line_and_nothing_is_made(what, data, tmp_path):
    changes, told = WRONG[what]
    np.savez(tmp_path / "f.npz", allow_pickle=True, **{**GOOD, **changes})
    with pytest.raises(ff.UserError, match=told) as caught:
        ff.extract(ff.load_pairs(data), tmp_path / "s.h5", from_arrays=tmp_path / "f.npz")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "s.h5").exists()


@pytest.mark.parametrize("kind", ["npz", "compressed, ids as bytes", "npy txt", "parquet"])
def test_a_file_cut_short_or_with_a_flipped_bit_is_told_in_one_line_or_has_all_rows(kind, data, features, tmp_path):
    path, pairs = saved(tmp_path, kind, features), ff.load_pairs(data)

    def outcome(content):
        path.write_bytes(content)
        (tmp_path / "s.h5").unlink(missing_ok=True)
        try:
            return ff.extract(pairs, tmp_path / "s.h5", from_arrays=path).counts()["ok"]
        except ff.UserError as error:
            return str(error)

    whole = path.read_bytes()
    for place in range(0, len(whole), len(whole) // 12):
        assert outcome(whole[:place]).count("\n") == 0
        flipped = outcome(whole[:place] + bytes([whole[place] ^ 0x40]) + whole[place + 1 :])
        assert flipped == N - 2 or flipped.count("\n") == 0


def test_an_array_that_says_it_is_huge_takes_no_memory(data, tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (2, 2**40)})
    ids = io.BytesIO()
    np.save(ids, np.array(GOOD["ids"]))
    with zipfile.ZipFile(tmp_path / "f.npz", "w") as archive:
        archive.writestr("ids.npy", ids.getvalue())
        archive.writestr("features.npy", header.getvalue())
    with pytest.raises(ff.UserError, match="rows of more than"):
        ff.extract(ff.load_pairs(data), tmp_path / "s.h5", from_arrays=tmp_path / "f.npz")


def test_whole_numbers_halves_and_regions_are_taken(data, tmp_path):
    pairs = ff.load_pairs(data)
    np.savez(tmp_path / "f.npz", ids=pairs.ids, features=np.arange(N * 6, dtype=np.int16).reshape(N, 2, 3))
    store = ff.extract(
        pairs, tmp_path / "s.h5", config=ff.ExtractConfig(from_arrays=tmp_path / "f.npz", dtype="float16")
    )
    assert (store.shape, store.dtype, store.features[1, 1].tolist()) == ((2, 3), np.float16, [9, 10, 11])
    assert store.fingerprint["arrays_dtype"] == "int16"


@pytest.fixture
def pictures(tmp_path):
    """Five pairs with image files, and features of them."""
    (tmp_path / "posts").mkdir()
    for number in range(5):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "posts" / f"{number}.png")
        (tmp_path / "posts" / f"{number}.txt").write_text("hello")
    np.savez(tmp_path / "f.npz", ids=range(4), features=np.ones((4, 3)))
    return tmp_path


def test_a_row_is_of_the_image_that_was_there_and_a_replaced_one_is_told(pictures):
    posts, cache, arrays = pictures / "posts", pictures / "s.h5", pictures / "f.npz"
    ff.extract(ff.load_pairs(posts), cache, from_arrays=arrays)
    assert "come from the 4 image files" in verify(cache, posts)
    Image.new("RGB", (8, 8), (99, 0, 0)).save(posts / "2.png")
    with pytest.raises(ff.UserError, match=f"{arrays} --update says so"):
        verify(cache, posts)
    with pytest.raises(ff.UserError, match=r"1 of 5 images .* when their rows were taken .*update=True"):
        ff.extract(ff.load_pairs(posts), cache, from_arrays=arrays)
    ff.extract(ff.load_pairs(posts), cache, config=ff.ExtractConfig(from_arrays=arrays, update=True))
    assert "come from the 4 image files" in verify(cache, posts)


def test_pairs_that_came_later_are_added_and_another_file_is_refused(pictures):
    posts, cache, arrays = pictures / "posts", pictures / "s.h5", pictures / "f.npz"
    pairs = ff.load_pairs(posts)
    ff.extract(pairs.subset(["1", "2"]), cache, from_arrays=arrays)
    assert ff.extract(pairs, cache, from_arrays=arrays).counts()["ok"] == 4
    np.savez(arrays, ids=range(5), features=np.ones((5, 3)))
    with pytest.raises(ff.UserError, match=r"arrays_sha256 .*rebuild=True"):
        ff.extract(pairs, cache, from_arrays=arrays)
    assert ff.extract(pairs, cache, config=ff.ExtractConfig(from_arrays=arrays, rebuild=True)).counts()["ok"] == 5


def test_images_need_not_be_there(pictures):
    shutil.rmtree(pictures / "posts")
    lines = ["id,image,text", *(f"{number},{number}.png,hello" for number in range(5))]
    (pictures / "pairs.csv").write_text("\n".join(lines))
    store = ff.extract(ff.load_pairs(pictures / "pairs.csv"), pictures / "s.h5", from_arrays=pictures / "f.npz")
    assert store.counts()["ok"] == 4
    assert not store.digest.any()


def test_the_command_and_what_does_not_go_with_it(pictures, monkeypatch, capsys):
    monkeypatch.chdir(pictures)
    assert command.main(["posts", "--from-arrays", "f.npz"], "extract_features.py") == 0
    assert "4 rows taken from the arrays" in capsys.readouterr().out
    assert "arrays_sha256" in info(pictures / "cache" / "posts-arrays.h5")
    assert command.main(["posts", "--from-arrays", "f.npz", "--image-size", "64"], "extract_features.py") == 2
    assert "--from-arrays takes features that are there already: leave out --image-size" in capsys.readouterr().err
    assert command.main(["posts", "--from-arrays", "f.npz", "--strict"], "extract_features.py") == 1
    assert "give features of them, or leave out --strict" in capsys.readouterr().err
    with pytest.raises(ff.UsageError, match="choose another name"):
        ff.register_backbone("arrays")(lambda weights: None)


def test_a_model_is_trained_and_evaluated_on_them_and_says_that_it_cannot_make_them(data, features, tmp_path):
    pairs, path = ff.load_pairs(data), saved(tmp_path, "npz", features)
    store = ff.extract(pairs, tmp_path / "s.h5", from_arrays=path)
    config = tiny.make_training(tmp_path / "tiny").but(epochs=1).config
    run = ff.train(pairs, store, head="concat", config=config, run=tmp_path / "run")
    assert ff.evaluate([run], pairs, store).comparison.row("concat")
    model = ff.PairClassifier.from_pretrained(run.folder)
    assert len(model.predict(pairs, store)) == N
    with pytest.raises(ff.UserError, match=r"which another program computed: .* give `features`"):
        model.predict(texts=["good"], images=[Image.new("RGB", (8, 8))])
