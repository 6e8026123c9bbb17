"""Opens what the user has, by its content: which form it is, and what it says about itself. Executes nothing."""

from __future__ import annotations

import difflib
import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

from optkit.errors import ModelError, UsageError
from optkit.model.bundle_facts import read_bundle, read_object
from optkit.model.foreign import as_text, by_magic, in_zip
from optkit.model.model import Assets, Form, Kind, Model
from optkit.model.pickle_file import LEGACY_MAGIC, PickleFacts, look_at_legacy, look_at_zip
from optkit.model.safetensors_file import looks_like_safetensors, safetensors_keys
from optkit.model.signature import Signature, TensorSpec, parse_signature
from optkit.model.signature_merge import merge_signature
from optkit.model.torch_folder import is_torch_folder, source_factory

KNOWN = (
    "ONNX (.onnx), ONNX Runtime (.ort), torch.export (.pt2), TorchScript, a state_dict or .safetensors with a factory,"
    " a Hugging Face folder, or a bundle of optkit"
)
"""What can be opened, for people."""


@dataclass(frozen=True)
class _Given:
    """The arguments of one ``open_model``."""

    path: Path
    factory: str | None
    inputs: tuple[TensorSpec, ...]
    trust: bool

    def model(self, kind: Kind, signature: Signature) -> Model:
        forms: dict[Kind, Form] = {"onnx": "onnx", "ort": "ort"}
        return Model(
            path=self.path,
            form=forms.get(kind, "torch"),
            kind=kind,
            signature=merge_signature(signature, self.inputs),
            factory=self.factory,
            trust_pickle=self.trust,
        )


def open_model(
    path: str | Path,
    *,
    factory: str | None = None,
    signature: str | None = None,
    trust_pickle: bool = False,
) -> Model:
    """Open a model file, Hugging Face folder or bundle by its content.

    Reads headers and structure only, imports neither torch nor onnxruntime, and runs nothing from the file.

    Args:
        path: the file or folder.
        factory: ``pkg.module:fn`` or ``FILE.py:fn``; needed by state_dicts and ``.safetensors``, refused by others.
        signature: ``'x=float32[batch,3,224,224]'``. Where the file has a signature itself, names of dynamic dimensions
            are taken from this one and all else must agree.
        trust_pickle: open files that would run code when they are loaded.

    Raises:
        ModelError: missing, broken, unsafe, unknown, or without the factory it needs.
        UsageError: the signature or the factory does not fit.
    """
    given = _Given(Path(path), factory, parse_signature(signature) if signature else (), trust_pickle)
    if factory is not None:
        _check_factory(factory)
    try:
        model = _open(given)
    except OSError as error:
        raise ModelError(
            f"The model cannot be read: {error.strerror or error}.",
            expected="a file you may read",
            fix=f"check its rights: ls -l {given.path}",
            file=given.path,
        ) from error
    if factory is not None and model.kind not in ("weights", "torch-folder"):
        raise UsageError(
            f"A factory is for state_dicts and .safetensors; {given.path} is {_NAMES[model.kind]}.",
            expected="no --factory with this model",
            fix="leave --factory out",
        )
    return model


def _open(given: _Given) -> Model:
    if not given.path.exists():
        raise _missing(given.path)
    return _open_folder(given) if given.path.is_dir() else _open_file(given)


_NAMES: dict[Kind, str] = {
    "onnx": "an ONNX model",
    "ort": "an ONNX Runtime model",
    "pt2": "a torch.export archive",
    "torchscript": "a TorchScript archive",
    "weights": "a state_dict",
    "pickle": "a pickled module",
    "huggingface": "a Hugging Face folder",
    "torch-folder": "a folder of torch weights and changes",
}


def _missing(path: Path) -> ModelError:
    folder = path.parent
    if path.is_symlink():
        return ModelError("The model is a link to nothing.", expected=KNOWN, fix="mend the link", file=path)
    if not folder.is_dir():
        return ModelError("The model's folder does not exist.", expected=KNOWN, fix="check the path", file=path)
    close = difflib.get_close_matches(path.name, [entry.name for entry in folder.iterdir()], n=3)
    fix = "did you mean " + " or ".join(str(folder / name) for name in close) + "?" if close else f"see: ls {folder}"
    return ModelError("There is no such model.", expected=KNOWN, fix=fix, file=path)


def _check_factory(factory: str) -> None:
    place, _, function = factory.rpartition(":")
    if not place or not function.isidentifier():
        raise UsageError(
            f"The factory '{factory}' cannot be read.",
            expected="pkg.module:fn or FILE.py:fn, a function that returns the module",
            fix="write it like --factory my_models.py:make_model",
        )
    if place.endswith(".py") and not Path(place).is_file():
        raise ModelError(
            f"The factory's file {place} does not exist.",
            expected="a Python file",
            fix="check the path; it counts from the current folder",
        )


def _open_file(given: _Given) -> Model:
    path = given.path
    if not path.is_file():
        raise ModelError("This is neither a file nor a folder.", expected=KNOWN, fix="give a model file", file=path)
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise ModelError("The file is empty.", expected=KNOWN, fix="export or copy the model again", file=path)
    if head.startswith(b"PK\x03\x04"):
        return _open_zip(given)
    if head[4:8] == b"ORTM":
        return given.model("ort", Signature())
    if head[:1] == b"\x80" and head[2:].startswith(LEGACY_MAGIC[2:]):
        return _open_pickle(given, look_at_legacy(path))
    if head[0] == 0x80 and head[1:2] in {b"\x02", b"\x03", b"\x04", b"\x05"}:
        raise _unknown(path, "a Python pickle, but not one of torch.save", "save the module with torch.export.save")
    if looks_like_safetensors(head):
        return _open_weights(given, safetensors_keys(path))
    if foreign := by_magic(head):
        raise _unknown(path, *foreign)
    return _open_onnx(given)


def _unknown(path: Path, what: str, fix: str) -> ModelError:
    return ModelError(f"This is {what}, which optkit does not open.", expected=KNOWN, fix=fix, file=path)


def _open_onnx(given: _Given) -> Model:
    from optkit.model.onnx_file import load_structure, onnx_signature

    try:
        structure = load_structure(given.path)
    except ModelError as error:
        if foreign := as_text(given.path):
            raise _unknown(given.path, *foreign) from error
        raise
    return given.model("onnx", onnx_signature(structure))


def _open_zip(given: _Given) -> Model:
    path = given.path
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ModelError(
            "The archive is cut off or damaged: it has no directory.",
            expected="a complete torch.export, TorchScript or torch.save archive",
            fix="save or copy it again, and compare sizes or checksums with the source",
            file=path,
        ) from error
    with archive:
        try:
            return _open_archive(given, archive)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # damaged or encrypted member
            raise ModelError(
                f"The archive is cut off or damaged: {error}.",
                expected="a complete archive",
                fix="save or copy it again",
                file=path,
            ) from error


def _open_archive(given: _Given, archive: zipfile.ZipFile) -> Model:
    if min((info.header_offset for info in archive.infolist()), default=0) != 0:
        # Cut off behind a member that is an archive itself: that one's directory was found instead.
        raise zipfile.BadZipFile("its directory does not begin at its first member")
    names = archive.namelist()
    exported = [name for name in names if _is_exported(name)]
    if exported:
        return _open_pt2(given, archive, exported[0])
    if any(name.endswith("constants.pkl") for name in names) and any("/code/" in name for name in names):
        return _open_torchscript(given)
    data = [name for name in names if name == "data.pkl" or (name.count("/") == 1 and name.endswith("/data.pkl"))]
    if data:
        return _open_pickle(given, look_at_zip(archive, data[0], given.path))
    if any(name.split("/")[-1] == "archive_format" for name in names):
        raise _unknown(
            given.path, "a compiled package of torch (AOTInductor)", "save the program with torch.export.save"
        )
    what, fix = in_zip(names) or ("a zip archive, but none of torch's", "give the model file itself")
    raise _unknown(given.path, what, fix)


def _is_exported(name: str) -> bool:
    """The program's JSON: ``NAME/models/model.json`` (torch 2.8 and later), before at the archive's root."""
    parts = name.split("/")
    newer = len(parts) >= 2 and parts[-2] == "models" and parts[-1].endswith(".json")
    return newer or parts[-1] == "serialized_exported_program.json"


def _open_pt2(given: _Given, archive: zipfile.ZipFile, program: str) -> Model:
    from optkit.model.archive_check import check_pt2
    from optkit.model.pt2_file import pt2_signature

    check_pt2(given.path, given.trust)
    return given.model("pt2", pt2_signature(archive.read(program)))


def _open_torchscript(given: _Given) -> Model:
    from optkit.model.archive_check import check_torchscript

    check_torchscript(given.path, given.trust)
    return given.model("torchscript", Signature())


def _open_pickle(given: _Given, facts: PickleFacts) -> Model:
    if facts.unsafe and not given.trust:
        raise _unsafe(given.path, facts)
    if facts.kind == "weights":
        return _open_weights(given, facts.tensors, facts.prefix)
    if not facts.unsafe:
        what = f"a {facts.root} written by torch.save, with no state_dict in it"
        raise _unknown(given.path, what, "save the weights: torch.save(module.state_dict(), path)")
    return given.model("pickle", Signature())


def _unsafe(path: Path, facts: PickleFacts) -> ModelError:
    listed = ", ".join(facts.unsafe[:3]) + (", ..." if len(facts.unsafe) > 3 else "")
    what = f"a state_dict with {len(facts.tensors)} tensors" if facts.kind == "weights" else f"a pickled {facts.root}"
    return ModelError(
        f"The file is {what} that would run code when it is loaded: it names {listed}.",
        expected="torch.export.save(program, path), or torch.save(module.state_dict(), path) with --factory",
        fix="save it again in one of these ways, or, if you trust where it comes from, add --trust-pickle",
        file=path,
    )


def _open_weights(given: _Given, keys: tuple[str, ...], prefix: str = "") -> Model:
    if given.factory is None:
        listed = ", ".join(keys[:4]) + (", ..." if len(keys) > 4 else "")
        where = f" under '{prefix}'" if prefix else ""
        raise ModelError(
            f"The file is a state_dict with {len(keys)} tensors{where} ({listed}), without the code they belong to.",
            expected="a function that builds the module: --factory pkg.module:fn or --factory FILE.py:fn",
            fix=f"add --factory to the command, e.g. --factory {given.path.stem}.py:make_model",
            file=given.path,
        )
    return given.model("weights", Signature())


def _open_folder(given: _Given) -> Model:
    folder = given.path
    if (folder / "manifest.json").is_file():
        return _open_bundle(given)
    if is_torch_folder(folder):
        return _open_torch_folder(given)
    weights = [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]
    if (folder / "config.json").is_file() and weights:
        return _open_huggingface(given)
    inside = sorted(file.name for file in folder.iterdir() if file.suffix in {".onnx", ".ort", ".pt2", ".pt", ".pth"})
    raise ModelError(
        "The folder is neither a Hugging Face model nor a bundle of optkit.",
        expected="config.json with *.safetensors, or manifest.json with model.onnx",
        fix=f"give the file itself: {folder / inside[0]}" if inside else "give a model file or another folder",
        file=folder,
    )


def _open_torch_folder(given: _Given) -> Model:
    factory = source_factory(given.path)
    if factory is not None and given.factory is None:
        raise ModelError(
            f"The folder holds torch weights that the code {factory} belongs to.",
            expected="that code named by you, as it would be run",
            fix=f"add --factory {factory}, if you trust it",
            file=given.path,
        )
    return given.model("torch-folder", Signature())


def _open_huggingface(given: _Given) -> Model:
    config = read_object(given.path / "config.json")
    if not {"model_type", "architectures"} & config.keys():
        raise ModelError(
            "The folder's config.json names no architecture.",
            expected="a configuration of transformers, with model_type or architectures",
            fix="write the folder with model.save_pretrained(FOLDER)",
            file=given.path / "config.json",
        )
    if not any(given.path.glob("*.safetensors")):
        _check_bins(given)
    model = given.model("huggingface", Signature())
    if not given.inputs:
        model = model.with_signature(_default_signature(model))
    return replace(model, assets=_tokenizer_asset(model))


def _default_signature(model: Model) -> Signature:
    from optkit.model.huggingface import default_signature

    try:
        return default_signature(model)
    except (TypeError, ValueError, AttributeError, KeyError):  # a config.json with values of other types
        return Signature()


def _tokenizer_asset(model: Model) -> Assets:
    """The folder's own tokenizer feeds ``input_ids`` and what goes with them."""
    names = {spec.name for spec in model.signature.inputs}
    if "input_ids" not in names or not (model.path / "tokenizer.json").is_file():
        return Assets()
    return Assets({"input_ids": {"kind": "text", "tokenizer": "."}}, model.path)


def _check_bins(given: _Given) -> None:
    """PyTorch's ``*.bin`` weights are pickles: refuse those that would run code, or are no weights."""
    for file in sorted(given.path.glob("pytorch_model*.bin")):
        model = _open_file(replace(given, path=file, factory="transformers:AutoModel", inputs=()))
        if model.kind != "weights":
            raise ModelError(
                f"The folder's {file.name} is {_NAMES[model.kind]} and not a state_dict.",
                expected="weights as model.save_pretrained(FOLDER) writes them",
                fix="write the folder again with model.save_pretrained(FOLDER)",
                file=file,
            )


def _open_bundle(given: _Given) -> Model:
    facts = read_bundle(given.path)
    model = _open_file(replace(given, path=facts.file))
    if model.kind == "ort":
        model = model.with_signature(merge_signature(facts.signature, given.inputs))
    return replace(model, session=facts.session, lineage=facts.lineage, assets=facts.assets)
