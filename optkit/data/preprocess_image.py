"""Image files and pixel arrays -> a model input."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from optkit.data._feed import Place, finish, numpy_dtype
from optkit.data._reader import Rows, version_of
from optkit.data.dataset import Array, Arrays
from optkit.data.preprocess import ImageEntry
from optkit.errors import DataError, PackageError
from optkit.model.signature import TensorSpec

if TYPE_CHECKING:
    from PIL.Image import Image


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
        """The entry, and what decodes and resizes."""
        return f"{self.spec} {self.axis} {self.column} {self.entry.model_dump_json()} {version_of('pillow')}"

    def files(self, read: Callable[[], Mapping[str, Rows]]) -> tuple[Path, ...]:
        """Images that a table names."""
        return tuple(self.folder / raw for raw in read()[self.column] if isinstance(raw, str))

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
                    f"preprocess.{self.spec.name}.{name} has {len(values)} numbers, the image has "
                    f"{pixels.shape[2]} channels.",
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
