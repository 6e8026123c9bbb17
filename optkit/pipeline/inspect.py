"""Looks at a model without running it: what its files say, what it most likely is, which shipped recipes fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from optkit.errors import DataError, ModelError, RecipeError, UsageError
from optkit.model.guess import guess
from optkit.model.model import Model
from optkit.model.signature import Signature
from optkit.model.summary import Layer, Summary, summarize
from optkit.model.target import Target
from optkit.passes._base import Pass
from optkit.passes._registry import missing_packages, pip_hint
from optkit.pipeline.gather import Gathered, gather
from optkit.pipeline.plan import chain, unfit
from optkit.recipe.load import shipped
from optkit.recipe.recipe import Recipe
from optkit.report.inspect import Fit, Inspection

WORTH = 0.1
"""Share of the parameters below which quantizing them is not worth it."""

_ANY_FACTORY = "torch.nn:Module"
"""Opening a state_dict asks for a factory, but never calls it."""
_DEFAULT_OPS = ("MatMul", "Gemm", "Conv")
"""What a quantizing pass without a list of operators works on."""


def inspect(
    path: str | Path, *, factory: str | None = None, signature: str | None = None, trust_pickle: bool = False
) -> Inspection:
    """Facts about a model file, Hugging Face folder or bundle. Executes nothing, and reads no external weights.

    A file that other verbs refuse as unsafe, or for want of a factory, is looked at all the same; the reason is told.

    Raises:
        ModelError: missing, broken, or of no kind that optkit knows.
        UsageError: the signature or the factory does not fit.
    """
    model, refusal = _open(Path(path), factory, signature, trust_pickle)
    summary = summarize(model)
    operators = summary.operators or {layer.op: layer.count for layer in summary.layers}
    what, why = guess(summary_signature(model, summary), operators, summary.architecture)
    return Inspection(
        summary=summary,
        guess=what,
        why=why,
        refused="" if refusal is None else refusal.message,
        fix="" if refusal is None else refusal.fix,
        recipes=tuple(recipe_fits(model, summary)),
    )


def summary_signature(model: Model, summary: Summary) -> Signature:
    """The signature as typed specs; of files that opening does not read (ORT), from the summary's words."""
    if model.signature.inputs or not summary.inputs:
        return model.signature
    from optkit.model.signature import parse_signature

    return Signature(parse_signature(";".join(summary.inputs)), parse_signature(";".join(summary.outputs)))


def _open(path: Path, factory: str | None, signature: str | None, trust: bool) -> tuple[Model, ModelError | None]:
    """The model, and the error it would raise without what it lacks (trust, or a factory)."""
    try:
        return Model.open(path, factory=factory, signature=signature, trust_pickle=trust), None
    except ModelError as error:
        refusal = error
    for extra in (factory, factory or _ANY_FACTORY):
        try:
            return Model.open(path, factory=extra, signature=signature, trust_pickle=True), refusal
        except (ModelError, UsageError):
            continue
    raise refusal


def recipe_fits(model: Model, summary: Summary) -> Iterator[Fit]:
    """Every shipped recipe with the reason why it fits or not."""
    data = _gathered(model)
    for name in shipped():
        fits, why = _fit(name, model, summary, data)
        yield Fit(recipe=name, fits=fits, why=why)


def _gathered(model: Model) -> Gathered:
    try:
        return gather(model)
    except DataError as error:  # a broken data.yaml is the business of verbs that read data
        return Gathered(notes=(error.message,))


def _fit(name: str, model: Model, summary: Summary, data: Gathered) -> tuple[bool, str]:
    target = Target()
    if model.form == "ort":
        return False, "no pass takes ORT files: start from the ONNX model this one was made of"
    try:
        planned = chain(Recipe.load(name), model, target)
    except RecipeError as error:
        return False, error.message
    running = [each.step.options for each in planned if not each.skip]
    for each in planned:
        reason = "" if each.skip else unfit(each, model, target)
        if reason:
            return False, f"{each.step.id}: {reason}"
    missing = [package for pass_ in running for package in missing_packages(type(pass_))]
    if missing:
        return False, f"needs {missing[0]}, which is not installed: {pip_hint(missing[0])}"
    lossy = [pass_ for pass_ in running if pass_.kind != "exact"]
    if not lossy:
        nodes = sum(summary.operators.values())
        return True, f"{nodes} nodes to clean up and fuse" if nodes else "exported, then cleaned up and fused"
    fits, why = _gain(lossy, summary)
    return fits, f"{why}{_data_words(lossy, data)}" if fits else why


def _gain(passes: Sequence[Pass], summary: Summary) -> tuple[bool, str]:
    """How much of the model the quantizing passes can take on."""
    ops = {op for pass_ in passes for op in getattr(pass_, "ops", ()) or _DEFAULT_OPS}
    floats = [layer for layer in summary.layers if "float" in layer.dtype]
    taken = [layer for layer in floats if layer.op in ops]
    if not taken:
        return False, _nothing(ops, summary)
    share = sum(layer.elements for layer in taken) / max(summary.parameters or 0, 1)
    words = f"weights of {' and '.join(f'{layer.count} {layer.op}' for layer in taken)}, {share:.0%} of the parameters"
    if share >= WORTH:
        return True, words
    rest = max(floats, key=lambda layer: layer.elements)
    return False, f"only {words}; {rest.count} {rest.op} hold {rest.elements / max(summary.parameters or 0, 1):.0%}"


def _nothing(ops: set[str], summary: Summary) -> str:
    narrow = [layer for layer in summary.layers if "int" in layer.dtype]
    if narrow:
        return f"quantized already: {' and '.join(_narrow(layer) for layer in narrow)}"
    if not summary.layers:
        return "it has no weights of rank 2 or more"
    return f"no weights of {' or '.join(sorted(ops))}"


def _narrow(layer: Layer) -> str:
    return f"{layer.count} {layer.dtype} weights of {layer.op}"


def _data_words(passes: Sequence[Pass], data: Gathered) -> str:
    """Which data the passes need, and whether they are there."""
    needed = dict.fromkeys(split for pass_ in passes for split in pass_.reads() if split not in ("search", "sample"))
    lacking = [split for split in needed if split not in data.sources]
    if not needed:
        return "; needs no data"
    if not lacking:
        return f"; {' and '.join(needed)} data are named beside it"
    return "".join(f"; needs {split} data: --data {split}=FILE" for split in lacking)
