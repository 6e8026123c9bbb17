"""The user's own training function: called, watched, and blamed with its own frames only."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.errors import OptkitError, PassError
from optkit.model.user_code import named
from optkit.passes._train.keeper import Keeper, seed_all, train_mode
from optkit.passes._train.loader import Loader

if TYPE_CHECKING:
    from torch import Tensor

_OWN = Path(__file__).parents[2]


def run_function(reference: str, keeper: Keeper, loader: Loader, settle: Callable[[], None]) -> None:
    """Call fn(model, loader, steps, callback).

    model: the live module on the device, in train mode; trained in place.
    loader: iterable again and again, an epoch in a new order each time; gives ``TrainBatch`` with ``inputs`` (dict of
    tensors), ``labels`` (or None) and ``targets`` (the teacher's outputs, or None).
    steps: the budget.
    callback(step, loss): after each step, ``step`` counted from 1. Looks at the search split now and then, keeps the
    best weights, writes checkpoints. False = stop: steps or time are used up, or nothing gets better.

    Args:
        reference: ``pkg.module:fn`` or ``FILE.py:fn``.
        keeper: watches; an interrupted run goes on with the weights of its last look and the steps that are left.
        loader: batches, a new order each time it is iterated.
        settle: after each step; sets pruned weights to zero again.

    Raises:
        PassError: it cannot be found, fails, or gives back something else than None or the model.
    """
    function = own_function(reference)
    keeper.begin()
    first = keeper.step
    seed_all(keeper.ctx.seed, first)

    def callback(step: int, loss: float | Tensor) -> bool:
        """Tell that ``step`` steps are done, with the last one's loss; False when it is time to stop."""
        settle()
        value = float(loss.detach() if hasattr(loss, "detach") else loss)
        return not keeper.done(first + step, value) or keeper.look(dict)

    train_mode(keeper.module, loader.size)
    given = _called(function, reference, keeper, loader, callback)
    settle()
    if given is not None and given is not keeper.module:
        raise PassError(
            f"The training function {reference} gave back a {type(given).__name__}.",
            expected="nothing, or the model that it was given, trained in place",
            fix="change the weights of the given model, and return nothing",
        )
    if keeper.seen != keeper.step:
        keeper.look(dict)


def own_function(reference: str) -> Any:
    """The function that a recipe names.

    Raises:
        PassError: there is none of that name.
    """
    return named(reference, base=Path.cwd(), what="function", blame=PassError)


def _called(function: Any, reference: str, keeper: Keeper, loader: Loader, callback: Callable[..., bool]) -> Any:
    try:
        return function(keeper.module, loader, keeper.budget.steps - keeper.step, callback)
    except OptkitError:
        raise
    except (Exception, SystemExit) as error:  # the user's code raises anything
        raise PassError(
            f"The training function {reference} failed:\n{own_traceback(error, function)}",
            expected="fn(model, loader, steps, callback), which trains the model in place",
            fix="mend the function",
        ) from error


def own_traceback(error: BaseException, function: object) -> str:
    """The traceback without frames of optkit, of Python's library and of installed packages but the function's file."""
    home = getattr(getattr(function, "__code__", None), "co_filename", "")
    places = [_OWN, *(Path(sysconfig.get_paths()[name]) for name in ("stdlib", "purelib", "platlib"))]

    def theirs(file: str) -> bool:
        return file != home and (file.startswith("<") or any(Path(file).is_relative_to(place) for place in places))

    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not theirs(frame.filename)]
    lines = [*traceback.format_list(frames), *traceback.format_exception_only(error)]
    return "".join(lines).rstrip()
