"""Hidden states: which layer of a student learns from which of its teacher, and how far they are apart."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from optkit.errors import PassError
from optkit.model.model import Model
from optkit.model.surgery import Drop
from optkit.model.torch_folder import surgery_of
from optkit.passes._train.losses import row_distance

if TYPE_CHECKING:
    from torch import Tensor, nn

RIDGE = 1e-3
"""Weight of the map itself when it is fitted, as a share of the states' mean square."""
Pairs = Mapping[str, str]
"""Name of a module of the student -> of the teacher's that it learns from."""
Pick = Callable[[Any], "Tensor | None"]
"""What counts of a module's output."""


def find_pairs(
    student: nn.Module, teacher: nn.Module, paths: Sequence[str], kept: Mapping[str, Sequence[int]]
) -> dict[str, str]:
    """Layers in lists of the same name in both; empty where there are none.

    A layer that stands for itself and those dropped behind it learns from the last of these: of layers 0 to 5, the kept
    0, 2, 5 from 1, 4, 5. Where it is not known what was dropped, they are shared out evenly: three learn from 1, 3, 5
    (Jiao et al. 2020, "TinyBERT: Distilling BERT for Natural Language Understanding", section 4.1).

    Args:
        student: live.
        teacher: live.
        paths: lists of layers in the teacher.
        kept: path -> which of the teacher's layers are in the student, where that is known.
    """
    pairs: dict[str, str] = {}
    for path in paths:
        mine, count = _length(student, path), _length(teacher, path)
        places = kept.get(path, ())
        ends = (
            [each - 1 for each in [*places[1:], count]] if places and len(places) == mine else _shared_out(mine, count)
        )
        pairs |= {f"{path}.{index}": f"{path}.{end}" for index, end in enumerate(ends)}
    return pairs


def _shared_out(mine: int, count: int) -> list[int]:
    return [math.ceil((index + 1) * count / mine) - 1 for index in range(mine)]


def _length(module: nn.Module, path: str) -> int:
    from torch import nn

    part = dict(module.named_modules()).get(path)
    return len(part) if isinstance(part, nn.ModuleList | nn.Sequential) else 0


def dropped_since(original: Model, model: Model, teacher: nn.Module) -> dict[str, Sequence[int]]:
    """List of layers -> which of the original's the steps since have left."""
    kept: dict[str, Sequence[int]] = {}
    for operation in surgery_of(model)[len(surgery_of(original)) :]:
        if isinstance(operation, Drop):
            before = kept.get(operation.module) or range(_length(teacher, operation.module))
            kept[operation.module] = [before[index] for index in operation.keep]
    return kept


def require_modules(pairs: Pairs, student: nn.Module, teacher: nn.Module) -> None:
    """All of them are there.

    Raises:
        PassError: one is not; with a suggestion.
    """
    for whose, module, names in (("student", student, pairs.keys()), ("teacher", teacher, pairs.values())):
        known = [name for name, _ in module.named_modules() if name]
        for name in names:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                raise PassError(
                    f"The {whose} has no module '{name}', which layers names.",
                    expected="dotted names of modules, student: teacher",
                    fix=f"did you mean '{close[0]}'?" if close else f"it has {', '.join(known[:8])} and so on",
                )


def first_tensor(value: Any) -> Tensor | None:
    """The first tensor in a module's output."""
    from torch import Tensor

    if isinstance(value, Tensor):
        return value
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else ()
    return next((found for each in parts if (found := first_tensor(each)) is not None), None)


@contextmanager
def tapped(module: nn.Module, names: Sequence[str], pick: Pick = first_tensor) -> Iterator[dict[str, Tensor]]:
    """Name -> what that submodule gave when the module ran last, kept up to date meanwhile."""
    found: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[..., None]:
        def note(_: nn.Module, __: Any, output: Any) -> None:
            picked = pick(output)
            if picked is not None:
                found[name] = picked

        return note

    parts = {name: module.get_submodule(name) for name in names}
    handles = [part.register_forward_hook(hook(name)) for name, part in parts.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def projections(pairs: Pairs, mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> nn.ModuleDict:
    """A linear map for each pair whose widths differ, by the student's name with dots as slashes.

    They begin as what fits these states best: from a random map the student would first have to unlearn what it knows.
    Sources: Romero et al. 2015, "FitNets: Hints for Thin Deep Nets", equation 3 (convolutions of one pixel); Jiao et
    al. 2020, "TinyBERT", equation 8.

    Raises:
        PassError: a module gives no tensor, or one that differs in more than its width.
    """
    import torch
    from torch import nn

    made = nn.ModuleDict()
    with torch.random.fork_rng(devices=[]):
        for student, teacher in pairs.items():
            state, aim = (states.get(name) for states, name in ((mine, student), (theirs, teacher)))
            if state is None or aim is None or _last(state).shape[:-1] != _last(aim).shape[:-1]:
                raise _unlike(student, teacher, state, aim)
            narrow, wide = _last(state).shape[-1], _last(aim).shape[-1]
            if narrow != wide:
                made[key_of(student)] = nn.Linear(narrow, wide, bias=False)
                made[key_of(student)].weight.data.copy_(_fitting(_last(state), _last(aim)))
    return made


def _fitting(state: Tensor, aim: Tensor) -> Tensor:
    """[wide, narrow]: the map whose images of the rows of ``state`` have the least squared distance from ``aim``'s."""
    import torch

    rows, aims = (each.detach().double().flatten(0, -2) for each in (state, aim))
    square = rows.T @ rows
    damping = RIDGE * float(square.diagonal().mean()) + 1e-12
    return torch.linalg.solve(square + damping * torch.eye(len(square), dtype=square.dtype), rows.T @ aims).T


def key_of(name: str) -> str:
    """A module's name as a key of a ModuleDict, which takes no dots."""
    return name.replace(".", "/")


def hidden_loss(
    pairs: Pairs,
    maps: nn.ModuleDict,
    mine: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    mask: Tensor | None,
) -> Tensor:
    """The mean ``row_distance`` of all pairs; a row is the channels at one token or pixel."""
    import torch

    found = []
    for student, teacher in pairs.items():
        state, aim = _last(mine[student]), _last(theirs[teacher])
        if key_of(student) in maps:
            state = maps[key_of(student)](state)
        found.append(row_distance(state, aim, mask if state.ndim == 3 else None))
    return torch.stack(found).mean()


def _last(state: Tensor) -> Tensor:
    """[batch, seq, width] and [batch, width] as they are; [batch, channels, height, width] with the channels last."""
    return state.movedim(1, -1) if state.ndim == 4 else state


def _unlike(student: str, teacher: str, state: Tensor | None, aim: Tensor | None) -> PassError:
    shapes = ["no tensor" if each is None else str(list(each.shape)) for each in (state, aim)]
    return PassError(
        f"Hidden states of '{student}' {shapes[0]} and of the teacher's '{teacher}' {shapes[1]} differ in more than "
        "their width.",
        expected="[batch, seq, width], [batch, width] or [batch, channels, height, width], alike but for the width",
        fix="name other modules in layers, or leave hidden out of losses",
    )
