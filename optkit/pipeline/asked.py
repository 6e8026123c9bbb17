"""What was asked for against what the model and the chain have: place and ending of the output, sizes of the target."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path

from optkit.errors import OutputError, UsageError
from optkit.model.bundle import is_alone
from optkit.model.digest import model_files
from optkit.model.model import Form, Model
from optkit.model.signature import Signature


def spare_original(model: Model, out: Path) -> None:
    """Even ``--force`` does not replace the model that the result is judged against.

    Raises:
        OutputError: the output is the model, one of its files, or a folder around it.
    """
    place = out.resolve()
    beside = {place, place.with_name(f"{place.name}.data")} if out.suffix == ".onnx" else {place}
    for file in (model.path, *model_files(model)):
        if beside & {file.resolve(), *file.resolve().parents}:
            raise OutputError(
                f"The output {out} would replace the model itself ({file}).",
                expected="another place than the original's",
                fix="choose another path with -o",
            )


def check_ending(out: Path, form: Form) -> None:
    """``-o x.onnx`` and ``-o x.ort`` say what the result is to be.

    Raises:
        UsageError: the chain gives the other.
    """
    ending, what = (".ort", "an ORT file") if form == "ort" else (".onnx", "an ONNX file")
    if is_alone(out) and out.suffix != ending:
        raise UsageError(
            f"The output is to be {out.name}, but the result of the recipe is {what}.",
            expected=f"an output that ends in {ending}, or a folder",
            fix=f"-o {out.with_suffix(ending)}, or a folder: -o {out.with_suffix('')}",
        )


def check_shapes(shapes: Mapping[str, int], signature: Signature) -> None:
    """The target gives sizes to dimensions that there are; ``batch`` stands for the samples, whatever their name.

    Raises:
        UsageError: a name that is no dynamic dimension of the inputs, where all of these are known.
    """
    if any(spec.shape is None for spec in signature.inputs):
        return
    known = signature.dim_names
    for name in shapes:
        if name not in known and not (name == "batch" and (signature.batch_dims or signature.one_sample)):
            close = difflib.get_close_matches(name, known, n=1)
            raise UsageError(
                f"The dimension '{name}' in the target's shapes does not exist.",
                expected=f"one of the dynamic dimensions: {', '.join(known)}" if known else "none: all sizes are fixed",
                fix=f"did you mean '{close[0]}'?" if close else "correct it, or remove it from target.shapes",
            )
