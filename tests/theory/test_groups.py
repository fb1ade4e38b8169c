"""Groups: motions that multiply, tables, labels, samples, and what is refused. Compared with matrices made here."""

import itertools
import math
import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eedkit.theory import groups
from eedkit.theory.groups import Group, Motion, parse

ORDERS = {f"C{n}": n for n in (1, 2, 3, 4, 8)} | {f"D{n}": 2 * n for n in (1, 2, 3, 4)} | {"shift1": 1, "shift4": 4}
ORDERS |= {"flip": 2, "rgb": 6, "sign": 2, "shift2x3": 6, "shift4*flip": 8, "shift2*shift3": 6, "C4*rgb": 24}
ORDERS |= {"C2*flip*shift2": 8, "rgb*sign": 12}

S3 = list(itertools.permutations(range(3)))
S3_TABLE = [[S3.index(tuple(g[h[k]] for k in range(3))) for h in S3] for g in S3]


def axiom_broken(group):
    """Which axiom fails, checked entry by entry; None when all hold."""
    everything, t = range(len(group.elements)), group.table
    if any(t[a][b] not in everything for a in everything for b in everything):
        return "closure"
    if any(t[0][a] != a or t[a][0] != a for a in everything):
        return "identity"
    if any(not any(t[a][b] == 0 and t[b][a] == 0 for b in everything) for a in everything):
        return "inverse"
    if any(t[t[a][b]][c] != t[a][t[b][c]] for a in everything for b in everything for c in everything):
        return "associativity"
    return None


QUARTERS = st.sampled_from([Fraction(quarter, 4) for quarter in range(4)])
MOTIONS = st.builds(
    Motion,
    angle=st.sampled_from([0, 90, 180, 270]),
    is_mirrored=st.booleans(),
    down=QUARTERS,
    right=QUARTERS,
    colours=st.sampled_from([(), *S3]),
    is_negated=st.booleans(),
)


def moved(motion, image):
    """What a motion does to an image (3, 4, 4), by numpy."""
    image = image[list(motion.colours)] if motion.colours else image
    image = -image if motion.is_negated else image
    image = np.rot90(image, int(motion.angle // 90), (1, 2))
    image = image[:, :, ::-1] if motion.is_mirrored else image
    return np.roll(image, (int(4 * motion.down), int(4 * motion.right)), (1, 2))


@settings(max_examples=200, deadline=None)
@given(MOTIONS, MOTIONS)
def test_motions_multiply_as_images_move(later, earlier):
    image = np.random.default_rng(0).random((3, 4, 4))
    np.testing.assert_array_equal(moved(later @ earlier, image), moved(later, moved(earlier, image)))
    assert later.inverse @ later == later @ later.inverse == Motion()
    assert hash(later @ Motion(angle=360, down=-1, colours=(0, 1, 2))) == hash(later)


@pytest.mark.parametrize("name", ORDERS)
def test_every_named_group_obeys_the_axioms(name):
    group = parse(name)
    assert axiom_broken(group) is None
    assert group.order == len(group.elements) == len(set(group.elements)) == ORDERS[name]
    for g, inverse in enumerate(group.inverses):
        assert group.products[g, inverse] == group.products[inverse, g] == 0


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
        np.testing.assert_allclose(matrices[group.products[g, h]], matrices[g] @ matrices[h], atol=1e-3)


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("C1", "e"),
        ("C4", "e r90 r180 r270"),
        ("C7", "e r51.43 r102.86 r154.29 r205.71 r257.14 r308.57"),
        ("D1", "e m"),
        ("D2", "e r180 m mr180"),
        ("D4", "e r90 r180 r270 m mr90 mr180 mr270"),
        ("flip", "e m"),
        ("shift4", "e s1 s2 s3"),
        ("shift2x3", "e s0,1 s0,2 s1,0 s1,1 s1,2"),
        ("C2*flip", "e m r180 r180·m"),
        ("shift2*flip", "e m s1 s1·m"),
        ("shift2*shift3", "(e,e) (e,s1) (e,s2) (s1,e) (s1,s1) (s1,s2)"),
        ("rgb", "e rbg grb gbr brg bgr"),
        ("sign", "e neg"),
        ("SO(2)?n=4&jitter=0", "e r90 r180 r270"),
        ("O2?n=2&jitter=0", "e r180 m mr180"),
        ("T(2)?n=2&jitter=0", "e t0,0.5 t0.5,0 t0.5,0.5"),
        # drawn by seed: these stay as they were in versions 1 and 2
        ("SO(2)?n=4&seed=1", "e r98.7168 r214.9738 r300.7111"),
        ("O(2)?n=3&seed=7", "e r179.269 r198.9811 mr6.6018 mr143.1122 mr196.6262"),
        ("T(2)?n=2&seed=5", "e t0.13891,0.437976 t0.66691,0.111992 t0.744115,0.691194"),
    ],
)
def test_elements_come_in_order_with_these_labels(name, labels):
    assert parse(name).elements == tuple(labels.split())


def test_gh_means_h_first():
    d4 = parse("D4")
    turn, mirror = d4.index("r90"), d4.index("m")
    assert d4.elements[d4.products[mirror, turn]] == "mr90"
    assert d4.elements[d4.products[turn, mirror]] == "mr270"


def test_angles_are_degrees_counter_clockwise():
    assert parse("C8").angles == (0, 45, 90, 135, 180, 225, 270, 315)
    assert parse("D2").angles == (0, 180, 0, 180)
    assert all(math.isnan(angle) for angle in Group("Z2", ("e", "s"), ((0, 1), (1, 0))).angles)


def test_products_multiply_part_by_part():
    z2 = Group("Z2", ("e", "s"), ((0, 1), (1, 0)))
    for left, right in ((parse("D3"), parse("rgb")), (Group("S3", [str(p) for p in S3], S3_TABLE), z2)):
        both = groups.direct_product(left, right)
        pairs = list(itertools.product(range(left.order), range(right.order)))
        for (i, (a, b)), (k, (c, d)) in itertools.product(enumerate(pairs), repeat=2):
            assert pairs[both.products[i, k]] == (left.products[a, c], right.products[b, d])


LOOP = ((0, 1, 2, 3, 4), (1, 0, 3, 4, 2), (2, 4, 0, 1, 3), (3, 2, 4, 0, 1), (4, 3, 1, 2, 0))
QUARTER = Motion(angle=90)
TURNS = (Motion(), QUARTER, QUARTER @ QUARTER, QUARTER.inverse)
KLEIN = ((0, 1, 2, 3), (1, 0, 3, 2), (2, 3, 0, 1), (3, 2, 1, 0))
BROKEN = {
    r"not closed: every entry of its table must be an index from 0 to 1, got 2 for a a": ("ea", ((0, 1), (1, 2))),
    r"the first element \(a\) must be the identity, .* got the row \[1, 0\]": ("ae", ((1, 0), (0, 1))),
    r"Z: a has no inverse, its row of the table repeats an element": ("ea", ((0, 1), (1, 1))),
    r"a group needs different labels for its elements, got \('e', 'e'\)": ("ee", ((0, 1), (1, 0))),
    r"a group needs different labels for its elements, got \(\)": ("", ()),
    r"Z has 2 elements, so its table must be 2×2, got rows of \[2\]": ("ea", ((0, 1),)),
    r"Z has 2 elements, so its table must be 2×2, got rows of \[2, 1\]": ("ea", ((0, 1), (1,))),
    r"Z is not associative: \([abcd] [abcd]\) [abcd] differs from [abcd] \([abcd] [abcd]\); correct": ("eabcd", LOOP),
    r"Z needs a table or motions; a sample of a continuous group has is_sample=True": ("ea", None),
    r"Z has 2 elements but 1 motions": ("ea", None, TURNS[:1]),
    r"Z: the first element \(e\) must be the identity, but its motion moves images": ("ea", None, TURNS[1::-1]),
    r"Z is not closed: a and then a is the motion of no element; add it": ("ea", None, TURNS[:2]),
    r"Z: two elements are the same motion; leave one of them out": ("ea", None, (Motion(), Motion())),
    r"the motions of Z multiply otherwise than its table says; leave out the table": ("eabc", KLEIN, TURNS),
    r"colours of one number of channels are needed, got \(1, 0, 2\) and \(1, 0\)": (
        "eab",
        None,
        (Motion(), Motion(colours=(1, 0)), Motion(colours=(1, 0, 2))),
    ),
    r"Z is a sample, whose products are not among its elements; leave out its table": ("ea", KLEIN, None, True),
}


@pytest.mark.parametrize("message", BROKEN)
def test_what_breaks_an_axiom_is_refused(message):
    with pytest.raises(ValueError, match=message):
        Group("Z", *BROKEN[message])


XOR = [[a ^ b for b in range(512)] for a in range(512)]


@pytest.mark.parametrize(
    "make", [lambda: parse("D256"), lambda: parse("shift16x32"), lambda: Group("Z", list(map(str, range(512))), XOR)]
)
def test_the_largest_groups_are_made_in_a_second(make):
    before = time.process_time()
    assert make().order == 512
    assert time.process_time() - before < 2


def test_elements_are_found_by_label_or_index_and_others_are_refused():
    c4 = parse("C4")
    assert (c4.index("r180"), c4.index(3)) == (2, 3)
    with pytest.raises(ValueError, match=r"C4 has no element 'r45' \(all 4: e, r90, r180, r270\)"):
        c4.index("r45")
    for index in (4, -1):
        with pytest.raises(ValueError, match=f"C4 has elements 0 to 3, got {index}"):
            c4.index(index)


REFUSED = {
    r"no group .*a number n from 1 may follow C \(rotations\)": (
        "Z4",
        "C4*",
        "",
        "flip2",
        "C4x4",
        "SO(3)",
        "C４",
        "C4\n",
    ),
    "no group 'filp'; did you mean 'flip'": ("filp",),
    r"has [\d,]+ elements; a group may have 512, choose a smaller one": ("C513", "D257", "C65*sign*rgb", "T(2)?n=90"),
    "has no elements, n must be at least 1; C1, say": ("C0", "D0", "shift0x4", "SO(2)?n=0"),
    r"its options are n \(how many parts\), seed and jitter .* each once": tuple(
        f"SO(2)?{option}" for option in ("k=3", "n=-1", "n", "n=٤", "n=4&n=5", "jitter=2")
    ),
    r"colours must name each of the 3 channels once, got \(0, 0, 1\)": (lambda: Motion(colours=(0, 0, 1)),),
    "a group is a name such as 'C4' or a Group, got int": (lambda: parse(4),),
    "this needs a finite group such as C8": (lambda: parse("SO2").products, lambda: parse("SO2").inverses),
}


@pytest.mark.parametrize(("message", "given"), [(message, one) for message, some in REFUSED.items() for one in some])
def test_what_names_no_group_is_refused(message, given):
    with pytest.raises((ValueError, TypeError), match=message):
        given() if callable(given) else parse(given)


def test_names_stand_for_equal_groups():
    mine = Group("Z2", ("e", "s"), ((0, 1), (1, 0)))
    assert parse(mine) is mine
    assert parse("SO(2)?n=12&seed=1") == parse("SO2?n=12&seed=1") != parse("SO(2)?n=12&seed=2")
    assert parse("SO(2)?seed=0").name == "SO(2)?n=16"


def test_a_sample_has_one_rotation_in_each_part_of_the_circle():
    for seed in range(5):
        angles = np.array(parse(f"SO(2)?n=12&seed={seed}").angles)
        assert angles[0] == 0
        off = (angles - 30 * np.arange(12) + 180) % 360 - 180
        assert (np.abs(off) <= 15).all()
        assert np.abs(off).max() > 5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("C4*flip", "r90 and then m is not m and then r90; D4 and O.2. have turns and mirrors together"),
        ("flip*C4", "m and then r90 is not r90 and then m; D4 and O.2. have"),
        ("SO(2)*flip", "r.* and then m is not m and then r"),
        ("shift3*C2", "s1 and then r180 is not r180 and then s1"),
        ("flip*flip", "both factors have m; take one of them"),
        ("C4*C2", "both factors have r180; take one of them"),
        ("shift4*C8", "only quarter turns can follow a shift, .* got 45°"),
    ],
)
def test_factors_must_commute_and_share_nothing(name, message):
    with pytest.raises(ValueError, match=message):
        parse(name)
    assert parse("SO(2)?n=4*rgb").order == 24
