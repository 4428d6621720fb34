"""What users add by name: registered by their own code, imported from a file or module, or of an installed package."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from frozenfusion.utils.errors import UsageError, UserError
from frozenfusion.utils.plugins import Registry, import_plugin

GROUP = "frozenfusion.test_spices"


@pytest.fixture
def spices() -> Registry[str]:
    return Registry("spice", GROUP)


@pytest.fixture(autouse=True)
def forget_modules(tmp_path: Path) -> Iterator[None]:
    """Those of the test's own folder, so that the next test may call its files the same."""
    yield
    for name, module in list(sys.modules.items()):
        if str(tmp_path) in str(vars(module).get("__file__")):
            del sys.modules[name]


def salt() -> None: ...


def pepper() -> None: ...


# The registry


def test_what_was_added_is_found_by_its_name_in_the_order_of_adding(spices: Registry[str]) -> None:
    spices.add("salt", "NaCl", salt)
    spices.add("pepper", "piperine", pepper)
    assert (spices.get("salt"), spices.get("pepper"), spices.get("curry")) == ("NaCl", "piperine", None)
    assert spices.names() == ["salt", "pepper"]


def test_a_name_that_another_has_is_refused_with_the_first(spices: Registry[str]) -> None:
    spices.add("salt", "NaCl", salt)
    with pytest.raises(UsageError, match=r"two spices are called 'salt': .*test_plugins\.salt was first"):
        spices.add("salt", "KCl", pepper)
    assert spices.get("salt") == "NaCl"


def test_the_same_function_imported_again_replaces_itself(spices: Registry[str]) -> None:
    for item in ("NaCl", "sodium chloride"):
        spices.add("salt", item, salt)
    assert spices.get("salt") == "sodium chloride"
    assert spices.names() == ["salt"]


def test_a_removed_name_is_free_again(spices: Registry[str]) -> None:
    spices.add("salt", "NaCl", salt)
    spices.remove("salt")
    spices.remove("never there")
    assert spices.get("salt") is None
    spices.add("salt", "KCl", pepper)
    assert spices.get("salt") == "KCl"


@pytest.mark.parametrize("name", ["", "all", "sea salt", "../salt", ".salt", "a/b", "sel\n", "s" * 65, "sälz"])
def test_a_name_that_could_not_stand_for_a_folder_is_refused(spices: Registry[str], name: str) -> None:
    with pytest.raises(UsageError, match="a name has letters, digits"):
        spices.add(name, "NaCl", salt)
    assert spices.names() == []


# Installed packages


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Put a package with one module in the path, as pip would, whose entry point is called like the module."""

    def install_(name: str, code: str) -> None:
        (tmp_path / f"{name}_module.py").write_text(code)
        folder = tmp_path / f"{name}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = {name}_module\n")

    monkeypatch.syspath_prepend(tmp_path)
    return install_


def registering(name: str) -> str:
    return f"from test_plugins import shelf, salt\nshelf[0].add({name!r}, {name.upper()!r}, salt)\n"


shelf: list[Registry[str]] = []  # where installed packages find the registry of the test that runs


@pytest.fixture
def on_the_shelf(spices: Registry[str]) -> Iterator[Registry[str]]:
    shelf[:] = [spices]
    yield spices
    shelf.clear()


def test_an_installed_package_is_imported_when_its_name_is_asked_for(
    on_the_shelf: Registry[str], install: Callable[[str, str], None]
) -> None:
    install("curry", registering("curry"))
    assert on_the_shelf.get("salt") is None
    assert "curry_module" not in sys.modules
    assert on_the_shelf.get("curry") == "CURRY"


def test_names_list_installed_packages_last(on_the_shelf: Registry[str], install: Callable[[str, str], None]) -> None:
    install("curry", registering("curry"))
    install("anise", registering("anise"))
    install("broken", "1 / 0\n")  # a list of names imports none of them
    on_the_shelf.add("salt", "NaCl", pepper)
    assert on_the_shelf.names() == ["salt", "anise", "broken", "curry"]


def test_an_installed_package_that_does_not_register_its_name_is_told(
    on_the_shelf: Registry[str], install: Callable[[str, str], None]
) -> None:
    install("empty", "")
    with pytest.raises(UserError, match=r"spice empty: .* was imported and does not register it"):
        on_the_shelf.get("empty")


def test_an_installed_package_that_is_broken_is_named(
    on_the_shelf: Registry[str], install: Callable[[str, str], None]
) -> None:
    install("mould", "1 / 0\n")
    with pytest.raises(UserError, match=r"spice mould: mould_module cannot be imported \(division by zero\)"):
        on_the_shelf.get("mould")


# Files and modules


def test_a_file_is_imported_under_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "my_spices.py").write_text("taste = 'hot'\n")
    import_plugin(str(tmp_path / "my_spices.py"))
    assert sys.modules["my_spices"].taste == "hot"


def test_a_module_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pantry").mkdir()
    (tmp_path / "pantry" / "herbs.py").write_text("taste = 'green'\n")
    monkeypatch.syspath_prepend(tmp_path)
    import_plugin("pantry.herbs")
    assert sys.modules["pantry.herbs"].taste == "green"


def test_the_same_file_twice_runs_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    for name in ("counted.py", "not a name.py", "spices-0.2.py"):
        log.write_text("")
        (tmp_path / name).write_text(f"with open({str(log)!r}, 'a') as file: file.write('ran')\n")
        import_plugin(str(tmp_path / name))
        monkeypatch.chdir(tmp_path)
        import_plugin(name)
        assert log.read_text() == "ran"


def test_a_file_called_like_a_module_leaves_that_alone(tmp_path: Path) -> None:
    one, other = tmp_path / "json.py", tmp_path / "other" / "json.py"
    other.parent.mkdir()
    for path in (one, other):
        path.write_text(f"where = {str(path)!r}\n")
        import_plugin(str(path))
    assert sys.modules["json"] is json
    imported = {vars(module).get("where") for module in list(sys.modules.values())}
    assert {str(one), str(other)} <= imported


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
        ("import no_such_module\n", "No module named 'no_such_module'"),
        ("def broken(:\n", "SyntaxError: "),
    ],
)
def test_a_broken_file_is_named_and_can_be_mended(tmp_path: Path, code: str, said: str) -> None:
    path = tmp_path / "broken_spices.py"
    path.write_text(code)
    with pytest.raises(UserError) as error:
        import_plugin(str(path))
    assert str(error.value).startswith(f"`import={path}`: cannot be imported ({said}")
    assert "\n" not in str(error.value)
    path.write_text("taste = 'mended'  # longer than before, so that no cached bytecode is taken for it\n")
    import_plugin(str(path))
    assert sys.modules["broken_spices"].taste == "mended"


def test_what_a_file_says_as_a_user_error_is_said_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "clashing_spices.py"
    path.write_text("from frozenfusion.utils.errors import UsageError\nraise UsageError('two spices are called x')\n")
    with pytest.raises(UsageError, match=r"^two spices are called x$"):
        import_plugin(str(path))


@pytest.mark.parametrize("name", ["no_such_spices.py", "no/such/folder/spices.py"])
def test_a_missing_file_is_named(name: str) -> None:
    with pytest.raises(UserError, match=f"{name}`: no such file: check the path"):
        import_plugin(name)


@pytest.mark.parametrize("name", ["no_such_module", "json.nothing", "..", "a b"])
def test_a_missing_module_is_named(name: str) -> None:
    with pytest.raises(UserError) as error:
        import_plugin(name)
    assert str(error.value).startswith(f"`import={name}`: cannot be imported (")
