"""Dtypes and shapes of the tensors in a ``torch.save`` or TorchScript file, without running its pickle.

The pickle is followed with stand-ins for everything it names, as in ``pickle_file``; storages are not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from zipfile import ZipFile

from optkit.model.pickle_file import Looker, load_inert, state_dict_of
from optkit.model.summary import Weight

STORAGES = {
    "Double": "float64",
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
    "ComplexFloat": "complex64",
    "ComplexDouble": "complex128",
    "QInt8": "int8",
    "QUInt8": "uint8",
    "QInt32": "int32",
}
"""``torch.XStorage`` -> dtype name."""

_TENSORS = frozenset({"_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_qtensor"})
_WRAPPERS = frozenset({"_rebuild_parameter", "_rebuild_parameter_with_state"})


@dataclass(frozen=True)
class _Storage:
    dtype: str
    key: str


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    dtype: str
    shape: tuple[int, ...]


class _TensorLooker(Looker):
    """Remembers the dtype and shape of every tensor it is asked to rebuild."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self.tensors: list[_Tensor] = []

    def find_class(self, module: str, name: str) -> Any:
        """A stand-in; those of tensors keep what is needed here."""
        if module == "torch._utils" and name in _TENSORS:
            return self._tensor
        if module == "torch._utils" and name in _WRAPPERS:
            return lambda tensor, *_: tensor
        return super().find_class(module, name)

    def persistent_load(self, pid: object) -> Any:
        """A storage by its dtype and key."""
        if isinstance(pid, tuple) and len(pid) > 2 and pid[0] == "storage":
            kind = str(getattr(pid[1], "path", "")).removeprefix("torch.").removesuffix("Storage")
            return _Storage(STORAGES.get(kind, ""), str(pid[2]))
        return super().persistent_load(pid)

    def _tensor(self, storage: object, offset: object, size: object, *rest: object) -> object:
        del offset
        named = [str(getattr(each, "path", "")) for each in rest]
        stated = next((name for name in named if name.startswith("torch.")), "")
        if not isinstance(storage, _Storage) or not isinstance(size, tuple):
            return None
        dtype = storage.dtype or stated.removeprefix("torch.") or "unknown"
        made = _Tensor(storage, dtype, tuple(side for side in size if isinstance(side, int)))
        self.tensors.append(made)
        return made


def zip_weights(archive: ZipFile, member: str, path: Path) -> list[Weight]:
    """The tensors of an archive's ``data.pkl``: those of its state_dict by name, else all of them.

    Raises:
        ModelError: the pickle is damaged.
    """
    with archive.open(member) as file:
        return _weights(file, path)


def legacy_weights(path: Path) -> list[Weight]:
    """The tensors of a file in the format before zip.

    Raises:
        ModelError: the pickle is damaged.
    """
    with path.open("rb") as file:
        for _ in range(3):
            load_inert(Looker(file), path)
        return _weights(file, path)


def _weights(file: IO[bytes], path: Path) -> list[Weight]:
    looker = _TensorLooker(file)
    root = load_inert(looker, path)
    _, state = state_dict_of(root, lambda value: isinstance(value, _Tensor))
    named: Mapping[Any, _Tensor] = state or dict(enumerate(looker.tensors))
    unique = {(tensor.storage.key, tensor.shape): (str(name), tensor) for name, tensor in named.items()}
    return [Weight(name if state else "", tensor.dtype, tensor.shape) for name, tensor in unique.values()]
