import numpy as np
import pytest
from PIL import Image

from optkit.data.open import open_inputs
from optkit.errors import DataError
from optkit.model.signature import Signature, parse_signature

ENTRY = {"x": {"kind": "image"}}
SIGNATURE = "x=float32[batch,3,2,2]"


def paint(path, value, size=(2, 2)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


def test_subfolders_are_labels_in_sorted_order(tmp_path, opened):
    for value, name in enumerate(["dog/a.png", "cat/b.png", "cat/deep/c.PNG", "dog/d.png"]):
        paint(tmp_path / "i" / name, value)
    paint(tmp_path / "i" / ".hidden" / "e.png", 9)
    data = opened(SIGNATURE, "i", preprocess=ENTRY, batch=3)
    assert [batch.size for batch in data.batches()] == [3, 1]
    assert list(data.labels) == [0, 0, 1, 1]
    seen = [int(x) for batch in data.batches() for x in batch.inputs["x"][:, 0, 0, 0]]
    assert seen == [1, 2, 0, 3]


def test_subfolders_that_are_numbers_stand_for_themselves(tmp_path, opened):
    for name in ["10/a.png", "2/b.png"]:
        paint(tmp_path / "i" / name, 0)
    assert list(opened(SIGNATURE, "i", preprocess=ENTRY).labels) == [10, 2]


def test_a_single_subfolder_or_none_gives_no_labels(tmp_path, opened):
    paint(tmp_path / "one" / "a" / "a.png", 0)
    paint(tmp_path / "flat" / "a.png", 0)
    assert opened(SIGNATURE, "one", preprocess=ENTRY).labels is None
    assert opened(SIGNATURE, "flat", preprocess=ENTRY).labels is None


def test_labels_and_groups_from_a_csv(tmp_path, opened):
    for i in range(3):
        paint(tmp_path / "i" / f"{i}.png", i)
    (tmp_path / "l.csv").write_text("file,label,scene\n2.png,7,s\n0.png,5,s\n1.png,6,t\n")
    data = opened(SIGNATURE, "i", preprocess=ENTRY, labels="l.csv", groups="scene", samples=2, seed=3)
    everything = opened(SIGNATURE, "i", preprocess=ENTRY, labels="l.csv", groups="scene")
    assert list(everything.labels) == [5, 6, 7]
    assert list(everything.groups) == ["s", "t", "s"]
    shown = next(data.batches()).inputs["x"][:, 0, 0, 0]
    np.testing.assert_array_equal(shown + 5, data.labels)
    assert data.count == 2


def test_csv_class_names_are_numbered(tmp_path, opened):
    for i in range(3):
        paint(tmp_path / "i" / f"{i}.png", i)
    (tmp_path / "l.csv").write_text("file,label\n0.png,dog\n1.png,cat\n2.png,dog\n")
    assert list(opened(SIGNATURE, "i", preprocess=ENTRY, labels="l.csv").labels) == [1, 0, 1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file,label\n0.pnk,1\n", "no row for 1 of 1 images, such as '0.png' .did you mean '0.pnk'"),
        ("file,class\n0.png,1\n", "has no column 'label'"),
    ],
)
def test_csv_that_does_not_cover_the_images(tmp_path, opened, text, said):
    paint(tmp_path / "i" / "0.png", 0)
    (tmp_path / "l.csv").write_text(text)
    with pytest.raises(DataError, match=said):
        opened(SIGNATURE, "i", preprocess=ENTRY, labels="l.csv")


def test_missing_label_csv_and_groups_without_one(tmp_path, opened):
    paint(tmp_path / "i" / "0.png", 0)
    with pytest.raises(DataError, match=r"label file .*l.csv does not exist"):
        opened(SIGNATURE, "i", preprocess=ENTRY, labels="l.csv")
    with pytest.raises(DataError, match=r"groups column 'scene' needs a .csv"):
        opened(SIGNATURE, "i", preprocess=ENTRY, groups="scene")


def test_unreadable_image_is_named(tmp_path, opened):
    paint(tmp_path / "i" / "a.png", 0)
    (tmp_path / "i" / "sub").mkdir()
    (tmp_path / "i" / "sub" / "b.png").write_bytes((tmp_path / "i" / "a.png").read_bytes()[:40])
    with pytest.raises(DataError, match=r"image sub/b.png cannot be read"):
        opened(SIGNATURE, "i", preprocess=ENTRY)


def test_images_without_preprocessing(tmp_path, opened):
    paint(tmp_path / "i" / "a.png", 0)
    with pytest.raises(DataError, match=r"Nothing says how the images of .* become the input 'x'") as caught:
        opened(SIGNATURE, "i")
    assert "kind: image" in caught.value.fix


def test_preprocess_for_an_unknown_input(tmp_path, opened):
    paint(tmp_path / "i" / "a.png", 0)
    with pytest.raises(DataError, match=r"`preprocess:` names 'xx', which is no input of the model"):
        opened(SIGNATURE, "i", preprocess={"xx": {"kind": "image"}})


def test_digest_reads_only_drawn_images_and_sees_their_content(tmp_path, opened):
    for i in range(3):
        paint(tmp_path / "i" / f"{i}.png", i)
    before = opened(SIGNATURE, "i", preprocess=ENTRY).digest
    scaled = opened(SIGNATURE, "i", preprocess={"x": {"kind": "image", "scale": 2}}).digest
    paint(tmp_path / "i" / "1.png", 200)
    assert len({before, scaled, opened(SIGNATURE, "i", preprocess=ENTRY).digest}) == 3


def test_a_table_that_names_images(tmp_path, opened):
    paint(tmp_path / "i" / "a.png", 3)
    paint(tmp_path / "i" / "b.png", 4)
    (tmp_path / "i" / "e.csv").write_text("file,label\nb.png,1\na.png,0\n")
    data = opened(SIGNATURE, "i/e.csv", preprocess=ENTRY)
    np.testing.assert_array_equal(next(data.batches()).inputs["x"][:, 0, 0, 0], [4, 3])
    before = data.digest
    paint(tmp_path / "i" / "a.png", 5)
    assert opened(SIGNATURE, "i/e.csv", preprocess=ENTRY).digest != before


def test_one_image_for_run(tmp_path):
    paint(tmp_path / "a.png", 7)
    data = open_inputs(
        tmp_path / "a.png", signature=Signature(parse_signature(SIGNATURE)), preprocess=ENTRY, assets_dir=None
    )
    assert data.count == 1
    assert float(next(data.batches()).inputs["x"].max()) == 7.0


@pytest.mark.parametrize("columns", [{}, {"image": "image"}])
def test_an_input_called_as_the_images_needs_an_entry_too(tmp_path, opened, columns):
    paint(tmp_path / "i" / "a.png", 0)
    with pytest.raises(DataError, match=r"Nothing says how the images of .* become the input 'image'") as caught:
        opened("image=float32[batch,3,2,2]", "i", columns=columns)
    assert "preprocess: {image: {kind: image" in caught.value.fix
