"""Tells whether opening a model archive would run code, from the zip alone: no torch, and nothing is executed.

``torch.export.load`` and ``torch.jit.load`` are handed only archives that passed here, or that the user trusts.
"""

from __future__ import annotations

import io
import json
import pickletools
import re
import tokenize
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from optkit.errors import ModelError
from optkit.model.program_check import program_problem


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_DTYPES = _words(
    "float16 float32 float64 bfloat16 complex32 complex64 complex128 bool int8 int16 int32 int64 uint8 uint16 uint32 "
    "uint64 qint8 quint8 qint32 quint4x2 quint2x4 float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz"
)
_STORAGES = _words(
    "Float Double Half BFloat16 Bool Byte Char Short Int Long ComplexFloat ComplexDouble QInt8 QUInt8 QInt32 QUInt4x2 "
    "QUInt2x4"
)
_REBUILDS = _words(
    "_rebuild_tensor _rebuild_tensor_v2 _rebuild_tensor_v3 _rebuild_parameter _rebuild_parameter_with_state "
    "_rebuild_qtensor _rebuild_sparse_tensor _rebuild_meta_tensor_no_storage"
)
SAFE_GLOBALS = frozenset(
    [
        "collections OrderedDict",
        "torch Size",
        "torch device",
        "torch Tensor",
        "torch.nn.parameter Parameter",
        "torch.serialization _get_layout",
        "torch.storage UntypedStorage",
        "torch.storage TypedStorage",
        "torch.jit._pickle restore_type_tag",
        "_codecs encode",
        "builtins set",
        "builtins complex",
        "builtins bytearray",
        "torch per_tensor_affine",
        "torch per_channel_affine",
        "torch per_tensor_symmetric",
        "torch per_channel_symmetric",
        *(f"torch {name}" for name in _DTYPES),
        *(f"torch {name}Storage" for name in _STORAGES),
        *(f"torch._utils {name}" for name in _REBUILDS),
    ]
)
"""What pickled tensors refer to, as ``module name``: the tensor part of torch's own ``weights_only`` list."""

_SAFE_OPCODES = _words(
    "PROTO GLOBAL NEWOBJ REDUCE BUILD APPEND APPENDS SETITEM SETITEMS MARK TUPLE TUPLE1 TUPLE2 TUPLE3 NONE NEWFALSE "
    "NEWTRUE EMPTY_TUPLE EMPTY_LIST EMPTY_DICT EMPTY_SET BINPERSID BININT BININT1 BININT2 BINFLOAT BINGET LONG_BINGET "
    "BINPUT LONG_BINPUT BINUNICODE SHORT_BINSTRING LONG1 STOP"
)
"""The opcodes that torch's ``weights_only`` unpickler knows; on others it gives up, and a full unpickler is tried."""

_SCRIPT_GLOBAL = re.compile(r"__torch__(\.\w+)* \w+|torch\.jit\._pickle \w+", re.ASCII)
_SCRIPT_CLASS = re.compile(r"__torch__\s*\.\s*torch\s*\.\s*classes")
_SCRIPT_FILE_OPS = frozenset({"save", "from_file"})
_SCRIPT_NAMESPACES = frozenset({"aten", "prim", "prims", "quantized", "torchvision", "onnx"})

_PT2_PLUMBING = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/(version|serialization_id)|"
    r"\.format_version|\.storage_alignment|extra/.*",
    re.ASCII,
)
_PT2_RAW = re.compile(r"data/(weights/weight|constants/tensor)_\d+", re.ASCII)
_PT2_CONFIG = re.compile(r"data/(weights/\w+_weights|constants/\w+_constants)_config\.json", re.ASCII)
_PT2_PICKLED = re.compile(r"data/(weights|constants|sample_inputs)/\w+\.pt", re.ASCII)
_PT2_PROGRAM = re.compile(r"models/\w+\.json", re.ASCII)
_SAVED_MEMBER = re.compile(
    r"data\.pkl|data/\d+|version|byteorder|\.data/serialization_id|\.format_version|\.storage_alignment", re.ASCII
)
_FIX = "if you trust where it comes from, add --trust-pickle"


class _Archive:
    """A zip file whose members all lie in one folder, as torch writes them."""

    def __init__(self, file: zipfile.ZipFile) -> None:
        self.file = file
        names = [info.filename for info in file.infolist() if not info.is_dir()]
        self.root = names[0].split("/", 1)[0] if names else ""
        self.names = [name.removeprefix(self.root + "/") for name in names]

    def problem(self) -> str:
        """Why Python's zip reader and torch's might see different members here; empty when they cannot."""
        infos = self.file.infolist()
        if not infos:
            return "it is empty"
        folded = [info.filename.casefold() for info in infos]
        if len(set(folded)) < len(folded):
            twice = next(name for name in folded if folded.count(name) > 1)
            return f"it holds the member {twice} twice"
        if self.file.comment or min(info.header_offset for info in infos) != 0 or not self._starts_as_zip():
            return "there are other data before or behind its members"
        stray = [info.filename for info in infos if not info.filename.startswith(self.root + "/")]
        return f"the member {stray[0]} lies outside its folder {self.root}/" if stray else ""

    def _starts_as_zip(self) -> bool:
        stream = self.file.fp
        if stream is None:
            return False
        stream.seek(0)
        return stream.read(4) == b"PK\x03\x04"

    def read(self, name: str) -> bytes:
        return self.file.read(f"{self.root}/{name}")


@contextmanager
def _opened(path: Path | io.BytesIO, shown: Path) -> Iterator[_Archive]:
    try:
        with zipfile.ZipFile(path) as file:
            yield _Archive(file)
    except (
        OSError,
        zipfile.BadZipFile,
        zipfile.LargeZipFile,
        NotImplementedError,
        RuntimeError,
        UnicodeError,
    ) as error:
        raise ModelError(
            f"{shown.name} cannot be read as an archive: {error}.",
            expected="a zip file as torch.export.save or torch.jit.save writes it",
            fix="save the model again; the file may be cut off",
            file=shown,
        ) from error


def _refuse(path: Path, reason: str, kind: str) -> NoReturn:
    raise ModelError(
        f"{path.name} is not opened, because that could run code from the file: {reason}.",
        expected=f"{kind} that holds tensors and a graph of torch operators only",
        fix=_FIX,
        file=path,
    )


def check_pt2(path: Path, trust: bool) -> None:
    """Refuse a ``torch.export`` archive that could run code while it is loaded or run.

    Looked at: pickles (sample inputs, weights, constants), ``custom_obj_*`` and ``opaque_obj_*`` constants, compiled
    libraries, and inside the program operators, size expressions (sympy evaluates them), guards and tree specs.

    Raises:
        ModelError: not a zip, no exported program named ``model``, or unsafe without ``trust``.
    """
    with _opened(path, path) as archive:
        if "models/model.json" not in archive.names and not trust:
            raise ModelError(
                f"{path.name} holds no exported program named 'model'{_older(archive)}.",
                expected="an archive of torch.export.save",
                fix="export it again: torch.export.save(torch.export.export(module, args), 'model.pt2')",
                file=path,
            )
        reason = "" if trust else _pt2_problem(archive)
    if reason:
        _refuse(path, reason, "an archive of torch.export.save")


def _older(archive: _Archive) -> str:
    old = "serialized_exported_program.json" in {info.filename for info in archive.file.infolist()}
    return "; it is in the format of torch 2.7 or older, which is made of pickles" if old else ""


def _pt2_problem(archive: _Archive) -> str:
    if problem := archive.problem():
        return problem
    version = archive.read("archive_version") if "archive_version" in archive.names else b"none"
    if version.strip() != b"0":
        return f"its archive version is {version[:20].decode(errors='replace')}, and only version 0 is known"
    return next(filter(None, (_pt2_member_problem(archive, name) for name in archive.names)), "")


def _pt2_member_problem(archive: _Archive, name: str) -> str:
    """Why this member is not safe; empty when it is."""
    if _PT2_PLUMBING.fullmatch(name) or _PT2_RAW.fullmatch(name):
        return ""
    if _PT2_CONFIG.fullmatch(name):
        return _config_problem(_json(archive, name), name)
    if _PT2_PICKLED.fullmatch(name):
        return saved_problem(archive.read(name), name)
    if _PT2_PROGRAM.fullmatch(name):
        return program_problem(_json(archive, name))
    if name.startswith("data/aotinductor/"):
        return f"{name} is compiled code"
    return f"it holds {name}, which is none of the members that are known to be safe"


def _json(archive: _Archive, name: str) -> Any:
    try:
        return json.loads(archive.read(name))
    except (ValueError, RecursionError):
        return None


def _config_problem(config: Any, name: str) -> str:
    """Why a weights or constants table asks for unpickling."""
    entries = config.get("config") if isinstance(config, dict) else None
    if not isinstance(entries, dict):
        return f"{name} is not a table of tensors"
    for key, entry in entries.items():
        member = entry.get("path_name") if isinstance(entry, dict) else None
        if not isinstance(member, str) or not re.fullmatch(r"(weight|tensor)_\d+", member, re.ASCII):
            return f"the constant {key} is the pickled object {member}, not a tensor"
        if entry.get("use_pickle") is not False:
            return f"the tensor {key} is pickled (use_pickle)"
    return ""


def saved_problem(data: bytes, name: str) -> str:
    """Why bytes in ``torch.save``'s format would not load with ``weights_only=True``; empty when they would."""
    if not data:
        return ""
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return f"{name} is a pickle in torch's old format"
    with _opened(io.BytesIO(data), Path(name)) as inner:
        if problem := inner.problem():
            return f"in {name}, {problem}"
        stray = [member for member in inner.names if not _SAVED_MEMBER.fullmatch(member)]
        if stray or "data.pkl" not in inner.names:
            return f"{name} is not plain torch.save data (it holds {(stray or inner.names)[0]})"
        problem = pickle_problem(inner.read("data.pkl"))
    return f"{name} {problem}" if problem else ""


def pickle_problem(data: bytes) -> str:
    """What a pickle would do beyond rebuilding tensors and plain containers; read opcode by opcode, never run."""
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "GLOBAL" and argument not in SAFE_GLOBALS:
                return f"would call {str(argument).replace(' ', '.')}"
            if opcode.name not in _SAFE_OPCODES:
                return f"uses the pickle opcode {opcode.name}, which tensors do not need"
    except (ValueError, IndexError, UnicodeError) as error:
        return f"is not a readable pickle ({error})"
    return ""


def check_torchscript(path: Path, trust: bool) -> None:
    """Refuse a TorchScript archive that could touch files, or that needs compiled custom classes.

    Looked at: the code for ``aten::save`` and ``aten::from_file`` in any spelling, operators of unknown libraries and
    ``torch.classes``; the pickles for types that are not the archive's own. TorchScript's pickles are read by C++ and
    cannot name Python functions.

    Raises:
        ModelError: not a zip, no TorchScript, or unsafe without ``trust``.
    """
    with _opened(path, path) as archive:
        if not any(name == "constants.pkl" or name.startswith("code/") for name in archive.names):
            raise ModelError(f"{path.name} is no TorchScript archive: it holds no code.", file=path)
        reason = "" if trust else _torchscript_problem(archive)
    if reason:
        _refuse(path, reason, "a TorchScript archive")


def _torchscript_problem(archive: _Archive) -> str:
    if problem := archive.problem():
        return problem
    for name in archive.names:
        lower = name.lower()
        if lower.endswith(".py"):
            problem = script_problem(archive.read(name))
        elif lower.endswith(".pkl"):
            problem = _script_pickle_problem(archive.read(name))
        elif lower == "model.json":
            problem = "is in TorchScript's oldest format"
        if problem:
            return f"{name} {problem}"
    return ""


def script_problem(source: bytes) -> str:
    """What in TorchScript code touches files or code outside torch: ``torch.save(x, "f")``, ``ops.lib.op(x)``."""
    try:
        text = source.decode("ascii")
        tokens = [token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.string.strip()]
    except (UnicodeError, tokenize.TokenError, SyntaxError) as error:
        return f"cannot be read as TorchScript ({error})"
    if "\\\n" in text or "\r" in text or "\f" in text:
        return "has line breaks that TorchScript does not write"
    if _SCRIPT_CLASS.search(text):
        return "uses a custom class (__torch__.torch.classes)"
    return next(filter(None, (_token_problem(tokens, index) for index in range(len(tokens)))), "")


def _token_problem(tokens: list[tokenize.TokenInfo], index: int) -> str:
    token = tokens[index]
    if token.type == tokenize.COMMENT:
        return "has comments, which TorchScript does not write" if not token.string.startswith("# type:") else ""
    if token.type == tokenize.ERRORTOKEN:
        return f"cannot be read as TorchScript (at {token.string!r})"
    name = token.string.strip("\"'")
    return f"uses aten::{name}, which touches files" if name in _SCRIPT_FILE_OPS else _lookup_problem(tokens, index)


def _lookup_problem(tokens: list[tokenize.TokenInfo], index: int) -> str:
    """What is wrong with a ``getattr`` or an ``ops`` at this place."""
    called = [each.string for each in tokens[index : index + 3]]
    if called[0] == "getattr" and not re.fullmatch(r'"[\w.]*"', _argument(tokens, index), re.ASCII):
        return "looks up an attribute by a name that is not plain"
    if called[0] != "ops" or _before(tokens, index) == ".":
        return ""
    if called[1:2] != ["."]:
        return "passes the operator library around"
    return (
        "" if called[2] in _SCRIPT_NAMESPACES else f"uses the operator library {called[2]}, which is not part of torch"
    )


def _before(tokens: list[tokenize.TokenInfo], index: int) -> str:
    return tokens[index - 1].string if index else ""


def _argument(tokens: list[tokenize.TokenInfo], index: int) -> str:
    """The last argument of the call ``getattr(x, NAME)`` whose name is at ``index``."""
    depth = 0
    for place in range(index + 1, len(tokens)):
        depth += {"(": 1, ")": -1}.get(tokens[place].string, 0)
        if depth == 0:
            return tokens[place - 1].string
    return ""


def _script_pickle_problem(data: bytes) -> str:
    try:
        named = [str(argument) for opcode, argument, _ in pickletools.genops(data) if opcode.name == "GLOBAL"]
    except (ValueError, IndexError, UnicodeError) as error:
        return f"is not a readable pickle ({error})"
    for name in named:
        if name.startswith("__torch__.torch.classes"):
            return f"holds an object of the custom class {name.replace(' ', '.')}"
        if name not in SAFE_GLOBALS and not _SCRIPT_GLOBAL.fullmatch(name):
            return f"names {name.replace(' ', '.')}, which is no TorchScript type"
    return ""
