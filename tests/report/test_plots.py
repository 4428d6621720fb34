from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.font_manager import fontManager
from PIL import Image
from trained import history

from frozenfusion.evaluation.report.plots import plot_confusion
from frozenfusion.training.plots import plot_curves, plot_learning_rate
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.figures import WIDE_FONTS


def colours(path: Path) -> int:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return len(image.convert("RGB").getcolors(2**24))


@pytest.mark.parametrize("plot", [plot_learning_rate, plot_curves])
@pytest.mark.parametrize("lines", [history(0.5), history(None), history(0.5)[:1], []])
def test_curves_are_drawn_with_and_without_a_validation_part(tmp_path: Path, plot, lines):
    plot(lines, tmp_path / "plot.png")
    assert colours(tmp_path / "plot.png") > 2


def test_more_epochs_draw_another_picture(tmp_path: Path):
    plot_curves(history(0.5), tmp_path / "two.png")
    plot_curves(history(0.5)[:1], tmp_path / "one.png")
    assert (tmp_path / "one.png").read_bytes() != (tmp_path / "two.png").read_bytes()


@pytest.mark.parametrize("names", [("yes", "no"), ("$x_1$", "积极\\"), tuple(f"class {i}" for i in range(25))])
def test_a_confusion_matrix_is_drawn_whatever_its_classes_are_called(tmp_path: Path, names, recwarn):
    classes = len(names)
    plot_confusion(np.arange(classes * classes).reshape(classes, classes), names, tmp_path / "confusion.png")
    assert colours(tmp_path / "confusion.png") > 10
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


def test_a_large_confusion_matrix_is_drawn_without_names(tmp_path: Path):
    plot_confusion(np.eye(400, dtype=int), ["a very long name"] * 400, tmp_path / "confusion.png")
    assert colours(tmp_path / "confusion.png") > 1


def test_an_empty_class_is_drawn(tmp_path: Path):
    plot_confusion(np.array([[3, 1], [0, 0]]), ("yes", "no"), tmp_path / "confusion.png")


def test_plots_touch_no_global_state(tmp_path: Path):
    loaded = "matplotlib.pyplot" in sys.modules
    plot_curves(history(0.5), tmp_path / "plot.png")
    assert ("matplotlib.pyplot" in sys.modules) == loaded


def test_a_folder_that_cannot_be_written_is_a_user_s_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        plot_curves(history(0.5), tmp_path / "file" / "plot.png")


def test_letters_that_matplotlib_s_own_font_lacks_come_from_another(tmp_path: Path) -> None:
    if not set(WIDE_FONTS) & set(fontManager.get_font_names()):
        pytest.skip("no font here has Chinese letters")
    for number, names in enumerate((("积极", "消极"), ("消极", "积极"))):
        plot_confusion(np.array([[3, 1], [1, 3]]), names, tmp_path / f"{number}.png")
    assert (tmp_path / "0.png").read_bytes() != (tmp_path / "1.png").read_bytes()  # boxes would be the same
