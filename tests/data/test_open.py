from pathlib import Path

import numpy as np
import pytest

from optkit.data.open import infer_inputs, open_dataset, open_inputs
from optkit.data.spec import DataSource
from optkit.errors import DataError
from optkit.model.signature import Signature, TensorSpec, parse_signature

X = Signature(parse_signature("x=float32[batch,3]"))


def test_missing_path(tmp_path, opened):
    with pytest.raises(DataError, match=r"data .*nothing.npz do not exist") as caught:
        opened("x=float32[batch,3]", "nothing.npz")
    assert caught.value.expected
    assert caught.value.fix
    assert caught.value.exit_code == 3


def test_unknown_format(tmp_path, opened):
    (tmp_path / "e.parquet").write_bytes(b"")
    with pytest.raises(DataError, match=r"format of the data .*e.parquet cannot be told") as caught:
        opened("x=float32[batch,3]", "e.parquet")
    assert "npz-dir" in caught.value.expected


def test_an_empty_folder_has_no_format(tmp_path, opened):
    (tmp_path / "d").mkdir()
    with pytest.raises(DataError, match=r"cannot be told"):
        opened("x=float32[batch,3]", "d")
    with pytest.raises(DataError, match=r"holds no .npz files"):
        opened("x=float32[batch,3]", "d", format="npz-dir")
    with pytest.raises(DataError, match=r"holds no images"):
        opened("x=float32[batch,3]", "d", format="images")


def test_format_that_does_not_fit_the_path(tmp_path, opened):
    (tmp_path / "d").mkdir()
    with pytest.raises(DataError, match=r"are a folder, which the format csv is not"):
        opened("x=float32[batch,3]", "d", format="csv")


def test_stated_format_wins_over_the_ending(tmp_path, opened):
    (tmp_path / "e.dat").write_text("a,b,c\n1,2,3\n")
    np.testing.assert_array_equal(
        next(opened("x=float32[batch,3]", "e.dat", format="csv").batches()).inputs["x"], [[1, 2, 3]]
    )


def test_unknown_model_inputs(tmp_path):
    with pytest.raises(DataError, match=r"inputs of the model are not known"):
        open_dataset(
            "evaluation",
            DataSource(source="e.npz"),
            signature=Signature(),
            base=tmp_path,
            preprocess={},
            assets_dir=None,
            allow_code=False,
        )


def test_a_scalar_alone_is_a_sample_a_call(tmp_path, opened):
    np.savez(tmp_path / "e.npz", s=np.float32(1))
    assert opened("s=float32", "e.npz").count == 1
    np.savez(tmp_path / "e.npz", s=np.float32([1, 2]))
    assert [batch.inputs["s"].tolist() for batch in opened("s=float32", "e.npz").batches()] == [1, 2]


def test_unknown_rank_takes_axis_0(tmp_path):
    np.savez(tmp_path / "e.npz", x=np.ones((5, 2), np.float32))
    data = open_dataset(
        "evaluation",
        DataSource(source="e.npz", batch=3),
        signature=Signature((TensorSpec("x", "float32", None),)),
        base=tmp_path,
        preprocess={},
        assets_dir=None,
        allow_code=False,
    )
    assert [batch.inputs["x"].shape for batch in data.batches()] == [(3, 2), (2, 2)]


def test_open_inputs_takes_npz_from_anywhere(tmp_path, monkeypatch):
    np.savez(tmp_path / "i.npz", x=np.ones((5, 3), np.float32))
    monkeypatch.chdir(tmp_path)
    data = open_inputs(Path("i.npz"), signature=X, preprocess={}, assets_dir=None, batch=2)
    assert (data.split, data.count, data.batch) == ("input", 5, 2)


def test_infer_from_npz(tmp_path):
    np.savez(
        tmp_path / "e.npz", a=np.ones((5, 3), np.float32), sr=np.int64(1), s=np.array(["a"] * 5), labels=np.arange(5)
    )
    found = infer_inputs(DataSource(source="e.npz", columns={"x": "a"}), base=tmp_path)
    assert [str(spec) for spec in found] == ["x=float32[batch,3]", "sr=int64[]", "s=string[batch]"]


def test_infer_from_the_first_file_of_a_folder(tmp_path):
    np.savez(tmp_path / "b.npz", x=np.ones((5, 3), np.float32))
    np.savez(tmp_path / "a.npz", x=np.ones((2, 4), np.float32), t=np.arange(2), who=np.arange(2))
    found = infer_inputs(DataSource(source=".", labels="t", groups="who"), base=tmp_path)
    assert [str(spec) for spec in found] == ["x=float32[batch,4]"]


def test_infer_from_text_asks_for_a_signature(tmp_path):
    (tmp_path / "e.txt").write_text("a\n")
    with pytest.raises(DataError, match=r"has no dtypes and shapes") as caught:
        infer_inputs(DataSource(source="e.txt"), base=tmp_path)
    assert "--signature" in caught.value.fix
