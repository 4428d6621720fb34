"""The file of --config: options in YAML or JSON, read without believing what it says."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from frozenfusion.utils.errors import UsageError, UserError
from frozenfusion.utils.files import read_file
from frozenfusion.utils.messages import one_line

MAX_BYTES = 16 * 2**20


def read_options(path: Path) -> dict[Any, Any]:
    """What a file of `option: value` says, in YAML or JSON; of a run's config.json its options. Raises UsageError."""
    import yaml

    try:
        content = read_file(path, MAX_BYTES)
    except UserError as error:
        raise UsageError(str(error)) from error
    try:
        values = yaml.load(content.decode("utf-8-sig"), _strict(yaml.SafeLoader))
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a number of 5,000 digits is a ValueError
        raise UsageError(f"{path}: not valid YAML ({one_line(error)}): restore or mend the file") from error
    if isinstance(values, dict) and isinstance(values.get("options"), dict):
        values = values["options"]  # a run's config.json
    elif isinstance(values, dict) and {"format", "model"} <= values.keys():
        raise UsageError(
            f"{path}: of a model that was saved by itself, which does not tell how it was trained: give the config.json"
            " of a training's run folder, or options of your own"
        )
    if not isinstance(values, dict):
        raise UsageError(f"{path}: a configuration file holds lines of `option: value`")
    return values


def _strict(loader: type[Any]) -> type[Any]:
    """A safe loader of YAML (and so of JSON) that refuses keys given twice, and aliases, which grow without end."""
    import yaml

    class Strict(loader):  # type: ignore[misc]
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise UsageError(f"*{self.peek_event().anchor} stands for another value: write that value")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value]
            twice = {str(key) for key, count in Counter(map(str, keys)).items() if count > 1}
            if twice:
                raise UsageError(f"{min(twice)} is given twice: keep one of them")
            found: dict[Any, Any] = super().construct_mapping(node, deep)
            return found

    return Strict
