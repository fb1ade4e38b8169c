"""Finite groups as multiplication tables, samples of continuous ones, and what their elements do to an image.

Knows nothing of tensors, models or labels. Costs |G|² small integers.
"""

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from itertools import permutations
from operator import itemgetter
from typing import Any

from eedkit.errors import unknown

Move = tuple[str, Any]
"""One step of what an element does to an image.

("rotate", degrees counter-clockwise); ("mirror", 1) left-right; ("shift", part of the height) rolls downwards and
("shift across", part of the width) to the right, both by whole pixels; ("slide", …) and ("slide across", …) do so by any
distance; ("colours", numbers of the channels from which the channels come); ("negate", 1) changes the sign.
"""
LARGEST = 4096
"""Elements of the largest group: every image is measured under each of them, and the table has their square."""


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
        |G| rows of |G| indices; None for a sample of a continuous group, whose products are not among its elements.
    moves : sequence of sequences of Move, or None
        For every element, what it does to an image, first to last; None for a group without such a picture.

    Raises
    ------
    ValueError
        A label appears twice, there are more than `LARGEST` elements, or the table breaks an axiom; the message names the
        elements.

    >>> two = Group("Z2", ("e", "s"), ((0, 1), (1, 0)))
    >>> two.order, two.inverse(1)
    (2, 1)
    """

    name: str
    elements: tuple[str, ...]
    table: tuple[tuple[int, ...], ...] | None
    moves: tuple[tuple[Move, ...], ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "elements", tuple(self.elements))
        if self.table is not None:
            object.__setattr__(self, "table", tuple(tuple(map(int, row)) for row in self.table))
        _check_elements(self)
        if self.table is not None:
            _check_axioms(self)

    @property
    def order(self) -> int:
        """|G|, the number of elements."""
        return len(self.elements)

    def index(self, element: int | str) -> int:
        """The index of an element given by label or by index; an unknown label lists the ones there are."""
        if isinstance(element, str):
            if element not in self.elements:
                raise ValueError(f"{self.name} has no element {element!r}; its elements are {', '.join(self.elements)}")
            return self.elements.index(element)
        if not 0 <= element < self.order:
            raise ValueError(f"{self.name} has elements 0 to {self.order - 1}, got {element}")
        return element

    @property
    def is_sample(self) -> bool:
        """Whether these are sampled elements of a continuous group."""
        return self.table is None

    def product(self, g: int, h: int) -> int:
        """The index of gh (h first, then g); ValueError for a sample of a continuous group."""
        return self.products[g][h]

    @cached_property
    def inverses(self) -> tuple[int, ...]:
        """The index of g⁻¹ for every g; ValueError for a sample of a continuous group."""
        return tuple(row.index(0) for row in self.products)

    @property
    def products(self) -> tuple[tuple[int, ...], ...]:
        """The table; ValueError for a sample of a continuous group."""
        if self.table is None:
            raise ValueError(
                f"{self.name} is a sample of a continuous group, whose products are not among its elements; this needs a "
                "finite group such as C8"
            )
        return self.table

    @cached_property
    def effects(self) -> tuple["Effect", ...]:
        """What each element does to an image, all its moves together; ValueError for a group without moves."""
        if self.moves is None:
            raise ValueError(f"{self.name} has no moves on the plane; give an Action of your own instead of a Group")
        return tuple(effect(moves) for moves in self.moves)

    def inverse(self, g: int) -> int:
        """The index of g⁻¹."""
        return self.inverses[g]

    @property
    def angles(self) -> tuple[float, ...]:
        """How far each element rotates, in degrees counter-clockwise, NaN without moves."""
        if self.moves is None:
            return (float("nan"),) * self.order
        return tuple(float(sum(by for step, by in move if step == "rotate") % 360) for move in self.moves)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Effect:
    """What the moves of an element do to an image together: channels, then a rotation, a mirror, a translation.

    Parameters
    ----------
    angle : Fraction
        Degrees counter-clockwise, from 0 to 360.
    is_mirrored : bool
        Whether left and right are exchanged after the rotation.
    down, right : Fraction
        The translation after both, in parts of the height and of the width, from 0 to 1.
    slides : bool
        Whether the translation may end between two pixels.
    colours : tuple of int
        From which channel each channel comes; empty where they stay.
    is_negated : bool
        Whether the sign changes.
    """

    angle: Fraction = Fraction(0)
    is_mirrored: bool = False
    down: Fraction = Fraction(0)
    right: Fraction = Fraction(0)
    slides: bool = False
    colours: tuple[int, ...] = ()
    is_negated: bool = False

    @property
    def interpolates(self) -> bool:
        """Whether values between pixels are needed."""
        return self.slides or self.angle % 90 != 0


def effect(moves: Iterable[Move]) -> Effect:
    """What moves do together, first to last.

    >>> effect([("mirror", Fraction(1)), ("rotate", Fraction(90))]).angle
    Fraction(270, 1)
    """
    together = Effect()
    for step, by in moves:
        together = _then(together, step, by)
    # what stays has one name, so that equal effects are equal values
    if together.colours == tuple(range(len(together.colours))):
        together = replace(together, colours=())
    return together


def _then(before: Effect, step: str, by: Any) -> Effect:
    """The effect of a step after others."""
    if step == "rotate":
        # moving a rotation past a mirror turns it round
        angle = before.angle - by if before.is_mirrored else before.angle + by
        down, right = _turned(before.down, before.right, by)
        return replace(before, angle=angle % 360, down=down, right=right)
    if step == "mirror":
        return replace(before, is_mirrored=not before.is_mirrored, right=-before.right % 1)
    if step in ("shift", "slide"):
        return replace(before, down=(before.down + by) % 1, slides=before.slides or step == "slide")
    if step in ("shift across", "slide across"):
        return replace(before, right=(before.right + by) % 1, slides=before.slides or step == "slide across")
    if step == "colours":
        come_from = before.colours or tuple(range(len(by)))
        return replace(before, colours=tuple(come_from[channel] for channel in by))
    if step == "negate":
        return replace(before, is_negated=not before.is_negated)
    known = "rotate, mirror, shift, shift across, slide, slide across, colours, negate"
    raise ValueError(f"a group's move starts with one of {known}, got {step!r}")


def _turned(down: Fraction, right: Fraction, by: Fraction) -> tuple[Fraction, Fraction]:
    """A translation after a rotation; of a torus only quarter turns are symmetries."""
    if by % 90 and (down or right):
        raise ValueError(f"a rotation by {float(by):g}° cannot follow a shift, since only quarter turns keep the edges")
    for _ in range(int(by % 360 // 90)):
        down, right = -right % 1, down
    return down, right


def _check_elements(group: Group) -> None:
    labels = group.elements
    n = len(labels)
    if not n or len(set(labels)) != n:
        raise ValueError(f"a group needs different labels for its elements, got {labels}")
    _check_order(group.name, n)
    if group.moves is not None and len(group.moves) != n:
        raise ValueError(f"{group.name} has {n} elements but {len(group.moves)} moves")


def _check_axioms(group: Group) -> None:
    table, labels, n = group.products, group.elements, len(group.elements)
    if len(table) != n or any(len(row) != n for row in table):
        raise ValueError(
            f"{group.name} has {n} elements, so its table must be {n}×{n}, got rows of {[len(row) for row in table]}"
        )
    for row in table:
        outside = [entry for entry in row if not 0 <= entry < n]
        if outside:
            raise ValueError(
                f"{group.name} is not closed: every entry of its table must be an index from 0 to {n - 1}, got {outside[0]}; "
                "add the element that is missing"
            )
    if any(table[0][g] != g or table[g][0] != g for g in range(n)):
        raise ValueError(
            f"{group.name}: the first element ({labels[0]}) must be the identity, and its row and column of the table 0 to "
            f"{n - 1} in order; got the row {list(table[0])}"
        )
    for g in range(n):
        if sorted(table[g]) != list(range(n)):
            raise ValueError(f"{group.name}: {labels[g]} has no inverse, its row of the table repeats an element")
    _check_associativity(group)


def generators(table: Sequence[Sequence[int]]) -> Iterator[int]:
    """Elements of which all others are products: each is none of the products of those before it.

    >>> list(generators(cyclic(4).table))
    [1]
    """
    chosen = []
    generated = {0}
    for element in range(len(table)):
        if element in generated:
            continue
        yield element
        chosen.append(element)
        new = list(generated)
        while new:
            last = new.pop()
            reached = {table[last][generator] for generator in chosen} - generated
            generated |= reached
            new.extend(reached)


def _check_associativity(group: Group) -> None:
    """(ab)c = a(bc) for every a and c, and for b the generators alone (Light's test): |G|² log |G| instead of |G|³.

    The b for which it holds are closed under products, and each generator at least doubles what is generated.
    """
    table, labels = group.products, group.elements
    for b in generators(table):
        after_b = itemgetter(*table[b])
        for a, row in enumerate(table):
            if table[row[b]] != after_b(row):
                c = next(c for c in range(len(table)) if table[row[b]][c] != row[table[b][c]])
                a, b, c = labels[a], labels[b], labels[c]
                raise ValueError(
                    f"{group.name} is not associative: ({a} {b}) {c} differs from {a} ({b} {c}); correct these products in its table"
                )


def _check_order(name: str, order: int) -> None:
    if order > LARGEST:
        raise ValueError(f"{name} has {order:,} elements; a group may have {LARGEST:,}, choose a smaller one")


def cyclic(n: int) -> Group:
    """C_n, the rotations by multiples of 360/n degrees, counter-clockwise.

    >>> cyclic(4).elements
    ('e', 'r90', 'r180', 'r270')
    """
    turns = [Fraction(360 * k, n) for k in range(_checked(n, "C"))]
    twice = tuple(range(n)) * 2
    return Group(
        f"C{n}",
        tuple(_rotation_label(turn) for turn in turns),
        tuple(twice[i : i + n] for i in range(n)),
        tuple((("rotate", turn),) if turn else () for turn in turns),
    )


def dihedral(n: int) -> Group:
    """D_n, the symmetries of a regular n-gon: C_n, and each rotation followed by the left-right mirror m.

    >>> dihedral(4).elements
    ('e', 'r90', 'r180', 'r270', 'm', 'mr90', 'mr180', 'mr270')
    """
    _check_order(f"D{n}", 2 * n)
    rotations = cyclic(n)
    names = ["m" if label == "e" else f"m{label}" for label in rotations.elements]
    # m^a r^i · m^b r^j = m^(a+b) r^(±i+j): moving a rotation past a mirror turns it round
    turned = tuple(range(n)) * 2
    flipped = tuple(range(n, 2 * n)) * 2
    of_rotations = [(*turned[i : i + n], *flipped[n - i : 2 * n - i]) for i in range(n)]
    of_mirrors = [(*flipped[i : i + n], *turned[n - i : 2 * n - i]) for i in range(n)]
    moves = rotations.moves or ()
    mirrored = tuple((*move, ("mirror", Fraction(1))) for move in moves)
    return Group(f"D{n}", (*rotations.elements, *names), (*of_rotations, *of_mirrors), (*moves, *mirrored))


def mirror() -> Group:
    """The group of two elements that mirrors left-right.

    >>> mirror().elements
    ('e', 'm')
    """
    return Group("flip", ("e", "m"), ((0, 1), (1, 0)), ((), (("mirror", Fraction(1)),)))


def shift(rows: int, columns: int | None = None) -> Group:
    """Cyclic translations: rolls downwards by multiples of 1/rows of the height, to the right by 1/columns of the width.

    >>> shift(4).elements
    ('e', 's1', 's2', 's3')
    >>> shift(2, 2).elements
    ('e', 's0,1', 's1,0', 's1,1')
    """
    if columns is None:
        steps = range(_checked(rows, "shift"))
        return Group(
            f"shift{rows}",
            tuple(f"s{k}" if k else "e" for k in steps),
            cyclic(rows).table,
            tuple((("shift", Fraction(k, rows)),) if k else () for k in steps),
        )
    downwards = shift(rows)
    across = cyclic(_checked(columns, "shift"))
    across_moves = tuple((("shift across", Fraction(k, columns)),) if k else () for k in range(columns))
    both = product(downwards, Group(f"across{columns}", across.elements, across.table, across_moves))
    labels = tuple(f"s{i},{k}" for i in range(rows) for k in range(columns))
    return replace(both, name=f"shift{rows}x{columns}", elements=("e", *labels[1:]))


def colours() -> Group:
    """The permutations of three colour channels; "gbr" is the element after which red is what green was, and so on.

    >>> colours().elements
    ('e', 'rbg', 'grb', 'gbr', 'brg', 'bgr')
    """
    come_from = list(permutations(range(3)))
    labels = ["".join("rgb"[channel] for channel in one) for one in come_from]
    # (g z)_i = z_σ_g(i), so that gh takes channel i from σ_h(σ_g(i))
    table = [[come_from.index(tuple(h[channel] for channel in g)) for h in come_from] for g in come_from]
    moves = tuple((("colours", one),) for one in come_from[1:])
    return Group("rgb", ("e", *labels[1:]), tuple(map(tuple, table)), ((), *moves))


def negation() -> Group:
    """The group of two elements that changes the sign of every pixel, for images that are centred about 0.

    >>> negation().elements
    ('e', 'neg')
    """
    return Group("sign", ("e", "neg"), ((0, 1), (1, 0)), ((), (("negate", Fraction(1)),)))


def rotations(n: int = 16, seed: int = 0, jitter: int = 1) -> Group:
    """A sample of SO(2): one rotation from each of n equal parts of the circle, drawn by seed (Haar measure) *[ours]*.

    Part k lies about 360 k/n degrees. The identity stands for its own part, which biases a mean over elements by the order of
    1/n², less than its standard error, of the order of n^(-3/2). Without jitter every rotation is in the middle of its part,
    as in C_n.

    >>> rotations(4, jitter=0).angles
    (0.0, 90.0, 180.0, 270.0)
    """
    turns = [360 * part for part in _strata(_checked(n, "SO(2)?n="), random.Random(seed), jitter)]
    moves = [(("rotate", turn),) if turn else () for turn in turns]
    labels = tuple(_rotation_label(turn, 4) for turn in turns)
    return Group(_sample_name("SO(2)", n, seed, jitter), labels, None, tuple(moves))


def rotations_and_mirrors(n: int = 16, seed: int = 0, jitter: int = 1) -> Group:
    """A sample of O(2): that of SO(2), and as many other rotations followed by the left-right mirror *[ours]*.

    >>> rotations_and_mirrors(2, jitter=0).elements
    ('e', 'r180', 'm', 'mr180')
    """
    of_rotations = rotations(n, seed, jitter)
    draw = random.Random(f"mirrored {seed}")
    turns = [360 * part for part in _strata(n, draw, jitter, keep_first=False)]
    labels = [f"m{_rotation_label(turn, 4)}" if turn else "m" for turn in turns]
    mirrored = [(("rotate", turn), ("mirror", Fraction(1))) for turn in turns]
    name = _sample_name("O(2)", n, seed, jitter)
    return Group(name, (*of_rotations.elements, *labels), None, (*(of_rotations.moves or ()), *mirrored))


def translations(n: int = 4, seed: int = 0, jitter: int = 1) -> Group:
    """A sample of the translations T(2) of an image whose edges meet: one from each of n × n equal parts *[ours]*.

    >>> translations(2, jitter=0).elements
    ('e', 't0,0.5', 't0.5,0', 't0.5,0.5')
    """
    _check_order(f"T(2)?n={n}", _checked(n, "T(2)?n=") ** 2)
    draw = random.Random(seed)
    labels = ["e"]
    moves: list[tuple[Move, ...]] = [()]
    for row in range(n):
        for column in range(n):
            down = _in_stratum(row, n, draw, jitter)
            right = _in_stratum(column, n, draw, jitter)
            if row or column:
                labels.append(f"t{float(down):g},{float(right):g}")
                moves.append((("slide", down), ("slide across", right)))
    return Group(_sample_name("T(2)", n, seed, jitter), tuple(labels), None, tuple(moves))


def _strata(n: int, draw: random.Random, jitter: int, *, keep_first: bool = True) -> list[Fraction]:
    """A number from each of n equal parts of [0, 1), the parts lying about multiples of 1/n; of the first one 0 itself."""
    numbers = [_in_stratum(part, n, draw, jitter) for part in range(n)]
    return [Fraction(0), *numbers[1:]] if keep_first else numbers


def _in_stratum(part: int, n: int, draw: random.Random, jitter: int) -> Fraction:
    """Where in its part, as a multiple of 1/10⁶ n so that labels and moves agree."""
    off = draw.randrange(-(10**6) // 2, 10**6 // 2) if jitter else 0
    return (Fraction(part, n) + Fraction(off, 10**6 * n)) % 1


def _sample_name(family: str, n: int, seed: int, jitter: int) -> str:
    options = f"?n={n}" + (f"&seed={seed}" if seed else "")
    return family + options + ("" if jitter else "&jitter=0")


def product(*factors: Group) -> Group:
    """The direct product: tuples of elements, multiplied part by part; on images the last factor moves first.

    Whether those moves commute, and so are an action, is the action's to check (`actions.spatial`); of samples of continuous
    groups it is checked here.

    >>> product(parse("C2"), parse("flip")).elements
    ('e', 'm', 'r180', 'r180·m')
    """
    left, *rest = factors
    for right in rest:
        name = f"{left.name}*{right.name}"
        _check_order(name, left.order * right.order)
        pairs = [(i, j) for i in range(left.order) for j in range(right.order)]
        labels = ["·".join(x for x in (left.elements[i], right.elements[j]) if x != "e") or "e" for i, j in pairs]
        if len(set(labels)) < len(labels):
            labels = [f"({left.elements[i]},{right.elements[j]})" for i, j in pairs]
        table = None
        if left.table is not None and right.table is not None:
            table = tuple(tuple(left.table[i][k] * right.order + right.table[j][m] for k, m in pairs) for i, j in pairs)
        moves = None
        if left.moves is not None and right.moves is not None:
            moves = tuple((*right.moves[j], *left.moves[i]) for i, j in pairs)
        if table is None:
            _check_commuting(left, right)
        left = Group(name, tuple(labels), table, moves)
    return left


def _check_commuting(left: Group, right: Group) -> None:
    """ValueError where an element of one group does not commute with one of the other."""
    if left.moves is None or right.moves is None:
        return
    for a, of_left in zip(left.elements, left.moves, strict=True):
        for b, of_right in zip(right.elements, right.moves, strict=True):
            if effect((*of_left, *of_right)) != effect((*of_right, *of_left)):
                raise ValueError(
                    f"{left.name}*{right.name} is no direct product: {a} and then {b} is not {b} and then {a}; O(2) has the "
                    "mirrors of SO(2)"
                )


FAMILIES = {"C": cyclic, "D": dihedral, "shift": shift}
"""Groups that are named by a word and a number."""
NAMED = {"flip": mirror, "rgb": colours, "sign": negation}
"""Groups that stand alone."""
CONTINUOUS = {"SO(2)": rotations, "O(2)": rotations_and_mirrors, "T(2)": translations}
"""Continuous groups, of which elements are sampled; the brackets may be left out."""
SYNTAX = (
    "a number n may follow C (rotations), D (rotations and mirrors) and shift (rolls; shift4x4 in both directions); "
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
    parts = [part.strip() for part in name.split("*")]
    if len(parts) > 1:
        return product(*(parse(part) for part in parts))
    if parts[0] in NAMED:
        return NAMED[parts[0]]()
    family, _, options = parts[0].partition("?")
    bracketed = re.sub(r"^(SO|O|T)2$", r"\1(2)", family)
    if bracketed in CONTINUOUS:
        return CONTINUOUS[bracketed](**_sample_options(name, options))
    match = re.fullmatch(r"([A-Za-z]+)(\d+)(?:x(\d+))?", parts[0])
    if match and match[1] in FAMILIES and (match[3] is None or match[1] == "shift"):
        numbers = [int(number) for number in match.group(2, 3) if number is not None]
        return FAMILIES[match[1]](*numbers)
    examples = [
        "C2",
        "C4",
        "C8",
        "D1",
        "D2",
        "D4",
        "flip",
        "shift2",
        "shift4",
        "shift4x4",
        "shift4*flip",
        "rgb",
        "sign",
    ]
    examples += CONTINUOUS
    raise ValueError(f"{unknown('group', name, examples, every=False)}; {SYNTAX}")


def _sample_options(name: str, text: str) -> dict[str, int]:
    """n, seed and jitter of a sample, from "n=16&seed=1"."""
    options = {}
    for part in filter(None, text.split("&")):
        key, _, number = part.partition("=")
        if key not in ("n", "seed", "jitter") or not re.fullmatch(r"\d{1,9}", number):
            raise ValueError(
                f"the sample {name!r} has {part!r}; its options are n (how many parts), seed and jitter (1 or 0), whole "
                "numbers, as in SO(2)?n=16&seed=1"
            )
        options[key] = int(number)
    return options


def _checked(n: int, family: str) -> int:
    if n < 1:
        raise ValueError(f"{family}n needs n ≥ 1, got {n}; C1, say, is the group of the identity alone")
    _check_order(f"{family}{n}", n)
    return n


def _rotation_label(turn: Fraction, digits: int = 2) -> str:
    return f"r{round(float(turn), digits):.{digits + 3}g}" if turn else "e"
