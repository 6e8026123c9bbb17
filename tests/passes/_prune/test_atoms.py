"""Union-find over arrays of atoms, and dimensions that a reshape folds."""

from __future__ import annotations

import numpy as np

from optkit.passes._prune.atoms import COPIES, HEADS, MEETS, NORMED, STAY, TOGETHER, Atoms, Fold


def classes(atoms: Atoms, ids: np.ndarray) -> int:
    return len(set(atoms.find(ids).tolist()))


def test_atoms_unite_through_chains_in_any_order():
    atoms = Atoms()
    a, b, c = (atoms.fresh(5) for _ in range(3))
    atoms.unite(c, b)
    atoms.unite(a, c[::-1].copy())
    assert classes(atoms, np.concatenate([a, b, c])) == 5
    np.testing.assert_array_equal(atoms.find(a), atoms.find(b[::-1].copy()))


def test_one_atom_may_meet_many_at_once():
    atoms = Atoms()
    one, many = atoms.fresh(1), atoms.fresh(2000)
    atoms.unite(np.repeat(one, 2000), many)
    assert classes(atoms, many) == 1


def test_pins_and_marks_go_to_the_whole_set():
    atoms = Atoms()
    a, b, c = (atoms.fresh(3) for _ in range(3))
    atoms.pin(c[:1], "because")
    atoms.mark(b[1:], HEADS)
    atoms.unite(a, b)
    atoms.unite(b, c)
    assert atoms.free(a).tolist() == [False, True, True]
    assert atoms.reason(a) == "because"
    assert [atoms.marked(a[[at]], HEADS) for at in range(3)] == [False, True, True]


def test_what_meets_a_dimension_that_stays_is_pinned_and_stays_apart():
    atoms = Atoms()
    a, b = atoms.fresh(2), atoms.fresh(2)
    for each in (a, b):
        atoms.unite(each, np.full(2, STAY))
    assert not atoms.free(np.concatenate([a, b])).any()
    assert classes(atoms, np.concatenate([a, b])) == 4
    assert atoms.reason(a) == MEETS


def settled(pinned=(), marked=(), sizes=(2, 3)):
    """Units of the six indices of a whole, and the reason of each factor."""
    atoms = Atoms()
    whole, factors = atoms.fresh(int(np.prod(sizes))), tuple(atoms.fresh(size) for size in sizes)
    for axis in pinned:
        atoms.pin(factors[axis], "pinned")
    for axis, mark in marked:
        atoms.mark(factors[axis], mark)
    Fold(whole, factors).settle(atoms)
    roots = atoms.find(whole)
    return [int(np.flatnonzero(np.unique(roots) == root)[0]) for root in roots], [atoms.reason(f) for f in factors]


def test_a_fold_follows_the_larger_factor():
    assert settled() == ([0, 1, 2, 0, 1, 2], [TOGETHER, ""])


def test_a_fold_follows_the_outer_factor_of_two_equal_ones():
    assert settled(sizes=(2, 2)) == ([0, 0, 1, 1], ["", TOGETHER])


def test_a_fold_follows_heads_first():
    assert settled(marked=[(0, HEADS)]) == ([0, 0, 0, 1, 1, 1], ["", TOGETHER])


def test_a_fold_follows_copies_last():
    assert settled(marked=[(0, HEADS), (1, HEADS), (1, COPIES)]) == ([0, 0, 0, 1, 1, 1], ["", TOGETHER])


def test_a_fold_follows_what_passes_a_norm_last():
    assert settled(marked=[(1, NORMED)]) == ([0, 0, 0, 1, 1, 1], ["", TOGETHER])


def test_a_fold_follows_what_is_free():
    assert settled(pinned=[1]) == ([0, 0, 0, 1, 1, 1], ["", "pinned"])


def test_a_fold_of_pinned_factors_is_pinned():
    atoms = Atoms()
    whole, factor = atoms.fresh(4), atoms.fresh(2)
    atoms.pin(factor, "pinned")
    Fold(whole, (factor, np.full(2, STAY))).settle(atoms)
    assert not atoms.free(whole).any()
