"""The model as it travels from room to room: a frozen description of files, never the weights themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from optkit.model.signature import Signature

Form = Literal["torch", "onnx", "ort"]
"""What a pass takes and gives."""

Kind = Literal["onnx", "ort", "pt2", "torchscript", "weights", "pickle", "huggingface", "torch-folder"]
"""How the file on disk is opened. ``weights`` = a state_dict or safetensors file that needs a factory;
``torch-folder`` = what passes leave of one, or of a Hugging Face folder, see ``optkit.model.torch_folder``."""


def is_config_entry(key: str) -> bool:
    """Whether a key of ``Model.session`` is a session config entry: it has a dot, before any colon."""
    return "." in key.partition(":")[0]


def config_entries(session: Mapping[str, str]) -> dict[str, str]:
    """The session config entries among a model's session options."""
    return {key: value for key, value in session.items() if is_config_entry(key)}


@dataclass(frozen=True)
class Assets:
    """What a model needs beside its weights: how raw inputs become tensors."""

    preprocess: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    """Input name -> preprocessing entry, plain data as in the recipe's ``preprocess:`` key."""
    folder: Path | None = None
    """Where relative paths inside ``preprocess`` (tokenizer folders) count from."""


@dataclass(frozen=True)
class Model:
    """A trained model on disk.

    ``optkit.Model.open(path)`` opens one; opening reads headers only, and executes nothing.
    """

    path: Path
    """The file, or the folder of a Hugging Face model."""
    form: Form
    kind: Kind
    signature: Signature = field(default_factory=Signature)
    lineage: tuple[str, ...] = ()
    """One sentence per pass that made this model, oldest first."""
    assets: Assets = Assets()
    factory: str | None = None
    """``pkg.module:fn`` or ``FILE.py:fn``, the code that builds the module for weights and what passes made of them."""
    trust_pickle: bool = False
    """True only if the user allowed code inside the file to run."""
    session: Mapping[str, str] = field(default_factory=dict)
    """onnxruntime session options this file wants, as its bundle or passes state them: config entries under their own
    keys (``session.intra_op.allow_spinning``), all of which have a dot; and properties of ``SessionOptions`` under
    names without one, see ``optkit.runner.session``."""

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        factory: str | None = None,
        signature: str | None = None,
        trust_pickle: bool = False,
    ) -> Model:
        """Open a model file, Hugging Face folder or bundle by its content.

        Args:
            path: ``.onnx``, ``.ort``, ``.pt2``, TorchScript, state_dict, ``.safetensors``, folder or bundle.
            factory: ``pkg.module:fn`` or ``FILE.py:fn``; needed by state_dicts and ``.safetensors``.
            signature: ``'x=float32[batch,3,224,224]'``, for files that do not say it themselves.
            trust_pickle: run code from the file if it cannot be opened otherwise.

        Raises:
            ModelError: missing, broken, unsafe, or needs an argument that was not given.
        """
        from optkit.model.open import open_model

        return open_model(Path(path), factory=factory, signature=signature, trust_pickle=trust_pickle)

    @cached_property
    def digest(self) -> str:
        """Content digest (sha256, hex) over the file, its external data and its factory's source."""
        from optkit.model.digest import digest_model

        return digest_model(self)

    @cached_property
    def size_bytes(self) -> int:
        """Bytes on disk, external data included."""
        from optkit.model.digest import model_files

        return sum(file.stat().st_size for file in model_files(self))

    def derive(self, path: Path, form: Form, sentence: str) -> Model:
        """The model a pass made of this one, at ``path``; its signature is read from the new file.

        Raises:
            ModelError: what was written cannot be opened as ``form``.
        """
        from optkit.model.open import open_model

        made = open_model(path)
        return replace(
            made,
            form=form,
            lineage=(*self.lineage, sentence),
            assets=self.assets,
            session=self.session,
        )

    def with_signature(self, signature: Signature) -> Model:
        """The same model with its signature completed."""
        return replace(self, signature=signature)
