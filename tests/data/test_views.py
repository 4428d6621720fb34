"""Some pairs of a data set without an object for each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny

from frozenfusion.data import views
from frozenfusion.data.pairs import Pairs, load_pairs
from frozenfusion.data.views import PairView, ids_of, image_of, labels_of, texts_of

ROWS = np.array([7, 0, 3, 3, 11])


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    return load_pairs(tiny.make_data(tmp_path_factory.mktemp("data"), 12))


@pytest.fixture(autouse=True, params=[2, 4096])
def at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "_AT_ONCE", request.param)


def test_a_view_is_the_sequence_of_its_pairs(pairs: Pairs) -> None:
    view, objects = PairView(pairs.columns, ROWS), [pairs[row] for row in ROWS.tolist()]
    assert list(view) == objects
    assert (len(view), view[1], view[-1]) == (5, objects[1], objects[-1])
    assert list(view[1:4]) == objects[1:4]
    assert list(view.ids()) == [pair.id for pair in objects]


def test_its_columns_are_those_of_the_objects(pairs: Pairs) -> None:
    view, objects = PairView(pairs.columns, ROWS), [pairs[row] for row in ROWS.tolist()]
    assert [id.decode() for id in ids_of(view)] == ids_of(objects)
    assert list(texts_of(view)) == list(texts_of(objects))
    np.testing.assert_array_equal(labels_of(view), labels_of(objects))
    assert [image_of(view, place) for place in range(5)] == [pair.image for pair in objects]


def test_a_view_of_nothing_is_empty(pairs: Pairs) -> None:
    view = PairView(pairs.columns, ROWS[:0])
    assert (list(view), list(view.texts()), list(ids_of(view)), labels_of(view).tolist()) == ([], [], [], [])


def test_texts_in_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("from a file")
    (tmp_path / "pairs.csv").write_text("id,text,text_path,image\na,,a.txt,x.jpg\nb,in the table,,x.jpg\n")
    monkeypatch.setattr("frozenfusion.data.listing.MOST_FILES", 0)
    columns = load_pairs(tmp_path / "pairs.csv").columns
    assert columns.text_files is not None
    assert list(PairView(columns, np.array([1, 0])).texts()) == ["in the table", "from a file"]
