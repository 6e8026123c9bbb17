"""Which layers of a list stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from optkit.errors import PassError
from optkit.model.torch_call import to_tensor
from optkit.passes._prune.layers import LayerList, outputs, watched

if TYPE_CHECKING:
    from torch import Tensor, nn

    from optkit.data.dataset import Batch, Dataset
    from optkit.model.signature import Signature


def require_fit(layers: LayerList, kept: Sequence[int], number: int) -> None:
    """Refuse what cannot be.

    Args:
        layers: the list.
        kept: indices that stay in any case.
        number: of layers that stay.

    Raises:
        PassError: one that has to stay would go, none would, or one is named that is not there.
    """
    bound = {index: reason for index, reason in layers.bound.items() if index not in kept}
    if bound or len(kept) > number:
        told = "; ".join(f"{index}, as {reason}" for index, reason in (bound or layers.bound).items())
        raise PassError(
            f"Of {layers.path}, layers have to stay: {told}.",
            expected="a remain with " + words(sorted(layers.bound)),
            fix=f"remain: [{words(sorted({*kept, *layers.bound}))}]",
        )
    if number >= layers.count or max(kept, default=0) >= layers.count:
        raise PassError(
            f"{layers.path} has {layers.count} layers, and remain leaves none to drop or names one that is not there.",
            expected=f"a number from 1 to {layers.count - 1}, or some of 0 to {layers.count - 1}",
            fix=f"remain: {max(1, layers.count // 2)}",
        )


def influences(module: nn.Module, layers: LayerList, signature: Signature, data: Dataset) -> dict[int, float]:
    """How much each layer turns what it takes: 1 - cosine(input, output), the mean over all tokens of all samples.

    Vectors are the last axis of [batch, seq, hidden] states, of all else whole samples. Tokens that the attention mask
    leaves out do not count. Source: Men et al. 2024, "ShortGPT: Layers in Large Language Models are More Redundant Than
    You Expect", equation 1, block influence.

    Returns:
        of each layer that could go, by its index.
    """
    from torch.nn.functional import cosine_similarity

    places = {name: index for index, name in enumerate(layers.names) if index not in layers.bound}
    names = list(places)
    sums, counts = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0)
    for batch in data.batches():
        inputs = _tensors(batch, signature)
        mask = inputs.get(_mask_name(layers.path, inputs))

        def note(name: str, taken: Tensor, given: Tensor, size: int = batch.size, mask: Tensor | None = mask) -> None:
            tokens = taken.dim() == 3
            vectors = [each if tokens else each.flatten(1) for each in (taken[:size], given[:size])]
            turned = 1 - cosine_similarity(vectors[0].double(), vectors[1].double(), dim=-1)
            if tokens and mask is not None and mask.shape == taken.shape[:2]:
                turned = turned[mask[:size].bool()]
            sums[name] += float(turned.sum())
            counts[name] += turned.numel()

        with watched(module, names, note):
            outputs(module, inputs)
    return {index: sums[name] / max(1, counts[name]) for name, index in places.items()}


def _mask_name(path: str, inputs: Mapping[str, Tensor]) -> str:
    decodes = "decoder" in path.split(".") and "decoder_input_ids" in inputs
    return "decoder_attention_mask" if decodes else "attention_mask"


def evenly(count: int, keep: int, bound: Sequence[int]) -> list[int]:
    """``keep`` of ``count`` places from the first to the last at equal distances, and ``bound`` in any case.

    6 -> 3: 0, 2, 5; 12 -> 6: 0, 2, 4, 7, 9, 11, which are DistilBERT's (Sanh et al. 2019, "DistilBERT, a distilled
    version of BERT", takes one layer out of two).
    """
    places = [round(index * (count - 1) / max(1, keep - 1)) for index in range(keep)]
    for index in bound:
        if index not in places:
            places.remove(min((each for each in places if each not in bound), key=lambda each: abs(each - index)))
            places.append(index)
    return sorted(places)


def strongest(values: Mapping[int, float], keep: int, bound: Sequence[int]) -> list[int]:
    """``keep`` places: ``bound``, and those of the greatest values."""
    ranked = sorted(values, key=lambda index: (-values[index], index))
    return sorted([*bound, *ranked[: keep - len(bound)]])


def _tensors(batch: Batch, signature: Signature) -> dict[str, Tensor]:
    return {spec.name: to_tensor(spec.name, batch.inputs[spec.name], spec.dtype) for spec in signature.inputs}


def words(indices: Sequence[int]) -> str:
    """Indices in a row."""
    return ", ".join(map(str, indices))
