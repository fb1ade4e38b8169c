"""Finite groups, samples of continuous ones, and what their elements do to an image.

A motion says what an element does; motions multiply, so a group of motions needs no table of its own. Knows nothing of
tensors, models or labels. Costs |G| log |G| products of motions and |G|² small integers.
"""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import permutations

import numpy as np

from eedkit.errors import short, unknown

LARGEST = 512
"""Elements of the largest group: every image is measured under each of them, and the table has their square."""


@dataclass(frozen=True)
class Motion:
    """What an element does to an image: to its channels and their sign, then a rotation, a mirror and a translation.

    `later @ earlier` is the motion that does `earlier` first. Equal motions are equal values: angles and translations are
    reduced when the value is made, and channels that stay are left out.

    Parameters
    ----------
    angle : Fraction
        Degrees counter-clockwise, from 0 to 360.
    is_mirrored : bool
        Whether left and right are exchanged after the rotation.
    down, right : Fraction
        The translation after both, in parts of the height and of the width, from 0 to 1; opposite edges meet.
    colours : tuple of int
        From which channel each channel comes; empty where they stay.
    is_negated : bool
        Whether the sign changes.

    Raises
    ------
    ValueError
        `colours` does not name every channel once. From `@`, where the product is no motion of this form: a rotation by other
        than quarter turns after a translation, or colours of different numbers of channels.

    >>> (Motion(angle=90) @ Motion(is_mirrored=True)).angle
    Fraction(270, 1)
    """

    angle: Fraction | int = Fraction(0)
    is_mirrored: bool = False
    down: Fraction | int = Fraction(0)
    right: Fraction | int = Fraction(0)
    colours: tuple[int, ...] = ()
    is_negated: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "angle", Fraction(self.angle) % 360)
        object.__setattr__(self, "down", Fraction(self.down) % 1)
        object.__setattr__(self, "right", Fraction(self.right) % 1)
        in_order = tuple(range(len(self.colours)))
        if tuple(sorted(self.colours)) != in_order:
            raise ValueError(f"colours must name each of the {len(in_order)} channels once, got {self.colours}")
        object.__setattr__(self, "colours", () if tuple(self.colours) == in_order else tuple(self.colours))

    def __matmul__(self, earlier: "Motion") -> "Motion":
        # moving a rotation past a mirror turns it round
        turn = -self.angle if earlier.is_mirrored else self.angle
        down, right = self._turned(earlier.down, earlier.right)
        return Motion(
            angle=earlier.angle + turn,
            is_mirrored=self.is_mirrored != earlier.is_mirrored,
            down=self.down + down,
            right=self.right + right,
            colours=self._permuted(earlier.colours),
            is_negated=self.is_negated != earlier.is_negated,
        )

    @property
    def inverse(self) -> "Motion":
        """The motion that undoes this one.

        >>> Motion(angle=90, down=Fraction(1, 4)).inverse @ Motion(angle=90, down=Fraction(1, 4)) == Motion()
        True
        """
        in_place = Motion(
            angle=self.angle if self.is_mirrored else -self.angle,
            is_mirrored=self.is_mirrored,
            colours=tuple(self.colours.index(channel) for channel in range(len(self.colours))),
            is_negated=self.is_negated,
        )
        return in_place @ Motion(down=-self.down, right=-self.right)

    def _turned(self, down: Fraction | int, right: Fraction | int) -> tuple[Fraction | int, Fraction | int]:
        """A translation after this rotation and mirror; only quarter turns are symmetries of an image whose edges meet."""
        if not (down or right):
            return down, right
        if self.angle % 90:
            raise ValueError(
                f"a rotation by {float(self.angle):g}° cannot follow a shift, since only quarter turns keep the edges"
            )
        for _ in range(int(self.angle // 90)):
            down, right = -right, down
        return down, -right if self.is_mirrored else right

    def _permuted(self, earlier: tuple[int, ...]) -> tuple[int, ...]:
        """From which channel each channel comes after two permutations."""
        if not (earlier and self.colours):
            return earlier or self.colours
        if len(earlier) != len(self.colours):
            raise ValueError(f"one motion permutes {len(earlier)} channels and the next one {len(self.colours)}")
        return tuple(earlier[channel] for channel in self.colours)


@dataclass(frozen=True)
class Group:
    """A finite group: `table[g][h]` is the index of gh, "h first, then g" (Kvinge et al. 2022, section 3).

    The group axioms are checked when the value is made, so a custom table is as good as a built-in group.

    Parameters
    ----------
    name : str
        What the group is called in results.
    elements : sequence of str
        Labels, the identity first.
    table : sequence of sequences of int, or None
        |G| rows of |G| indices; None takes them from the motions.
    motions : sequence of Motion, or None
        For every element, what it does to an image; None for a group without such a picture.
    is_sample : bool
        Whether these are sampled elements of a continuous group, whose products are not among them: there is no table.

    Raises
    ------
    ValueError
        A label appears twice, there are more than `LARGEST` elements, or the table or the motions break an axiom; the message
        names the elements.

    >>> two = Group("Z2", ("e", "s"), ((0, 1), (1, 0)))
    >>> two.order, two.inverses
    (2, (0, 1))
    """

    name: str
    elements: tuple[str, ...]
    table: Sequence[Sequence[int]] | None = None
    motions: tuple[Motion, ...] | None = None
    is_sample: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "elements", tuple(self.elements))
        n = len(self.elements)
        if not n or len(set(self.elements)) != n:
            raise ValueError(f"a group needs different labels for its elements, got {short(self.elements)}")
        _check_order(self.name, n)
        if self.motions is not None:
            object.__setattr__(self, "motions", tuple(self.motions))
            _check_motions(self)
        if self.is_sample:
            if self.table is not None:
                raise ValueError(
                    f"{self.name} is a sample, whose products are not among its elements; leave out its table"
                )
            return
        if self.table is None and self.motions is None:
            raise ValueError(f"{self.name} needs a table or motions; a sample of a continuous group has is_sample=True")
        table = None
        if self.table is not None:
            table = tuple(tuple(int(entry) for entry in row) for row in self.table)
            _check_axioms(self.name, self.elements, table)
        if self.motions is not None:
            by_motions = _table_of_motions(self)
            if table is not None and table != by_motions:
                _refuse_table(self, table, by_motions)
            table = by_motions
        object.__setattr__(self, "table", table)

    @property
    def order(self) -> int:
        """|G|, the number of elements."""
        return len(self.elements)

    def index(self, element: int | str) -> int:
        """The index of an element given by label or by index; an unknown label lists the ones there are."""
        if isinstance(element, str):
            if element not in self.elements:
                raise ValueError(f"{self.name} has {unknown('element', element, self.elements)}")
            return self.elements.index(element)
        if not 0 <= element < self.order:
            raise ValueError(f"{self.name} has elements 0 to {self.order - 1}, got {element}")
        return element

    @cached_property
    def products(self) -> np.ndarray:
        """The table, (g, g); ValueError for a sample of a continuous group."""
        if self.is_sample:
            raise ValueError(
                f"{self.name} is a sample of a continuous group, whose products are not among its elements; this needs a "
                "finite group such as C8"
            )
        return np.array(self.table)

    @cached_property
    def inverses(self) -> tuple[int, ...]:
        """The index of g⁻¹ for every g; ValueError for a sample of a continuous group."""
        return tuple((self.products == 0).argmax(1).tolist())

    @property
    def angles(self) -> tuple[float, ...]:
        """How far each element rotates, in degrees counter-clockwise; NaN without motions."""
        if self.motions is None:
            return (float("nan"),) * self.order
        return tuple(float(motion.angle) for motion in self.motions)

    def __str__(self) -> str:
        return self.name


def _check_order(name: str, order: int) -> None:
    if order < 1:
        raise ValueError(f"{name} has no elements, n must be at least 1; C1, say, is the group of the identity alone")
    if order > LARGEST:
        raise ValueError(f"{name} has {order:,} elements; a group may have {LARGEST}, choose a smaller one")


def _check_motions(group: Group) -> None:
    motions = group.motions or ()
    if len(motions) != group.order:
        raise ValueError(f"{group.name} has {group.order} elements but {len(motions)} motions")
    if motions[0] != Motion():
        raise ValueError(
            f"{group.name}: the first element ({group.elements[0]}) must be the identity, but it moves images"
        )
    by_motion: dict[Motion, str] = {}
    for element, motion in zip(group.elements, motions, strict=True):
        if motion in by_motion:
            raise ValueError(f"{group.name}: {by_motion[motion]} and {element} are the same motion; leave one out")
        by_motion[motion] = element


def _table_of_motions(group: Group) -> tuple[tuple[int, ...], ...]:
    """The products of the motions, of which only those with generators are computed: motions are associative."""
    motions = group.motions or ()
    index = {motion: g for g, motion in enumerate(motions)}

    def row(g: int) -> np.ndarray:
        products = [index.get(motions[g] @ motion, -1) for motion in motions]
        if -1 in products:
            first, second = group.elements[products.index(-1)], group.elements[g]
            raise ValueError(
                f"{group.name} is not closed: {first} and then {second} is the motion of no element; add the one that is missing"
            )
        return np.array(products)

    rows, _ = _generated(group.order, row)
    return tuple(tuple(rows[g].tolist()) for g in range(group.order))


def _generated(order: int, row: Callable[[int], np.ndarray]) -> tuple[dict[int, np.ndarray], list[int]]:
    """The table's rows by generators, which are few: row g has the products of g with every element.

    `row` is asked of the generators alone; each is no product of those before it. Others follow from g′g h = g′(g h).
    """
    rows = {0: np.arange(order)}
    generators: list[int] = []
    rows_of_generators: list[np.ndarray] = []
    for element in range(order):
        if element in rows:
            continue
        generators.append(element)
        rows_of_generators.append(row(element))
        reached = list(rows)
        while reached:
            g = reached.pop()
            for by_generator in rows_of_generators:
                product = int(by_generator[g])
                if product not in rows:
                    rows[product] = by_generator[rows[g]]
                    reached.append(product)
    return rows, generators


def _refuse_table(group: Group, table: Sequence[Sequence[int]], by_motions: Sequence[Sequence[int]]) -> None:
    g, h = np.argwhere(np.array(table) != np.array(by_motions))[0]
    second, first, wanted, found = (group.elements[k] for k in (g, h, table[g][h], by_motions[g][h]))
    raise ValueError(
        f"{group.name}: by its table {first} and then {second} is {wanted}, but by its motions {found}; leave out the table"
    )


def _check_axioms(name: str, labels: Sequence[str], rows: Sequence[Sequence[int]]) -> None:
    n = len(labels)
    if len(rows) != n or any(len(row) != n for row in rows):
        raise ValueError(
            f"{name} has {n} elements, so its table must be {n}×{n}, got rows of {[len(row) for row in rows]}"
        )
    table = np.array(rows)
    index = np.arange(n)
    outside = np.argwhere((table < 0) | (table >= n))
    if len(outside):
        g, h = outside[0]
        raise ValueError(
            f"{name} is not closed: every entry of its table must be an index from 0 to {n - 1}, got {table[g, h]} for "
            f"{labels[g]} {labels[h]}; add the element that is missing"
        )
    if (table[0] != index).any() or (table[:, 0] != index).any():
        raise ValueError(
            f"{name}: the first element ({labels[0]}) must be the identity, and its row and column of the table 0 to {n - 1} in "
            f"order; got the row {short(table[0].tolist())}"
        )
    for g, row in enumerate(table):
        if (np.sort(row) != index).any():
            raise ValueError(f"{name}: {labels[g]} has no inverse, its row of the table repeats an element")
    # (ab)c = a(bc) for all a when it holds for those of which all others are products (Light's test)
    for generator in _generated(n, lambda g: table[g])[1]:
        row = table[generator]
        broken = np.argwhere(table[row] != row[table])
        if len(broken):
            a, b, c = (labels[k] for k in (generator, *broken[0]))
            raise ValueError(
                f"{name} is not associative: ({a} {b}) {c} differs from {a} ({b} {c}); correct these products"
            )


def cyclic(n: int) -> Group:
    """C_n, the rotations by multiples of 360/n degrees, counter-clockwise.

    >>> cyclic(4).elements
    ('e', 'r90', 'r180', 'r270')
    """
    _check_order(f"C{n}", n)
    motions = [Motion(angle=Fraction(360 * k, n)) for k in range(n)]
    return Group(f"C{n}", tuple(_rotation_label(motion) for motion in motions), motions=tuple(motions))


def dihedral(n: int) -> Group:
    """D_n, the symmetries of a regular n-gon: C_n, and each rotation followed by the left-right mirror m.

    >>> dihedral(4).elements
    ('e', 'r90', 'r180', 'r270', 'm', 'mr90', 'mr180', 'mr270')
    """
    _check_order(f"D{n}", 2 * n)
    turns = [Fraction(360 * k, n) for k in range(n)]
    motions = [Motion(angle=turn, is_mirrored=mirrored) for mirrored in (False, True) for turn in turns]
    return Group(f"D{n}", tuple(_rotation_label(motion) for motion in motions), motions=tuple(motions))


def mirror() -> Group:
    """The group of two elements that mirrors left-right.

    >>> mirror().elements
    ('e', 'm')
    """
    return Group("flip", ("e", "m"), motions=(Motion(), Motion(is_mirrored=True)))


def shift(rows: int, columns: int | None = None) -> Group:
    """Cyclic translations: rolls downwards by multiples of 1/rows of the height, to the right by 1/columns of the width.

    >>> shift(4).elements
    ('e', 's1', 's2', 's3')
    >>> shift(2, 2).elements
    ('e', 's0,1', 's1,0', 's1,1')
    """
    name = f"shift{rows}" if columns is None else f"shift{rows}x{columns}"
    across = 1 if columns is None else columns
    _check_order(name, min(rows, across, rows * across))
    _check_order(name, rows * across)
    labels = []
    motions = []
    for i in range(rows):
        for k in range(across):
            labels.append(f"s{i}" if columns is None else f"s{i},{k}")
            motions.append(Motion(down=Fraction(i, rows), right=Fraction(k, across)))
    return Group(name, ("e", *labels[1:]), motions=tuple(motions))


def colours() -> Group:
    """The permutations of three colour channels; "gbr" is the element after which red is what green was, and so on.

    >>> colours().elements
    ('e', 'rbg', 'grb', 'gbr', 'brg', 'bgr')
    """
    come_from = list(permutations(range(3)))
    labels = ["".join("rgb"[channel] for channel in permutation) for permutation in come_from]
    return Group("rgb", ("e", *labels[1:]), motions=tuple(Motion(colours=permutation) for permutation in come_from))


def negation() -> Group:
    """The group of two elements that changes the sign of every pixel, for images that are centred about 0.

    >>> negation().elements
    ('e', 'neg')
    """
    return Group("sign", ("e", "neg"), motions=(Motion(), Motion(is_negated=True)))


def sample(family: str, n: int, seed: int = 0, jitter: int = 1) -> Group:
    """A sample of SO(2), O(2) or T(2): one element from each of n equal parts of the circle, or n × n of a torus *[ours]*.

    Part k lies about 360 k/n degrees, or k/n of the height or width, and its element is drawn by seed (Haar measure). O(2) has
    as many other rotations followed by the mirror. The identity stands for its own part, which biases a mean over elements by
    the order of 1/n², less than its standard error, of the order of n^(-3/2). Without jitter every element is in the middle
    of its part, as in C_n.

    >>> sample("SO(2)", 4, jitter=0).angles
    (0.0, 90.0, 180.0, 270.0)
    >>> sample("O(2)", 2, jitter=0).elements
    ('e', 'r180', 'm', 'mr180')
    >>> sample("T(2)", 2, jitter=0).elements
    ('e', 't0,0.5', 't0.5,0', 't0.5,0.5')
    """
    name = f"{family}?n={n}" + (f"&seed={seed}" if seed else "") + ("" if jitter else "&jitter=0")
    _check_order(name, {"SO(2)": n, "O(2)": 2 * n, "T(2)": n * abs(n)}[family])
    draw = random.Random(seed)
    if family == "T(2)":
        motions = []
        for row in range(n):
            for column in range(n):
                down = _drawn(row, n, draw, jitter)
                motions.append(Motion(down=down, right=_drawn(column, n, draw, jitter)))
        labels = [f"t{float(motion.down):g},{float(motion.right):g}" for motion in motions]
    else:
        motions = [Motion(angle=360 * _drawn(part, n, draw, jitter)) for part in range(n)]
        if family == "O(2)":
            draw = random.Random(f"mirrored {seed}")
            motions += [Motion(angle=360 * _drawn(part, n, draw, jitter), is_mirrored=True) for part in range(n)]
        labels = [_rotation_label(motion, digits=4) for motion in motions]
    # whatever was drawn from the first part, the identity stands for it
    return Group(name, ("e", *labels[1:]), motions=(Motion(), *motions[1:]), is_sample=True)


def _drawn(part: int, n: int, draw: random.Random, jitter: int) -> Fraction:
    """A number from one of n equal parts of [0, 1), which lie about multiples of 1/n; a multiple of 1/10⁶ n."""
    off = draw.randrange(-(10**6) // 2, 10**6 // 2) if jitter else 0
    return Fraction(10**6 * part + off, 10**6 * n)


def _rotation_label(motion: Motion, digits: int = 2) -> str:
    turn = f"r{round(float(motion.angle), digits):.{digits + 3}g}" if motion.angle else ""
    return ("m" if motion.is_mirrored else "") + turn or "e"


def product(left: Group, right: Group) -> Group:
    """The direct product of two groups: pairs of elements, multiplied part by part; on images those of `right` move first.

    Raises
    ------
    ValueError
        On images an element of one does not commute with one of the other, or both have an element besides the identity.

    >>> product(parse("C2"), parse("flip")).elements
    ('e', 'm', 'r180', 'r180·m')
    """
    name = f"{left.name}*{right.name}"
    _check_order(name, left.order * right.order)
    labels = []
    for a in left.elements:
        for b in right.elements:
            labels.append("·".join(label for label in (a, b) if label != "e") or "e")
    if len(set(labels)) < len(labels):
        labels = [f"({a},{b})" for a in left.elements for b in right.elements]
    is_sample = left.is_sample or right.is_sample
    if left.motions is not None and right.motions is not None:
        return Group(name, tuple(labels), motions=_products_of_motions(name, left, right), is_sample=is_sample)
    if is_sample:
        return Group(name, tuple(labels), is_sample=True)
    of_left = left.products.repeat(right.order, 0).repeat(right.order, 1)
    of_right = np.tile(right.products, (left.order, left.order))
    return Group(name, tuple(labels), (of_left * right.order + of_right).tolist())


def _products_of_motions(name: str, left: Group, right: Group) -> tuple[Motion, ...]:
    products = []
    for a, of_left in zip(left.elements, left.motions or (), strict=True):
        for b, of_right in zip(right.elements, right.motions or (), strict=True):
            products.append(of_left @ of_right)
            if of_right @ of_left != products[-1]:
                raise ValueError(
                    f"{name} is no direct product: {a} and then {b} is not {b} and then {a}; turns and mirrors together are D4, or "
                    "O(2)"
                )
    shared = set(left.motions or ()) & set(right.motions or ()) - {Motion()}
    if shared:
        element = right.elements[(right.motions or ()).index(shared.pop())]
        raise ValueError(
            f"{name} is no direct product: {left.name} and {right.name} both have {element}; take one of them"
        )
    return tuple(products)


FAMILIES = {"C": cyclic, "D": dihedral, "shift": shift}
"""Groups that are named by a word and a number."""
NAMED = {"flip": mirror, "rgb": colours, "sign": negation}
"""Groups that stand alone."""
CONTINUOUS = {"SO(2)": 16, "O(2)": 16, "T(2)": 4}
"""Continuous groups, of which elements are sampled, and from how many parts; the brackets may be left out."""
EXAMPLES = ("C2", "C4", "C8", "D1", "D2", "D4", "shift2", "shift4", "shift4x4", "shift4*flip", *NAMED, *CONTINUOUS)
SYNTAX = (
    "a number n from 1 may follow C (rotations), D (rotations and mirrors) and shift (rolls; shift4x4 in both directions); "
    "flip, rgb and sign stand alone; SO(2), O(2) and T(2) are sampled, SO(2)?n=16&seed=0; * makes products"
)


def parse(name: str | Group) -> Group:
    """The group that a name stands for.

    | name | group |
    |---|---|
    | `C4`, `C8`, `C3` | rotations by multiples of 360/n degrees; exact for n = 1, 2, 4, else interpolated |
    | `D4`, `D8` | the same and mirrors; exact for n = 1, 2, 4 |
    | `flip` | the left-right mirror |
    | `shift4` | rolls downwards by quarters of the height |
    | `shift4x4` | rolls downwards and to the right, by quarters of height and width |
    | `rgb` | permutations of three colour channels |
    | `sign` | the sign of every pixel, for images centred about 0 |
    | `SO(2)?n=16&seed=0` | rotations, one drawn from each of n parts of the circle; `jitter=0` takes their middles |
    | `O(2)?n=16` | the same and as many mirrored ones |
    | `T(2)?n=4` | translations by any distance, one from each of n × n parts |
    | `shift4*flip`, `C4*rgb` | direct products; the last factor moves first |

    Raises
    ------
    ValueError
        Nothing is called so; the message lists near names and what there is.

    >>> parse("D2").order
    4
    >>> parse("SO2?n=8").name
    'SO(2)?n=8'
    """
    if isinstance(name, Group):
        return name
    if not isinstance(name, str):
        raise TypeError(f"a group is a name such as 'C4' or a Group, got {type(name).__name__}")
    if "*" in name:
        left, _, right = name.rpartition("*")
        return product(parse(left.strip()), parse(right.strip()))
    name = name.strip()
    if name in NAMED:
        return NAMED[name]()
    family, _, options = name.partition("?")
    bracketed = re.sub(r"^(SO|O|T)2$", r"\1(2)", family)
    if bracketed in CONTINUOUS:
        return sample(bracketed, **{"n": CONTINUOUS[bracketed], **_options(name, options)})
    match = re.fullmatch(r"([A-Za-z]+)([0-9]{1,18})(?:x([0-9]{1,18}))?", name)
    if match and match[1] in FAMILIES and (match[3] is None or match[1] == "shift"):
        return FAMILIES[match[1]](*(int(number) for number in match.group(2, 3) if number))
    raise ValueError(f"{unknown('group', name, EXAMPLES, every=False)}; {SYNTAX}")


def _options(name: str, text: str) -> dict[str, int]:
    """n, seed and jitter of a sample, from "n=16&seed=1"."""
    options: dict[str, int] = {}
    for option in filter(None, text.split("&")):
        match = re.fullmatch(r"(n|seed)=([0-9]{1,9})|(jitter)=([01])", option)
        key, number = (match[1] or match[3], match[2] or match[4]) if match else ("", "")
        if not match or key in options:
            raise ValueError(
                f"the sample {short(name)} has {short(option)}; its options are n (how many parts), seed and jitter (1 or 0), whole "
                "numbers, each at most once, as in SO(2)?n=16&seed=1"
            )
        options[key] = int(number)
    return options
