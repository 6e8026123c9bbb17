"""How far outputs are from labels or from a teacher's outputs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from optkit.errors import OptkitError, PassError
from optkit.model.load_torch import first_line
from optkit.model.torch_call import name_outputs, run_module

if TYPE_CHECKING:
    from torch import Tensor, nn

LOGITS = "logits"
_SCORES = re.compile(r"logit|score|class", re.IGNORECASE)
"""In the names of outputs that hold class scores."""
TEMPERATURE = 2.0
"""Of the distillation of classes: above 1 the classes that are not the answer count more."""


def call(module: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Outputs by name for inputs by name.

    Raises:
        PassError: the module, which is in train mode, fails.
    """
    try:
        found = run_module(module, inputs)
    except Exception as error:  # the model's code raises anything
        if not module.training or isinstance(error, OptkitError):
            raise
        raise PassError(
            f"The model fails in training: {first_line(error)}.",
            expected="a forward that runs in train mode too",
            fix="mend the model's code; where memory is short, set a smaller batch under train:",
        ) from error
    return name_outputs(found)


def class_output(outputs: Mapping[str, Tensor], classes: int | None = None) -> str | None:
    """The output with the scores of a classifier, float[batch, classes]; None where none or several could be meant.

    The one named logits; else the only one with logit, score or class in its name; else the only one as wide as there
    are ``classes`` in the labels. (An embedding [batch, 384] is none.)
    """
    flat = {name: value.shape[1] for name, value in outputs.items() if value.ndim == 2 and value.is_floating_point()}
    if LOGITS in flat:
        return LOGITS
    named = [name for name in flat if _SCORES.search(name)] or [name for name in flat if flat[name] == classes]
    return named[0] if len(named) == 1 else None


def label_loss(outputs: Mapping[str, Tensor], labels: Tensor, classes: int | None = None) -> Tensor:
    """Cross entropy for int64[batch] class numbers, mean squared error for float32[batch, ...] values.

    Class numbers go with ``class_output``, else with the only output float[batch, n].

    Raises:
        PassError: no output, or several, could be meant, or a class number is none of the output's.
    """
    from torch.nn import functional

    if labels.is_floating_point():
        return functional.mse_loss(_value_output(outputs, labels), labels)
    flat = [each for each, value in outputs.items() if value.ndim == 2 and value.is_floating_point()]
    name = class_output(outputs, classes) or (flat[0] if len(flat) == 1 else None)
    if name is None:
        raise _unfit(outputs, "one output [batch, classes], or one of them named logits")
    if labels.ndim != 1:
        raise PassError(
            f"The labels of the split train are whole numbers {list(labels.shape)}, not class numbers.",
            expected=f"one class number for each sample, for the scores of '{name}'; or floats",
            fix="write class numbers (argmax of one-hot labels) or floats, or train with a function of your own",
        )
    width = outputs[name].shape[1]
    if width == 1:
        raise PassError(
            f"The labels of the split train are whole numbers, and the output '{name}' has one value, not classes.",
            expected="floats as labels of an output [batch, 1]",
            fix="write the labels as floats, or train with a function of your own (train: function)",
        )
    if int(labels.min()) < 0 or int(labels.max()) >= width:
        raise PassError(
            f"The labels of the split train go from {int(labels.min())} to {int(labels.max())}, and the output "
            f"'{name}' has {width} classes.",
            expected=f"class numbers from 0 to {width - 1}",
            fix="correct the labels, or train with a function of your own (train: function)",
        )
    return functional.cross_entropy(outputs[name].float(), labels)


def distill_loss(
    outputs: Mapping[str, Tensor],
    targets: Mapping[str, Tensor],
    mask: Tensor | None = None,
    *,
    temperature: float = TEMPERATURE,
    classes: int | None = None,
) -> Tensor:
    """How far outputs are from a teacher's outputs of the same names, summed over the outputs.

    Class scores: Kullback-Leibler divergence at a temperature, times its square. Anything else: 1 - cosine of each row,
    plus the squared error over the variance of the teacher's output.

    Args:
        outputs: output name -> [batch, ...].
        targets: the teacher's; names and shapes that both have count, and floats only.
        mask: [batch, seq], nonzero where a position counts; for outputs [batch, seq, ...] of three axes and more.
        temperature: of the class scores.
        classes: how many there are in the labels, where those are known; see ``class_output``.

    Raises:
        PassError: there is no output that both have.

    Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network".
    """
    shared = [name for name, value in outputs.items() if name in targets and _comparable(value, targets[name])]
    if not shared:
        raise PassError(
            "The model and its teacher share no float output of the same shape.",
            expected=_shapes(targets),
            fix=f"choose another teacher; the model gives {_shapes(outputs)}",
        )
    scores = class_output(outputs, classes)
    losses = [
        soft_classes(outputs[name], targets[name], temperature)
        if name == scores and outputs[name].shape[1] > 1
        else row_distance(outputs[name], targets[name], mask)
        for name in shared
    ]
    return sum(losses[1:], start=losses[0])


def soft_classes(logits: Tensor, target: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Kullback-Leibler divergence of [..., classes] at a temperature, times its square (Hinton et al. 2015)."""
    from torch.nn import functional

    student = functional.log_softmax(logits.float().flatten(0, -2) / temperature, dim=-1)
    teacher = functional.log_softmax(target.float().flatten(0, -2) / temperature, dim=-1)
    return functional.kl_div(student, teacher, log_target=True, reduction="batchmean") * temperature**2


def row_distance(output: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """1 - cosine of each row (last axis), plus the squared error over the variance of the target; [...] -> []."""
    from torch.nn import functional

    rows, aims = output.float(), target.float()
    if rows.ndim < 2:
        rows, aims = rows.reshape(-1, 1), aims.reshape(-1, 1)
    if mask is not None and rows.ndim >= 3 and mask.shape == rows.shape[:2]:
        rows, aims = rows[mask.bool()], aims[mask.bool()]
    error = functional.mse_loss(rows, aims) / aims.var(correction=0).clamp_min(1e-6)
    if rows.shape[-1] == 1:
        return error
    return error + (1 - functional.cosine_similarity(rows, aims, dim=-1)).mean()


def _comparable(output: Tensor, target: Tensor) -> bool:
    floats = output.is_floating_point() and target.is_floating_point()
    return floats and tuple(output.shape) == tuple(target.shape)


def _value_output(outputs: Mapping[str, Tensor], labels: Tensor) -> Tensor:
    fits = [value for value in outputs.values() if value.is_floating_point() and value.numel() == labels.numel()]
    if len(fits) != 1:
        raise _unfit(outputs, f"one output of {labels.numel()} floats for {labels.numel()} labels")
    return fits[0].reshape(labels.shape).float()


def _unfit(outputs: Mapping[str, Tensor], expected: str) -> PassError:
    return PassError(
        f"The labels fit no output of the model: it gives {_shapes(outputs)}.",
        expected=expected,
        fix="train with a function of your own (train: function), or leave out the labels and give a teacher",
    )


def _shapes(outputs: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {list(value.shape)}" for name, value in outputs.items())
