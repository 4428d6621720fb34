"""Faces of packages that load a module only when one of its names is asked for (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module


def face(package: str, names: Mapping[str, str]) -> None:
    """Give a package `__getattr__`, `__dir__` and `__all__` for `names`, each of which lives in the module given.

    They are put there, not assigned: a type checker that saw a `__getattr__` would let every misspelt name pass.
    """
    module = sys.modules[package]

    def getattr_(name: str) -> object:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(names[name]), name)
        setattr(module, name, value)
        return value

    def dir_() -> list[str]:
        return sorted({*names, *(name for name in vars(module) if name.startswith("__"))})

    vars(module).update(__getattr__=getattr_, __dir__=dir_, __all__=sorted(names))
