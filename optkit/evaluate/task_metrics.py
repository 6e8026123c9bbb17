"""The task metrics that optkit ships. Each gives numbers a sample; the score is their sum, or sum/sum."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from optkit.data.dataset import Array, Arrays
from optkit.errors import DataError, PackageError
from optkit.evaluate.agreement import SCORE_NAMES
from optkit.evaluate.rows import AUTOMATIC_MASK, Float64, Mask, OutputOptions, find_mask, is_float, pool_rows

Better = Literal["higher", "lower"]


class ShippedMetric(BaseModel):
    """What all shipped metrics share."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: ClassVar[str]
    unit: ClassVar[str] = ""
    better: ClassVar[Better] = "higher"
    needs_labels: ClassVar[bool] = True
    """False: the inputs say what is right."""

    output: str | None = None
    """The output to score; default: the only one that fits."""

    def _pick(self, outputs: Arrays, ranks: Sequence[int], name: str | None = None) -> Array:
        """The output asked for, else the only one of these ranks, else the only one of those with a score's name."""
        name = name or self.output
        if name is not None:
            if name in outputs:
                return outputs[name]
            close = difflib.get_close_matches(name, outputs, n=1)
            raise DataError(
                f"The metric {self.name} is to score the output '{name}', which is not there.",
                expected="one of " + ", ".join(outputs),
                fix=f"did you mean '{close[0]}'?" if close else "name one of these outputs",
            )
        fitting = [key for key, value in outputs.items() if value.ndim in ranks]
        scores = [key for key in fitting if SCORE_NAMES.search(key)]
        for keys in (fitting, scores):
            if len(keys) == 1:
                return outputs[keys[0]]
        shapes = ", ".join(f"{key}{list(value.shape)}" for key, value in outputs.items())
        raise DataError(
            f"The metric {self.name} cannot tell which output to score: {shapes}.",
            expected=f"one output of rank {' or '.join(map(str, ranks))}",
            fix=f"name it: metric: {{name: {self.name}, args: {{output: NAME}}}}",
        )

    def _wrong(self, message: str, expected: str, fix: str = "give other data, or name another metric") -> DataError:
        return DataError(f"The metric {self.name}: {message}.", expected=expected, fix=fix)

    def _labels(self, labels: Array | None) -> Array:
        if labels is None:
            raise self._wrong("the data have no labels", "one label a sample", "add labels to the data")
        return labels


class _Choice(ShippedMetric):
    threshold: float | None = None
    """For outputs with one score a sample: the class is 1 above it (0 for logits, 0.5 for probabilities)."""

    def _choices(self, outputs: Arrays) -> Array:
        """The chosen class of every sample, [N]."""
        values = self._pick(outputs, (1, 2))
        if values.ndim == 2 and values.shape[1] == 1:
            values = values[:, 0]
        if values.ndim == 2 and is_float(values):
            return np.asarray(values.argmax(axis=1))
        if values.ndim != 1:
            raise self._wrong(
                f"the output has the shape {list(values.shape)}", "[batch], [batch, 1] or [batch, classes]"
            )
        if not is_float(values):
            return values
        if self.threshold is None:
            raise self._wrong(
                "the output has one score a sample, and no threshold is given",
                "0 for logits, 0.5 for probabilities",
                f"metric: {{name: {self.name}, args: {{threshold: 0}}}}",
            )
        return (values.astype(np.float64) > self.threshold).astype(np.int64)

    def _classes(self, labels: Array | None, choices: Array) -> Array:
        """The labels [N], of the same kind as the choices."""
        labels = self._labels(labels)
        text = [array.dtype.kind in "OUS" for array in (labels, choices)]
        if text[0] != text[1] or labels.shape != choices.shape:
            raise self._wrong(
                f"the labels are {labels.dtype}{list(labels.shape)}, the model's choices {choices.dtype}"
                f"{list(choices.shape)}",
                "the index of the right class, one a sample",
            )
        return labels


class Top1(_Choice):
    """Share of samples whose highest score is the labelled class."""

    name: ClassVar[str] = "top1"

    def per_sample(self, inputs: Arrays, outputs: Arrays, labels: Array | None) -> Float64:
        """float64[N] of 0 and 1; labels: class index [N]."""
        del inputs
        choices = self._choices(outputs)
        return np.asarray(choices == self._classes(labels, choices), np.float64)


class Top5(ShippedMetric):
    """Share of samples whose labelled class is among the five highest scores."""

    name: ClassVar[str] = "top5"

    def per_sample(self, inputs: Arrays, outputs: Arrays, labels: Array | None) -> Float64:
        """float64[N] of 0 and 1; labels: class index [N]."""
        del inputs
        values, labels = self._pick(outputs, (2,)), self._labels(labels)
        classes = values.shape[-1]
        if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= classes:
            raise self._wrong("a label is no class of the output", f"integers from 0 to {classes - 1}")
        scores: Float64 = values.astype(np.float64)
        right = scores[np.arange(len(scores)), labels.astype(np.int64)]
        return np.asarray((scores > right[:, None]).sum(axis=1) < 5, np.float64)


class F1(_Choice):
    """F1 of one class: 2 TP / (2 TP + FP + FN)."""

    name: ClassVar[str] = "f1"

    positive: int | str = 1
    """The class that counts."""

    def per_sample(self, inputs: Arrays, outputs: Arrays, labels: Array | None) -> Float64:
        """float64[N, 2]; labels: class index [N]. A sample that neither names the class counts for nothing."""
        del inputs
        choices = self._choices(outputs)
        chosen, right = choices == self.positive, self._classes(labels, choices) == self.positive
        return np.column_stack([2.0 * (chosen & right), chosen.astype(np.float64) + right])


class _Distance(ShippedMetric):
    better: ClassVar[Better] = "lower"

    def _errors(self, outputs: Arrays, labels: Array | None) -> Float64:
        """Result minus label, float64[N, elements]."""
        labels = self._labels(labels)
        values = self._pick(outputs, tuple(dict.fromkeys((labels.ndim, labels.ndim + 1))))
        if values.size != labels.size or labels.dtype.kind not in "iufb":
            raise self._wrong(
                f"the labels are {labels.dtype}{list(labels.shape)}, the output {list(values.shape)}",
                "one number for every number of the output",
            )
        difference = values.astype(np.float64).ravel() - labels.astype(np.float64).ravel()
        return difference.reshape(len(labels), -1)


class Mse(_Distance):
    """Mean squared error against the labels."""

    name: ClassVar[str] = "mse"
    unit: ClassVar[str] = "label unit squared"

    def per_sample(self, inputs: Arrays, outputs: Arrays, labels: Array | None) -> Float64:
        """float64[N]; labels: numbers [N, ...] like the output."""
        del inputs
        return np.asarray((self._errors(outputs, labels) ** 2).mean(axis=1))


class Mae(_Distance):
    """Mean absolute error against the labels."""

    name: ClassVar[str] = "mae"
    unit: ClassVar[str] = "label unit"

    def per_sample(self, inputs: Arrays, outputs: Arrays, labels: Array | None) -> Float64:
        """float64[N]; labels: numbers [N, ...] like the output."""
        del inputs
        return np.asarray(np.abs(self._errors(outputs, labels)).mean(axis=1))


class Perplexity(ShippedMetric):
    """exp of the mean negative log-likelihood of each next token."""

    name: ClassVar[str] = "perplexity"
    better: ClassVar[Better] = "lower"
    needs_labels: ClassVar[bool] = False

    ids: str = "input_ids"
    """Input with the tokens, int[batch, seq]."""
    mask: str = AUTOMATIC_MASK
    """Input that is 0 at padding; need not exist."""

    def per_sample(self, inputs: Arrays, outputs: Arrays, labels: Array | None) -> Float64:
        """float64[N, 2]: summed negative log-likelihood in nats, tokens. The first token is predicted by nothing."""
        del labels
        logits = self._pick(outputs, (3,))
        ids = inputs.get(self.ids)
        if ids is None or ids.shape != logits.shape[:2]:
            raise self._wrong(f"no input '{self.ids}' shares [batch, seq] with the output", "the tokens the model read")
        mask = np.ones(ids.shape, bool) if self.mask not in inputs else inputs[self.mask].astype(bool)
        return np.array([_likelihood(*sample) for sample in zip(logits, ids.astype(np.int64), mask, strict=True)])

    def curve(self, ratios: Float64) -> Float64:
        """exp of the mean."""
        return np.asarray(np.exp(ratios))


def _likelihood(logits: Array, ids: Array, mask: Mask) -> tuple[float, float]:
    """Summed negative log-likelihood of ids[1:] under logits[:-1], and how many of them count."""
    at = np.flatnonzero(mask[1:] & mask[:-1])
    total = 0.0
    for part in np.array_split(at, max(1, len(at) // 64)):
        scores = logits[part].astype(np.float32)
        top = scores.max(axis=1, keepdims=True, initial=-np.inf)
        normaliser = np.log(np.exp(scores - top).sum(axis=1, dtype=np.float64)) + top[:, 0]
        total += float((normaliser - scores[np.arange(len(part)), ids[part + 1]]).sum())
    return total, float(len(at))


class Cer(ShippedMetric):
    """Character (or token) error rate: edit distance / length of the label."""

    name: ClassVar[str] = "cer"
    better: ClassVar[Better] = "lower"

    ignore: tuple[int, ...] = ()
    """Tokens of integer sequences that are left out on both sides, e.g. padding and end."""

    def per_sample(self, inputs: Arrays, outputs: Arrays, labels: Array | None) -> Float64:
        """float64[N, 2]: edits, label length. Outputs and labels: both texts [N], or both token sequences [N, T]."""
        del inputs
        labels = self._labels(labels)
        values = self._pick(outputs, (1, 2))
        if is_float(values) or (values.dtype.kind in "iu") != isinstance(_plain(labels[0]), list):
            raise self._wrong(
                f"the output is {values.dtype}{list(values.shape)}, the labels {labels.dtype}{list(labels.shape)}",
                "texts for texts, or token sequences for token sequences; decode scores inside the model",
            )
        pairs = [(self._kept(a), self._kept(b)) for a, b in zip(values, labels, strict=True)]
        return np.array([(edit_distance(a, b), len(b)) for a, b in pairs], np.float64)

    def _kept(self, sequence: object) -> Sequence[object]:
        plain = _plain(sequence)
        return plain if isinstance(plain, str) else [x for x in plain if x not in self.ignore]


def _plain(sequence: object) -> str | list[Any]:
    if isinstance(sequence, bytes):
        return sequence.decode()
    values = np.asarray(sequence)
    return str(sequence) if values.ndim == 0 else values.tolist()


def edit_distance(a: Sequence[object], b: Sequence[object]) -> int:
    """Least number of insertions, deletions and substitutions that turn ``a`` into ``b`` (Levenshtein 1966)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


class Spearman(ShippedMetric):
    """Rank correlation with the labels, of one score a sample or of the cosine of two embeddings."""

    name: ClassVar[str] = "spearman"

    other: str | None = None
    """A second embedding output: the score is then the cosine of ``output`` and this one."""

    def per_sample(self, inputs: Arrays, outputs: Arrays, labels: Array | None) -> Float64:
        """float64[N, 2]: score, label; labels: numbers [N]."""
        del inputs
        labels = self._labels(labels).astype(np.float64)
        scores = self._pick(outputs, (1, 2)).astype(np.float64)
        if self.other is not None:
            second = self._pick(outputs, (2,), self.other).astype(np.float64)
            norms = np.linalg.norm(scores, axis=1) * np.linalg.norm(second, axis=1)
            scores = (scores * second).sum(axis=1) / np.where(norms == 0, 1.0, norms)
        if scores.size != labels.size:
            raise self._wrong(
                f"the output has the shape {list(scores.shape)}", "one number a sample, or two embeddings"
            )
        return np.column_stack([scores.ravel(), labels])

    def whole(self, rows: Float64) -> Float64:
        """float64[N] whose mean is Spearman's rho: products of standardized ranks over all samples.

        The bootstrap resamples these products, with the ranks of the whole data kept.
        """
        try:
            from scipy.stats import rankdata
        except ImportError as error:
            raise PackageError("The metric spearman needs scipy.", fix="pip install 'optkit[data]'") from error
        ranks = rankdata(rows, axis=0)
        centred = ranks - ranks.mean(axis=0)
        spread = centred.std(axis=0)
        return np.asarray((centred / np.where(spread == 0, 1.0, spread)).prod(axis=1))


class Probe(ShippedMetric):
    """Accuracy of a logistic regression fitted on the original's pooled outputs, then frozen."""

    name: ClassVar[str] = "probe"

    pool: Literal["mean", "cls", "last"] = "mean"
    """How outputs [batch, seq, hidden] become one vector a sample."""
    normalize: bool = True
    """Scale each vector to length 1 first."""
    C: float = Field(default=1.0, gt=0)
    """Inverse strength of the regression's L2 penalty."""

    _weights: tuple[Float64, Float64, Array] | None = PrivateAttr(default=None)
    """Coefficients [classes or 1, features], intercepts, class labels; None = not fitted."""

    @property
    def fitted(self) -> bool:
        """Whether ``fit`` was called."""
        return self._weights is not None

    def prepare(self, inputs: Arrays, outputs: Arrays) -> Arrays:
        """Pooled features float64[N, features] of one batch: all that ``fit`` needs to keep."""
        return {"features": self._features(inputs, outputs)}

    def _features(self, inputs: Arrays, outputs: Arrays) -> Float64:
        values = self._pick(outputs, (2, 3))
        if values.ndim > 2:
            mask = find_mask(self.output or "output", values.shape, OutputOptions(), inputs)[1]
            values = pool_rows(values.astype(np.float64), mask, self.pool)
        features: Float64 = values.reshape(len(values), -1).astype(np.float64)
        if self.normalize and features.shape[1] > 1:
            lengths = np.linalg.norm(features, axis=1, keepdims=True)
            features = features / np.where(lengths == 0, 1.0, lengths)
        return features

    def fit(self, inputs: Arrays, outputs: Arrays, labels: Array | None) -> None:
        """Fit on what ``prepare`` gave over split ``fit``; labels: class [N].

        Raises:
            PackageError: scikit-learn is not installed.
            DataError: no labels, or fewer than two classes.
        """
        del inputs
        labels = self._labels(labels)
        if len(np.unique(labels)) < 2:
            raise self._wrong("the labels of split fit have fewer than two classes", "samples of every class")
        try:
            from sklearn.linear_model import LogisticRegression
        except ImportError as error:
            raise PackageError(
                "The metric probe needs scikit-learn, which is not installed.", fix="pip install 'optkit[data]'"
            ) from error
        model = LogisticRegression(C=self.C, max_iter=1000).fit(outputs["features"], labels)
        self._weights = (model.coef_, model.intercept_, model.classes_)

    def per_sample(self, inputs: Arrays, outputs: Arrays, labels: Array | None) -> Float64:
        """float64[N] of 0 and 1; labels: class [N]."""
        if self._weights is None:
            raise self._wrong("it was not fitted", "labelled samples of their own to fit on", "give --data fit=FILE")
        coefficients, intercepts, classes = self._weights
        scores = self._features(inputs, outputs) @ coefficients.T + intercepts
        index = (scores[:, 0] > 0).astype(np.int64) if scores.shape[1] == 1 else scores.argmax(axis=1)
        return np.asarray(classes[index] == self._labels(labels)).astype(np.float64)
