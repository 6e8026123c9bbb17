import numpy as np
import pytest

from optkit.errors import DataError


def test_csv_one_column_an_input(tmp_path, opened):
    (tmp_path / "e.csv").write_text("age,size,label\n1,2.5,no\n3,4.5,yes\n\n5,6,no\n")
    data = opened("age=int64[batch]; size=float32[batch,1]", "e.csv")
    batch = next(data.batches())
    np.testing.assert_array_equal(batch.inputs["age"], [1, 3, 5])
    np.testing.assert_array_equal(batch.inputs["size"], np.array([[2.5], [4.5], [6]], np.float32))
    assert list(data.labels) == ["no", "yes", "no"]


def test_csv_all_columns_feed_the_only_input_in_its_shape(tmp_path, opened):
    (tmp_path / "e.csv").write_text("a,b,c,d,label\n1,2,3,4,0\n5,6,7,8,1\n")
    batch = next(opened("x=float32[batch,1,2,2]", "e.csv").batches())
    np.testing.assert_array_equal(batch.inputs["x"], np.arange(1, 9, dtype=np.float32).reshape(2, 1, 2, 2))
    np.testing.assert_array_equal(batch.labels, [0, 1])


def test_csv_several_named_columns(tmp_path, opened):
    (tmp_path / "e.csv").write_text("a,b,c\n1,2,3\n4,5,6\n")
    batch = next(opened("x=float32[batch,2]", "e.csv", columns={"x": "c, a"}).batches())
    np.testing.assert_array_equal(batch.inputs["x"], [[3, 1], [6, 4]])


def test_csv_lists_in_cells_are_padded(tmp_path, opened):
    (tmp_path / "e.csv").write_text('x\n"[1, 2, 3]"\n4 5\n')
    batch = next(opened("x=int64[batch,seq]", "e.csv").batches())
    np.testing.assert_array_equal(batch.inputs["x"], [[1, 2, 3], [4, 5, 0]])


def test_tsv(tmp_path, opened):
    (tmp_path / "e.tsv").write_text("a\tb\n1\t2\n")
    np.testing.assert_array_equal(next(opened("x=float32[batch,2]", "e.tsv").batches()).inputs["x"], [[1, 2]])


@pytest.mark.parametrize("cell", ["abc", "", "null"])
def test_csv_cell_that_is_no_number_names_the_line(tmp_path, opened, cell):
    (tmp_path / "e.csv").write_text(f"x,y\n1,0\n{cell},1\n")
    with pytest.raises(DataError, match=r"for the input 'x' in line 3 is no number"):
        opened("x=float32[batch]", "e.csv")


def test_csv_value_the_dtype_cannot_hold(tmp_path, opened):
    (tmp_path / "e.csv").write_text("x\n1\n2.5\n")
    with pytest.raises(DataError, match=r"value 2.5 for the input 'x' in line 3 is no int64"):
        opened("x=int64[batch]", "e.csv")


def test_csv_nan_names_the_line(tmp_path, opened):
    (tmp_path / "e.csv").write_text("x\n1\nnan\n")
    with pytest.raises(DataError, match=r"input 'x' hold nan in line 3"):
        opened("x=float32[batch]", "e.csv")


def test_csv_missing_column(tmp_path, opened):
    (tmp_path / "e.csv").write_text("ages,size\n1,2\n")
    with pytest.raises(DataError, match=r"nothing named 'age' .*did you mean 'ages'") as caught:
        opened("age=int64[batch]; size=float32[batch]", "e.csv")
    assert caught.value.expected == "age, size; found ages, size"


def test_csv_row_with_too_few_fields(tmp_path, opened):
    (tmp_path / "e.csv").write_text("a,b\n1,2\n3\n")
    with pytest.raises(DataError, match=r"row has 1 fields, the header has 2") as caught:
        opened("x=float32[batch,2]", "e.csv")
    assert caught.value.line == 3


def test_csv_header_with_a_repeated_name(tmp_path, opened):
    (tmp_path / "e.csv").write_text("a,a\n1,2\n")
    with pytest.raises(DataError, match=r"names the column 'a' more than once"):
        opened("x=float32[batch,2]", "e.csv")


def test_csv_that_is_not_utf8(tmp_path, opened):
    (tmp_path / "e.csv").write_bytes("x\nä\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"cannot be read as UTF-8"):
        opened("x=float32[batch]", "e.csv")


def test_csv_with_a_header_only_is_empty(tmp_path, opened):
    (tmp_path / "e.csv").write_text("x,label\n")
    with pytest.raises(DataError, match=r"hold no samples"):
        opened("x=float32[batch]", "e.csv")


def test_jsonl_ragged_lists_labels_and_groups(tmp_path, opened):
    (tmp_path / "e.jsonl").write_text(
        '{"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1], "label": 1, "doc": "a"}\n'
        '\n{"input_ids": [8], "attention_mask": [1], "label": 0, "doc": "b"}\n'
    )
    data = opened("input_ids=int64[batch,seq]; attention_mask=int32[batch,seq]", "e.jsonl", groups="doc")
    batch = next(data.batches())
    np.testing.assert_array_equal(batch.inputs["input_ids"], [[5, 6, 7], [8, 0, 0]])
    np.testing.assert_array_equal(batch.inputs["attention_mask"], [[1, 1, 1], [1, 0, 0]])
    assert batch.inputs["attention_mask"].dtype == np.int32
    assert (list(data.labels), list(data.groups)) == ([1, 0], ["a", "b"])


def test_jsonl_constant_input(tmp_path, opened):
    (tmp_path / "e.jsonl").write_text('{"x": [1.5], "sr": 16000}\n{"x": [2.5], "sr": 16000}\n')
    batch = next(opened("x=float32[batch,1]; sr=int64", "e.jsonl").batches())
    assert batch.inputs["sr"].shape == () and batch.inputs["sr"] == 16000
    (tmp_path / "e.jsonl").write_text('{"x": [1.5], "sr": 16000}\n{"x": [2.5], "sr": 8000}\n')
    with pytest.raises(DataError, match=r"input 'sr' has no sample axis, but its value changes in line 2"):
        opened("x=float32[batch,1]; sr=int64", "e.jsonl")


@pytest.mark.parametrize(("line", "said"), [("{oops", "not JSON"), ("[1]", "a JSON list, not an object")])
def test_jsonl_bad_line_is_named(tmp_path, opened, line, said):
    (tmp_path / "e.jsonl").write_text('{"x": 1}\n' + line + "\n")
    with pytest.raises(DataError, match=said) as caught:
        opened("x=float32[batch]", "e.jsonl")
    assert caught.value.line == 2
    assert str(caught.value).startswith(f"{tmp_path / 'e.jsonl'}:2")


def test_jsonl_line_without_the_key(tmp_path, opened):
    (tmp_path / "e.jsonl").write_text('{"x": 1}\n{"xx": 1}\n')
    with pytest.raises(DataError, match=r"line has no 'x'.*did you mean 'xx'") as caught:
        opened("x=float32[batch]", "e.jsonl")
    assert caught.value.line == 2


def test_jsonl_list_that_is_not_rectangular(tmp_path, opened):
    (tmp_path / "e.jsonl").write_text('{"x": [[1, 2], [3]]}\n')
    with pytest.raises(DataError, match=r"for the input 'x' in line 1 is no number"):
        opened("x=float32[batch,a,b]", "e.jsonl")


def test_text_feeds_string_inputs_and_skips_empty_lines(tmp_path, opened):
    (tmp_path / "e.txt").write_text("one\n\nthree and more\n", encoding="utf-8")
    batch = next(opened("s=string[batch]", "e.txt").batches())
    assert list(batch.inputs["s"]) == ["one", "three and more"]


def test_text_for_numbers_needs_preprocessing(tmp_path, opened):
    (tmp_path / "e.txt").write_text("a good film\n")
    with pytest.raises(DataError, match=r"'a good film' for the input 'input_ids' in line 1 is no number"):
        opened("input_ids=int64[batch,seq]", "e.txt")


def test_text_has_no_labels(tmp_path, opened):
    (tmp_path / "e.txt").write_text("a\n")
    with pytest.raises(DataError, match=r"no column or array 'label'"):
        opened("s=string[batch]", "e.txt", labels="label")
