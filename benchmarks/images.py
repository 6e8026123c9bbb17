"""Pictures for the vision models: photos as the classifier wants them, lines of text, and scenes with text in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sample_models import download
from sample_models.download import Package
from tests import zoo

if TYPE_CHECKING:
    from PIL.Image import Image

Array = NDArray[Any]

SCIKIT_IMAGE = Package(
    "scikit-image",
    "0.26.0",
    "scikit_image-0.26.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
    "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af",
    python="3.11",
)
PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "hubble_deep_field.jpg")


def other_photos(views: int) -> Array:
    """Crops and flips of six photos that are in no evaluation: float32[6 * views, 3, 224, 224]."""
    folder = download.fetch(SCIKIT_IMAGE) / "skimage" / "data"
    return np.concatenate([zoo.photo_views(folder / name, 100 + number, views) for number, name in enumerate(PHOTOS)])


def photo_files() -> dict[str, list[Path]]:
    """Grounds to write text on; those of ``evaluation`` appear nowhere else."""
    images = download.fetch(SCIKIT_IMAGE) / "skimage" / "data"
    labelled = zoo.fetch("foolbox") / "foolbox" / "data"
    return {"other": [images / name for name in PHOTOS], "evaluation": sorted(labelled.glob("imagenet_*.jpg"))}


def phrases(texts: Sequence[str], count: int, seed: int) -> list[str]:
    """``count`` pieces of 1 to 4 words of the texts, at most 24 characters of plain ASCII."""
    rng = np.random.default_rng(seed)
    words = [word for text in texts for word in text.split() if word.isascii() and len(word) <= 12]
    found = []
    for _ in range(count):
        begin, length = int(rng.integers(len(words) - 4)), int(rng.integers(1, 5))
        found.append(" ".join(words[begin : begin + length])[:24].strip())
    return found


def lines(texts: Sequence[str], width: int, seed: int, upside_down: Sequence[bool] | None = None) -> Array:
    """Each text as a line on an uneven, noisy ground: float32[texts, 3, 48, width] in [-1, 1]."""
    rng = np.random.default_rng(seed)
    pictures = [_line(text, width, rng) for text in texts]
    for index, turned in enumerate(upside_down or ()):
        if turned:
            pictures[index] = pictures[index].rotate(180)
    return np.stack([_noisy(picture, rng) for picture in pictures])


def scenes(grounds: Sequence[Path], texts: Sequence[str], side: int, seed: int) -> Array:
    """A photo each with a few of the texts written on it, size and angle drawn: float32[grounds, 3, side, side]."""
    rng = np.random.default_rng(seed)
    return np.stack([_noisy(_scene(ground, texts, side, rng), rng) for ground in grounds])


def _line(text: str, width: int, rng: np.random.Generator) -> Image:
    """Dark on light or light on dark, the text as high as fits."""
    from PIL import Image, ImageFont

    light, dark = rng.integers(170, 256, 3), rng.integers(0, 90, 3)
    ground, ink = (light, dark) if rng.random() < 0.7 else (dark, light)
    size = float(rng.uniform(26, 36))
    while size > 12 and ImageFont.load_default(size).getlength(text) > width - 12:
        size -= 1
    picture = Image.new("RGB", (width, 48), _color(ground))
    _write(picture, text, (6, int(24 - 0.62 * size)), size, _color(ink))
    return picture.rotate(float(rng.uniform(-1.5, 1.5)), fillcolor=_color(ground))


def _scene(ground: Path, texts: Sequence[str], side: int, rng: np.random.Generator) -> Image:
    from PIL import Image

    with Image.open(ground) as opened:
        photo = opened.convert("RGB")
    edge = min(photo.size)
    left, top = (int(rng.integers(0, size - edge + 1)) for size in photo.size)
    picture = photo.crop((left, top, left + edge, top + edge)).resize((side, side))
    for row in range(4):
        text, size = str(rng.choice(list(texts))), float(rng.uniform(0.05, 0.09) * side)
        at = (int(rng.integers(4, side // 4)), int(side * (row + rng.uniform(0.2, 0.5)) / 4))
        _write(picture, text, at, size, (250, 250, 245) if row % 2 else (10, 12, 20))
    return picture.rotate(float(rng.uniform(-4, 4)))


def _write(picture: Image, text: str, at: tuple[int, int], size: float, ink: tuple[int, ...]) -> None:
    from PIL import ImageDraw, ImageFont

    ImageDraw.Draw(picture).text(at, text, font=ImageFont.load_default(size), fill=ink)


def _noisy(picture: Image, rng: np.random.Generator) -> Array:
    """float32[3, height, width] in [-1, 1], with a gradient of light and noise."""
    pixels = np.asarray(picture, np.float32)
    shade = np.linspace(*rng.uniform(0.8, 1.1, 2), pixels.shape[1])[None, :, None]
    pixels = np.clip(pixels * shade + rng.normal(0, rng.uniform(1, 8), pixels.shape), 0, 255)
    return (pixels / 127.5 - 1).transpose(2, 0, 1).astype(np.float32)


def _color(channels: Array) -> tuple[int, ...]:
    return tuple(int(channel) for channel in channels)
