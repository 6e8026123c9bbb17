"""Text -> token ids, attention mask, token types and positions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from optkit.data._feed import Place, finish
from optkit.data._reader import Lazy, Rows, sha256_of, version_of
from optkit.data.dataset import Arrays
from optkit.data.preprocess import TextEntry, tokenizer_files
from optkit.errors import DataError, PackageError
from optkit.model.signature import TensorSpec

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

Role = Literal["ids", "mask", "types", "positions"]
_NO_LIMIT = 1_000_000
"""Tokenizers write a huge ``model_max_length`` where they know none."""
_USUAL_LENGTH = 512


def text_roles(specs: tuple[TensorSpec, ...], key: str) -> dict[str, Role]:
    """Which inputs of a model a tokenizer fills: ids, attention mask, token types, positions.

    Args:
        specs: the model's inputs.
        key: the preprocess entry's name; an input of that name takes the ids.
    """
    roles: dict[str, Role] = {}
    for spec in specs:
        name = spec.name.lower()
        if spec.name == key or name in ("input_ids", "ids", "tokens", "input_tokens"):
            roles[spec.name] = "ids"
        elif name.endswith("mask"):
            roles[spec.name] = "mask"
        elif name in ("token_type_ids", "segment_ids", "token_types"):
            roles[spec.name] = "types"
        elif name == "position_ids":
            roles[spec.name] = "positions"
    if "ids" not in roles.values() and len(specs) == 1:
        return {specs[0].name: "ids"}
    return roles if "ids" in roles.values() else {}


@dataclass(frozen=True, eq=False)
class TextFeed(Lazy):
    """Token ids, and the attention mask, token types and positions that the model also takes."""

    specs: tuple[TensorSpec, ...]
    roles: Mapping[str, Role]
    columns: tuple[str, ...]
    input_axes: Mapping[str, int]
    entry: TextEntry
    folder: Path
    """Where the tokenizer's path counts from."""

    @property
    def axes(self) -> dict[str, int | None]:
        """Raw texts have their samples first."""
        return dict.fromkeys(self.columns, 0)

    @property
    def ranks(self) -> dict[str, int]:
        """Raw texts have one axis."""
        return dict.fromkeys(self.columns, 1)

    @cached_property
    def fingerprint(self) -> str:
        """The entry, the content of the tokenizer's files, and what reads them."""
        files = sha256_of(tokenizer_files(self.entry, self.folder))
        specs = " ".join(f"{spec} {self.input_axes[spec.name]}" for spec in self.specs)
        return f"{specs} {self.columns} {self.entry.max_length} {self.entry.pair} {files} {version_of('tokenizers')}"

    def files(self, read: Callable[[], Mapping[str, Rows]]) -> tuple[Path, ...]:
        """None."""
        del read
        return ()

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        tokenizer, settings = _open_tokenizer(self.entry, self.folder)
        padding = tokenizer.padding or {}
        pad_token = padding.get("pad_token") or settings.get("pad_token") or "[PAD]"
        pad_token = pad_token["content"] if isinstance(pad_token, dict) else pad_token
        tokenizer.enable_truncation(self.entry.max_length or _own_length(tokenizer, settings))
        tokenizer.enable_padding(
            length=self.fixed_length,
            pad_token=pad_token,
            pad_id=padding.get("pad_id", tokenizer.token_to_id(pad_token) or 0),
            direction=padding.get("direction") or settings.get("padding_side") or "right",
        )
        return tokenizer

    @property
    def fixed_length(self) -> int | None:
        """How many tokens the model takes, where that is fixed."""
        for spec in self.specs:
            sizes = [dim for i, dim in enumerate(spec.shape or ()) if i != self.input_axes[spec.name]]
            if sizes and isinstance(sizes[0], int):
                return sizes[0]
        return None

    def make(self, values: Mapping[str, Rows], place: Place) -> Arrays:
        """Tokenize the rows, cut them at ``max_length``, and pad them to the longest, or to the model's fixed size.

        Raises:
            DataError: a row is no text, a pair has not two parts, or a text is longer than the model's fixed size.
        """
        texts = [
            self._text(cells, place(i)) for i, cells in enumerate(zip(*(values[c] for c in self.columns), strict=True))
        ]
        encodings = self._tokenizer.encode_batch(texts)
        self._check_lengths(encodings, place)
        return {
            spec.name: finish(
                _encoded(encodings, self.roles[spec.name]), spec, self.input_axes[spec.name], place, parsed=True
            )
            for spec in self.specs
        }

    def _check_lengths(self, encodings: list[Encoding], place: Place) -> None:
        fixed = self.fixed_length
        for index, encoding in enumerate(encodings if fixed else ()):
            if len(encoding.ids) != fixed:
                name = next(name for name, role in self.roles.items() if role == "ids")
                cut = " after the cut at its max_length" if encoding.overflowing else ""
                raise DataError(
                    f"The text in {place(index)} has {len(encoding.ids)} tokens{cut}, but '{name}' takes {fixed}.",
                    expected=f"texts of at most {fixed} tokens, the model's fixed size; shorter ones are padded",
                    fix=f"fix the model at a larger size, or set `max_length: {fixed}` in the preprocess entry of "
                    f"'{name}' to cut texts on purpose",
                )

    def _text(self, cells: tuple[Any, ...], where: str) -> str | tuple[str, ...]:
        for cell in cells:
            if not isinstance(cell, str):
                raise DataError(
                    f"The sample in {where} is a {type(cell).__name__}, not text.",
                    expected="text, because of `kind: text` under preprocess",
                    fix="name the text column under `columns:`, or remove the preprocess entry",
                )
        if not self.entry.pair:
            return " ".join(str(cell) for cell in cells)
        parts = tuple(str(cell) for cell in cells) if len(cells) > 1 else tuple(str(cells[0]).split("\t"))
        if len(parts) != 2:
            raise DataError(
                f"The sample in {where} has {len(parts)} texts.",
                expected="two, because of `pair: true`: two columns, or one with a tab between the texts",
                fix="correct the sample, or name both columns: `columns: {input_ids: 'first,second'}`",
            )
        return parts


def _encoded(encodings: list[Encoding], role: Role) -> NDArray[np.int64]:
    masks = np.asarray([encoding.attention_mask for encoding in encodings], dtype=np.int64)
    if role == "mask":
        return masks
    if role == "types":
        return np.asarray([encoding.type_ids for encoding in encodings], dtype=np.int64)
    if role == "positions":
        return np.maximum(np.cumsum(masks, axis=1) - 1, 0)
    return np.asarray([encoding.ids for encoding in encodings], dtype=np.int64)


def _open_tokenizer(entry: TextEntry, folder: Path) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer, and what its ``tokenizer_config.json`` says."""
    files = tokenizer_files(entry, folder)
    if not files or files[0].name == "tokenizer_config.json":
        raise DataError(
            f"There is no tokenizer.json in {folder / entry.tokenizer}.",
            expected="a folder with tokenizer.json, or the path of that file",
            fix="write one with AutoTokenizer.from_pretrained(...).save_pretrained(DIR)",
        )
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise PackageError(
            "Text preprocessing needs the package tokenizers, which is not installed.",
            expected="the extra 'data'",
            fix="pip install 'optkit[data]'",
        ) from error
    try:
        settings = json.loads(files[1].read_text(encoding="utf-8")) if len(files) > 1 else {}
        return Tokenizer.from_file(str(files[0])), settings
    except Exception as error:  # tokenizers raises bare Exception
        raise DataError(
            f"The tokenizer {files[0]} cannot be read: {error}.",
            expected="a tokenizer.json of the package tokenizers",
            fix="write it again with save_pretrained",
        ) from error


def _own_length(tokenizer: Tokenizer, settings: Mapping[str, Any]) -> int:
    stated = (tokenizer.truncation or {}).get("max_length") or settings.get("model_max_length")
    return int(stated) if stated and stated < _NO_LIMIT else _USUAL_LENGTH
