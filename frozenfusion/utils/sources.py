"""What the source says beside the code: the strings under a dataclass's fields, which are its help."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from itertools import pairwise


def field_docs(kind: type) -> dict[str, str]:
    """The string under each field of a dataclass, those of its bases included."""
    docs: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(definition, ast.ClassDef)
        for field, below in pairwise(definition.body):
            said = _string(below)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and said is not None:
                docs[field.target.id] = inspect.cleandoc(said)
    return docs


def _string(node: ast.stmt) -> str | None:
    value = node.value.value if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) else None
    return value if isinstance(value, str) else None
