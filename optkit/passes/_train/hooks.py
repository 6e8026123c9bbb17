"""Losses of the user's own: ``fn(student_outputs, teacher_outputs, batch) -> scalar tensor``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.errors import PassError
from optkit.model.user_code import named
from optkit.passes._train.loader import TrainBatch
from optkit.passes._train.user import own_traceback

if TYPE_CHECKING:
    from torch import Tensor

_EXPECTED = "fn(student_outputs, teacher_outputs, batch), which returns a tensor of one number with a gradient"

Term = Callable[["Mapping[str, Tensor]", TrainBatch], "Tensor"]
"""(the student's outputs by name, batch with the teacher's as targets) -> scalar."""


def hook_name(reference: str) -> str:
    """What a hook is called among the losses: the function's name."""
    return reference.rpartition(":")[2]


def load_hook(reference: str) -> Term:
    """The user's function as a term of the loss.

    Raises:
        PassError: there is no such function; later, it raises or gives back something else than a scalar tensor.
    """
    function = named(reference, base=Path.cwd(), what="hook", blame=PassError)

    def term(outputs: Mapping[str, Tensor], batch: TrainBatch) -> Tensor:
        return _called(function, reference, outputs, batch)

    return term


def _called(function: Any, reference: str, outputs: Mapping[str, Tensor], batch: TrainBatch) -> Tensor:
    import torch

    try:
        found = function(dict(outputs), dict(batch.targets or {}), batch)
    except (Exception, SystemExit) as error:  # the user's code raises anything
        raise PassError(
            f"The hook {reference} failed:\n{own_traceback(error, function)}",
            expected=_EXPECTED,
            fix="mend the function",
        ) from error
    if not isinstance(found, torch.Tensor) or found.numel() != 1 or not found.is_floating_point():
        what = f"a tensor {list(found.shape)}" if isinstance(found, torch.Tensor) else f"a {type(found).__name__}"
        raise PassError(f"The hook {reference} gave back {what}.", expected=_EXPECTED, fix="return the mean, for one")
    if torch.is_grad_enabled() and not found.requires_grad:
        raise PassError(
            f"What the hook {reference} gave back has no gradient.",
            expected=_EXPECTED,
            fix="compute it from student_outputs with torch alone, without detach() and item()",
        )
    return found.reshape(())
