"""The shared half of every "no such name" message. Knows nothing; costs nothing."""

import difflib
from collections.abc import Iterable


def unknown(kind: str, name: object, known: Iterable[str], *, every: bool = True) -> str:
    """What to tell somebody who named something that does not exist: what was asked, near names, and all there are.

    `every=False` says that the known names are examples of a longer list.

    >>> unknown("layer", "layer5.0", ["layer4.0", "layer4.1"])
    "no layer 'layer5.0'; did you mean 'layer4.0' or 'layer4.1'? (all 2: layer4.0, layer4.1)"
    """
    known = list(known)
    lower = {k.lower(): k for k in known}
    close = difflib.get_close_matches(str(name).lower(), lower, n=2, cutoff=0.6)
    hint = f"; did you mean {' or '.join(repr(lower[k]) for k in close)}?" if close else ""
    shown = ", ".join(known[:40]) + (", …" if len(known) > 40 else "")
    return f"no {kind} {name!r}{hint} ({f'all {len(known)}' if every else 'for example'}: {shown})"
