import numpy as np
import pytest

from optkit.data.split import carve_search


@pytest.fixture
def evaluation(tmp_path, opened):
    def run(labels=None, groups=None, count=100):
        arrays = {"x": np.arange(count, dtype=np.float32)}
        arrays |= {} if labels is None else {"labels": labels}
        arrays |= {} if groups is None else {"who": groups}
        np.savez(tmp_path / "e.npz", **arrays)
        return opened("x=float32[batch]", "e.npz", groups=None if groups is None else "who")

    return run


def rows(data):
    return [int(x) for batch in data.batches() for x in batch.inputs["x"]]


def test_thirty_percent_of_each_class_seeded(evaluation):
    data = evaluation(np.repeat([0, 1, 2], [50, 40, 10]))
    search, rest = carve_search(data, seed=0)
    assert (search.count, rest.count, search.split, rest.split) == (30, 70, "search", "evaluation")
    np.testing.assert_allclose(np.bincount(search.labels), [15, 12, 3], atol=1)
    assert sorted(rows(search) + rows(rest)) == list(range(100))
    assert rows(search) == sorted(rows(search)) == rows(carve_search(data, seed=0)[0])
    assert rows(search) != rows(carve_search(data, seed=1)[0])


@pytest.mark.parametrize("labels", [None, np.linspace(0, 1, 100), np.arange(100)])
def test_without_classes_it_is_a_plain_draw(evaluation, labels):
    search, rest = carve_search(evaluation(labels), seed=0)
    assert (search.count, rest.count) == (30, 70)


def test_groups_stay_whole(evaluation):
    data = evaluation(np.tile([0, 1], 50), np.repeat(np.arange(20), 5))
    search, rest = carve_search(data, seed=0)
    assert search.count == 30
    assert not set(search.groups) & set(rest.groups)


def test_uneven_groups_leave_something_on_both_sides(evaluation):
    search, rest = carve_search(evaluation(groups=np.repeat([0, 1], [90, 10])), seed=0)
    assert {search.count, rest.count} == {90, 10}


@pytest.mark.parametrize("count", [4, 5])
def test_few_samples_still_divide(evaluation, count):
    search, rest = carve_search(evaluation(count=count), seed=0)
    assert search.count >= 1
    assert search.count + rest.count == count


def test_too_few_samples_or_one_group_are_shared(evaluation):
    for data in (evaluation(count=3), evaluation(groups=np.zeros(100))):
        search, rest = carve_search(data, seed=0)
        assert search.count == rest.count == data.count
        assert search.split == "search"
