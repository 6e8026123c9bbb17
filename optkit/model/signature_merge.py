"""A file's own signature together with the one its user states."""

from __future__ import annotations

from dataclasses import replace

from optkit.errors import UsageError
from optkit.model.signature import Dim, Signature, TensorSpec


def merge_signature(known: Signature, given: tuple[TensorSpec, ...]) -> Signature:
    """The file's signature with the user's names for dynamic dimensions; the user's alone where the file has none.

    Args:
        known: what the file says; empty inputs = nothing.
        given: the inputs as the user states them; empty = not stated.

    Raises:
        UsageError: names, dtypes, ranks or fixed sizes differ; lists the real inputs.
    """
    if not given or not known.inputs:
        return Signature(known.inputs or given, known.outputs)
    stated = {spec.name: spec for spec in given}
    if stated.keys() != {spec.name for spec in known.inputs} or not all(
        _agrees(spec, stated[spec.name]) for spec in known.inputs
    ):
        raise UsageError(
            "The signature does not fit the model: " + "; ".join(map(str, given)) + ".",
            expected="the model's own inputs, with other names for dynamic dimensions only: "
            + "; ".join(map(str, known.inputs)),
            fix="leave --signature out, or write the inputs as listed",
        )
    renamed: dict[Dim, Dim] = {}
    for spec in known.inputs:
        for old, new in zip(spec.shape or (), stated[spec.name].shape or (), strict=False):
            renamed.setdefault(old, new)
    return Signature(
        tuple(stated[spec.name] for spec in known.inputs),
        tuple(
            replace(spec, shape=spec.shape and tuple(renamed.get(dim, dim) for dim in spec.shape))
            for spec in known.outputs
        ),
    )


def _agrees(known: TensorSpec, given: TensorSpec) -> bool:
    if known.shape is None:
        return known.dtype == given.dtype
    return (
        known.dtype == given.dtype
        and len(known.shape) == len(given.shape or ())
        and all(
            new == old or (isinstance(old, str) and isinstance(new, str))
            for old, new in zip(known.shape, given.shape or (), strict=True)
        )
    )
