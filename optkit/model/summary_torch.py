"""What torch's files say about themselves: JSON, headers and pickle opcodes. torch is not imported."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optkit.model.model import Model
from optkit.model.pickle_tensors import legacy_weights, zip_weights
from optkit.model.pt2_file import DTYPES as PT2_DTYPES
from optkit.model.safetensors_file import looks_like_safetensors, safetensors_keys
from optkit.model.summary import Found, Weight
from optkit.model.torch_folder import WEIGHTS

BECOMES = {
    "linear": "Gemm",
    "addmm": "Gemm",
    "mm": "MatMul",
    "matmul": "MatMul",
    "bmm": "MatMul",
    "convolution": "Conv",
    "conv1d": "Conv",
    "conv2d": "Conv",
    "conv3d": "Conv",
    "_convolution": "Conv",
    "conv_transpose1d": "ConvTranspose",
    "conv_transpose2d": "ConvTranspose",
    "embedding": "Gather",
    "lstm": "LSTM",
    "gru": "GRU",
}
"""torch's operators with weights -> the ONNX operators they are exported as."""

_SAFETENSORS = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "BOOL": "bool",
} | {f"{sign}{bits}": f"{name}{bits}" for sign, name in (("I", "int"), ("U", "uint")) for bits in (8, 16, 32, 64)}
"""dtype names of a safetensors header -> ours."""

_SCRIPT_CALL = re.compile(r"(?<![\w.])(?:torch|ops\.(?:aten|quantized))\.([a-z_]\w*)\(")
_SCRIPT_PLUMBING = re.compile(
    r"__\w+|size|len|dim|format|lt|le|gt|ge|eq|ne|append|extend|keys|values|items|slice|floordiv|floor_divide|numel|warn"
    r"|tensor|list|ord|str|int|float|bool|sorted|range"
)
"""Names that TorchScript code calls for its own bookkeeping."""
_GUESSED = "where weights are used is guessed from their shapes: this file does not say"


def read_torch(model: Model) -> Found:
    """Weights, and operators where the file has them.

    Raises:
        ModelError: a file is damaged.
    """
    if model.kind == "huggingface":
        return _read_huggingface(model.path)
    if model.kind == "pt2":
        return _read_pt2(model.path)
    folder = model.kind == "torch-folder"
    found = Found(weights=_weights(model.path / WEIGHTS if folder else model.path))
    if model.kind == "torchscript":
        _read_code(model.path, found)
    else:
        where = "the code of the classes that the pickle names" if model.kind == "pickle" else "the factory's code"
        found.notes.append(f"the file has no operators: they are in {where}")
    _guess_use(found)
    return found


def _read_pt2(path: Path) -> Found:
    with zipfile.ZipFile(path) as archive:
        program = next(name for name in archive.namelist() if _is_program(name))
        try:
            return _program(json.loads(archive.read(program)))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):  # a layout of another version of torch
            return Found(notes=["the program's JSON has an unknown layout"])


def _is_program(name: str) -> bool:
    return name.endswith("serialized_exported_program.json") or bool(re.search(r"/models/\w+\.json$", name))


def _program(program: dict[str, Any]) -> Found:
    module = program["graph_module"]
    values = module["graph"]["tensor_values"]
    stored = _stored(module["signature"]["input_specs"], values)
    found = Found(weights=list(stored.values()), opsets={k: int(v) for k, v in program["opset_version"].items()})
    found.producer = f"torch {program['torch_version']}" if program.get("torch_version") else ""
    for node in module["graph"]["nodes"]:
        name = str(node["target"]).removeprefix("torch.ops.").removesuffix(".default")
        found.operators[name] += 1
        op = BECOMES.get(name.split(".")[1], name) if name.count(".") else name
        for entry in node["inputs"]:
            weight = stored.get((entry["arg"].get("as_tensor") or {}).get("name", ""))
            if weight is not None and len(weight.shape) > 1:
                found.used.append((op, weight))
    return found


def _stored(specs: list[dict[str, Any]], values: dict[str, Any]) -> dict[str, Weight]:
    """Name in the graph -> parameter, buffer or constant."""
    found = {}
    for spec in specs:
        for kind in ("parameter", "buffer", "tensor_constant"):
            if kind in spec:
                value = values[spec[kind]["arg"]["name"]]
                shape = tuple(int(size["as_int"]) for size in value["sizes"])
                name = str(spec[kind].get(f"{kind}_name", ""))
                found[spec[kind]["arg"]["name"]] = Weight(name, PT2_DTYPES.get(value["dtype"], "unknown"), shape)
    return found


def _read_code(path: Path, found: Found) -> None:
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if "/code/" in name and name.endswith(".py"):
                calls = _SCRIPT_CALL.findall(archive.read(name).decode(errors="replace"))
                found.operators.update(f"aten.{call}" for call in calls if not _SCRIPT_PLUMBING.fullmatch(call))
    found.notes.append("operators are counted in the archive's code, where modules of one kind share it")


def _weights(path: Path) -> list[Weight]:
    """Of a safetensors file, a TorchScript archive or a file of ``torch.save``."""
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(b"PK"):
        with zipfile.ZipFile(path) as archive:
            members = [name for name in archive.namelist() if name.split("/")[-1] in ("data.pkl", "constants.pkl")]
            return [weight for member in members for weight in zip_weights(archive, member, path)]
    return safetensors_weights(path) if looks_like_safetensors(head) else legacy_weights(path)


def safetensors_weights(path: Path) -> list[Weight]:
    """The tensors that a safetensors header lists.

    Raises:
        ModelError: the header cannot be read, or the tensors do not end where the file does.
    """
    names = safetensors_keys(path)
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return [
        Weight(name, _SAFETENSORS.get(header[name]["dtype"], "unknown"), tuple(header[name]["shape"])) for name in names
    ]


def _read_huggingface(folder: Path) -> Found:
    config = json.loads((folder / "config.json").read_bytes())
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    found = Found(weights=[weight for file in files for weight in _weights(file)])
    architectures = config.get("architectures") or [config.get("model_type", "")]
    found.architecture = str(architectures[0])
    version = config.get("transformers_version")
    found.producer = f"transformers {version}" if version else "transformers"
    found.notes.append(f"{config.get('model_type', 'its')} code of transformers has the operators, not this folder")
    _guess_use(found)
    return found


def _guess_use(found: Found) -> None:
    """Named like an embedding = Gather; else rank 2 = linear, rank 3 to 5 = convolution."""
    found.used = list(_guesses(found.weights))
    if found.used:
        found.notes.append(_GUESSED)


def _guesses(weights: list[Weight]) -> Iterator[tuple[str, Weight]]:
    for weight in weights:
        rank = len(weight.shape)
        if rank >= 2 and "emb" in weight.name.lower():
            yield "Gather", weight
        elif 2 <= rank <= 5:
            yield ("Gemm" if rank == 2 else "Conv"), weight
