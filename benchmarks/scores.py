"""What outputs are worth: figures against the original's outputs, and against the truth where it is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.page import error_rate
from optkit.evaluate.task_metrics import edit_distance

Array = NDArray[Any]
Arrays = dict[str, Array]
Score = Callable[[Sequence[Arrays], Sequence[Arrays]], dict[str, float]]
"""(outputs of the original, outputs of a product), batch by batch -> figures by name."""


def output(batches: Sequence[Arrays], name: str) -> list[Array]:
    """One output of each batch; the first one where a tool gave it another name."""
    return [batch[name] if name in batch else next(iter(batch.values())) for batch in batches]


def cosine(left: Array, right: Array) -> Array:
    """Cosine of each pair of rows (all but the first axis flattened): float64[rows]."""
    a, b = (np.asarray(each, np.float64).reshape(len(each), -1) for each in (left, right))
    return (a * b).sum(axis=1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-30)


def pooled(states: Array, mask: Array) -> Array:
    """Sentence vectors of unit length: float[rows, seq, width], int[rows, seq] -> float64[rows, width]."""
    summed = (states.astype(np.float64) * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
    return summed / np.linalg.norm(summed, axis=1, keepdims=True)


def sentences(masks: Sequence[Array], labels: Array, probe: tuple[Array, float]) -> Score:
    """``cosine`` of sentence vectors, and share of ``sentiment`` that a linear probe gets right."""
    weights, bias = probe

    def score(original: Sequence[Arrays], result: Sequence[Arrays]) -> dict[str, float]:
        wanted, found = (
            np.concatenate([pooled(*each) for each in zip(output(batches, "last_hidden_state"), masks, strict=True)])
            for batches in (original, result)
        )
        right = ((found @ weights + bias) > 0) == (labels == 1)
        return {"cosine": float(cosine(wanted, found).mean()), "sentiment": float(right.mean())}

    return score


def classes(name: str, labels: Array) -> Score:
    """``agreement`` with the original's first choice, ``top1`` against the labels."""

    def score(original: Sequence[Arrays], result: Sequence[Arrays]) -> dict[str, float]:
        wanted, found = (np.concatenate(output(batches, name)).argmax(axis=1) for batches in (original, result))
        return {"agreement": float((wanted == found).mean()), "top1": float((found == labels).mean())}

    return score


def photos(name: str, labels: Array, unseen: Array) -> Score:
    """As ``classes``, besides ``agreement, new photos``: of those of which no view was trained on, bool[rows]."""
    plain = classes(name, labels)

    def score(original: Sequence[Arrays], result: Sequence[Arrays]) -> dict[str, float]:
        wanted, found = (np.concatenate(output(batches, name)).argmax(axis=1) for batches in (original, result))
        new = float((wanted == found)[unseen].mean())
        return plain(original, result) | {"agreement, new photos": new}

    return score


def maps(name: str, threshold: float = 0.3) -> Score:
    """``iou``: area that both call text over the area that either does; ``cosine`` of the maps."""

    def score(original: Sequence[Arrays], result: Sequence[Arrays]) -> dict[str, float]:
        wanted, found = (np.concatenate(output(batches, name)) for batches in (original, result))
        both, either = (wanted > threshold) & (found > threshold), (wanted > threshold) | (found > threshold)
        return {"iou": float(both.sum() / max(1, either.sum())), "cosine": float(cosine(wanted, found).mean())}

    return score


def reading(name: str, characters: Sequence[str], texts: Sequence[str]) -> Score:
    """``same_text``: share of lines read as the original does; ``read``: 1 - edits / characters of the truth."""

    def score(original: Sequence[Arrays], result: Sequence[Arrays]) -> dict[str, float]:
        wanted, found = (
            [text for batch in output(batches, name) for text in decode(batch, characters)]
            for batches in (original, result)
        )
        same = np.mean([left == right for left, right in zip(wanted, found, strict=True)])
        edits = sum(edit_distance(left, right) for left, right in zip(found, texts, strict=True))
        return {"same_text": float(same), "read": 1 - edits / sum(map(len, texts))}

    return score


def and_page(score: Score, name: str, read: Callable[[Array], list[str]]) -> Score:
    """``score`` of all batches but the last; ``page`` of that one: 1 - edits / characters of what the original reads.

    ``read`` makes lines of text of an output.
    """

    def both(original: Sequence[Arrays], result: Sequence[Arrays]) -> dict[str, float]:
        wanted, found = (read(output(batches[-1:], name)[0]) for batches in (original, result))
        return score(original[:-1], result[:-1]) | {"page": 1 - error_rate(found, wanted)}

    return both


def decode(probabilities: Array, characters: Sequence[str]) -> list[str]:
    """Greedy CTC: float[lines, steps, classes] -> texts; class 0 is the blank."""
    found = []
    for row in probabilities.argmax(axis=2):
        changes = np.concatenate([[True], row[1:] != row[:-1]])
        found.append("".join(characters[index - 1] for index in row[changes & (row != 0)]))
    return found


def voice(name: str) -> Score:
    """``agreement`` on speech or not at probability 0.5; ``max_error`` of the probability."""

    def score(original: Sequence[Arrays], result: Sequence[Arrays]) -> dict[str, float]:
        wanted, found = (np.concatenate(output(batches, name)).ravel() for batches in (original, result))
        same = (wanted > 0.5) == (found > 0.5)
        return {"agreement": float(same.mean()), "max_error": float(np.abs(wanted - found).max())}

    return score


def voices(name: str) -> Score:
    """``cosine`` of embeddings; ``nearest``: share whose nearest other utterance is the same as by the original's."""

    def score(original: Sequence[Arrays], result: Sequence[Arrays]) -> dict[str, float]:
        wanted, found = (np.concatenate(output(batches, name)).astype(np.float64) for batches in (original, result))
        same = _nearest(wanted) == _nearest(found)
        return {"cosine": float(cosine(wanted, found).mean()), "nearest": float(same.mean())}

    return score


def _nearest(vectors: Array) -> Array:
    """Index of the row with the largest cosine to each, itself left out: int64[rows]."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return (unit @ unit.T - 2 * np.eye(len(unit))).argmax(axis=1)


def language(name: str, tokens: Sequence[Array]) -> Score:
    """``cosine`` of logits; ``perplexity`` of the text, exp of the mean negative log-likelihood of the next token."""

    def score(original: Sequence[Arrays], result: Sequence[Arrays]) -> dict[str, float]:
        alike, lost = [], []
        for wanted, found, ids in zip(output(original, name), output(result, name), tokens, strict=True):
            alike.append(cosine(wanted.reshape(-1, wanted.shape[-1]), found.reshape(-1, found.shape[-1])).mean())
            lost.append(negative_log_likelihood(found[:, :-1], ids[:, 1:]).mean())
        return {"cosine": float(np.mean(alike)), "perplexity": float(np.exp(np.mean(lost)))}

    return score


def negative_log_likelihood(logits: Array, ids: Array) -> Array:
    """Of each token: float[rows, seq, vocabulary], int[rows, seq] -> float32[rows, seq]."""
    top = logits.max(axis=-1, keepdims=True)
    total = np.log(np.exp(logits - top).sum(axis=-1)) + top[..., 0]
    return total - np.take_along_axis(logits, ids[..., None], axis=-1)[..., 0]
