import pickle

import numpy as np
import pytest

from optkit.data.synthetic import synthetic
from optkit.errors import DataError
from optkit.model.signature import Signature, TensorSpec, parse_signature


def made(signature, shapes=None, **options):
    return synthetic(Signature(parse_signature(signature)), split="evaluation", shapes=shapes or {}, **options)


def first(signature, shapes=None, **options):
    return next(made(signature, shapes, **options).batches()).inputs


def test_floats_are_standard_normal_and_marked():
    data = made("x=float32[batch,3,32,32]")
    assert (data.synthetic, data.source, data.count, data.batch) == (True, "synthetic", 16, 8)
    x = np.concatenate([batch.inputs["x"] for batch in data.batches()])
    assert x.shape == (16, 3, 32, 32)
    assert x.dtype == np.float32
    assert abs(float(x.mean())) < 0.02
    assert abs(float(x.std()) - 1) < 0.02


def test_text_inputs_by_name():
    inputs = first(
        "input_ids=int64[batch,seq]; attention_mask=int64[batch,seq]; token_type_ids=int64[batch,seq]; "
        "position_ids=int64[batch,seq]; lengths=int64[batch]; sr=int64"
    )
    assert inputs["input_ids"].shape == (8, 16)
    assert 0 <= inputs["input_ids"].min() < inputs["input_ids"].max() < 100
    assert inputs["attention_mask"].min() == 1
    assert inputs["token_type_ids"].max() == 0
    np.testing.assert_array_equal(inputs["position_ids"][3], np.arange(16))
    np.testing.assert_array_equal(inputs["lengths"], np.full(8, 16))
    assert inputs["sr"] == 16000
    assert inputs["sr"].shape == ()


def test_dims_from_shapes_else_by_name():
    shapes = {"seq": 5}
    inputs = first("a=float32[batch,seq]; b=float32[batch,channels,height,width]; c=float32[batch,seq + 1]", shapes)
    assert [value.shape[1:] for value in inputs.values()] == [(5,), (8, 32, 32), (6,)]


def test_dtypes():
    inputs = first("b=bool[batch,64]; u=uint8[batch,512]; h=float16[batch]; s=string[batch]; g=bfloat16[batch]")
    assert set(inputs["b"].ravel()) == {True, False}
    assert inputs["u"].max() > 200
    assert inputs["h"].dtype == np.float16
    assert inputs["s"].dtype.kind == "U"
    assert str(inputs["g"].dtype) == "bfloat16"


def test_batch_from_the_model_then_shapes_then_argument():
    assert made("x=float32[4,3]").batch == 4
    assert [batch.size for batch in made("x=float32[4,3]", count=6).batches()] == [4, 2]
    large = made("x=float32[batch,3]", {"batch": 32})
    assert (large.batch, large.count) == (32, 32)
    assert made("x=float32[batch,3]", batch=2, count=3).count == 3


def test_sample_axis_need_not_come_first():
    assert first("h=float32[2,batch,4]")["h"].shape == (2, 8, 4)


def test_seed_decides_and_pickling_keeps():
    a, b = made("x=float32[batch,3]"), made("x=float32[batch,3]", seed=1)
    assert a.digest == made("x=float32[batch,3]").digest != b.digest
    again = pickle.loads(pickle.dumps(a.subset(np.array([2]), "search")))
    assert (again.count, again.synthetic) == (1, True)


def test_unknown_rank_asks_for_a_signature():
    signature = Signature((TensorSpec("x", "float32", None),))
    with pytest.raises(DataError, match=r"rank of the model input 'x' is not known") as caught:
        synthetic(signature, split="evaluation", shapes={})
    assert "--signature" in caught.value.fix
