"""Equation 4 as slow loops in float64, to hold eedkit against. Imports nothing from eedkit, on purpose.

Everything takes and gives numpy arrays; images are (C, H, W) and orbits (g, n, *z).
"""

import itertools
import math

import numpy as np
from scipy import ndimage

ELEMENTS = {
    "C2": ["e", "r180"],
    "C4": ["e", "r90", "r180", "r270"],
    "D4": ["e", "r90", "r180", "r270", "m", "mr90", "mr180", "mr270"],
    "flip": ["e", "m"],
    "shift2": ["e", "s1"],
    "shift4": ["e", "s1", "s2", "s3"],
    "C3": ["e", "r120", "r240"],
    "C8": ["e", "r45", "r90", "r135", "r180", "r225", "r270", "r315"],
    "rgb": ["e", "rbg", "grb", "gbr", "brg", "bgr"],
    "D3": ["e", "r120", "r240", "m", "mr120", "mr240"],
    "shift3x6": ["e", *(f"s{k // 6},{k % 6}" for k in range(1, 18))],
}
ELEMENTS["C4*rgb"] = [
    "·".join(part for part in pair if part != "e") or "e"
    for pair in itertools.product(ELEMENTS["C4"], ELEMENTS["rgb"])
]  # fmt: skip
IN_A_CIRCLE = ("C3", "C8", "D3")
"""Groups with rotations that interpolate: images are 0 outside of the inscribed circle, and maps are compared within it."""


def is_in_circle(group):
    return group in IN_A_CIRCLE or group.startswith("SO(2)")


def move(group, element, x):
    """What an element does to the last two axes of x: rN counter-clockwise, m mirrors left-right afterwards, sK rolls down,
    sI,K down and to the right; colours stay."""
    element = ([part for part in element.split("·") if part not in ELEMENTS["rgb"][1:]] or ["e"])[0]
    if is_in_circle(group):
        turned = rotated(x, float(element.lstrip("mr") or 0) if element != "e" else 0)
        return np.where(circle(x.shape[-1]), np.flip(turned, -1) if element.startswith("m") else turned, 0)
    if element.startswith("m"):
        return np.flip(move(group, element[1:] or "e", x), -1).copy()
    if element.startswith("r"):
        return np.rot90(x, int(element[1:]) // 90, axes=(-2, -1)).copy()
    if element.startswith("s"):
        parts = map(int, group.removeprefix("shift").split("x"))
        for axis, steps, n in zip((-2, -1), element[1:].split(","), parts, strict=False):
            assert x.shape[axis] % n == 0
            x = np.roll(x, int(steps) * x.shape[axis] // n, axis=axis)
        return x
    assert element == "e"
    return x.copy()


def move_image(group, element, x):
    """What an element does to an image (3, H, W): after "gbr" red is what green was."""
    for part in element.split("·"):
        if part in ELEMENTS["rgb"][1:]:
            x = x[["rgb".index(letter) for letter in part]]
    return move(group, element, x)


def inverse(element):
    """Of a rotation, or of a rotation and a mirror, which is its own."""
    return f"r{360 - float(element[1:])!r}" if element.startswith("r") else element


def rotated(x, degrees):
    """Square images x (…, H, H) turned counter-clockwise about their middle; scipy reads between pixels, and from the edge
    what lies beyond it."""
    side, turn = x.shape[-1], math.radians(degrees)
    up, right = np.meshgrid((side - 1) / 2 - np.arange(side), np.arange(side) - (side - 1) / 2, indexing="ij")
    columns = (side - 1) / 2 + right * math.cos(turn) + up * math.sin(turn)
    rows = (side - 1) / 2 - (up * math.cos(turn) - right * math.sin(turn))
    images = x.reshape(-1, side, side)
    turned = [ndimage.map_coordinates(image, [rows, columns], order=1, mode="nearest") for image in images]
    return np.array(turned).reshape(x.shape)


def resampled(z, side):
    """Maps (C, H, W) read linearly between their cells on another grid of the same extent, opposite edges meeting."""
    places = [(np.arange(side) + 0.5) * size / side - 0.5 for size in z.shape[-2:]]
    at = np.meshgrid(*places, indexing="ij")
    return np.array([ndimage.map_coordinates(channel, at, order=1, mode="grid-wrap") for channel in z])


def circle(side):
    """Which pixels have their centres in the circle that touches the sides."""
    off = np.arange(side) - (side - 1) / 2
    return np.hypot(off[:, None], off) <= side / 2 + 1e-9


def in_circle(m):
    """A distance of maps within the circle alone."""
    return lambda a, b: m(a[:, circle(a.shape[-1])], b[:, circle(b.shape[-1])])


def stay(group, element, x):
    """The trivial action."""
    return x


def product(group, g, h):
    """The number of the element that does h first, then g."""
    if is_in_circle(group):
        return (g + h) % len(ELEMENTS[group])
    probe = np.arange(36**2).reshape(36, 36)
    twice = move(group, ELEMENTS[group][g], move(group, ELEMENTS[group][h], probe))
    return next(k for k, element in enumerate(ELEMENTS[group]) if np.array_equal(move(group, element, probe), twice))


def move_fields(group, element, x):
    """G on fields of its regular representation: every map moves, and map h of a field becomes map gh."""
    order, g = len(ELEMENTS[group]), ELEMENTS[group].index(element)
    moved = np.empty_like(x)
    for start in range(0, len(x), order):
        for h in range(order):
            moved[start + product(group, g, h)] = move(group, element, x[start + h])
    return moved


def kernel(group, act, shape):
    """Indices of the elements that do to an array of different numbers what the identity does."""
    probe = np.arange(math.prod(shape), dtype=float).reshape(shape)
    still = act(group, "e", probe)
    return [g for g, element in enumerate(ELEMENTS[group]) if np.array_equal(act(group, element, probe), still)]


def orbits(f, images, group, returned=False):
    """f(gx) for every element and image, or f(g⁻¹gx): (g, n, *z); first of all images lose what lies outside a circle."""
    of_elements = []
    for element in ELEMENTS[group]:
        moved = [move_image(group, element, move_image(group, "e", x)) for x in images]
        of_elements.append([f(move(group, inverse(element), x) if returned else x) for x in moved])
    return np.array(of_elements)


def f_hat(orbit_of_x, of_kernel):
    """Equation 2."""
    total = np.zeros_like(orbit_of_x[0])
    for k in of_kernel:
        total = total + orbit_of_x[k]
    return total / len(of_kernel)


def eed(orbit, group, act, m, of_kernel):
    """The integrand of equation 4, (g, n); the null is the same of `shuffled(orbit, …)`."""
    values = np.full(orbit.shape[:2], np.nan)
    for i in range(orbit.shape[1]):
        target = f_hat(orbit[:, i], of_kernel)
        for g, element in enumerate(ELEMENTS[group]):
            values[g, i] = m(orbit[g, i], act(group, element, target))
    return values


def round_trip(returned, orbit, m):
    """m(f(g⁻¹gx), f(x)) for f(g⁻¹gx) and f(gx) (g, n, *z)."""
    return np.array([[m(z, orbit[0, i]) for i, z in enumerate(of_element)] for of_element in returned])


def other_elements(orbit, group, act, m, of_kernel, mixed=None):
    """The null of the element: every element that is not in the kernel against all that do not do the same.

    `mixed` are the elements that f̂ is the mean over, None for the kernel.
    """
    mixed = of_kernel if mixed is None else mixed
    values = eed(orbit, group, act, m, mixed)
    probe = np.arange(math.prod(orbit.shape[2:]), dtype=float).reshape(orbit.shape[2:])
    for g, element in enumerate(ELEMENTS[group]):
        others = [h for h in ELEMENTS[group] if not np.array_equal(act(group, h, probe), act(group, element, probe))]
        for i in range(0 if g in of_kernel else orbit.shape[1]):
            target = f_hat(orbit[:, i], mixed)
            values[g, i] = math.fsum(m(orbit[g, i], act(group, other, target)) for other in others) / len(others)
    return values


def seeded_order(n, seed):
    return np.random.default_rng(seed).permutation(n).tolist()


def chains(n, order, reading=None):
    """Lists of samples: the reading order cut into pieces of max(|G|, 4); what is left over joins the piece before."""
    reading = list(range(n)) if reading is None else list(reading)
    length = max(order, 4)
    pieces = [reading[start : start + length] for start in range(0, n, length)]
    if len(pieces) > 1 and len(pieces[-1]) < length:
        rest = pieces.pop()
        pieces[-1] = pieces[-1] + rest
    return pieces


def map_chains(of_chains):
    """The shorter chains of what is not mixed: pieces of 8, a shorter rest joining the piece before."""
    return [piece for chain in of_chains for piece in chains(len(chain), 8, chain)]


def partner(chain, place, k):
    """On which image of a chain element k acts for the one at a place; in a short chain the others come again."""
    offset = k if k < len(chain) else 1 + (k - 1) % (len(chain) - 1)
    return chain[(place + offset) % len(chain)]


def shuffled(orbit, of_chains):
    """The orbit of every sample with its k-th element taken from the k-th next sample of the chain."""
    mixed = np.full_like(orbit, np.nan)
    for chain in of_chains:
        for place, i in enumerate(chain):
            for k in range(len(orbit)):
                mixed[k, i] = orbit[k, partner(chain, place, k)]
    return mixed


def spoilt(order, of_chains, bad, of_kernel):
    """Which values (g, n) of a null used an image that has none: f(gx′), or what f̂ is the mean of."""
    used = np.zeros((order, sum(map(len, of_chains))), dtype=bool)
    for chain in of_chains:
        for place, i in enumerate(chain):
            for g in range(order):
                used[g, i] = any(partner(chain, place, k) in bad for k in (g, *of_kernel))
    return used


def cosine(a, b):
    a, b = np.ravel(a).astype(float), np.ravel(b).astype(float)
    norms = math.sqrt(a @ a), math.sqrt(b @ b)
    if norms == (0.0, 0.0):
        return 1.0
    return 0.0 if 0.0 in norms else float(a @ b) / (norms[0] * norms[1])


def channelwise(a, b, dead="agree"):
    total, counted = 0.0, 0
    for i in range(len(a)):
        is_dead = not a[i].any() and not b[i].any()
        if is_dead and dead == "skip":
            continue
        total += 0.0 if is_dead and dead == "zero" else cosine(a[i], b[i])
        counted += 1
    return -total / counted if counted else math.nan


def centred(z):
    """Every channel less its mean over space; exactly zero where it is constant but for rounding."""
    out = np.zeros_like(z)
    for i, channel in enumerate(z):
        if np.ptp(channel) > 1e-12 * np.abs(channel).max():
            out[i] = channel - math.fsum(channel.ravel().tolist()) / channel.size
    return out


def latent(a, b):
    return -cosine(a, b)


def euclidean(a, b):
    return math.sqrt(math.fsum((x - y) ** 2 for x, y in zip(a.tolist(), b.tolist(), strict=True)))


def rms(a, b):
    """The root of the mean square difference of two maps (C, H, W)."""
    return euclidean(a.ravel(), b.ravel()) / math.sqrt(a.size)


def kl(p, q):
    return math.fsum(x * math.log(x / y) for x, y in zip(p.tolist(), q.tolist(), strict=True) if x > 0)


def kl_reverse(p, q):
    return kl(q, p)


def js(p, q):
    return (kl(p, (p + q) / 2) + kl(q, (p + q) / 2)) / 2


def tv(p, q):
    return max(0.0, math.fsum(x - y for x, y in zip(p.tolist(), q.tolist(), strict=True) if x > y))


def hellinger(p, q):
    affinity = math.fsum(math.sqrt(x * y) for x, y in zip(p.tolist(), q.tolist(), strict=True))
    return math.sqrt(max(0.0, 1 - affinity))


def mean_over_places(m):
    """The mean of m over the places of maps (C, *places)."""

    def of_maps(p, q):
        pairs = list(zip(p.reshape(len(p), -1).T, q.reshape(len(q), -1).T, strict=True))
        return math.fsum(m(a, b) for a, b in pairs) / len(pairs)

    return of_maps


def bernoulli(m):
    """The mean of m over k yes-or-no answers, given by their probabilities (k,)."""
    return lambda p, q: mean_over_places(m)(np.stack([1 - p, p]), np.stack([1 - q, q]))


def jaccard(a, b):
    """1 − IoU of masks (C, H, W), mean over the channels that either has."""
    overlaps = []
    for of_a, of_b in zip(a, b, strict=True):
        together = np.maximum(of_a, of_b).sum()
        if together:
            overlaps.append(np.minimum(of_a, of_b).sum() / together)
    return 1 - math.fsum(overlaps) / len(overlaps)


def jaccard_of_scores(a, b):
    """`jaccard` of the masks of the likeliest class, from scores (C, *places)."""
    return jaccard(*([z.argmax(0) == k for k in range(len(z))] for z in (a, b)))


def box_overlap(a, b):
    """Intersection over union of boxes (x, y, width, height, label) with whole sides, by counting cells of a fine grid."""
    if a[4] != b[4]:
        return 0.0
    cells = []
    for x, y, width, height, _ in (a, b):
        columns = range(round(4 * (x - width / 2)), round(4 * (x + width / 2)))
        rows = range(round(4 * (y - height / 2)), round(4 * (y + height / 2)))
        cells.append(set(itertools.product(columns, rows)))
    return len(cells[0] & cells[1]) / len(cells[0] | cells[1])


def box_sets(a, b, least=None):
    """1 − the best sum of overlaps over all matchings; with `least` 1 − F1 of boxes that overlap so much."""
    if not a and not b:
        return 0.0
    fewer, more = sorted((a, b), key=len)
    best = 0.0
    for chosen in itertools.permutations(more, len(fewer)):
        overlaps = [box_overlap(one, other) for one, other in zip(fewer, chosen, strict=True)]
        best = max(best, math.fsum(overlaps) if least is None else sum(overlap >= least for overlap in overlaps))
    return 1 - best / len(more) if least is None else 1 - 2 * best / (len(a) + len(b))


def entropy(p):
    return -math.fsum(x * math.log(x) for x in p.tolist() if x > 0)


def softmax(scores):
    """Of scores (k, *places) at every place."""
    e = np.exp(scores - scores.max(0))
    return e / e.sum(0)


def unit(v):
    length = math.sqrt(math.fsum(x * x for x in v.tolist()))
    return v / length if length else v


def mean_pair_cosine(vectors):
    """The mean cosine over all pairs of different vectors, one pair at a time."""
    pairs = [cosine(a, b) for a, b in itertools.combinations(vectors, 2)]
    return math.fsum(pairs) / len(pairs)


def best_permutation(orbit, group, element, samples):
    """From which channel each channel of g f(x) comes so that it is most like f(gx), over some samples: all sets are tried."""
    g, width = ELEMENTS[group].index(element), orbit.shape[2]
    like = np.zeros((width, width))
    for s in samples:
        # a map that is not finite counts as dead
        a, b = (np.where(np.isfinite(z).all((-2, -1), keepdims=True), z, 0) for z in (orbit[g, s], orbit[0, s]))
        b = move(group, element, b)
        like += [[cosine(a[i], b[j]) for j in range(width)] for i in range(width)]
    best = {frozenset(): (0.0, [])}
    for row in like.tolist():
        longer = {}
        for taken, (total, permutation) in best.items():
            for j in set(range(width)) - taken:
                found = longer.get(taken | {j}, (-math.inf, []))
                longer[taken | {j}] = max(found, (total + row[j], [*permutation, j]))
        best = longer
    return best[frozenset(range(width))][1]


def matched(orbit, group, order, of_chains=None, unreadable=()):
    """`eed` of `channelwise` after the permutation that fits best on the half of the order in which the sample is not.

    With chains the null: the permutations are those fitted on the orbit, the maps those of the shuffled orbit.
    """
    half = min(orbit.shape[1] // 2, 256)
    halves = [[i for i in part if i not in unreadable] for part in (order[:half], order[half : 2 * half])]
    compared = orbit if of_chains is None else shuffled(orbit, of_chains)
    values = np.full(orbit.shape[:2], np.nan)
    for g, element in enumerate(ELEMENTS[group]):
        best = [best_permutation(orbit, group, element, samples) for samples in halves]
        for place, i in enumerate(order):
            permutation = best[int(place < half)]
            values[g, i] = channelwise(compared[g, i], move(group, element, compared[0, i])[permutation])
    return values
