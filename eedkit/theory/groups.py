"""Finite groups, samples of continuous ones, and what their elements do to an image.

A motion says what an element does; motions multiply, so a group of motions needs no table of its own. Knows nothing of
tensors, models or labels. Costs |G| log |G| products of motions and |G|² small integers.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import permutations, product

import numpy as np

from eedkit.errors import short, unknown

LARGEST = 512
"""Elements of the largest group: every image is measured under each of them, and the table has their square."""


@dataclass(frozen=True)
class Motion:
    """What an element does to an image: to its channels and their sign, then a rotation, a mirror and a translation.

    `later @ earlier` does `earlier` first. Equal motions are equal values: angles and translations are reduced when the
    value is made, and channels that stay are left out.

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
        in_order = list(range(len(self.colours)))
        if sorted(self.colours) != in_order:
            raise ValueError(f"colours must name each of the {len(in_order)} channels once, got {self.colours}")
        object.__setattr__(self, "colours", () if list(self.colours) == in_order else tuple(self.colours))

    def __matmul__(self, earlier: "Motion") -> "Motion":
        """This motion after an earlier one; ValueError where together they are no motion of this form."""
        down, right = earlier.down, earlier.right
        if self.angle % 90 and (down or right):
            raise ValueError(
                f"only quarter turns can follow a shift, since others do not keep the edges, got {self.angle}°"
            )
        for _ in range(int(self.angle // 90)):
            down, right = -right, down
        colours = earlier.colours or self.colours
        if earlier.colours and self.colours:
            if len(earlier.colours) != len(self.colours):
                raise ValueError(
                    f"colours of one number of channels are needed, got {earlier.colours} and {self.colours}"
                )
            colours = tuple(earlier.colours[channel] for channel in self.colours)
        return Motion(
            # moving a rotation past a mirror turns it round
            angle=earlier.angle + (-self.angle if earlier.is_mirrored else self.angle),
            is_mirrored=self.is_mirrored != earlier.is_mirrored,
            down=self.down + down,
            right=self.right + (-right if self.is_mirrored else right),
            colours=colours,
            is_negated=self.is_negated != earlier.is_negated,
        )

    @property
    def inverse(self) -> "Motion":
        """The motion that undoes this one: `motion.inverse @ motion == Motion()`."""
        in_place = Motion(
            angle=self.angle if self.is_mirrored else -self.angle,
            is_mirrored=self.is_mirrored,
            colours=tuple(self.colours.index(channel) for channel in range(len(self.colours))),
            is_negated=self.is_negated,
        )
        return in_place @ Motion(down=-self.down, right=-self.right)


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
        A label appears twice, there are more than `LARGEST` elements, or table or motions break an axiom; the message
        names the elements.

    >>> Group("Z2", ("e", "s"), ((0, 1), (1, 0))).inverses
    (0, 1)
    """

    name: str
    elements: tuple[str, ...]
    table: Sequence[Sequence[int]] | None = None
    motions: tuple[Motion, ...] | None = None
    is_sample: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "elements", tuple(self.elements))
        if not self.elements or len(set(self.elements)) != self.order:
            raise ValueError(f"a group needs different labels for its elements, got {short(self.elements)}")
        _check_order(self.name, self.order)
        if self.motions is not None:
            object.__setattr__(self, "motions", tuple(self.motions))
            _check_motions(self.name, self.elements, self.motions)
        if self.is_sample:
            if self.table is not None:
                raise ValueError(
                    f"{self.name} is a sample, whose products are not among its elements; leave out its table"
                )
            return
        table = None if self.table is None else tuple(tuple(int(entry) for entry in row) for row in self.table)
        if self.motions is not None:
            products = _products_of_motions(self.name, self.elements, self.motions)
            if table not in (None, products):
                raise ValueError(
                    f"the motions of {self.name} multiply otherwise than its table says; leave out the table"
                )
            table = products
        elif table is not None:
            _check_axioms(self.name, self.elements, table)
        else:
            raise ValueError(f"{self.name} needs a table or motions; a sample of a continuous group has is_sample=True")
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
                f"{self.name} is a sample of a continuous group, whose products are not among its elements; "
                "this needs a finite group such as C8"
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


def _check_motions(name: str, labels: Sequence[str], motions: Sequence[Motion]) -> None:
    if len(motions) != len(labels):
        raise ValueError(f"{name} has {len(labels)} elements but {len(motions)} motions")
    if motions[0] != Motion():
        raise ValueError(f"{name}: the first element ({labels[0]}) must be the identity, but its motion moves images")
    if len(set(motions)) < len(motions):
        raise ValueError(f"{name}: two elements are the same motion; leave one of them out")


def _products_of_motions(name: str, labels: Sequence[str], motions: Sequence[Motion]) -> tuple[tuple[int, ...], ...]:
    """The table of a group of motions: rows of generators, which are few, and the others by (g h) k = g (h k)."""
    index = {motion: g for g, motion in enumerate(motions)}
    rows = {0: np.arange(len(motions))}
    generators: list[int] = []
    for element, later in enumerate(motions):
        if element in rows:
            continue
        row = [index.get(later @ earlier, -1) for earlier in motions]
        if -1 in row:
            first, second = labels[row.index(-1)], labels[element]
            raise ValueError(f"{name} is not closed: {first} and then {second} is the motion of no element; add it")
        generators.append(element)
        rows[element] = np.array(row)
        reached = list(rows)
        while reached:
            h = reached.pop()
            for g in generators:
                product_of_both = int(rows[g][h])
                if product_of_both not in rows:
                    rows[product_of_both] = rows[g][rows[h]]
                    reached.append(product_of_both)
    return tuple(tuple(rows[g].tolist()) for g in range(len(motions)))


def _check_axioms(name: str, labels: Sequence[str], rows: Sequence[Sequence[int]]) -> None:
    n = len(labels)
    if len(rows) != n or any(len(row) != n for row in rows):
        lengths = short([len(row) for row in rows])
        raise ValueError(f"{name} has {n} elements, so its table must be {n}×{n}, got rows of {lengths}")
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
            f"{name}: the first element ({labels[0]}) must be the identity, and its row and column of the table "
            f"0 to {n - 1} in order; got the row {short(table[0].tolist())}"
        )
    for a, row in enumerate(table):
        if (np.sort(row) != index).any():
            raise ValueError(f"{name}: {labels[a]} has no inverse, its row of the table repeats an element")
        broken = np.argwhere(table[row] != row[table])
        if len(broken):
            first, second, third = (labels[k] for k in (a, *broken[0]))
            raise ValueError(
                f"{name} is not associative: ({first} {second}) {third} differs from {first} ({second} {third}); "
                "correct these products"
            )


def cyclic(n: int) -> Group:
    """C_n, the rotations by multiples of 360/n degrees, counter-clockwise."""
    _check_order(f"C{n}", n)
    motions = [Motion(angle=Fraction(360 * k, n)) for k in range(n)]
    return Group(f"C{n}", tuple(map(_rotation_label, motions)), motions=tuple(motions))


def dihedral(n: int) -> Group:
    """D_n, the symmetries of a regular n-gon: C_n, and each rotation followed by the left-right mirror m."""
    _check_order(f"D{n}", 2 * n)
    turns = [Fraction(360 * k, n) for k in range(n)]
    motions = [Motion(angle=turn, is_mirrored=is_mirrored) for is_mirrored in (False, True) for turn in turns]
    return Group(f"D{n}", tuple(map(_rotation_label, motions)), motions=tuple(motions))


def shift(rows: int, columns: int | None = None) -> Group:
    """Cyclic translations: rolls downwards by multiples of 1/rows of the height, to the right by those of 1/columns.

    >>> shift(4).elements, shift(2, 2).elements
    (('e', 's1', 's2', 's3'), ('e', 's0,1', 's1,0', 's1,1'))
    """
    name = f"shift{rows}" if columns is None else f"shift{rows}x{columns}"
    across = 1 if columns is None else columns
    _check_order(name, rows * across)
    steps = list(product(range(rows), range(across)))
    labels = [f"s{i}" if columns is None else f"s{i},{k}" for i, k in steps]
    motions = [Motion(down=Fraction(i, rows), right=Fraction(k, across)) for i, k in steps]
    return Group(name, ("e", *labels[1:]), motions=tuple(motions))


def sample(family: str, n: int, seed: int = 0, jitter: int = 1) -> Group:
    """A sample of SO(2), O(2) or T(2): an element from each of n equal parts of the circle, n × n of a torus *[ours]*.

    Part k lies about 360 k/n degrees, or k/n of the height or width, and its element is drawn by seed (Haar measure);
    without jitter it is the middle. O(2) has as many other rotations followed by the mirror. The identity stands for
    its own part, which biases a mean over elements by the order of 1/n², less than its standard error of n^(-3/2).

    >>> sample("SO(2)", 4, jitter=0).angles
    (0.0, 90.0, 180.0, 270.0)
    >>> sample("T(2)", 2, jitter=0).elements
    ('e', 't0,0.5', 't0.5,0', 't0.5,0.5')
    """
    name = f"{family}?n={n}" + (f"&seed={seed}" if seed else "") + ("" if jitter else "&jitter=0")
    _check_order(name, {"SO(2)": n, "O(2)": 2 * n, "T(2)": n**2}[family])
    draw = random.Random(seed)
    if family == "T(2)":
        motions = []
        for row, column in product(range(n), repeat=2):
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
    """A number from one of n equal parts of the circle [0, 1), which lie about multiples of 1/n: steps of 1/10⁶ n."""
    off = draw.randrange(-(10**6) // 2, 10**6 // 2) if jitter else 0
    return Fraction(10**6 * part + off, 10**6 * n)


def _rotation_label(motion: Motion, digits: int = 2) -> str:
    turn = f"r{round(float(motion.angle), digits):.{digits + 3}g}" if motion.angle else ""
    return ("m" if motion.is_mirrored else "") + turn or "e"


def _colours() -> Group:
    """The permutations of three colour channels; after "gbr" red is what green was, and so on."""
    come_from = list(permutations(range(3)))
    labels = ["".join("rgb"[channel] for channel in permutation) for permutation in come_from]
    return Group("rgb", ("e", *labels[1:]), motions=tuple(Motion(colours=permutation) for permutation in come_from))


def direct_product(left: Group, right: Group) -> Group:
    """The pairs of elements of two groups, multiplied part by part; on images those of `right` move first.

    ValueError where on images they do not commute, or have an element besides the identity in common.

    >>> direct_product(parse("C2"), parse("flip")).elements
    ('e', 'm', 'r180', 'r180·m')
    """
    name = f"{left.name}*{right.name}"
    _check_order(name, left.order * right.order)
    pairs = list(product(left.elements, right.elements))
    labels = ["·".join(label for label in pair if label != "e") or "e" for pair in pairs]
    if len(set(labels)) < len(labels):
        labels = [f"({a},{b})" for a, b in pairs]
    if left.motions is not None and right.motions is not None:
        motions = []
        for (a, b), (of_left, of_right) in zip(pairs, product(left.motions, right.motions), strict=True):
            motions.append(of_left @ of_right)
            if motions[-1] != of_right @ of_left:
                raise ValueError(
                    f"{name} is no direct product: {a} and then {b} is not {b} and then {a}; "
                    "D4 and O(2) have turns and mirrors together"
                )
            if of_left == of_right != Motion():
                raise ValueError(f"{name} is no direct product: both factors have {b}; take one of them")
        return Group(name, tuple(labels), motions=tuple(motions), is_sample=left.is_sample or right.is_sample)
    # (a, b) (c, d) = (ac, bd), pairs being numbered row by row
    of_left = np.kron(left.products, np.ones_like(right.products))
    of_right = np.tile(right.products, (left.order, left.order))
    return Group(name, tuple(labels), (right.order * of_left + of_right).tolist())


FAMILIES = {"C": cyclic, "D": dihedral, "shift": shift}
"""Groups that are named by a word and a number."""
NAMED = {
    "flip": Group("flip", ("e", "m"), motions=(Motion(), Motion(is_mirrored=True))),
    "rgb": _colours(),
    "sign": Group("sign", ("e", "neg"), motions=(Motion(), Motion(is_negated=True))),
}
"""Groups that stand alone."""
CONTINUOUS = {"SO(2)": 16, "O(2)": 16, "T(2)": 4}
"""Continuous groups, of which elements are sampled, and from how many parts; the brackets may be left out."""
EXAMPLES = ("C2", "C4", "C8", "D1", "D2", "D4", "shift2", "shift4", "shift4x4", "shift4*flip", *NAMED, *CONTINUOUS)
SYNTAX = (
    "a number n from 1 may follow C (rotations), D (rotations and mirrors) and shift (rolls; shift4x4 in both "
    "directions); flip, rgb and sign stand alone; SO(2), O(2) and T(2) are sampled, SO(2)?n=16&seed=0; * makes products"
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

    >>> parse("D4").elements
    ('e', 'r90', 'r180', 'r270', 'm', 'mr90', 'mr180', 'mr270')
    >>> parse("SO2?n=8").name
    'SO(2)?n=8'
    """
    if isinstance(name, Group):
        return name
    if not isinstance(name, str):
        raise TypeError(f"a group is a name such as 'C4' or a Group, got {type(name).__name__}")
    if "*" in name:
        left, _, right = name.rpartition("*")
        return direct_product(parse(left.strip()), parse(right.strip()))
    if name in NAMED:
        return NAMED[name]
    family, _, options = name.partition("?")
    family = re.sub(r"^(SO|O|T)2$", r"\1(2)", family)
    if family in CONTINUOUS:
        return sample(family, **{"n": CONTINUOUS[family], **_options(name, options)})
    match = re.fullmatch(r"([A-Za-z]+)([0-9]{1,18})(?:x([0-9]{1,18}))?", name)
    if match and match[1] in FAMILIES and (match[3] is None or match[1] == "shift"):
        return FAMILIES[match[1]](*(int(number) for number in match.group(2, 3) if number))
    raise ValueError(f"{unknown('group', name, EXAMPLES, every=False)}; {SYNTAX}")


def _options(name: str, text: str) -> dict[str, int]:
    """n, seed and jitter of a sample, from "n=16&seed=1"."""
    options: dict[str, int] = {}
    for option in filter(None, text.split("&")):
        key, _, number = option.partition("=")
        allowed = {"n": "[0-9]{1,9}", "seed": "[0-9]{1,9}", "jitter": "[01]"}
        if key in options or not re.fullmatch(allowed.get(key, "(?!)"), number):
            raise ValueError(
                f"the sample {short(name)} has {short(option)}; its options are n (how many parts), seed and jitter "
                "(1 or 0), whole numbers, each once, as in SO(2)?n=16&seed=1"
            )
        options[key] = int(number)
    return options
