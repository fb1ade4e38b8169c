"""Finite groups as multiplication tables, with the moves by which their elements act on the plane.

Knows nothing of tensors, models or labels. Costs |G|² small integers.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from operator import itemgetter

from eedkit.errors import unknown

Move = tuple[str, Fraction]
"""One step on the plane: ("rotate", degrees counter-clockwise), ("mirror", 1) left-right, ("shift", part of the height)."""
LARGEST = 4096
"""Elements of the largest group: every image is measured under each of them, and the table has their square."""


@dataclass(frozen=True)
class Group:
    """A finite group: `table[g][h]` is the index of gh, "h first, then g" (Kvinge et al. 2022, section 3).

    The group axioms are checked when the value is made, so a table of one's own is as good as a built-in group.

    Parameters
    ----------
    name : what the group is called in results
    elements : labels, the identity first
    table : |G| rows of |G| indices
    moves : for every element, what it does to the plane, first to last; None for a group without such a picture

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
    table: tuple[tuple[int, ...], ...]
    moves: tuple[tuple[Move, ...], ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "elements", tuple(self.elements))
        object.__setattr__(self, "table", tuple(tuple(map(int, row)) for row in self.table))
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

    def product(self, g: int, h: int) -> int:
        """The index of gh (h first, then g)."""
        return self.table[g][h]

    @cached_property
    def inverses(self) -> tuple[int, ...]:
        """The index of g⁻¹ for every g."""
        return tuple(row.index(0) for row in self.table)

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


def _check_axioms(group: Group) -> None:
    table, labels, n = group.table, group.elements, len(group.elements)
    if not n or len(set(labels)) != n:
        raise ValueError(f"a group needs different labels for its elements, got {labels}")
    _check_order(group.name, n)
    if len(table) != n or any(len(row) != n for row in table):
        raise ValueError(f"{group.name} has {n} elements, so its table must be {n}×{n}")
    if any(min(row) < 0 or max(row) >= n for row in table):
        raise ValueError(f"{group.name} is not closed: every entry of its table must be an index from 0 to {n - 1}")
    if any(table[0][g] != g or table[g][0] != g for g in range(n)):
        raise ValueError(f"{group.name}: the first element ({labels[0]}) must be the identity")
    for g in range(n):
        if sorted(table[g]) != list(range(n)):
            raise ValueError(f"{group.name}: {labels[g]} has no inverse, its row of the table repeats an element")
    _check_associativity(group)
    if group.moves is not None and len(group.moves) != n:
        raise ValueError(f"{group.name} has {n} elements but {len(group.moves)} moves")


def _check_associativity(group: Group) -> None:
    """(ab)c = a(bc) for every a and c, and for b the generators alone (Light's test): |G|² log |G| instead of |G|³.

    The b for which it holds are closed under products, and each generator at least doubles what is generated.
    """
    table, labels = group.table, group.elements
    generators = []
    generated = {0}
    for b in range(len(table)):
        if b in generated:
            continue
        after_b = itemgetter(*table[b])
        for a, row in enumerate(table):
            if table[row[b]] != after_b(row):
                c = next(c for c in range(len(table)) if table[row[b]][c] != row[table[b][c]])
                a, b, c = labels[a], labels[b], labels[c]
                raise ValueError(f"{group.name} is not associative: ({a} {b}) {c} differs from {a} ({b} {c})")
        generators.append(b)
        new = list(generated)
        while new:
            element = new.pop()
            reached = {table[element][generator] for generator in generators} - generated
            generated |= reached
            new.extend(reached)


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


def shift(n: int) -> Group:
    """Cyclic translations: rolls downwards by multiples of 1/n of the height.

    >>> shift(4).elements
    ('e', 's1', 's2', 's3')
    """
    steps = range(_checked(n, "shift"))
    return Group(
        f"shift{n}",
        tuple(f"s{k}" if k else "e" for k in steps),
        cyclic(n).table,
        tuple((("shift", Fraction(k, n)),) if k else () for k in steps),
    )


def product(*factors: Group) -> Group:
    """The direct product: tuples of elements, multiplied part by part; on the plane the last factor moves first.

    Whether those moves commute, and so are an action, is the action's to check (`actions.spatial`).

    >>> product(parse("C2"), parse("flip")).elements
    ('e', 'm', 'r180', 'r180·m')
    """
    left, *rest = factors
    for right in rest:
        _check_order(f"{left.name}*{right.name}", left.order * right.order)
        pairs = [(i, j) for i in range(left.order) for j in range(right.order)]
        labels = ["·".join(x for x in (left.elements[i], right.elements[j]) if x != "e") or "e" for i, j in pairs]
        if len(set(labels)) < len(labels):
            labels = [f"({left.elements[i]},{right.elements[j]})" for i, j in pairs]
        table = [[left.table[i][k] * right.order + right.table[j][m] for k, m in pairs] for i, j in pairs]
        moves = None
        if left.moves is not None and right.moves is not None:
            moves = tuple((*right.moves[j], *left.moves[i]) for i, j in pairs)
        left = Group(f"{left.name}*{right.name}", tuple(labels), tuple(map(tuple, table)), moves)
    return left


FAMILIES = {"C": cyclic, "D": dihedral, "shift": shift}
"""Groups that are named by a word and a number; `flip` stands alone, and `*` makes direct products."""


def parse(name: str | Group) -> Group:
    """The group that a name stands for: "C4", "D4", "C8", "flip", "shift4", products such as "shift4*flip".

    Raises
    ------
    ValueError
        Nothing is called so; the message lists near names and the families.

    >>> parse("D2").order
    4
    """
    if isinstance(name, Group):
        return name
    if not isinstance(name, str):
        raise TypeError(f"a group is a name such as 'C4' or a Group, got {type(name).__name__}")
    parts = [part.strip() for part in name.split("*")]
    if len(parts) > 1:
        return product(*(parse(part) for part in parts))
    if parts[0] == "flip":
        return mirror()
    found = re.fullmatch(r"([A-Za-z]+)(\d+)", parts[0])
    if found and found[1] in FAMILIES:
        return FAMILIES[found[1]](int(found[2]))
    examples = ["C2", "C4", "C8", "D1", "D2", "D4", "flip", "shift2", "shift4", "shift4*flip"]
    raise ValueError(
        unknown("group", name, examples, every=False)
        + "; a number n may follow C (rotations), D (rotations and mirrors) and shift (rolls)"
    )


def _checked(n: int, family: str) -> int:
    if n < 1:
        raise ValueError(f"{family}n needs n ≥ 1, got {n}")
    _check_order(f"{family}{n}", n)
    return n


def _rotation_label(turn: Fraction) -> str:
    return f"r{round(float(turn), 2):g}" if turn else "e"
