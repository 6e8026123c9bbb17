"""Layers out of a live module, all that knows their number, and whether it still computes what it should."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optkit.errors import PassError
from optkit.model.surgery import Drop, Operation, Set, Value, operate
from optkit.passes._base import NOISE
from optkit.passes._prune.layers import LayerList, member_names, outputs

if TYPE_CHECKING:
    from torch import Tensor, nn

COUNTS: Mapping[str, str] = {
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers", "depth"), ""),
    **dict.fromkeys(("num_encoder_layers", "encoder_layers"), "encoder"),
    **dict.fromkeys(("num_decoder_layers", "decoder_layers"), "decoder"),
}
"""Attribute of a module or its configuration that counts layers -> whose; empty = those of the part it stands on."""
NUMBERS = ("layer_idx", "layer_id", "layer_index", "layer_number")
"""Attributes by which a layer, or a part of it, knows its place."""


def drop(module: nn.Module, lists: Sequence[LayerList], plan: Mapping[str, Sequence[int]]) -> Sequence[Operation]:
    """Drop layers of the live module.

    Args:
        module: is changed in place.
        lists: of its layers.
        plan: path of each list -> indices that stay, ascending.

    Returns:
        what was done, to be done again on the same module.
    """
    done: Sequence[Operation] = ()
    for layers in lists:
        kept = [*plan[layers.path]]
        first = Drop(module=layers.path, keep=kept)
        operate(module, [first])
        more = followers(module, layers, kept)
        operate(module, more)
        done = (*done, first, *more)
    return done


def require_same(
    module: nn.Module, inputs: Mapping[str, Tensor], expected: Mapping[str, Tensor], gone: Sequence[str]
) -> None:
    """Refuse a module that computes something else without the layers ``gone``.

    Raises:
        PassError: its outputs are not as ``expected``, up to float noise, or it does not run.
    """
    from optkit.model.load_torch import first_line

    try:
        reason = unlike(outputs(module, inputs), expected)
    except Exception as error:  # noqa: BLE001 - the module's own code may raise anything when it misses a layer
        reason = first_line(error)
    if reason:
        raise PassError(
            f"The model does not do without {', '.join(gone)}: {reason}.",
            expected="what it computes when these layers give back what they take",
            fix="keep other layers, such as the first; or another list",
        )


def unlike(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Empty, or in what outputs differ by more than float noise."""
    if {name: each.shape for name, each in found.items()} != {name: each.shape for name, each in expected.items()}:
        return "its outputs have other names or shapes"
    for name, wanted in expected.items():
        error = (found[name].double() - wanted.double()).abs().masked_fill(found[name] == wanted, 0)
        spread = wanted[wanted.isfinite()].double()
        most = float(error.max()) if error.numel() else 0.0
        if spread.numel() and not most <= NOISE * float(spread.std(correction=0)) + 1e-6:
            return f"'{name}' is off by {most:.3g}"
    return ""


def followers(module: nn.Module, layers: LayerList, keep: Sequence[int]) -> list[Set]:
    """What else has to change once only ``keep`` are left in the list: counts, lists with a value for each, numbers."""
    made = []
    seen: set[int] = set()
    for name, holder, prefix in _holders(module, layers.path):
        if id(holder) not in seen:
            seen.add(id(holder))
            attrs = _fewer(holder, layers, keep, above_both=_above_both(module, name, layers.path))
            made += [Set(module=name, attrs={prefix + key: value for key, value in attrs.items()})] if attrs else []
    for place, (index, layer) in enumerate(zip(keep, member_names(module, layers.path), strict=True)):
        for name, part in module.get_submodule(layer).named_modules():
            numbers: dict[str, Value] = {key: place for key in NUMBERS if vars(part).get(key) == index != place}
            if numbers:
                made.append(Set(module=f"{layer}.{name}".rstrip("."), attrs=numbers))
    return made


def _holders(module: nn.Module, path: str) -> Iterator[tuple[str, Any, str]]:
    """(name, thing, prefix) of the modules above the list, and of their configurations."""
    parts = path.split(".")[:-1]
    for depth in range(len(parts) + 1):
        name = ".".join(parts[:depth])
        holder = module.get_submodule(name)
        yield name, holder, ""
        if hasattr(holder, "config") and hasattr(holder.config, "__dict__"):
            yield name, holder.config, "config."


def _above_both(module: nn.Module, name: str, path: str) -> bool:
    """Whether a plain count on ``name`` means the layers of an encoder beside the decoder that the list is in."""
    below = path.removeprefix(name).strip(".").split(".")
    parts = [each.split(".")[-1] for each, _ in module.get_submodule(name).named_modules()]
    return "decoder" in below and "encoder" in parts


def _fewer(holder: Any, layers: LayerList, keep: Sequence[int], *, above_both: bool) -> dict[str, Value]:
    sides = {"decoder"} if above_both else {"", *(set(layers.path.split(".")) & {"encoder", "decoder"})}
    found: dict[str, Value] = {}
    for key, value in vars(holder).items():
        if COUNTS.get(key) in sides and value == layers.count and not isinstance(value, bool):
            found[key] = len(keep)
        elif not key.startswith("_") and "layer" in key and _one_each(value, layers.count) and "" in sides:
            found[key] = [value[index] for index in keep]
    return found


def _one_each(value: Any, count: int) -> bool:
    plain = isinstance(value, list | tuple) and all(isinstance(each, int | str) for each in value)
    return plain and len(value) == count
