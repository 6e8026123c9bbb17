from __future__ import annotations

import csv
import functools
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from sample_models import download, models, splits

FOLDER = Path(models.__file__).parent
ACCURACY = {"digits_cnn": 0.993, "digits_mlp": 0.971, "reviews_transformer": 0.793}
"""What make.py printed on the evaluation split when the committed files were written."""
FORMS = (".safetensors", ".pt", ".ts.pt", ".onnx")
LIMIT_BYTES = {"digits_cnn": 400_000, "digits_mlp": 300_000, "reviews_transformer": 700_000}

Array = NDArray[Any]
Arrays = dict[str, Array]


def evaluation(name: str) -> tuple[Arrays, Array]:
    """Inputs and labels of the committed evaluation split."""
    if name.startswith("digits"):
        with np.load(FOLDER / "data" / "digits_evaluation.npz") as data:
            return {"image": data["image"]}, data["labels"]
    rows = review_rows("evaluation")
    return tokens([text for text, _ in rows]), np.array([label for _, label in rows])


def review_rows(split: str) -> list[tuple[str, int]]:
    with (FOLDER / "data" / f"reviews_{split}.csv").open(newline="", encoding="utf-8") as file:
        return [(row["text"], int(row["label"])) for row in csv.DictReader(file)]


def tokens(texts: list[str]) -> Arrays:
    from tokenizers import Tokenizer

    encodings = Tokenizer.from_file(str(FOLDER / "reviews_tokenizer" / "tokenizer.json")).encode_batch(texts)
    ids = np.array([encoding.ids for encoding in encodings], np.int64)
    return {"input_ids": ids, "attention_mask": np.array([e.attention_mask for e in encodings], np.int64)}


def opener(path: Path) -> Callable[[Arrays], Array]:
    """A function from input arrays to logits."""
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda inputs: session.run(["logits"], inputs)[0]
    import torch

    module = torch_module(path)

    def run(inputs: Arrays) -> Array:
        with torch.inference_mode():
            outputs = module(**{name: torch.from_numpy(value) for name, value in inputs.items()})
        assert list(outputs) == ["logits"]
        return outputs["logits"].numpy()

    return run


def torch_module(path: Path) -> Any:
    import torch

    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        module = getattr(models, path.stem)().eval()
        module.load_state_dict(load_file(path))
        return module
    if path.name.endswith(".ts.pt"):
        return torch.jit.load(path)
    with path.open("rb") as file:
        return torch.export.load(file).module()


@functools.cache
def logits(name: str, form: str) -> Array:
    inputs, _ = evaluation(name)
    return opener(FOLDER / f"{name}{form}")(inputs)


def accuracy(values: Array, labels: Array) -> float:
    return float((values.argmax(axis=1) == labels).mean())


@pytest.mark.parametrize("name", ACCURACY)
@pytest.mark.parametrize("form", FORMS)
def test_committed_models_reach_their_accuracy(name: str, form: str) -> None:
    assert accuracy(logits(name, form), evaluation(name)[1]) == pytest.approx(ACCURACY[name], abs=0.0011)


@pytest.mark.parametrize("name", ACCURACY)
@pytest.mark.parametrize("form", FORMS[1:])
def test_all_forms_give_the_same_logits(name: str, form: str) -> None:
    np.testing.assert_allclose(logits(name, form), logits(name, FORMS[0]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_batch_and_length_are_dynamic(form: str) -> None:
    image = evaluation("digits_cnn")[0]["image"]
    one = opener(FOLDER / f"digits_cnn{form}")({"image": image[3:4]})
    np.testing.assert_allclose(one, logits("digits_cnn", form)[3:4], rtol=0, atol=1e-5)
    run = opener(FOLDER / f"reviews_transformer{form}")
    for shape in ((1, 1), (3, 64)):
        inputs = {name: np.ones(shape, np.int64) for name in ("input_ids", "attention_mask")}
        assert run(inputs).shape == (shape[0], 2)


def test_onnx_signatures_are_named_and_without_metadata() -> None:
    import onnx

    found = {}
    for name in ACCURACY:
        proto = onnx.load(FOLDER / f"{name}.onnx", load_external_data=False)
        assert not proto.metadata_props and not any(node.metadata_props for node in proto.graph.node)
        for value in [*proto.graph.input, *proto.graph.output]:
            dims = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
            found[name, value.name] = (value.type.tensor_type.elem_type, dims)
    image, text = (onnx.TensorProto.FLOAT, ["batch", 1, 8, 8]), (onnx.TensorProto.INT64, ["batch", "seq"])
    assert found == {
        ("digits_cnn", "image"): image,
        ("digits_cnn", "logits"): (onnx.TensorProto.FLOAT, ["batch", 10]),
        ("digits_mlp", "image"): image,
        ("digits_mlp", "logits"): (onnx.TensorProto.FLOAT, ["batch", 10]),
        ("reviews_transformer", "input_ids"): text,
        ("reviews_transformer", "attention_mask"): text,
        ("reviews_transformer", "logits"): (onnx.TensorProto.FLOAT, ["batch", 2]),
    }


def test_everything_is_small() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) < 5_000_000
    for name, limit in LIMIT_BYTES.items():
        assert max((FOLDER / f"{name}{form}").stat().st_size for form in FORMS) <= limit


@pytest.mark.parametrize("name", ACCURACY)
def test_archives_hold_no_debug_members_or_paths(name: str) -> None:
    for form in (".pt", ".ts.pt"):
        with zipfile.ZipFile(FOLDER / f"{name}{form}") as archive:
            assert not [member for member in archive.namelist() if member.endswith(".debug_pkl")]
            texts = [archive.read(member) for member in archive.namelist() if "weights" not in member]
        assert not any(b"/make.py" in text or b"/models.py" in text for text in texts)


def test_digits_splits_are_disjoint_and_as_committed() -> None:
    made = splits.digits_splits()
    rows = {split: {image.tobytes() for image in images.image} for split, images in made.items()}
    assert {split: len(found) for split, found in rows.items()} == {
        "evaluation": 450,
        "search": 200,
        "train": 1147,
        "calibration": 128,
    }
    assert not rows["evaluation"] & rows["search"]
    assert not (rows["evaluation"] | rows["search"]) & rows["train"]
    assert rows["calibration"] < rows["train"]
    for split in ("train", "calibration", "search", "evaluation"):
        with np.load(FOLDER / "data" / f"digits_{split}.npz") as data:
            assert data["image"].dtype == np.float32 and data["labels"].dtype == np.int64
            np.testing.assert_array_equal(data["image"], made[split].image)
            np.testing.assert_array_equal(data["labels"], made[split].labels)
            assert (data["image"].min(), data["image"].max()) == (0, 1)


def test_reviews_splits_are_disjoint_and_balanced() -> None:
    texts = {split: [text for text, _ in review_rows(split)] for split in ("calibration", "search", "evaluation")}
    assert {split: len(set(found)) for split, found in texts.items()} == splits.REVIEWS_SIZES
    assert len(set().union(*texts.values())) == 1500
    assert 0.45 < np.mean([label for _, label in review_rows("evaluation")]) < 0.55


def test_stored_training_sentences_are_in_no_other_split() -> None:
    train = review_rows("train")
    assert len({text for text, _ in train}) == splits.REVIEWS_TRAIN
    assert not {text for text, _ in train} & {text for split in splits.REVIEWS_SIZES for text, _ in review_rows(split)}
    assert 0.45 < np.mean([label for _, label in train]) < 0.55


def test_stored_training_sentences_are_the_first_clear_ones() -> None:
    ratings = np.resize([-2.0, 0.2, 1.0], 3 * splits.REVIEWS_TRAIN)
    made = splits.stored_train(splits.Reviews(tuple(map(str, range(len(ratings)))), ratings))
    assert made.texts[:3] == ("0", "2", "3") and made.labels[:3].tolist() == [0, 1, 0]
    assert len(made.texts) == len(made.ratings) == splits.REVIEWS_TRAIN


def test_data_yaml_names_existing_files_for_every_model() -> None:
    stated = yaml.safe_load((FOLDER / "data.yaml").read_text())["models"]
    on_demand = stated.pop("mnist_cnn*")["data"]  # mnist.py writes these
    assert on_demand == {split: f"data/mnist_{split}.npz" for split in stated["digits_cnn*"]["data"]}
    assert set(stated) == {f"{name}*" for name in ACCURACY}
    for part in stated.values():
        assert set(part["data"]) == {"train", "calibration", "search", "evaluation"}
        for source in part["data"].values():
            assert (FOLDER / (source if isinstance(source, str) else source["source"])).is_file()


@pytest.mark.parametrize("name", ACCURACY)
@pytest.mark.parametrize("form", FORMS)
def test_data_yaml_opens_as_the_models_inputs(name: str, form: str) -> None:
    from optkit.data.data_file import find_data_file
    from optkit.data.open import open_dataset
    from optkit.model.signature import Signature, parse_signature

    stated = find_data_file(FOLDER / f"{name}{form}")
    assert stated is not None and stated.metric == "top1"
    text = "image=float32[batch,1,8,8]"
    if name == "reviews_transformer":
        text = "input_ids=int64[batch,seq]; attention_mask=int64[batch,seq]"
    dataset = open_dataset(
        "evaluation",
        stated.data["evaluation"],
        signature=Signature(inputs=parse_signature(text)),
        base=stated.base,
        preprocess=stated.preprocess,
        assets_dir=None,
        allow_code=False,
    )
    inputs, labels = evaluation(name)
    np.testing.assert_array_equal(dataset.labels, labels)
    batch = next(iter(dataset.batches()))
    for key, values in batch.inputs.items():
        expected = inputs[key][: batch.size, : values.shape[1]]
        np.testing.assert_array_equal(values[: batch.size], expected)


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that make.py wrote from nothing."""
    try:
        download.fetch(download.MOVIE_REVIEWS)
    except download.OutOfReach as error:
        pytest.skip(str(error))
    out = tmp_path_factory.mktemp("rebuilt")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONHASHSEED"}
    subprocess.run([sys.executable, FOLDER / "make.py", "--out", out], check=True, env=environment, timeout=600)
    return out


@pytest.mark.zoo
def test_make_rebuilds_models_of_the_same_accuracy(rebuilt: Path) -> None:
    for name, expected in ACCURACY.items():
        inputs, labels = evaluation(name)
        if name == "reviews_transformer":
            assert (rebuilt / "reviews_tokenizer" / "tokenizer.json").read_bytes() == (
                FOLDER / "reviews_tokenizer" / "tokenizer.json"
            ).read_bytes()
        for form in (".onnx", ".ts.pt"):
            assert accuracy(opener(rebuilt / f"{name}{form}")(inputs), labels) == pytest.approx(expected, abs=0.02)


@pytest.mark.zoo
def test_make_writes_the_same_files(rebuilt: Path) -> None:
    made = {path.relative_to(rebuilt) for path in rebuilt.rglob("*") if path.is_file()}
    sources = {Path(name) for name in ("README.md", "make.py", "download.py", "splits.py")}
    committed = {path.relative_to(FOLDER) for path in FOLDER.rglob("*") if path.is_file()}
    assert made == {path for path in committed if "__pycache__" not in path.parts} - sources
    for path in (path for path in made if path.parts[0] in ("data", "reviews_tokenizer")):
        assert (rebuilt / path).read_bytes() == (FOLDER / path).read_bytes()


@pytest.mark.zoo
def test_held_out_reviews_are_not_trained_on() -> None:
    try:
        folder = download.fetch(download.MOVIE_REVIEWS)
    except download.OutOfReach as error:
        pytest.skip(str(error))
    made = splits.reviews_splits(splits.read_reviews(folder))
    train = set(made["train"].texts)
    made["train"] = splits.stored_train(made["train"])
    assert review_rows("train") == list(zip(made["train"].texts, made["train"].labels.tolist(), strict=True))
    for split in splits.REVIEWS_SIZES:
        rows = review_rows(split)
        assert not train & {text for text, _ in rows}
        assert rows == list(zip(made[split].texts, made[split].labels.tolist(), strict=True))
