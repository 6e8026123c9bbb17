"""From raw images and text to model inputs. The only code that does this: in optimize, check and run alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from optkit.data._feed import Place, finish, numpy_dtype
from optkit.data._reader import Lazy, Rows, sha256_of
from optkit.data.dataset import Array, Arrays
from optkit.errors import DataError, PackageError
from optkit.model.signature import TensorSpec

if TYPE_CHECKING:
    from PIL.Image import Image
    from tokenizers import Encoding, Tokenizer

Size = Annotated[int, Field(ge=1)]
Role = Literal["ids", "mask", "types", "positions"]
_NO_LIMIT = 1_000_000
"""Tokenizers write a huge ``model_max_length`` where they know none."""
_USUAL_LENGTH = 512


class ImageEntry(BaseModel):
    """Pixels: colour, resize, centre crop, then ``(pixel - mean) * scale`` with pixels from 0 to 255, then layout."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["image"]
    resize: Size | tuple[Size, Size] | None = None
    """Pixels: one number resizes the short side and keeps the aspect; [height, width] is exact. None = as it is."""
    crop: Size | tuple[Size, Size] | None = None
    """Pixels, cut from the centre after resizing: a square, or [height, width]. None = nothing is cut."""
    mean: float | tuple[float, ...] = 0.0
    """Subtracted first, in units of 0 to 255; one number, or one per channel in the order of ``color``."""
    scale: float | tuple[float, ...] = 1.0
    """Multiplied last; 0.00392156862745098 gives 0 to 1. One number, or one per channel in the order of ``color``."""
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    """Where the channel axis is in the model's input."""
    color: Literal["rgb", "bgr", "gray"] = "rgb"
    """Order of the channels; gray has one."""
    interpolation: Literal["bilinear", "bicubic", "nearest", "lanczos"] = "bilinear"
    """Of the resize, with Pillow's antialiasing."""


class TextEntry(BaseModel):
    """Text: tokenized with a ``tokenizer.json``, cut to a length, padded per batch."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["text"]
    tokenizer: str
    """A folder with ``tokenizer.json``, or that file; relative to the file that states it."""
    max_length: int | None = Field(default=None, ge=1)
    """Tokens. None = the model's fixed size, else what the tokenizer says, else 512."""
    pair: bool = False
    """The sample is two texts: two columns (``columns: {input_ids: 'first,second'}``), or one with a tab between."""


Entry = Annotated[ImageEntry | TextEntry, Field(discriminator="kind")]
_ENTRIES: TypeAdapter[dict[str, ImageEntry | TextEntry]] = TypeAdapter(dict[str, Entry])


def parse_preprocess(preprocess: Mapping[str, Any], *, file: str | Path | None = None) -> dict[str, Any]:
    """Input name -> ``ImageEntry`` or ``TextEntry``.

    Raises:
        DataError: an entry has an unknown key or a wrong value.
    """
    try:
        return dict(_ENTRIES.validate_python(dict(preprocess)))
    except ValidationError as error:
        first = error.errors()[0]
        keys = ".".join(str(part) for part in first["loc"] if part not in ("image", "text"))
        raise DataError(
            f"The entry preprocess.{keys} is wrong: {first['msg']}.",
            expected="{kind: image, resize, crop, mean, scale, layout, color, interpolation} or "
            "{kind: text, tokenizer, max_length, pair}",
            fix="correct the entry",
            file=file,
        ) from error


def preprocess_files(preprocess: Mapping[str, Any], folder: Path) -> tuple[Path, ...]:
    """The files that entries refer to (tokenizers), for copying them into a bundle and for digests."""
    entries = parse_preprocess(preprocess).values()
    return tuple(file for entry in entries if isinstance(entry, TextEntry) for file in _tokenizer_files(entry, folder))


@dataclass(frozen=True)
class ImageFeed:
    """One input from image files, or from uint8 arrays [samples, height, width(, channels)]."""

    spec: TensorSpec
    column: str
    axis: int
    entry: ImageEntry
    folder: Path
    """Where image paths in a table count from."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The one column."""
        return (self.column,)

    @property
    def axes(self) -> dict[str, int | None]:
        """Raw images have their samples first."""
        return {self.column: 0}

    @property
    def ranks(self) -> dict[str, int]:
        """Not known: with or without channels."""
        return {}

    @property
    def fingerprint(self) -> str:
        """The entry."""
        return f"{self.spec} {self.axis} {self.column} {self.entry.model_dump_json()}"

    def files(self, values: Mapping[str, Rows]) -> tuple[Path, ...]:
        """Images that a table names."""
        return tuple(self.folder / str(raw) for raw in values[self.column] if isinstance(raw, str))

    def make(self, values: Mapping[str, Rows], place: Place) -> Arrays:
        """Decode and transform every image.

        Raises:
            DataError: an image cannot be read, is too small for the crop, or sizes differ within a batch.
        """
        rows = [self._pixels(raw, place(index)) for index, raw in enumerate(values[self.column])]
        for index, row in enumerate(rows):
            if row.shape != rows[0].shape:
                raise DataError(
                    f"The image {place(index)} comes out as {list(row.shape)}, the first one as {list(rows[0].shape)}.",
                    expected="images of one size after preprocessing",
                    fix=f"add `resize:` or `crop:` with [height, width] to preprocess.{self.spec.name}",
                )
        return {self.spec.name: finish(rows, self.spec, self.axis, place)}

    def _pixels(self, raw: Any, where: str) -> Array:
        image = _decode(raw, self.folder, where)
        image = _crop(
            _resize(image.convert("L" if self.entry.color == "gray" else "RGB"), self.entry), self.entry, where
        )
        pixels = np.asarray(image, dtype=np.float32)
        pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
        if self.entry.color == "bgr":
            pixels = pixels[:, :, ::-1]
        return self._shaped(self._scaled(pixels))

    def _scaled(self, pixels: NDArray[np.float32]) -> Array:
        mean = np.asarray(self.entry.mean, dtype=np.float32)
        scale = np.asarray(self.entry.scale, dtype=np.float32)
        for name, values in (("mean", mean), ("scale", scale)):
            if values.ndim and len(values) not in (1, pixels.shape[2]):
                raise DataError(
                    f"preprocess.{self.spec.name}.{name} has {len(values)} numbers, the image {pixels.shape[2]} channels.",
                    expected="one number, or one per channel",
                    fix="correct the entry",
                )
        made: NDArray[np.float32] = (pixels - mean) * scale
        wanted = numpy_dtype(self.spec)
        return np.clip(np.rint(made), 0, 255).astype(np.uint8) if wanted == np.uint8 else made

    def _shaped(self, pixels: Array) -> Array:
        """[height, width, channels] -> the model's layout; a gray image loses its channel where the model has none."""
        if self.spec.shape is not None and len(self.spec.shape) == 3 and pixels.shape[2] == 1:
            return pixels[:, :, 0]
        return np.moveaxis(pixels, 2, 0) if self.entry.layout == "NCHW" else pixels


def _decode(raw: Any, folder: Path, where: str) -> Image:
    try:
        from PIL import Image as images
    except ImportError as error:
        raise PackageError(
            "Reading images needs Pillow, which is not installed.",
            expected="the extra 'data'",
            fix="pip install 'optkit[data]'",
        ) from error
    try:
        if isinstance(raw, str | Path):
            with images.open(folder / raw) as opened:
                opened.load()
                return opened
        return images.fromarray(_uint8(raw, where))
    except (OSError, ValueError, TypeError, SyntaxError, images.DecompressionBombError) as error:
        raise DataError(
            f"The image {where} cannot be read: {error}.",
            expected="an image that Pillow can decode, or an array [height, width, 3] of uint8",
            fix="repair or remove it",
        ) from error


def _uint8(raw: Any, where: str) -> NDArray[np.uint8]:
    pixels = np.asarray(raw)
    if pixels.dtype != np.uint8:
        raise DataError(
            f"The image {where} is {pixels.dtype}.",
            expected="uint8 pixels from 0 to 255 for `kind: image`",
            fix="save raw pixels as uint8, or data that are ready for the model in its own dtype and shape",
        )
    return pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels


def _resize(image: Image, entry: ImageEntry) -> Image:
    from PIL import Image as images

    if entry.resize is None:
        return image
    if isinstance(entry.resize, int):
        short = min(image.size)
        width, height = (entry.resize * side // short for side in image.size)
    else:
        height, width = entry.resize
    return image.resize((width, height), images.Resampling[entry.interpolation.upper()])


def _crop(image: Image, entry: ImageEntry, where: str) -> Image:
    if entry.crop is None:
        return image
    height, width = (entry.crop, entry.crop) if isinstance(entry.crop, int) else entry.crop
    if image.width < width or image.height < height:
        raise DataError(
            f"The image {where} is {image.height} x {image.width}, smaller than the crop {height} x {width}.",
            expected="images at least as large as the crop",
            fix="add `resize:` to the preprocessing, or make the crop smaller",
        )
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


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
        """The entry and the content of the tokenizer's files."""
        files = sha256_of(_tokenizer_files(self.entry, self.folder))
        specs = " ".join(f"{spec} {self.input_axes[spec.name]}" for spec in self.specs)
        return f"{specs} {self.columns} {self.entry.max_length} {self.entry.pair} {files}"

    def files(self, values: Mapping[str, Rows]) -> tuple[Path, ...]:
        """None."""
        del values
        return ()

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        tokenizer, settings = _open_tokenizer(self.entry, self.folder)
        fixed = self._fixed_length()
        padding = tokenizer.padding or {}
        pad_token = padding.get("pad_token") or settings.get("pad_token") or "[PAD]"
        pad_token = pad_token["content"] if isinstance(pad_token, dict) else pad_token
        tokenizer.enable_truncation(self.entry.max_length or fixed or _own_length(tokenizer, settings))
        tokenizer.enable_padding(
            length=fixed,
            pad_token=pad_token,
            pad_id=padding.get("pad_id", tokenizer.token_to_id(pad_token) or 0),
            direction=padding.get("direction") or settings.get("padding_side") or "right",
        )
        return tokenizer

    def _fixed_length(self) -> int | None:
        for spec in self.specs:
            sizes = [dim for i, dim in enumerate(spec.shape or ()) if i != self.input_axes[spec.name]]
            if sizes and isinstance(sizes[0], int):
                return sizes[0]
        return None

    def make(self, values: Mapping[str, Rows], place: Place) -> Arrays:
        """Tokenize the rows and pad them to the longest, or to the model's fixed size.

        Raises:
            DataError: a row is no text, or a pair has not two parts.
        """
        texts = [
            self._text(cells, place(i)) for i, cells in enumerate(zip(*(values[c] for c in self.columns), strict=True))
        ]
        encodings = self._tokenizer.encode_batch(texts)
        return {
            spec.name: finish(
                _encoded(encodings, self.roles[spec.name]), spec, self.input_axes[spec.name], place, parsed=True
            )
            for spec in self.specs
        }

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


def _tokenizer_files(entry: TextEntry, folder: Path) -> tuple[Path, ...]:
    path = folder / entry.tokenizer
    if path.is_file():
        return (path,)
    return tuple(path / name for name in ("tokenizer.json", "tokenizer_config.json") if (path / name).is_file())


def _open_tokenizer(entry: TextEntry, folder: Path) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer, and what its ``tokenizer_config.json`` says."""
    import json

    files = _tokenizer_files(entry, folder)
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
    except Exception as error:  # noqa: BLE001 - tokenizers raises bare Exception
        raise DataError(
            f"The tokenizer {files[0]} cannot be read: {error}.",
            expected="a tokenizer.json of the package tokenizers",
            fix="write it again with save_pretrained",
        ) from error


def _own_length(tokenizer: Tokenizer, settings: Mapping[str, Any]) -> int:
    stated = (tokenizer.truncation or {}).get("max_length") or settings.get("model_max_length")
    return int(stated) if stated and stated < _NO_LIMIT else _USUAL_LENGTH
