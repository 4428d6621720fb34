"""A command that is killed, or whose disk is full or fails, and what has to be true afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.faults.calls import KILL, Calls
from benchmarks.faults.children import Ended, in_child
from benchmarks.faults.files import predictions_of, rows_of, snapshot
from benchmarks.faults.world import World, call, main_of


@dataclass(frozen=True)
class Seen:
    """What readers see in the folder: rows of stores, and what runs predict, by name."""

    rows: dict[str, dict[str, str]]
    predictions: dict[str, str]


class Stops:
    """One command, and the faults that can happen to it."""

    def __init__(self, world: World, name: str) -> None:
        self._world, self._name = world, name
        self._command = world.commands[name]

    @cached_property
    def calls(self) -> list[tuple[str, str]]:
        """Name and path of each call that changes files."""
        self._world.prepare(self._command.before)

        def counted() -> list[tuple[str, str]]:
            calls = Calls(self._world.out)
            calls.install()
            self._run()
            return calls.made

        return [(name, path) for name, path in in_child(counted).result]

    @cached_property
    def _undisturbed(self) -> tuple[Seen, Seen, dict[str, str]]:
        """What readers see before and after the command, and its files, when nothing happens to it."""
        self._world.prepare(self._command.before)
        before = self._seen()
        call(self._command.words)
        return before, self._seen(), snapshot(self._world.out)

    def problems(self, fault: str, at: int) -> list[str]:
        """Let a fault happen to call number `at`, then repeat the command: what is wrong."""
        undisturbed = self._undisturbed
        self._world.prepare(self._command.before)
        ended = in_child(lambda: self._faulty(fault, at))
        problems = self._wrong_end(fault, ended)
        again = in_child(lambda: self._again(whole=ended.status == 0))
        if not isinstance(again.result, dict):
            return [*problems, f"reading or repeating ends with status {again.status}: {_last(again.said)}"]
        seen = Seen(again.result["rows"], again.result["predictions"])
        problems += self._mixtures(*undisturbed[:2], seen)
        if ended.status == 0:
            lacking = [name for name, of in undisturbed[2].items() if again.result["files_before"].get(name) != of]
            problems += [f"status 0, and not right: {', '.join(lacking)}"] if lacking else []
        if again.result["status"]:
            problems.append(f"repeated, it ends with status {again.result['status']}: {_last(again.said)}")
        else:
            problems += _differences(undisturbed[2], again.result["files"])
        if "Traceback" in again.said:
            problems.append(f"a traceback when it is repeated: {_last(again.said)}")
        return problems

    def _run(self) -> int:
        return main_of(self._command.words[0])(list(self._command.words[1:]))

    def _faulty(self, fault: str, at: int) -> int:
        Calls(self._world.out, fault, at).install()
        return self._run()

    def _again(self, *, whole: bool) -> dict[str, Any]:
        seen = self._seen()
        files = snapshot(self._world.out) if whole else {}
        status = self._run()
        after = {} if status else snapshot(self._world.out)
        return {**vars(seen), "files_before": files, "status": status, "files": after}

    def _seen(self) -> Seen:
        out, data = self._world.out, self._world.folder / "all.csv"
        runs = [path.parent for path in sorted(out.rglob("config.json")) if path.parent.name != "text_encoder"]
        return Seen(
            {path.name: rows_of(path) for path in sorted(out.glob("[!.]*.h5"))},
            {_name(run, out): predictions_of(run, data, out / "features.h5") for run in runs},
        )

    def _wrong_end(self, fault: str, ended: Ended) -> list[str]:
        if fault == KILL:
            return [] if ended.status == -9 else [f"was not killed, but ended with status {ended.status}"]
        if ended.hung:
            return ["it hangs"]
        if ended.status not in (0, 1):
            return [f"it ends with status {ended.status}: {_last(ended.said)}"]
        errors = [line for line in ended.said.splitlines() if line.startswith("error: ")]
        problems = [f"a traceback: {_last(ended.said)}"] if "Traceback" in ended.said else []
        several = len(errors) > 1 and self._name != "sweep"  # which goes on with its other runs
        if ended.status and (several or not _last(ended.said).startswith("error: ")):
            problems.append(f"not one line of error: {ended.said[-300:]!r}")
        return problems

    def _mixtures(self, before: Seen, after: Seen, seen: Seen) -> list[str]:
        """What readers see that is neither the old nor the new state."""
        problems = []
        for name, rows in seen.rows.items():
            states = [state.rows[name] for state in (before, after) if name in state.rows]
            if rows in states:
                continue
            if not states or rows.keys() not in [state.keys() for state in states]:
                problems.append(f"{name} has other rows than before or after")
            wrong = [id for id, row in rows.items() if row not in {state.get(id, "") for state in states} | {""}]
            pending = not self._command.in_place
            if wrong or pending:
                problems.append(f"{name} is a mixture of old and new: {wrong[:3] or 'with pending rows'}")
        for name, found in seen.predictions.items():
            allowed = {state.predictions.get(name, "") for state in (before, after)} | (
                set() if before.predictions.get(name) else {""}
            )
            if found not in allowed:
                problems.append(f"{name} {'predicts something else' if found else 'is refused, and was a run before'}")
        return problems


def _name(run: Path, out: Path) -> str:
    return run.relative_to(out).as_posix()


def _differences(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    told: list[tuple[str, Callable[[str], bool]]] = [
        ("repeated, it leaves {} behind", lambda name: name not in expected),
        ("repeated, it lacks {}", lambda name: name not in found),
        ("repeated, other content in {}", lambda name: name in found and name in expected),
    ]
    names = [name for name in sorted({**expected, **found}) if expected.get(name) != found.get(name)]
    return [what.format(", ".join(some)) for what, of in told if (some := [name for name in names if of(name)])]


def _last(said: str) -> str:
    return (said.strip().splitlines() or ["nothing said"])[-1][:300]
