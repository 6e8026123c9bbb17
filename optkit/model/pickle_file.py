"""Looks into pickles without running them: is it a state_dict, and what else does it name?

The pickle's instructions are followed by Python's own unpickler, but every global a pickle names becomes an inert
stand-in, so nothing of the file is imported, called or run. (Technique: "Restricting Globals" in the documentation of
Python's ``pickle``. The unpickler is the one in pure Python, because a pickle can make the C one allocate gigabytes.)
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal
from zipfile import ZipFile

from optkit.errors import ModelError

LEGACY_MAGIC = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
"""First bytes of ``torch.save`` before the zip format: the pickled number 0x1950a86a20f9469cfc6c."""

STATE_KEYS = ("state_dict", "model_state_dict", "model_state", "model", "net", "weights")
"""Where training scripts keep the state_dict in a checkpoint, the likeliest first."""

_SAFE = frozenset(
    [
        "collections.OrderedDict",
        "collections.Counter",
        "torch.nn.parameter.Parameter",
        "torch.serialization._get_layout",
        "torch.Size",
        "torch.Tensor",
        "torch.device",
        "torch.storage.UntypedStorage",
        "torch.storage.TypedStorage",
        "torch._tensor._rebuild_from_type_v2",
        "_codecs.encode",
        "builtins.bytearray",
        "builtins.set",
        "builtins.complex",
    ]
)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_REBUILDS = _words(
    "parameter parameter_with_state qtensor tensor tensor_v2 tensor_v3 sparse_tensor meta_tensor_no_storage"
    " nested_tensor wrapper_subclass device_tensor_from_numpy device_tensor_from_cpu_tensor"
)
_SAFE_REBUILD = frozenset(f"torch._utils._rebuild_{name}" for name in _REBUILDS)
_DTYPES = _words(
    "float16 float32 float64 bfloat16 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool"
    " int1 int2 int3 int4 int5 int6 int7 uint1 uint2 uint3 uint4 uint5 uint6 uint7"
    " complex32 complex64 complex128 quint8 qint8 qint32 quint4x2 quint2x4 bits8 bits16 bits1x8 bits2x4 bits4x2"
    " float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu float4_e2m1fn_x2"
    " per_tensor_affine per_tensor_symmetric per_channel_affine per_channel_symmetric per_channel_affine_float_qparams"
)
_TENSORS = _SAFE_REBUILD | {"torch._tensor._rebuild_from_type_v2", "torch.nn.parameter.Parameter", "torch.Tensor"}
_DAMAGE = (
    pickle.UnpicklingError,
    struct.error,
    AssertionError,
    EOFError,
    AttributeError,
    IndexError,
    KeyError,
    ValueError,
    TypeError,
    OverflowError,
    MemoryError,
    RecursionError,
)
"""What an unpickler raises on a damaged pickle, by Python's documentation and by trying."""


@dataclass(frozen=True)
class PickleFacts:
    """What a pickle holds."""

    kind: Literal["weights", "pickle"]
    """weights: a dict with tensors, at the top or nested as in checkpoints; pickle: any other object."""
    prefix: str
    """Key of the state_dict inside a checkpoint, dotted; empty when it is the file itself."""
    tensors: tuple[str, ...]
    """Keys of the state_dict's tensors, in order."""
    unsafe: tuple[str, ...]
    """Globals that ``torch.load(weights_only=True)`` would refuse; loading runs their code."""
    root: str
    """What the outermost object is, e.g. ``torchvision.models.resnet.ResNet``."""


class _Inert:
    """Stands in for an object of the pickle: takes whatever is done to it, does nothing."""

    path = ""

    def __new__(cls, *args: object, **kwargs: object) -> _Inert:
        del args, kwargs
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        del args, kwargs

    def __call__(self, *args: object, **kwargs: object) -> _Inert:
        del args, kwargs
        return _Inert()

    def __setstate__(self, state: object) -> None:
        del state

    def __setitem__(self, key: object, value: object) -> None:
        del key, value

    def append(self, value: object) -> None:
        del value

    extend = add = update = append


class _InertDict(dict[Any, Any]):
    """Stands in for OrderedDict: keeps its items, ignores its attributes."""

    path = "collections.OrderedDict"

    def __setstate__(self, state: object) -> None:
        del state


class Looker(pickle._Unpickler):
    """Unpickler whose globals are all stand-ins."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, encoding="utf-8", errors="replace")
        self.globals: dict[str, type] = {"collections.OrderedDict": _InertDict}
        self.seen: dict[str, None] = {}

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for ``module.name``; nothing is imported."""
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
        path = f"{module}.{name}"
        self.seen[path] = None
        return self.globals.setdefault(path, type("_Inert", (_Inert,), {"path": path}))

    def persistent_load(self, pid: object) -> Any:
        """Storages lie elsewhere in the file and are not read; old files wrap the class of a module with its source."""
        return pid[1] if isinstance(pid, tuple) and pid[:1] == ("module",) and len(pid) > 1 else _Inert()


def look_at_zip(archive: ZipFile, member: str, path: Path) -> PickleFacts:
    """Facts about a ``torch.save`` archive, from its ``data.pkl``.

    Raises:
        ModelError: the pickle is damaged.
    """
    with archive.open(member) as file:
        return _facts(file, path)


def look_at_legacy(path: Path) -> PickleFacts:
    """Facts about a file of ``torch.save`` in the format before zip: magic, version, system, object.

    Raises:
        ModelError: the pickle is damaged.
    """
    with path.open("rb") as file:
        for _ in range(3):
            load_inert(Looker(file), path)
        return _facts(file, path)


def _facts(file: IO[bytes], path: Path) -> PickleFacts:
    looker = Looker(file)
    root = load_inert(looker, path)
    prefix, state = state_dict_of(root, _is_tensor)
    tensors = tuple(map(str, state))
    return PickleFacts(
        kind="weights" if tensors else "pickle",
        prefix=prefix,
        tensors=tensors,
        unsafe=tuple(name for name in looker.seen if not is_safe_global(name)),
        root="tensor" if _is_tensor(root) else getattr(root, "path", "") or type(root).__name__,
    )


def load_inert(looker: Looker, path: Path) -> object:
    """What the pickle builds, with every global replaced by an inert stand-in; nothing of it runs.

    Raises:
        ModelError: it is cut off or damaged.
    """
    try:
        return looker.load()
    except _DAMAGE as error:
        raise ModelError(
            f"The file is cut off or damaged: its pickle cannot be read ({type(error).__name__}: {error}).",
            expected="a complete file of torch.save",
            fix="save or copy it again",
            file=path,
        ) from error


def _is_tensor(value: object) -> bool:
    return isinstance(value, _Inert) and value.path in _TENSORS


def is_safe_global(name: str) -> bool:
    """Whether ``torch.load(weights_only=True)`` takes this global (module.name) without being told to."""
    if name in _SAFE or name in _SAFE_REBUILD:
        return True
    module, _, last = name.rpartition(".")
    return (module == "torch" and last in _DTYPES) or (
        module in {"torch", "torch.cuda", "torch.sparse", "torch.cuda.sparse"} and last.endswith(("Storage", "Tensor"))
    )


def state_dict_of(root: object, is_tensor: Callable[[object], bool], depth: int = 3) -> tuple[str, Mapping[Any, Any]]:
    """(dotted key, name -> tensor) inside a loaded checkpoint; an empty dict where there is no state_dict.

    A dict of tensors is the state_dict itself; else what lies under the first of ``STATE_KEYS``, at most ``depth``
    levels deep; else the tensors of a dict that holds mostly tensors.
    """
    if not isinstance(root, Mapping) or depth == 0:
        return "", {}
    tensors = {key: value for key, value in root.items() if is_tensor(value)}
    if len(tensors) == len(root):
        return "", tensors
    for key in STATE_KEYS:
        prefix, found = state_dict_of(root.get(key), is_tensor, depth - 1)
        if found:
            return f"{key}.{prefix}".rstrip("."), found
    return ("", tensors) if len(tensors) * 2 > len(root) else ("", {})
