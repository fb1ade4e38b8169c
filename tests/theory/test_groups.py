"""Groups as tables: the axioms, the labels, and what is refused. Compared with matrices and permutations made here."""

import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eedkit.theory import groups
from eedkit.theory.groups import Group, parse

FACTORS = st.one_of(
    st.integers(1, 9).map("C{}".format),
    st.integers(1, 6).map("D{}".format),
    st.integers(1, 6).map("shift{}".format),
    st.sampled_from(["flip", "rgb", "sign", "shift2x3"]),
)
NAMES = st.lists(FACTORS, min_size=1, max_size=3).map("*".join)

S3 = list(itertools.permutations(range(3)))
S3_TABLE = [[S3.index(tuple(g[h[k]] for k in range(3))) for h in S3] for g in S3]


def quaternions():
    """Q8 by Hamilton's rules, signs worked out by hand: labels and table."""
    unit = {("i", "j"): "k", ("j", "k"): "i", ("k", "i"): "j"}

    def times(a, b):
        sign = a.startswith("-") != b.startswith("-")
        a, b = a.strip("-"), b.strip("-")
        if "1" in (a, b):
            c = a if b == "1" else b
        elif a == b:
            c, sign = "1", not sign
        elif (a, b) in unit:
            c = unit[a, b]
        else:
            c, sign = unit[b, a], not sign
        return f"-{c}" if sign else c

    labels = ["1", "-1", "i", "-i", "j", "-j", "k", "-k"]
    return labels, [[labels.index(times(a, b)) for b in labels] for a in labels]


def axioms_broken(group):
    """Which axiom fails, checked entry by entry; None when all hold."""
    n, t = len(group.elements), group.table
    everything = range(n)
    if any(t[a][b] not in everything for a in everything for b in everything):
        return "closure"
    if any(t[0][a] != a or t[a][0] != a for a in everything):
        return "identity"
    if any(not any(t[a][b] == 0 and t[b][a] == 0 for b in everything) for a in everything):
        return "inverse"
    if any(t[t[a][b]][c] != t[a][t[b][c]] for a in everything for b in everything for c in everything):
        return "associativity"
    return None


def order_of(name):
    sizes = {"C": 1, "D": 2, "shift": 1}
    name = name.replace("rgb", "D3").replace("sign", "C2").replace("shift2x3", "C6")
    parts = [part.rstrip("0123456789") for part in name.split("*")]
    numbers = [int(part[len(word) :] or 2) for part, word in zip(name.split("*"), parts, strict=True)]
    return math.prod(sizes.get(word, 1) * number for word, number in zip(parts, numbers, strict=True))


@settings(max_examples=60, deadline=None)
@given(NAMES.filter(lambda name: order_of(name) <= 32))
def test_every_family_and_product_obeys_the_axioms(name):
    group = parse(name)
    assert axioms_broken(group) is None
    assert group.order == len(group.elements) == len(set(group.elements)) == order_of(name)
    for g in range(group.order):
        assert group.product(g, group.inverse(g)) == group.product(group.inverse(g), g) == 0


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8])
def test_dihedral_tables_multiply_as_matrices_do(n):
    group = parse(f"D{n}")
    matrices = []
    for label in group.elements:
        angle = math.radians(float(label.lstrip("mer") or 0))
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        matrices.append((np.diag([-1.0, 1.0]) if label.startswith("m") else np.eye(2)) @ turn)
    for g, h in itertools.product(range(group.order), repeat=2):
        # labels are rounded to a hundredth of a degree
        np.testing.assert_allclose(matrices[group.product(g, h)], matrices[g] @ matrices[h], atol=1e-3)


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("C1", "e"),
        ("C2", "e r180"),
        ("C4", "e r90 r180 r270"),
        ("C8", "e r45 r90 r135 r180 r225 r270 r315"),
        ("C3", "e r120 r240"),
        ("C7", "e r51.43 r102.86 r154.29 r205.71 r257.14 r308.57"),
        ("D1", "e m"),
        ("D2", "e r180 m mr180"),
        ("D4", "e r90 r180 r270 m mr90 mr180 mr270"),
        ("flip", "e m"),
        ("shift4", "e s1 s2 s3"),
        ("C2*flip", "e m r180 r180·m"),
        ("shift2*flip", "e m s1 s1·m"),
        ("C2*C2", "(e,e) (e,r180) (r180,e) (r180,r180)"),
        ("shift2x3", "e s0,1 s0,2 s1,0 s1,1 s1,2"),
        ("rgb", "e rbg grb gbr brg bgr"),
        ("sign", "e neg"),
        ("SO(2)?n=4&jitter=0", "e r90 r180 r270"),
        ("O2?n=2&jitter=0", "e r180 m mr180"),
        ("T(2)?n=2&jitter=0", "e t0,0.5 t0.5,0 t0.5,0.5"),
    ],
)
def test_elements_come_in_order_with_these_labels(name, labels):
    assert parse(name).elements == tuple(labels.split())


def test_gh_means_h_first():
    d4 = parse("D4")
    turn, mirror = d4.index("r90"), d4.index("m")
    assert d4.elements[d4.product(mirror, turn)] == "mr90"
    assert d4.elements[d4.product(turn, mirror)] == "mr270"


def test_angles_are_degrees_counter_clockwise():
    assert parse("C8").angles == (0, 45, 90, 135, 180, 225, 270, 315)
    assert parse("D2").angles == (0, 180, 0, 180)
    assert parse("shift4").angles == (0, 0, 0, 0)
    assert all(math.isnan(angle) for angle in Group("Z2", ("e", "s"), ((0, 1), (1, 0))).angles)


def test_products_multiply_part_by_part():
    both, left, right = parse("C3*shift4"), parse("C3"), parse("shift4")
    for (a, b), (c, d) in itertools.product(itertools.product(range(3), range(4)), repeat=2):
        together = both.product(a * 4 + b, c * 4 + d)
        assert together == left.product(a, c) * 4 + right.product(b, d)


def test_a_table_of_ones_own_may_be_non_abelian():
    s3 = Group("S3", [str(p) for p in S3], S3_TABLE)
    q8 = Group("Q8", *quaternions())
    assert axioms_broken(s3) is None
    assert axioms_broken(q8) is None
    assert q8.elements[q8.product(q8.index("i"), q8.index("j"))] == "k"
    assert q8.elements[q8.product(q8.index("j"), q8.index("i"))] == "-k"
    assert q8.elements[q8.inverse(q8.index("i"))] == "-i"
    assert groups.product(q8, parse("C2")).order == 16


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([("Q8", *quaternions()), ("S3", [str(p) for p in S3], S3_TABLE)]),
    st.data(),
)
def test_a_table_with_a_changed_entry_is_refused(named, data):
    name, labels, table = named
    n = len(labels)
    row, column = data.draw(st.integers(0, n - 1)), data.draw(st.integers(0, n - 1))
    entry = data.draw(st.integers(-1, n).filter(lambda k: k != table[row][column]))
    broken = [list(r) for r in table]
    broken[row][column] = entry
    with pytest.raises(ValueError, match=name):
        Group(name, labels, broken)


@pytest.mark.parametrize(
    ("elements", "table", "message"),
    [
        (("e", "a"), ((0, 1), (1, 2)), "Z is not closed: every entry of its table must be an index from 0 to 1"),
        (("a", "e"), ((1, 0), (0, 1)), r"Z: the first element \(a\) must be the identity"),
        (("e", "a"), ((0, 1), (1, 1)), "Z: a has no inverse, its row of the table repeats an element"),
        (("e", "e"), ((0, 1), (1, 0)), "a group needs different labels for its elements, got"),
        ((), (), "a group needs different labels for its elements, got"),
        (("e", "a"), ((0, 1),), "Z has 2 elements, so its table must be 2×2"),
        (("e", "a"), ((0, 1), (1,)), "Z has 2 elements, so its table must be 2×2"),
    ],
)
def test_a_broken_table_is_refused_by_the_axiom_it_breaks(elements, table, message):
    with pytest.raises(ValueError, match=message):
        Group("Z", elements, table)


def test_a_loop_that_is_not_associative_is_refused_naming_elements():
    loop = ((0, 1, 2, 3, 4), (1, 0, 3, 4, 2), (2, 4, 0, 1, 3), (3, 2, 4, 0, 1), (4, 3, 1, 2, 0))
    with pytest.raises(ValueError, match=r"L is not associative: \(\w \w\) \w differs from \w \(\w \w\)"):
        Group("L", tuple("eabcd"), loop)


def test_every_generator_is_checked_for_associativity():
    # C2 times a loop of 5: the first generator, that of C2, associates with everything
    loop = ((0, 1, 2, 3, 4), (1, 0, 3, 4, 2), (2, 4, 0, 1, 3), (3, 2, 4, 0, 1), (4, 3, 1, 2, 0))
    pairs = list(itertools.product(range(5), range(2)))
    table = [[loop[i][j] * 2 + (a + b) % 2 for j, b in pairs] for i, a in pairs]
    with pytest.raises(ValueError, match="L is not associative"):
        Group("L", tuple("eabcdfghij"), table)


@pytest.mark.parametrize("name", ["C4000", "D2000"])
def test_a_large_group_is_made_in_seconds(name):
    before = time.process_time()
    assert parse(name).order == 4000
    assert time.process_time() - before < 30


def test_the_axioms_of_a_large_own_table_take_seconds():
    n = 1000
    table = [[(a + b) % n for b in range(n)] for a in range(n)]
    before = time.process_time()
    assert Group("Z", [str(k) for k in range(n)], table).inverse(1) == n - 1
    assert time.process_time() - before < 10


@pytest.mark.parametrize("name", ["C4097", "shift4097", "D2049", "C65*flip*C64", "C99999999999"])
def test_groups_too_large_for_a_table_are_refused(name):
    with pytest.raises(ValueError, match=r"has [\d,]+ elements; a group may have 4,096, choose a smaller one"):
        parse(name)


def test_as_many_moves_as_elements_are_asked_for():
    with pytest.raises(ValueError, match="Z2 has 2 elements but 1 moves"):
        Group("Z2", ("e", "s"), ((0, 1), (1, 0)), moves=((),))


def test_elements_are_found_by_label_or_index_and_others_are_refused():
    c4 = parse("C4")
    assert (c4.index("r180"), c4.index(3)) == (2, 3)
    with pytest.raises(ValueError, match="C4 has no element 'r45'; its elements are e, r90, r180, r270"):
        c4.index("r45")
    with pytest.raises(ValueError, match="C4 has elements 0 to 3, got 4"):
        c4.index(4)
    with pytest.raises(ValueError, match="C4 has elements 0 to 3, got -1"):
        c4.index(-1)


@pytest.mark.parametrize("name", ["Z4", "c4", "C", "C4*", "", "flip2", "D-4", "C4x", "C4x4", "SO(3)", "shift4x"])
def test_unknown_names_are_refused_with_what_may_be_said(name):
    with pytest.raises(ValueError, match=r"no group .*a number n may follow C \(rotations\)"):
        parse(name)


def test_a_sample_has_one_rotation_in_each_part_of_the_circle():
    for seed in range(5):
        angles = np.array(parse(f"SO(2)?n=12&seed={seed}").angles)
        assert angles[0] == 0
        off = (angles - 30 * np.arange(12) + 180) % 360 - 180
        assert (np.abs(off) <= 15).all()
        assert np.abs(off).max() > 5
    assert parse("SO(2)?n=12&seed=1") == parse("SO2?n=12&seed=1") != parse("SO(2)?n=12&seed=2")
    assert parse("SO(2)?seed=0").name == "SO(2)?n=16"


def test_the_parts_are_drawn_from_evenly():
    off = []
    for seed in range(400):
        angles = np.array(parse(f"O(2)?n=4&seed={seed}").angles).reshape(2, 4)
        off.append(((angles - 90 * np.arange(4) + 45) % 360 - 45)[[0, 1, 1], [2, 0, 3]])
    # the mean of 1,200 numbers between −45 and 45 has a standard error of 0.75
    assert abs(np.mean(off)) < 3
    assert np.std(off) == pytest.approx(90 / math.sqrt(12), abs=1.5)


def test_products_of_samples_must_commute():
    assert parse("SO(2)?n=4*rgb").order == 24
    with pytest.raises(
        ValueError, match=r"SO\(2\)\?n=16\*flip is no direct product: r.* and then m is not m and then r"
    ):
        parse("SO(2)*flip")


@pytest.mark.parametrize("name", ["SO(2)?k=3", "SO(2)?n=x", "O2?n=-1", "T2?n"])
def test_options_of_a_sample_that_are_none_are_refused(name):
    with pytest.raises(ValueError, match=r"its options are n \(how many parts\), seed and jitter"):
        parse(name)


def test_a_sample_of_nothing_or_of_too_many_is_refused():
    with pytest.raises(ValueError, match="needs n ≥ 1, got 0"):
        parse("SO(2)?n=0")
    with pytest.raises(ValueError, match="has 8,100 elements; a group may have 4,096"):
        parse("T(2)?n=90")


def test_near_names_are_listed():
    with pytest.raises(ValueError, match="no group 'filp'; did you mean 'flip'"):
        parse("filp")
    with pytest.raises(ValueError, match="no group 'c4'; did you mean 'C4'"):
        parse("c4")


def test_a_group_of_nothing_is_refused():
    with pytest.raises(ValueError, match="Cn needs n ≥ 1, got 0"):
        parse("C0")
    with pytest.raises(TypeError, match="a group is a name such as 'C4' or a Group, got int"):
        parse(4)


def test_a_group_given_is_the_group_taken():
    mine = Group("Z2", ("e", "s"), ((0, 1), (1, 0)))
    assert parse(mine) is mine
