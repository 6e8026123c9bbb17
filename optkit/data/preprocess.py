"""How raw images and text become model inputs: what ``preprocess:`` may say. The same in optimize, check and run.

``preprocess_image.py`` and ``preprocess_text.py`` apply it; nothing else does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from optkit.errors import DataError

Size = Annotated[int, Field(ge=1)]


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


def parse_preprocess(
    preprocess: Mapping[str, Any], *, file: str | Path | None = None
) -> dict[str, ImageEntry | TextEntry]:
    """Input name -> ``ImageEntry`` or ``TextEntry``.

    Raises:
        DataError: an entry has an unknown key or a wrong value.
    """
    try:
        return dict(_ENTRIES.validate_python(dict(preprocess)))
    except ValidationError as error:
        first = error.errors()[0]
        keys = ".".join(str(part) for part in (first["loc"][0], *first["loc"][2:]))  # 1 is the kind
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
    return tuple(file for entry in entries if isinstance(entry, TextEntry) for file in tokenizer_files(entry, folder))


def tokenizer_files(entry: TextEntry, folder: Path) -> tuple[Path, ...]:
    """``tokenizer.json`` and, beside it, ``tokenizer_config.json``, where they are there."""
    path = folder / entry.tokenizer
    if path.is_file():
        return (path,)
    return tuple(path / name for name in ("tokenizer.json", "tokenizer_config.json") if (path / name).is_file())
