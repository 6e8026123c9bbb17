"""A scanned page read by PP-OCR from end to end: its detector finds the lines, its recognizer reads them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.images import SCIKIT_IMAGE
from optkit.evaluate.task_metrics import edit_distance
from sample_models import download

Array = NDArray[Any]
SCALE, MULTIPLE = 3, 32
"""The scan is small; the detector takes multiples of 32 pixels."""
THRESHOLD, LEAST, UNCLIP = 0.3, 100, 1.6
"""Of the detector's map, pixels of a box, and by how much boxes grow: the detector marks the middle of lines (Liao et
al., "Real-time Scene Text Detection with Differentiable Binarization", 2020)."""
HEIGHT, WIDTH = 48, 1024
"""Of a line."""


@cache
def page() -> Array:
    """scikit-image's page.png: float32[1, 3, 576, 1152] in [-1, 1]."""
    from PIL import Image

    with Image.open(download.fetch(SCIKIT_IMAGE) / "skimage" / "data" / "page.png") as opened:
        scan = opened.convert("RGB").resize((opened.width * SCALE, opened.height * SCALE), Image.Resampling.BICUBIC)
    pixels = np.asarray(scan, np.float32) / 127.5 - 1
    short = [(0, -size % MULTIPLE) for size in pixels.shape[:2]]
    return np.ascontiguousarray(np.pad(pixels, [*short, (0, 0)], mode="edge").transpose(2, 0, 1)[None])


def cut_lines(found: Array) -> Array:
    """The lines that the detector's map float32[1, 1, height, width] marks on the page: float32[lines, 3, 48, 1024]."""
    from scipy import ndimage

    marked, _ = ndimage.label(found[0, 0] > THRESHOLD)
    boxes = [box for box in ndimage.find_objects(marked) if _pixels(box) >= LEAST]
    boxes.sort(key=lambda box: (box[0].start + box[0].stop, box[1].start))
    return np.stack([_line(_grown(box)) for box in boxes]) if boxes else np.zeros((0, 3, HEIGHT, WIDTH), np.float32)


def error_rate(found: Sequence[str], wanted: Sequence[str]) -> float:
    """Edits over characters, of all lines one below the other."""
    left, right = "\n".join(found), "\n".join(wanted)
    return edit_distance(left, right) / max(1, len(right))


def _pixels(box: tuple[slice, slice]) -> int:
    return int(np.prod([side.stop - side.start for side in box]))


def _grown(box: tuple[slice, slice]) -> tuple[slice, slice]:
    height, width = (side.stop - side.start for side in box)
    more = round(height * width * UNCLIP / (2 * (height + width)))
    limits = page().shape[2:]
    rows, columns = (
        slice(max(0, side.start - more), min(limit, side.stop + more)) for side, limit in zip(box, limits, strict=True)
    )
    return rows, columns


def _line(box: tuple[slice, slice]) -> Array:
    """One line, as high as the recognizer wants it, with 0 behind it: float32[3, 48, 1024]."""
    from PIL import Image

    cut = page()[0][:, *box]
    width = min(WIDTH, round(cut.shape[2] * HEIGHT / cut.shape[1]))
    channels = [Image.fromarray(each).resize((width, HEIGHT), Image.Resampling.BILINEAR) for each in cut]
    line = np.zeros((3, HEIGHT, WIDTH), np.float32)
    line[:, :, :width] = np.stack([np.asarray(channel) for channel in channels])
    return line
