import json
import pickle
import sys

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from optkit.data.preprocess import parse_preprocess, preprocess_files
from optkit.errors import DataError, PackageError

PIXELS = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
"""[height 4, width 6, rgb]"""
IDS = "input_ids=int64[batch,seq]; attention_mask=int64[batch,seq]; token_type_ids=int64[batch,seq]"


@pytest.fixture
def image(tmp_path, opened):
    """image('x=float32[batch,3,4,6]', resize=...) -> the input made of PIXELS."""
    Image.fromarray(PIXELS).save(tmp_path / "a.png")

    def run(signature, **entry):
        data = opened(signature, "a.png", preprocess={"x": {"kind": "image", **entry}})
        return next(data.batches()).inputs["x"]

    return run


def test_plain_pixels_are_nchw_from_0_to_255(image):
    made = image("x=float32[batch,3,4,6]")
    assert made.dtype == np.float32
    np.testing.assert_array_equal(made[0], np.moveaxis(PIXELS, 2, 0))


def test_mean_is_subtracted_before_scaling_per_channel(image):
    made = image("x=float32[batch,4,6,3]", layout="NHWC", mean=[1, 2, 3], scale=[0.5, 1, 2])
    wanted = (PIXELS.astype(np.float32) - [1, 2, 3]) * [0.5, 1, 2]
    np.testing.assert_allclose(made[0], wanted, rtol=1e-6)


def test_bgr_reverses_channels_and_numbers_follow_that_order(image):
    made = image("x=float32[batch,3,4,6]", color="bgr", mean=[100, 0, 0])
    np.testing.assert_array_equal(made[0, 0], PIXELS[:, :, 2].astype(np.float32) - 100)
    np.testing.assert_array_equal(made[0, 2], PIXELS[:, :, 0])


def test_gray_has_one_channel_or_none(image):
    wanted = np.asarray(Image.fromarray(PIXELS).convert("L"), np.float32)
    np.testing.assert_array_equal(image("x=float32[batch,1,4,6]", color="gray")[0, 0], wanted)
    np.testing.assert_array_equal(image("x=float32[batch,4,6]", color="gray")[0], wanted)


def test_crop_is_central(image):
    made = image("x=float32[batch,2,4,3]", crop=[2, 4], layout="NHWC")
    np.testing.assert_array_equal(made[0], PIXELS[1:3, 1:5])


@pytest.mark.parametrize(("resize", "shape"), [(8, (8, 12)), ([5, 7], (5, 7))])
def test_resize_short_side_or_exact(image, resize, shape):
    made = image(f"x=float32[batch,{shape[0]},{shape[1]},3]", resize=resize, layout="NHWC", interpolation="bicubic")
    wanted = Image.fromarray(PIXELS).resize(shape[::-1], Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(made[0], np.asarray(wanted))


def test_efficientnet_lite_style(tmp_path, opened):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)).save(tmp_path / "a.png")
    entry = {"kind": "image", "resize": 256, "crop": 224, "interpolation": "bicubic", "mean": 127, "scale": 1 / 128}
    made = next(opened("x=float32[batch,3,224,224]", "a.png", preprocess={"x": entry}).batches()).inputs["x"]
    whole = Image.open(tmp_path / "a.png").resize((341, 256), Image.Resampling.BICUBIC)
    wanted = np.asarray(whole.crop((58, 16, 282, 240)), np.float32)
    np.testing.assert_allclose(made[0], np.moveaxis((wanted - 127) / 128, 2, 0), atol=1e-6)


def test_uint8_arrays_become_floats_only_here(tmp_path, opened):
    np.savez(tmp_path / "e.npz", x=np.stack([PIXELS, PIXELS]), labels=np.arange(2))
    entry = {"x": {"kind": "image", "scale": 1 / 255, "layout": "NCHW"}}
    batch = next(opened("x=float32[batch,3,4,6]", "e.npz", preprocess=entry).batches())
    np.testing.assert_allclose(batch.inputs["x"][1], np.moveaxis(PIXELS, 2, 0) / 255, atol=1e-7)
    np.testing.assert_array_equal(batch.labels, [0, 1])


def test_ready_arrays_are_left_alone(tmp_path, opened):
    x = np.random.default_rng(0).random((2, 3, 4, 6), np.float32)
    np.savez(tmp_path / "e.npz", x=x)
    entry = {"x": {"kind": "image", "scale": 1 / 255}}
    batch = next(opened("x=float32[batch,3,4,6]", "e.npz", preprocess=entry).batches())
    np.testing.assert_array_equal(batch.inputs["x"], x)


def test_uint8_model_input(image):
    made = image("x=uint8[batch,4,6,3]", layout="NHWC")
    assert made.dtype == np.uint8
    np.testing.assert_array_equal(made[0], PIXELS)


def test_crop_larger_than_the_image(image):
    with pytest.raises(DataError, match=r"image a.png is 4 x 6, smaller than the crop 5 x 5"):
        image("x=float32[batch,3,5,5]", crop=5)


def test_images_of_different_sizes(tmp_path, opened):
    (tmp_path / "i").mkdir()
    Image.fromarray(PIXELS).save(tmp_path / "i" / "a.png")
    Image.fromarray(PIXELS[:3]).save(tmp_path / "i" / "b.png")
    with pytest.raises(DataError, match=r"image b.png comes out as \[3, 3, 6\]") as caught:
        opened("x=float32[batch,3,h,w]", "i", preprocess={"x": {"kind": "image"}})
    assert "resize" in caught.value.fix


def test_wrong_size_for_the_model(image):
    with pytest.raises(DataError, match=r"Axis 2 of the data for the input 'x' has size 4 in a.png"):
        image("x=float32[batch,3,8,6]")


def test_as_many_means_as_channels(image):
    with pytest.raises(DataError, match=r"preprocess.x.mean has 2 numbers, the image has 3 channels"):
        image("x=float32[batch,3,4,6]", mean=[1, 2])


@pytest.mark.parametrize(
    ("entry", "key"),
    [
        ({"kind": "image", "resise": 3}, "preprocess.image.resise"),
        ({"kind": "image", "resize": 0}, "preprocess.image.resize"),
        ({"kind": "sound"}, "preprocess.image"),
        ({"kind": "text"}, "preprocess.image.tokenizer"),
    ],
)
def test_wrong_entries_name_the_key(entry, key):
    with pytest.raises(DataError, match=rf"entry {key}.* is wrong"):
        parse_preprocess({"image": entry})


def test_missing_pillow_names_the_command(image, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(PackageError) as caught:
        image("x=float32[batch,3,4,6]")
    assert caught.value.fix == "pip install 'optkit[data]'"


@pytest.fixture
def tokenizer(tmp_path):
    """A tokenizer of whole words: [PAD]=3, a=4, good=5, film=6, bad=7."""
    words = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "a", "good", "film", "bad"]
    made = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    made.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    folder = tmp_path / "tok"
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    return folder


def entry(**more):
    return {"input_ids": {"kind": "text", "tokenizer": "tok", **more}}


@pytest.mark.usefixtures("tokenizer")
def test_text_is_tokenized_and_padded_per_batch(tmp_path, opened):
    (tmp_path / "e.txt").write_text("a good film\nbad\nbad film\n")
    data = opened(IDS, "e.txt", preprocess=entry(), batch=2)
    first, last = data.batches()
    np.testing.assert_array_equal(first.inputs["input_ids"], [[1, 4, 5, 6, 2], [1, 7, 2, 3, 3]])
    np.testing.assert_array_equal(first.inputs["attention_mask"], [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    np.testing.assert_array_equal(first.inputs["token_type_ids"], np.zeros((2, 5)))
    np.testing.assert_array_equal(last.inputs["input_ids"], [[1, 7, 6, 2]])
    again = pickle.loads(pickle.dumps(data))
    np.testing.assert_array_equal(next(again.batches()).inputs["input_ids"], first.inputs["input_ids"])


@pytest.mark.usefixtures("tokenizer")
def test_text_max_length_fixed_length_and_positions(tmp_path, opened):
    (tmp_path / "e.txt").write_text("a good film\nbad\n")
    cut = next(opened("input_ids=int32[batch,seq]", "e.txt", preprocess=entry(max_length=3)).batches())
    np.testing.assert_array_equal(cut.inputs["input_ids"], [[1, 4, 2], [1, 7, 2]])
    assert cut.inputs["input_ids"].dtype == np.int32
    signature = "input_ids=int64[batch,4]; position_ids=int64[batch,4]"
    fixed = next(opened(signature, "e.txt", preprocess=entry(max_length=4)).batches())
    np.testing.assert_array_equal(fixed.inputs["input_ids"], [[1, 4, 5, 2], [1, 7, 2, 3]])
    np.testing.assert_array_equal(fixed.inputs["position_ids"], [[0, 1, 2, 3], [0, 1, 2, 2]])


@pytest.mark.usefixtures("tokenizer")
@pytest.mark.parametrize("max_length", [None, 5, 64])
def test_a_text_longer_than_the_models_fixed_size_is_refused_wherever_it_stands(tmp_path, opened, max_length):
    (tmp_path / "e.txt").write_text("bad\n" * 5 + "a good film\n")
    with pytest.raises(DataError) as caught:
        opened("input_ids=int64[batch,4]", "e.txt", preprocess=entry(max_length=max_length), batch=2)
    assert "line 6 has 5 tokens, but 'input_ids' takes 4" in caught.value.message
    assert "larger size" in caught.value.fix and "`max_length: 4`" in caught.value.fix


@pytest.mark.usefixtures("tokenizer")
def test_the_count_of_a_text_that_was_cut_says_so(tmp_path, opened):
    (tmp_path / "e.txt").write_text("a good film bad\n")
    with pytest.raises(DataError, match="5 tokens after the cut at its max_length, but 'input_ids' takes 4"):
        opened("input_ids=int64[batch,4]", "e.txt", preprocess=entry(max_length=5))


@pytest.mark.usefixtures("tokenizer")
@pytest.mark.parametrize(("max_length", "ids"), [(64, [1, 4, 5, 6, 2, 3]), (3, [1, 4, 2, 3, 3, 3])])
def test_texts_are_cut_at_max_length_alone_and_padded_to_the_fixed_size(tmp_path, opened, max_length, ids):
    (tmp_path / "e.txt").write_text("a good film\n")
    data = opened("input_ids=int64[batch,6]", "e.txt", preprocess=entry(max_length=max_length))
    np.testing.assert_array_equal(next(data.batches()).inputs["input_ids"], [ids])


def test_tokenizer_config_says_length_and_side(tmp_path, opened, tokenizer):
    settings = {"model_max_length": 4, "pad_token": {"content": "[UNK]"}, "padding_side": "left"}
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "e.txt").write_text("a good film\nbad\n")
    batch = next(opened(IDS, "e.txt", preprocess=entry()).batches())
    np.testing.assert_array_equal(batch.inputs["input_ids"], [[1, 4, 5, 2], [0, 1, 7, 2]])
    assert preprocess_files(entry(), tmp_path) == (tokenizer / "tokenizer.json", tokenizer / "tokenizer_config.json")


@pytest.mark.usefixtures("tokenizer")
def test_text_pairs_by_tab_or_two_columns(tmp_path, opened):
    (tmp_path / "e.txt").write_text("good\tbad\n")
    (tmp_path / "e.csv").write_text("first,second,label\ngood,bad,1\n")
    by_tab = next(opened(IDS, "e.txt", preprocess=entry(pair=True)).batches())
    by_column = next(opened(IDS, "e.csv", preprocess=entry(pair=True), columns={"input_ids": "first,second"}).batches())
    for batch in (by_tab, by_column):
        np.testing.assert_array_equal(batch.inputs["input_ids"], [[1, 5, 2, 7, 2]])
        np.testing.assert_array_equal(batch.inputs["token_type_ids"], [[0, 0, 0, 1, 1]])
    assert list(by_column.labels) == [1]
    (tmp_path / "e.txt").write_text("good\n")
    with pytest.raises(DataError, match=r"sample in line 1 has 1 texts"):
        opened(IDS, "e.txt", preprocess=entry(pair=True))


@pytest.mark.usefixtures("tokenizer")
def test_text_column_of_a_table(tmp_path, opened):
    (tmp_path / "e.jsonl").write_text('{"id": 3, "text": "bad film", "label": 0}\n')
    np.testing.assert_array_equal(
        next(opened(IDS, "e.jsonl", preprocess=entry()).batches()).inputs["input_ids"], [[1, 7, 6, 2]]
    )


@pytest.mark.usefixtures("tokenizer")
def test_ready_ids_are_left_alone_and_missing_ones_named(tmp_path, opened):
    ids = np.ones((2, 3), np.int64)
    np.savez(tmp_path / "e.npz", input_ids=ids, attention_mask=ids, token_type_ids=ids)
    np.testing.assert_array_equal(next(opened(IDS, "e.npz", preprocess=entry()).batches()).inputs["input_ids"], ids)
    np.savez(tmp_path / "e.npz", input_ids=ids)
    with pytest.raises(DataError, match=r"nothing named 'attention_mask'"):
        opened(IDS, "e.npz", preprocess=entry())


@pytest.mark.usefixtures("tokenizer")
def test_text_that_is_no_text(tmp_path, opened):
    (tmp_path / "e.jsonl").write_text('{"text": "good"}\n{"text": 5}\n')
    with pytest.raises(DataError, match=r"sample in line 2 is a int, not text"):
        opened(IDS, "e.jsonl", preprocess=entry())


def test_missing_and_broken_tokenizer(tmp_path, opened):
    (tmp_path / "e.txt").write_text("good\n")
    with pytest.raises(DataError, match=r"no tokenizer.json in .*tok"):
        opened(IDS, "e.txt", preprocess=entry())
    (tmp_path / "tok").mkdir()
    (tmp_path / "tok" / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"tokenizer.json cannot be read"):
        opened(IDS, "e.txt", preprocess=entry())


def test_digest_sees_the_tokenizer(tmp_path, opened, tokenizer):
    (tmp_path / "e.txt").write_text("good\n")
    before = opened(IDS, "e.txt", preprocess=entry()).digest
    text = (tokenizer / "tokenizer.json").read_text()
    (tokenizer / "tokenizer.json").write_text(text.replace('"film"', '"movie"'))
    assert opened(IDS, "e.txt", preprocess=entry()).digest != before


@pytest.mark.usefixtures("tokenizer")
def test_missing_tokenizers_names_the_command(tmp_path, opened, monkeypatch):
    (tmp_path / "e.txt").write_text("good\n")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(PackageError) as caught:
        opened(IDS, "e.txt", preprocess=entry())
    assert caught.value.fix == "pip install 'optkit[data]'"


@pytest.mark.usefixtures("tokenizer")
def test_digest_sees_the_version_of_what_reads_texts_and_images(tmp_path, opened, monkeypatch):
    (tmp_path / "e.txt").write_text("good\n")
    Image.fromarray(PIXELS).save(tmp_path / "a.png")

    def digests():
        image = opened("x=float32[batch,3,4,6]", "a.png", preprocess={"x": {"kind": "image"}})
        return {opened(IDS, "e.txt", preprocess=entry()).digest, image.digest}

    before = digests()
    assert digests() == before
    monkeypatch.setattr("importlib.metadata.version", lambda name: f"0.0.{len(name)}")
    assert not digests() & before
