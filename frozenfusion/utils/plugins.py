"""Names that packages and a user's own files add to: heads and backbones register here."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import re
import sys
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

from frozenfusion.utils.errors import UsageError, UserError
from frozenfusion.utils.messages import first_line

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # a value of a flag, and a part of a folder's name
Item = TypeVar("Item")


class Registry(Generic[Item]):
    """Items by name: those that were added, and those of the entry-point group `group` of installed packages.

    An entry point's module is imported when its name, or the list of all, is asked for.
    """

    def __init__(self, kind: str, group: str) -> None:
        self._kind, self._group = kind, group
        self._items: dict[str, Item] = {}
        self._origins: dict[str, tuple[str, str]] = {}

    def add(self, name: str, item: Item, origin: Any) -> None:
        """Put `item` under `name`; the same class or function, imported again, replaces itself.

        Raises UsageError for a name that another has, or that could not stand for a folder.
        """
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name == "all":
            raise UsageError(f"{self._kind} {name!r}: a name has letters, digits, '.', '_' and '-', and is not 'all'")
        where = (origin.__module__, origin.__qualname__)
        if self._origins.setdefault(name, where) != where:
            raise UsageError(f"two {self._kind}s are called {name!r}: {'.'.join(self._origins[name])} was first")
        self._items[name] = item

    def get(self, name: str) -> Item | None:
        """The item called `name`, or None. Raises UserError where the package that has it cannot be imported."""
        if name not in self._items:
            for entry in entry_points(group=self._group, name=name):
                try:
                    entry.load()
                except Exception as error:  # whatever a stranger's module does when it is imported
                    raise UserError(
                        f"{self._kind} {name}: {entry.value} cannot be imported ({first_line(error)}): mend or remove"
                        " the package that has it"
                    ) from error
                if name not in self._items:
                    raise UserError(f"{self._kind} {name}: {entry.value} was imported and does not register it")
        return self._items.get(name)

    def names(self) -> list[str]:
        """All names, in the order in which they were added, those of installed packages, not imported yet, last."""
        return [*self._items, *sorted({entry.name for entry in entry_points(group=self._group)} - self._items.keys())]

    def remove(self, name: str) -> None:
        """Forget a name, if it is there."""
        self._items.pop(name, None)
        self._origins.pop(name, None)


def import_plugin(name: str) -> None:
    """Import a Python file (`my_heads.py`) or module (`my.heads`), so that what it registers is there.

    A file is imported once, under its own name where that is free. Raises UserError where it fails.
    """
    try:
        if name.endswith(".py"):
            _import_file(Path(name))
        else:
            import_module(name)
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and Path(f"{name}.py").is_file():
            raise UserError(f"`import={name}`: no such module: to import the file, give {name}.py") from error
        what = first_line(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"`import={name}`: cannot be imported ({what}): check the file") from error


def import_again(module: str, file: str | None) -> None:
    """Import the module that something was registered in, in another process: by its name, else from its file.

    Raises UserError where it fails.
    """
    found = None
    with contextlib.suppress(ImportError, ValueError):  # of a package that is not there
        found = importlib.util.find_spec(module)
    import_plugin(file if file is not None and (found is None or found.origin != file) else module)


def _is_free(name: str, path: Path) -> bool:
    """Whether a file can be imported under a name: nothing else would be found by it."""
    if not name.isidentifier():
        return False
    found = importlib.util.find_spec(name)
    return found is None or found.origin == str(path)


def _import_file(path: Path) -> None:
    path = path.resolve()
    if not path.is_file():
        raise UserError(f"`import={path}`: no such file: check the path")
    name = path.stem
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__file__", None) == str(path):
        return
    if known is not None or not _is_free(name, path):
        name = f"frozenfusion_plugin_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
        if name in sys.modules:
            return
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
