"""Calls the function a user named to build a module: ``pkg.module:fn`` or ``FILE.py:fn``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from optkit.errors import ModelError
from optkit.model.user_code import importable, named

if TYPE_CHECKING:
    from torch import nn

_EXPECTED = "a function that needs no arguments and returns a torch.nn.Module"


def call_factory(reference: str) -> nn.Module:
    """Build the module; relative files and modules count from the current folder.

    Raises:
        ModelError: no such file, module or function; it raises, or returns something else than an ``nn.Module``.
    """
    from torch import nn

    function = named(reference, base=Path.cwd(), what="factory", blame=ModelError)
    place = reference.rpartition(":")[0]
    with importable(Path(place).resolve().parent if place.endswith(".py") else Path.cwd()):
        try:
            module = function()
        except (Exception, SystemExit) as error:  # a user's own code may raise anything
            raise ModelError(
                f"The factory {reference} failed: {type(error).__name__}: {error}.",
                expected=_EXPECTED,
                fix="call it on its own in Python and mend it",
            ) from error
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"The factory {reference} returns a {type(module).__name__}.",
            expected=_EXPECTED,
            fix="return the module itself, not its weights, its class or a tuple",
        )
    _refuse_lazy(module, reference)
    return module


def _refuse_lazy(module: nn.Module, reference: str) -> None:
    from torch.nn.parameter import is_lazy

    if names := [name for name, value in module.state_dict(keep_vars=True).items() if is_lazy(value)]:
        raise ModelError(
            f"The module of the factory {reference} has tensors without a shape yet: {', '.join(names[:4])}.",
            expected="layers that know their sizes",
            fix="call the module once on an example before the factory returns it",
        )
