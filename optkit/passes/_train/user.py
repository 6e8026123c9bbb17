"""The user's own training function: called, watched, and blamed with its own frames only."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Callable, Mapping
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
    best weights, writes checkpoints. False = stop: steps or time are used up, or nothing gets better;
    it stays False then.

    Args:
        reference: ``pkg.module:fn`` or ``FILE.py:fn``.
        keeper: watches; an interrupted run goes on with the weights of its last look and the steps that are left.
        loader: batches, a new order each time it is iterated.
        settle: after each step; sets pruned weights to zero again.

    Raises:
        PassError: it cannot be found, fails, changes more than weights, or gives back something else than None or the
            model.
    """
    function = own_function(reference)
    keeper.begin()
    first, parts, going = keeper.step, _parts(keeper), True
    seed_all(keeper.ctx.seed, first)

    def callback(step: int, loss: float | Tensor) -> bool:
        """Tell that ``step`` steps are done, with the last one's loss; False when it is time to stop."""
        nonlocal going
        _require_parts(keeper, parts, reference)
        settle()
        value = float(loss.detach() if hasattr(loss, "detach") else loss)
        due = keeper.done(first + step, value)
        going = going and (not due or keeper.look(dict))
        return going

    train_mode(keeper.module, loader.size)
    given = _called(function, reference, keeper, loader, callback)
    _require_parts(keeper, parts, reference)
    settle()
    if given is not None and given is not keeper.module:
        raise PassError(
            f"The training function {reference} gave back a {type(given).__name__}.",
            expected="nothing, or the model that it was given, trained in place",
            fix="change the weights of the given model, and return nothing",
        )
    if keeper.step == first:
        keeper.notes.append(f"{reference} never called its callback, so its weights were looked at once, at the end")
    if keeper.seen != keeper.step:
        keeper.look(dict)
    if keeper.step > keeper.budget.steps:
        keeper.notes.append(
            f"{reference} took {keeper.step} steps of {keeper.budget.steps}: callback's False means stop"
        )


def _parts(keeper: Keeper) -> dict[str, str]:
    """Name of each parameter and buffer -> what must stay as it is."""
    return {
        name: f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)} on {value.device.type}"
        for name, value in keeper.module.state_dict().items()
    }


def _require_parts(keeper: Keeper, before: Mapping[str, str], reference: str) -> None:
    now = _parts(keeper)
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if changed:
        name = changed[0]
        raise PassError(
            f"The training function {reference} changed more than weights: {name} was {before.get(name, 'not there')} "
            f"and is {now.get(name, 'not there')}.",
            expected="parameters and buffers of the same names, shapes, dtypes and device as before",
            fix="change values only, and take off parametrizations before each callback",
        )


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
