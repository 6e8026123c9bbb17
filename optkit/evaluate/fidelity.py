"""How close one output of the result is to the same output of the original, streamed batch by batch.

A row is one sample: axis 0 where it counts samples (the signature or the first batch tell, for all batches), else the
whole array is one row a batch. The other axes are flattened, everything is computed in float64, and only seven sums a
row are kept.

Where the original has a common offset, cosine and SQNR are those of the values less its mean: next to the offset of
1e5 + signal, a result that lost the signal would have cosine 1.
"""

from __future__ import annotations

from math import hypot, inf, isfinite, log10, sqrt

import numpy as np

from optkit.data.dataset import Array, Batch
from optkit.errors import DataError
from optkit.evaluate.agreement import ClassScores
from optkit.evaluate.rows import Float64, Mask, OutputOptions, Piece, dtype_name, find_mask, is_float, pieces
from optkit.model.manifest import OutputFidelity

OFFSET = 3.0
"""Standard deviations that the original's mean must be away from 0 to be taken off before cosine and SQNR."""

CONSTANT = 1e-6
"""An original whose standard deviation is below this share of its RMS is constant up to float32 noise."""


class Fidelity:
    """Accumulates one output; ``problems`` lists what no tolerance may excuse.

    ``may_change`` holds what the passes declared: ``dtypes`` allows another float dtype, ``dims`` another shape (such
    an output is then left out of the comparison). ``rowwise`` says whether axis 0 counts samples; None = it does where
    its size is that of the first batch.
    """

    def __init__(
        self,
        name: str,
        options: OutputOptions | None = None,
        may_change: frozenset[str] = frozenset(),
        rowwise: bool | None = None,
    ) -> None:
        self.name = name
        self.rows = 0
        self._options = options or OutputOptions()
        self._may_change = may_change
        self._rowwise = rowwise
        self._dtype = ""
        self._float = False
        self._notes: dict[str, None] = {}
        self._broken: dict[str, str] = {}
        self._numbers = _Numbers()
        self._equal = self._compared = 0
        self._classes = ClassScores(name, self._options.classes)

    @property
    def problems(self) -> list[str]:
        """Names, dtypes, shapes and non-finite values that differ, each with its first sample."""
        return [*self._broken.values(), *self._numbers.problems(self.name)]

    @property
    def discrete(self) -> bool:
        """True for integer, bool and string outputs."""
        return bool(self._dtype) and not self._float

    @property
    def compared(self) -> bool:
        """Whether any element was compared."""
        return self._compared > 0 or self._numbers.compared

    def update(self, original: Array, result: Array, batch: Batch) -> None:
        """Add one batch. ``batch.inputs`` hold masks, ``batch.labels`` help to tell class scores.

        Raises:
            DataError: the options ask for a mask or pooling that this output does not allow.
        """
        self._dtype = self._dtype or dtype_name(original)
        self._float = is_float(original)
        if self._rowwise is None:
            self._rowwise = original.ndim > 0 and len(original) == batch.size
        rowwise = self._rowwise and original.ndim > 0
        rows = len(original) if rowwise else 1
        if rows != batch.size:  # masks and labels belong to other rows
            batch = Batch({}, rows)
        if self._comparable(original, result):
            if rowwise:
                self._add(original, result, batch, self._mask(original, batch))
            else:
                self._notes["no sample axis: each batch is one row"] = None
                self._add(original[None], result[None], Batch({}, 1), None)
        self.rows += rows

    def _mask(self, original: Array, batch: Batch) -> Mask | None:
        name, mask = find_mask(self.name, original.shape, self._options, batch.inputs)
        if mask is not None:
            self._notes[f"masked by {name}"] = None
        if self._options.pool is not None and original.ndim < 2:
            raise DataError(
                f"Output '{self.name}' {list(original.shape)} has no sequence axis to pool over.",
                expected="[batch, seq, ...]",
                fix=f"remove pool from outputs: {{{self.name}: ...}}",
            )
        return mask

    def _comparable(self, original: Array, result: Array) -> bool:
        names = dtype_name(original), dtype_name(result)
        both_float = is_float(original) and is_float(result)
        if names[0] != names[1] and not ("dtypes" in self._may_change and both_float):
            self._break("dtype", f"the result has the dtype {names[1]}, the original {names[0]}")
        if original.shape != result.shape:
            what = "rank" if original.ndim != result.ndim else "shape"
            text = f"the result has the {what} {list(result.shape)}, the original {list(original.shape)}"
            if "dims" in self._may_change:
                self._notes[f"not compared: {text}, as a pass declared"] = None
            else:
                self._break("shape", f"{text}, first in sample {self.rows}")
            return False
        return names[0] == names[1] or both_float

    def _break(self, kind: str, text: str) -> None:
        self._broken.setdefault(kind, f"output '{self.name}': {text}")

    def _add(self, original: Array, result: Array, batch: Batch, mask: Mask | None) -> None:
        if not self._float:
            same = original == result
            self._equal += int(np.count_nonzero(same if mask is None else same[mask]))
            self._compared += same.size if mask is None else same[mask].size
            return
        classes = original.shape[-1]
        scores = self._classes.may_be(classes, original.ndim - 1 if self._options.pool else original.ndim)
        for piece in pieces(original, result, mask, self._options):
            if scores:
                labels = None if batch.labels is None else batch.labels[piece.row : piece.row + len(piece.a)]
                self._classes.update(piece.a, piece.b, piece.used, labels, classes)
            self._numbers.update(piece, self.rows)

    def result(self) -> OutputFidelity:
        """The figures over all batches so far."""
        facts = {"name": self.name, "dtype": self._dtype, "rows": self.rows}
        if not self._float:
            share = self._equal / self._compared if self._compared else None
            return OutputFidelity(**facts, equal=share, note=self._note())
        figures = self._numbers.figures()
        return OutputFidelity(**facts, **figures, **self._classes.figures(), note=self._note(*self._numbers.notes()))

    def _note(self, *more: str) -> str:
        pooled = [f"{self._options.pool}-pooled"] if self._options.pool else []
        return "; ".join([*pooled, *self._notes, *more])


class _Numbers:
    """Errors, cosines, moments and non-finite values of the rows of one float output."""

    def __init__(self) -> None:
        self._count = 0
        self._mean = self._moment = 0.0
        """Of the original: running mean, and sum of squared distances from it."""
        self._max = self._absolute = 0.0
        """Largest and summed |error|."""
        self._shift: float | None = None
        """Taken off both before the sums, so that these keep their digits next to an offset."""
        self._sums: list[Float64] = []
        """[7, n] a block of rows: see ``_row_sums``."""
        self._rows = 0
        """That have sums by now."""
        self._width = 0
        self._excluded = 0
        self._first: dict[str, tuple[int, int]] = {}
        """Kind of non-finite difference -> (first sample, number of values)."""

    def update(self, piece: Piece, before: int) -> None:
        """Add rows, or a part of the last one; ``before`` is how many rows there were before the batch."""
        row = before + piece.row
        self._width = max(self._width, piece.width)
        a, b, used = self._finite(piece.a, piece.b, piece.used, row)
        error = b - a
        absolute = np.abs(error)
        self._max = max(self._max, float(absolute.max(initial=0.0)))
        self._absolute += float(absolute.sum())
        self._moments(a, used)
        if self._shift is None and self._count:
            far = abs(self._mean) > OFFSET * sqrt(self._moment / self._count)
            self._shift = self._mean if far else 0.0
        self._keep(_row_sums(a, b, error, used, self._shift or 0.0), row)

    def _keep(self, sums: Float64, row: int) -> None:
        if row < self._rows:
            self._sums[-1][:, -1:] += sums
        else:
            self._sums.append(sums)
            self._rows = row + sums.shape[1]

    def _finite(self, a: Float64, b: Float64, used: Mask | None, first: int) -> tuple[Float64, Float64, Mask | None]:
        """Both with zeros where they are masked or not finite, and what is left."""
        if used is None and isfinite(float(np.einsum("ij,ij->", a, b))):
            return a, b, None
        finite = np.isfinite(a) & np.isfinite(b)
        if not finite.all():
            counted = finite if used is None else used & finite
            odd = ~finite if used is None else used & ~finite
            same = (a == b) | (np.isnan(a) & np.isnan(b))
            self._excluded += int((odd & same).sum())
            was = np.isfinite(a)
            self._report("NaN", odd & was & np.isnan(b), first)
            self._report("Inf", odd & was & np.isinf(b), first)
            self._report("", odd & ~same & ~was, first)
            used = counted
        if used is None:
            return a, b, None
        return np.where(used, a, 0.0), np.where(used, b, 0.0), used

    def _report(self, kind: str, where: Mask, first: int) -> None:
        if where.any():
            sample, count = self._first.get(kind, (first + int(where.any(axis=1).argmax()), 0))
            self._first[kind] = (sample, count + int(where.sum()))

    def _moments(self, a: Float64, used: Mask | None) -> None:
        """Chan, Golub & LeVeque 1979: merge the mean and squared distances of a block into the running ones."""
        count = a.size if used is None else int(used.sum())
        if not count:
            return
        mean = float(a.sum()) / count
        centred = a - mean if used is None else np.where(used, a - mean, 0.0)
        total = self._count + count
        step = mean - self._mean
        self._moment += float(np.einsum("ij,ij->", centred, centred)) + step * step * self._count * count / total
        self._mean += step * count / total
        self._count = total

    @property
    def compared(self) -> bool:
        """Whether any element was."""
        return self._count > 0

    def _scale(self) -> tuple[float, bool]:
        """What errors are measured against: the original's standard deviation, or its RMS where it is constant."""
        spread = sqrt(self._moment / self._count)
        rms = hypot(spread, self._mean)
        return (rms, True) if spread <= CONSTANT * rms else (spread, False)

    def _offset(self) -> float:
        """What cosine and SQNR leave out: the mean where it is far from 0 or there is one value a sample, else 0."""
        spread, constant = self._scale()
        off = self._width == 1 or abs(self._mean) > OFFSET * spread
        return self._mean if off and not constant else 0.0

    def figures(self) -> dict[str, float | int | None]:
        """The fields of ``OutputFidelity`` that errors and cosines fill; empty when nothing was compared."""
        if not self._count:
            return {}
        scale = self._scale()[0]
        relative = self._max / scale if scale else (0.0 if self._max == 0 else inf)
        aa, bb, ab, ee, used = _moved(np.concatenate(self._sums, axis=1), self._offset() - (self._shift or 0.0))
        return {
            "max_error": self._max,
            "mean_error": self._absolute / self._count,
            "max_error_std": relative,
            "sqnr_db": _decibel(float(aa.sum()), float(ee.sum())),
            **self._cosine_figures((aa, bb, ab, ee), used),
        }

    def _cosine_figures(self, sums: tuple[Float64, ...], used: Float64) -> dict[str, float | int | None]:
        if self._width == 1:
            return {"cosine": float(_cosine(*(part.sum(keepdims=True) for part in sums))[0])}
        cosines = np.where(used > 0, _cosine(*sums), np.nan)
        worst = int(np.nanargmin(cosines))
        return {
            "cosine": float(np.nanmean(cosines)),
            "cosine_p1": float(np.nanpercentile(cosines, 1)),
            "cosine_worst": float(cosines[worst]),
            "worst_sample": worst,
        }

    def notes(self) -> list[str]:
        """What a reader of the figures must know."""
        if not self._count:
            return ["nothing to compare"]
        notes = ["one value a sample: cosine over all samples at once"] if self._width == 1 else []
        if self._excluded:
            notes.append(f"{self._excluded} values are NaN or Inf in both and left out")
        scale, constant = self._scale()
        if self._offset():
            notes.append(f"cosine and SQNR of the values less the original's mean, {self._mean:.4g}")
        if constant and scale:
            notes.append("the original is constant: error over its RMS, not its standard deviation")
        return notes

    def problems(self, name: str) -> list[str]:
        """One sentence for each kind of non-finite difference."""
        return [
            f"output '{name}': the result has {kind} where the original has none, first in sample {sample} "
            f"({count} values)"
            if kind
            else f"output '{name}': the original has NaN or Inf where the result has something else, first in sample "
            f"{sample} ({count} values)"
            for kind, (sample, count) in self._first.items()
        ]


def _row_sums(a: Float64, b: Float64, error: Float64, used: Mask | None, shift: float) -> Float64:
    """[7, n]: each row's sums of a², b², a·b, error², a, b and 1, with ``shift`` taken off a and b."""
    errors = np.einsum("ij,ij->i", error, error)
    if shift:
        a, b = (x - shift if used is None else np.where(used, x - shift, 0.0) for x in (a, b))
    counts = np.full(len(a), a.shape[1]) if used is None else used.sum(axis=1)
    products = [np.einsum("ij,ij->i", x, y) for x, y in ((a, a), (b, b), (a, b))]
    return np.stack([*products, errors, a.sum(axis=1), b.sum(axis=1), counts])


def _moved(sums: Float64, shift: float) -> tuple[Float64, Float64, Float64, Float64, Float64]:
    """a², b², a·b, error² and 1 of ``_row_sums``, had ``shift`` been taken off as well."""
    aa, bb, ab, ee, a, b, used = sums
    square = shift * shift * used
    moved = aa - 2 * shift * a + square, bb - 2 * shift * b + square, ab - shift * (a + b) + square
    return np.maximum(moved[0], 0.0), np.maximum(moved[1], 0.0), moved[2], ee, used


def _cosine(aa: Float64, bb: Float64, ab: Float64, ee: Float64) -> Float64:
    """Cosine from sums of squares and products: 1 for equal rows (also all-zero ones), 0 where one is zero."""
    norms = np.sqrt(aa) * np.sqrt(bb)
    cosines: Float64 = np.clip(np.divide(ab, norms, out=np.zeros_like(ab), where=norms > 0), -1.0, 1.0)
    return np.where(ee == 0, 1.0, cosines)


def _decibel(signal: float, noise: float) -> float:
    if noise == 0:
        return inf
    return 10 * log10(signal / noise) if signal > 0 else -inf
