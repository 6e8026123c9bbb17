"""Names, dtypes and shapes of a model's inputs and outputs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from optkit.errors import UsageError

Dim = int | str
"""A fixed size, or the name of a dynamic dimension (``batch``, ``seq``)."""

BATCH_NAMES = frozenset({"batch", "batch_size", "batchsize", "n", "b", "bs", "batch_dim"})
"""Names (lower case) that mark the sample axis."""

_ENTRY = re.compile(r"\s*([\w.:/\-]+)\s*=\s*(\w+)\s*\[([^\]]*)\]\s*")
_SHAPELESS = re.compile(r"\s*([\w.:/\-]+)\s*=\s*(\w+)\s*")
DTYPES = frozenset(
    {
        *("float16", "float32", "float64", "bfloat16", "bool", "string"),
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    }
)
"""The dtype names a signature may use: numpy's, plus ``bfloat16`` and ``string``."""


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: its name, numpy dtype name and shape (``None`` = unknown rank)."""

    name: str
    dtype: str
    shape: tuple[Dim, ...] | None

    @property
    def batch_axis(self) -> int | None:
        """The axis named like a batch (see ``BATCH_NAMES``), or None."""
        for axis, dim in enumerate(self.shape or ()):
            if isinstance(dim, str) and dim.lower() in BATCH_NAMES:
                return axis
        return None

    def __str__(self) -> str:
        dims = "?" if self.shape is None else ",".join(str(dim) for dim in self.shape)
        return f"{self.name}={self.dtype}[{dims}]"


@dataclass(frozen=True)
class Signature:
    """A model's inputs and outputs, in order. Empty outputs = not known before one run."""

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()

    @property
    def complete(self) -> bool:
        """True when inputs and outputs are both known."""
        return bool(self.inputs) and bool(self.outputs)

    @property
    def dynamic(self) -> tuple[str, ...]:
        """Names of the dynamic dimensions of the inputs, in order of appearance."""
        names = (dim for spec in self.inputs for dim in spec.shape or () if isinstance(dim, str))
        return tuple(dict.fromkeys(names))

    @property
    def dim_names(self) -> tuple[str, ...]:
        """Names that sizes can be given to: ``dynamic`` with sums such as ``past + seq`` taken apart."""
        return tuple(dict.fromkeys(name for dim in self.dynamic for name in dim_names(dim)))

    @property
    def one_sample(self) -> bool:
        """True where no axis can be that of samples, so that one call is one sample: all are fixed vectors or scalars.

        Vectors of size 1 alone stay batches of one.
        """
        shapes = [spec.shape for spec in self.inputs]
        flat = all(
            shape is not None and len(shape) < 2 and all(isinstance(dim, int) for dim in shape) for shape in shapes
        )
        return bool(shapes) and flat and {shape[0] for shape in shapes if shape} != {1}

    def batch_axes(self) -> dict[str, int | None]:
        """Input name -> its sample axis; None = a constant that every batch repeats.

        The axis named like a batch wins. Where no input has one, it is axis 0 of every input that has axes, but for
        those whose axis 0 has a fixed size that the first input's has not (the two layers of a recurrent state), and
        none where one call is one sample.
        """
        if self.one_sample:
            return {spec.name: None for spec in self.inputs}
        named = {spec.name: spec.batch_axis for spec in self.inputs}
        if any(axis is not None for axis in named.values()):
            return named
        first = next((spec.shape[0] for spec in self.inputs if spec.shape), None)
        return {
            spec.name: 0 if spec.shape and (isinstance(spec.shape[0], str) or spec.shape[0] == first) else None
            for spec in self.inputs
        }

    @property
    def batch_dims(self) -> tuple[str, ...]:
        """Names of the dynamic dimensions that count samples: one as a rule, none where their number is fixed."""
        axes = self.batch_axes()
        places = ((spec.shape, axes[spec.name]) for spec in self.inputs if spec.shape)
        dims = (shape[axis] for shape, axis in places if axis is not None)
        return tuple(dict.fromkeys(dim for dim in dims if isinstance(dim, str)))

    def fixed_batch(self) -> int | None:
        """The batch size that is written into the model, or None when it may vary."""
        axes = self.batch_axes()
        for spec in self.inputs:
            axis = axes[spec.name]
            if axis is not None and spec.shape is not None and isinstance(spec.shape[axis], int):
                return int(spec.shape[axis])
        return None

    def fixed(self, sizes: Mapping[str, int]) -> Signature:
        """The same with these dynamic dimensions fixed; sums such as ``past + seq`` where all their parts are."""

        def fixed(spec: TensorSpec) -> TensorSpec:
            return replace(spec, shape=spec.shape and tuple(fixed_dim(dim, sizes) for dim in spec.shape))

        return Signature(tuple(map(fixed, self.inputs)), tuple(map(fixed, self.outputs)))

    def sizes_in(self, other: Signature) -> dict[str, int]:
        """Dynamic dimension of the inputs -> its size, where ``other`` has fixed it in an input of the same name."""
        theirs = {spec.name: spec.shape or () for spec in other.inputs}
        pairs = (
            pair for spec in self.inputs for pair in zip(spec.shape or (), theirs.get(spec.name, ()), strict=False)
        )
        return {mine: size for mine, size in pairs if isinstance(mine, str) and isinstance(size, int)}

    def input(self, name: str) -> TensorSpec:
        """The input of that name; KeyError when there is none."""
        return {spec.name: spec for spec in self.inputs}[name]


def dim_names(dim: Dim) -> list[str]:
    """Names in a dimension: ``past + seq + 1`` has past and seq, a fixed size has none."""
    return [part for part in re.split(r"\s*\+\s*", str(dim).strip()) if not part.isdigit()]


def fixed_dim(dim: Dim, sizes: Mapping[str, int]) -> Dim:
    """The dimension's size where it follows from ``sizes``, else as it is."""
    if isinstance(dim, int) or any(name not in sizes for name in dim_names(dim)):
        return sizes.get(dim, dim) if isinstance(dim, str) else dim
    return sum(sizes[part] if part in sizes else int(part) for part in re.split(r"\s*\+\s*", dim.strip()))


def parse_signature(text: str) -> tuple[TensorSpec, ...]:
    """Parse ``'x=float32[batch,3,224,224]; mask=int64[batch,seq]'`` into input specs.

    Names as dimensions are dynamic; ``name=dtype`` without brackets, or with empty ones, is a scalar.

    Raises:
        UsageError: an entry is not of that form, a dtype is unknown, or a name comes twice.
    """
    specs: list[TensorSpec] = []
    for entry in filter(str.strip, re.split(r"[;\n]|,(?![^\[]*\])", text)):
        match = _ENTRY.fullmatch(entry) or _SHAPELESS.fullmatch(entry)
        if match is None or match[2] not in DTYPES:
            raise UsageError(
                f"The signature entry '{entry.strip()}' cannot be read.",
                expected="name=dtype[dim,dim,...] with a dtype of " + ", ".join(sorted(DTYPES)),
                fix="write it like --signature 'x=float32[batch,3,224,224]'",
            )
        dims = match[3] if match.lastindex == 3 else ""
        shape = tuple(int(dim) if dim.isdigit() else dim for dim in re.split(r"\s*,\s*", dims.strip()) if dim)
        specs.append(TensorSpec(match[1], match[2], shape))
    names = [spec.name for spec in specs]
    if len(set(names)) < len(names):
        raise UsageError(f"The signature names an input twice: {', '.join(names)}.", fix="name each input once")
    return tuple(specs)
