"""The deliberate errors of optkit, each with its exit code.

    OptkitError                    a user can mend it: one sentence, no traceback
    ├── UsageError             2   the command line or the call itself is wrong
    ├── GivenError             3   something that was given is wrong
    │   ├── RecipeError        3   the recipe (file, line, column)
    │   ├── ModelError         3   the model file
    │   ├── DataError          3   the data
    │   ├── PackageError       3   a package that is not installed
    │   ├── ProviderError      3   an execution provider that is not there
    │   ├── OutputError        3   the place the result should go to
    │   └── PassError          3   a pass could not do its work, or broke its promise
    ├── AccuracyMissed         4   an accuracy limit was missed
    ├── BudgetMissed           5   a speed, size or memory limit was missed
    ├── Interrupted          130   Ctrl-C
    └── Terminated           143   SIGTERM

Everything else that reaches the door in ``optkit.cli`` is a bug in optkit: exit 1, with the traceback in a log file.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar


class OptkitError(Exception):
    """What happened (``message``), what was expected, what to do, and where."""

    exit_code: ClassVar[int] = 3

    def __init__(
        self,
        message: str,
        *,
        expected: str = "",
        fix: str = "",
        file: str | Path | None = None,
        line: int | None = None,
        column: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.expected = expected
        self.fix = fix
        self.file = None if file is None else str(file)
        self.line = line
        self.column = column
        self.facts: Any = None
        """The manifest or verdict, where a limit was missed."""

    @property
    def kind(self) -> str:
        """The class name in kebab-case, as in the JSON output: ``recipe-error``."""
        return re.sub(r"(?<!^)(?=[A-Z])", "-", type(self).__name__).lower()

    @property
    def place(self) -> str:
        """``file:line:column`` as far as it is known, else an empty string."""
        parts = [str(part) for part in (self.file, self.line, self.column) if part is not None]
        return ":".join(parts)

    def __str__(self) -> str:
        parts = [f"{self.place}: {self.message}" if self.place else self.message]
        if self.expected:
            parts.append(f"Expected: {self.expected}")
        if self.fix:
            parts.append(f"Fix: {self.fix}")
        return "\n".join(parts)

    def __reduce__(self) -> tuple[object, ...]:
        """Errors cross process borders (worker steps) with every field."""
        return (_rebuild, (type(self), self.__dict__))


def _rebuild(kind: type[OptkitError], state: dict[str, object]) -> OptkitError:
    error = kind.__new__(kind)
    Exception.__init__(error, state["message"])
    error.__dict__.update(state)
    return error


class UsageError(OptkitError):
    """The command line, or the arguments of a call, do not make sense together."""

    exit_code = 2


class GivenError(OptkitError):
    """Something that was given (recipe, model, data, package, provider, path) is wrong."""


class RecipeError(GivenError):
    """The recipe is wrong; carries file, line and column where they are known."""


class ModelError(GivenError):
    """The model file is missing, broken, unsafe or does not fit."""


class DataError(GivenError):
    """The data are missing, do not fit the model's inputs, or are not numbers."""


class PackageError(GivenError):
    """A package that this job needs is not installed."""


class ProviderError(GivenError):
    """The execution provider is not there, or did not take the model."""


class OutputError(GivenError):
    """The result cannot be written where it should go."""


class PassError(GivenError):
    """A pass failed, changed nothing though it was required to, or broke its promise."""


class AccuracyMissed(OptkitError):
    """The result is not the same model any more, by the limits that were set."""

    exit_code = 4


class BudgetMissed(OptkitError):
    """The result is too slow, too large or needs too much memory."""

    exit_code = 5


class Interrupted(OptkitError):
    """The user pressed Ctrl-C."""

    exit_code = 130


class Terminated(OptkitError):
    """The process was asked to end (SIGTERM)."""

    exit_code = 143
