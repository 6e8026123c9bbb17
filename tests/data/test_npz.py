import pickle

import numpy as np
import pytest

from optkit.data.open import open_inputs
from optkit.errors import DataError
from optkit.model.signature import Signature, parse_signature

X = np.arange(30, dtype=np.float32).reshape(10, 3)


def save(path, **arrays):
    np.savez(path, **arrays)
    return path.name


def test_batches_in_order_with_labels_and_groups(tmp_path, opened):
    name = save(tmp_path / "e.npz", x=X, labels=np.arange(10), speaker=np.repeat([0, 1], 5))
    data = opened("x=float32[batch,3]", name, batch=4, groups="speaker")
    batches = list(data.batches())
    assert [batch.size for batch in batches] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate([batch.inputs["x"] for batch in batches]), X)
    np.testing.assert_array_equal(np.concatenate([batch.labels for batch in batches]), np.arange(10))
    np.testing.assert_array_equal(batches[1].groups, [0, 1, 1, 1])
    assert (data.count, data.split, data.source, data.batch, data.synthetic) == (10, "evaluation", "e.npz", 4, False)


@pytest.mark.parametrize("name", ["labels", "label", "y"])
def test_usual_label_names_are_found(tmp_path, opened, name):
    data = opened("x=float32[batch,3]", save(tmp_path / "e.npz", x=X, **{name: np.arange(10)}))
    np.testing.assert_array_equal(data.labels, np.arange(10))


def test_a_model_input_called_y_is_no_label(tmp_path, opened):
    name = save(tmp_path / "e.npz", x=X, y=X)
    assert opened("x=float32[batch,3]; y=float32[batch,3]", name).labels is None


def test_subset_and_pickle_keep_rows_labels_and_split(tmp_path, opened):
    data = opened("x=float32[batch,3]", save(tmp_path / "e.npz", x=X, labels=np.arange(10)))
    part = pickle.loads(pickle.dumps(data.subset(np.array([7, 1]), "search")))
    assert (part.split, part.count) == ("search", 2)
    np.testing.assert_array_equal(next(part.batches()).inputs["x"], X[[7, 1]])
    np.testing.assert_array_equal(part.labels, [7, 1])
    assert len(pickle.dumps(data)) < 3000  # paths and indices travel, what was read does not


def test_samples_are_drawn_with_the_seed_and_stay_sorted(tmp_path, opened):
    name = save(tmp_path / "e.npz", x=X, labels=np.arange(10))
    first = opened("x=float32[batch,3]", name, samples=4, seed=1)
    again = opened("x=float32[batch,3]", name, samples=4, seed=1)
    other = opened("x=float32[batch,3]", name, samples=4, seed=2)
    assert first.count == 4
    assert list(first.labels) == sorted(first.labels) == list(again.labels)
    assert list(first.labels) != list(other.labels)
    assert first.digest == again.digest != other.digest


def test_digest_follows_content_and_batch(tmp_path, opened):
    a = opened("x=float32[batch,3]", save(tmp_path / "a.npz", x=X))
    same = opened("x=float32[batch,3]", save(tmp_path / "b.npz", x=X))
    changed = opened("x=float32[batch,3]", save(tmp_path / "c.npz", x=X + 1))
    smaller = opened("x=float32[batch,3]", "a.npz", batch=2)
    assert a.digest == same.digest
    assert len({a.digest, changed.digest, smaller.digest, a.subset(np.array([0]), "search").digest}) == 4


def test_sample_axis_is_where_the_signature_says_batch_and_others_are_constants(tmp_path, opened):
    state = np.arange(2 * 10 * 4, dtype=np.float32).reshape(2, 10, 4)
    name = save(tmp_path / "e.npz", x=X, h=state, sr=np.int64(16000), w=np.ones(5, np.float32))
    data = opened("x=float32[batch,3]; h=float32[2,batch,4]; sr=int64; w=float32[5]", name, batch=6)
    last = list(data.batches())[1]
    assert list(last.inputs) == ["x", "h", "sr", "w"]
    np.testing.assert_array_equal(last.inputs["h"], state[:, 6:])
    assert last.inputs["sr"].shape == () and last.inputs["sr"] == 16000
    assert last.inputs["w"].shape == (5,)


def test_fixed_batch_overrides_and_pads_with_the_last_row(tmp_path, opened):
    data = opened("x=float32[4,3]", save(tmp_path / "e.npz", x=X), batch=8)
    last = list(data.batches())[-1]
    assert (data.batch, last.size) == (4, 2)
    np.testing.assert_array_equal(last.inputs["x"], X[[8, 9, 9, 9]])


def test_one_array_and_one_input_need_no_common_name(tmp_path, opened):
    np.savez(tmp_path / "e.npz", X)
    np.testing.assert_array_equal(next(opened("pixels=float32[batch,3]", "e.npz").batches()).inputs["pixels"], X[:8])


def test_an_array_of_another_name_is_taken_for_the_only_input_and_the_source_says_so(tmp_path, opened):
    name = save(tmp_path / "e.npz", data=X)
    data = opened("x=float32[batch,3]", name)
    np.testing.assert_array_equal(next(data.batches()).inputs["x"], X[:8])
    assert data.source == "e.npz, whose array 'data' is taken for the input 'x'"
    assert opened("x=float32[batch,3]", name, columns={"x": "data"}).source == "e.npz"
    np.savez(tmp_path / "nameless.npz", X)
    assert opened("x=float32[batch,3]", "nameless.npz").source == "nameless.npz"


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        ("attention_mask", "input_ids"),
        ("pixel_values", "input_ids"),
        ("audio", "image"),
        ("token_type_ids", "ids_mask"),
    ],
)
def test_an_array_called_as_another_kind_of_input_is_refused(tmp_path, opened, found, wanted):
    name = save(tmp_path / "e.npz", **{found: X})
    with pytest.raises(DataError, match=f"nothing named '{wanted}'") as caught:
        opened(f"{wanted}=float32[batch,3]", name)
    assert f"columns: {{{wanted}: NAME_IN_THE_DATA}}" in caught.value.fix


def test_an_array_called_as_an_output_is_refused(tmp_path):
    np.savez(tmp_path / "e.npz", logits=X)
    signature = Signature(parse_signature("x=float32[batch,3]"), parse_signature("logits=float32[batch,3]"))
    with pytest.raises(DataError, match="nothing named 'x'"):
        open_inputs(tmp_path / "e.npz", signature=signature, preprocess={}, assets_dir=None)


def test_columns_rename(tmp_path, opened):
    name = save(tmp_path / "e.npz", a=X, b=X + 1)
    data = opened("x=float32[batch,3]; z=float32[batch,3]", name, columns={"x": "b", "z": "a"})
    np.testing.assert_array_equal(next(data.batches()).inputs["x"], X[:8] + 1)


@pytest.mark.parametrize(
    ("found", "wanted"),
    [("int32", "int64"), ("uint8", "int32"), ("float64", "float32"), ("float16", "float32"), ("bool", "int64")],
)
def test_lossless_casts(tmp_path, opened, found, wanted):
    name = save(tmp_path / "e.npz", x=np.ones((4, 2), found))
    array = next(opened(f"x={wanted}[batch,2]", name).batches()).inputs["x"]
    assert array.dtype == wanted
    assert array.sum() == 8


def test_bfloat16_inputs(tmp_path, opened):
    name = save(tmp_path / "e.npz", x=np.ones((4, 2), np.float32))
    array = next(opened("x=bfloat16[batch,2]", name).batches()).inputs["x"]
    assert str(array.dtype) == "bfloat16"


@pytest.mark.parametrize(
    ("found", "wanted"), [("int64", "int32"), ("uint8", "float32"), ("float32", "int64"), ("int64", "bool")]
)
def test_wrong_dtype_names_input_found_and_expected(tmp_path, opened, found, wanted):
    name = save(tmp_path / "e.npz", x=np.ones((4, 2), found))
    with pytest.raises(DataError, match=rf"input 'x' are {found}, the model wants {wanted}") as caught:
        opened(f"x={wanted}[batch,2]", name)
    assert wanted in caught.value.expected
    assert ("preprocess" if found == "uint8" else "astype") in caught.value.fix


def test_float64_that_float32_cannot_hold(tmp_path, opened):
    name = save(tmp_path / "e.npz", x=np.array([[1.0], [1e300]]))
    with pytest.raises(DataError, match=r"input 'x' hold inf in row 1"):
        opened("x=float32[batch,1]", name)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_names_input_and_first_row_while_streaming(tmp_path, opened, bad):
    broken = X.copy()
    broken[9, 1] = bad
    data = opened("x=float32[batch,3]", save(tmp_path / "e.npz", x=broken), batch=4)
    batches = data.batches()
    assert next(batches).size == 4
    with pytest.raises(DataError, match=rf"input 'x' hold {bad} in row 9") as caught:
        list(batches)
    assert "finite" in caught.value.expected


def test_wrong_names_list_both_and_suggest(tmp_path, opened):
    name = save(tmp_path / "e.npz", input_id=X, mask=X)
    with pytest.raises(DataError, match=r"nothing named 'input_ids'.*did you mean 'input_id'") as caught:
        opened("input_ids=float32[batch,3]; mask=float32[batch,3]", name)
    assert caught.value.expected == "input_ids, mask; found input_id, mask"
    assert "`columns: {input_ids: NAME_IN_THE_DATA}`" in caught.value.fix


def test_columns_key_that_is_no_input(tmp_path, opened):
    name = save(tmp_path / "e.npz", x=X)
    with pytest.raises(DataError, match=r"`columns:` names 'xx', which is no input of the model.*did you mean 'x'"):
        opened("x=float32[batch,3]", name, columns={"xx": "x"})


def test_columns_value_that_is_not_there(tmp_path, opened):
    name = save(tmp_path / "e.npz", pixels=X)
    with pytest.raises(DataError, match=r"no column or array 'pixel' \(did you mean 'pixels'\?\).*`columns.x`"):
        opened("x=float32[batch,3]", name, columns={"x": "pixel"})


def test_named_labels_that_are_not_there(tmp_path, opened):
    with pytest.raises(DataError, match=r"no column or array 'target'.*`labels`"):
        opened("x=float32[batch,3]", save(tmp_path / "e.npz", x=X), labels="target")


def test_wrong_rank(tmp_path, opened):
    with pytest.raises(DataError, match=r"input 'x' have 2 axes, the model wants 4") as caught:
        opened("x=float32[batch,3,8,8]", save(tmp_path / "e.npz", x=X))
    assert "found [samples,3]" in caught.value.expected


def test_wrong_fixed_size_names_axis_found_and_expected(tmp_path, opened):
    with pytest.raises(DataError, match=r"Axis 1 of the data for the input 'x' has size 3") as caught:
        opened("x=float32[batch,4]", save(tmp_path / "e.npz", x=X))
    assert "size 4" in caught.value.expected


@pytest.mark.parametrize("other", [{"z": X[:9]}, {"z": X, "labels": np.arange(9)}])
def test_unequal_numbers_of_samples(tmp_path, opened, other):
    with pytest.raises(DataError, match=r"different numbers of samples: .*x 10.*9|9.*x 10") as caught:
        opened("x=float32[batch,3]; z=float32[batch,3]", save(tmp_path / "e.npz", x=X, **other))
    assert "same number" in caught.value.expected


def test_empty(tmp_path, opened):
    with pytest.raises(DataError, match=r"hold no samples"):
        opened("x=float32[batch,3]", save(tmp_path / "e.npz", x=X[:0]))
    np.savez(tmp_path / "nothing.npz")
    with pytest.raises(DataError, match=r"hold no samples"):
        opened("x=float32[batch,3]", "nothing.npz")


def test_object_arrays_are_never_unpickled(tmp_path, opened):
    ragged = np.empty(2, dtype=object)
    ragged[:] = [[1], [1, 2]]
    with pytest.raises(DataError, match=r"array 'x'.*Python objects, which are never loaded because that runs code"):
        opened("x=int64[batch,seq]", save(tmp_path / "e.npz", x=ragged))


def test_a_file_that_is_no_npz(tmp_path, opened):
    (tmp_path / "e.npz").write_bytes(b"not a zip")
    with pytest.raises(DataError, match=r"cannot be read as .npz"):
        opened("x=float32[batch,3]", "e.npz")


def test_scalar_for_an_input_with_samples(tmp_path, opened):
    with pytest.raises(DataError, match=r"'x'.* without a sample axis 0"):
        opened("x=float32[batch,3]", save(tmp_path / "e.npz", x=np.float32(1)))


def test_a_folder_pads_ragged_rows_per_batch(tmp_path, opened):
    folder = tmp_path / "parts"
    folder.mkdir()
    for i, length in enumerate([2, 4, 3]):
        ids = np.full((1, length), i + 1, np.int64)
        np.savez(folder / f"{i}.npz", input_ids=ids, attention_mask=np.ones_like(ids), labels=np.array([i]))
    data = opened("input_ids=int64[batch,seq]; attention_mask=int64[batch,seq]", "parts", batch=2)
    first, last = data.batches()
    np.testing.assert_array_equal(first.inputs["input_ids"], [[1, 1, 0, 0], [2, 2, 2, 2]])
    np.testing.assert_array_equal(first.inputs["attention_mask"], [[1, 1, 0, 0], [1, 1, 1, 1]])
    assert last.inputs["input_ids"].shape == (1, 3)
    np.testing.assert_array_equal(data.labels, [0, 1, 2])


def test_a_folder_with_one_sample_a_file_without_sample_axis(tmp_path, opened):
    folder = tmp_path / "parts"
    folder.mkdir()
    for i in range(3):
        np.savez(folder / f"{i}.npz", x=np.full(3, i, np.float32), labels=i)
    data = opened("x=float32[batch,3]", "parts")
    np.testing.assert_array_equal(next(data.batches()).inputs["x"], [[0] * 3, [1] * 3, [2] * 3])
    np.testing.assert_array_equal(data.labels, [0, 1, 2])


def test_a_folder_reads_across_files_and_out_of_order(tmp_path, opened):
    folder = tmp_path / "parts"
    folder.mkdir()
    np.savez(folder / "a.npz", x=X[:4])
    np.savez(folder / "b.npz", x=X[4:])
    data = opened("x=float32[batch,3]", "parts").subset(np.array([9, 0, 5, 3]), "search")
    np.testing.assert_array_equal(next(data.batches()).inputs["x"], X[[9, 0, 5, 3]])


def test_a_folder_whose_part_lacks_an_array(tmp_path, opened):
    folder = tmp_path / "parts"
    folder.mkdir()
    np.savez(folder / "a.npz", x=X)
    np.savez(folder / "b.npz", z=X)
    with pytest.raises(DataError, match=r"b.npz has no array 'x'"):
        opened("x=float32[batch,3]", "parts")


def test_a_folder_names_file_and_row_of_a_nan(tmp_path, opened):
    folder = tmp_path / "parts"
    folder.mkdir()
    np.savez(folder / "a.npz", x=X)
    np.savez(folder / "b.npz", x=np.full((2, 3), np.nan, np.float32))
    with pytest.raises(DataError, match=r"hold nan in row 0 of b.npz"):
        list(opened("x=float32[batch,3]", "parts").batches())
