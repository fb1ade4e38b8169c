"""`ek.available`: what there is to choose from, as tables: metrics, groups, recipes, bundled images.

Knows the registries and adds nothing to them. Costs one image of each bundled set.
"""

from typing import Any

import pandas as pd

from eedkit.errors import naming_extras
from eedkit.probe.metrics import METRICS
from eedkit.theory.groups import parse

GROUPS = ("flip", "C2", "C4", "D1", "D2", "D4", "shift2", "shift4", "shift4*flip")
"""Examples of each family of groups; numbers and products of other sizes have the same names."""


def metrics() -> pd.DataFrame:
    """Every metric: what it compares and how, the value of a perfectly equivariant model, and where it comes from.

    Returns
    -------
    DataFrame
        Indexed by the name that `measure(metrics=…)` takes.

    >>> metrics().query("source == 'eq. 6'").index.tolist()
    ['latent']
    """
    rows = []
    for metric in METRICS.values():
        row = {
            "metric": metric.name,
            "compares": metric.where,
            "by": metric.title or metric.name,
            "best": metric.distance.best,
            "unit": metric.distance.unit,
            "source": metric.source,
        }
        rows.append(row)
    return pd.DataFrame(rows).set_index("metric")


def groups() -> pd.DataFrame:
    """Groups that `measure(group=…)` takes by name: their number of elements, the elements, and what these do to an image.

    Returns
    -------
    DataFrame
        Indexed by name, with an example or more of each family.

    >>> groups().elements["C4"]
    'e, r90, r180, r270'
    """
    rows = [_of_group(name) for name in GROUPS]
    return pd.DataFrame(rows).set_index("group")


def _of_group(name: str) -> dict[str, Any]:
    group = parse(name)
    motions = group.motions or ()
    kinds = []
    if any(motion.angle for motion in motions):
        kinds.append("rotates")
    if any(motion.is_mirrored for motion in motions):
        kinds.append("mirrors")
    if any(motion.down or motion.right for motion in motions):
        kinds.append("shifts")
    return {"group": name, "order": group.order, "elements": ", ".join(group.elements), "moves": ", ".join(kinds)}


def recipes(group: str = "C4") -> pd.DataFrame:
    """The bundled networks, as `recipe:name?seed=0` names them in a study: how each is built and trained.

    Parameters
    ----------
    group : str
        Of the recipes that use one.

    Returns
    -------
    DataFrame
        Indexed by name.

    Raises
    ------
    ModuleNotFoundError
        The extra `lab` is not installed.

    >>> recipes().augment["augmented"]
    'C4'
    """
    with naming_extras():
        from eedkit.lab.recipes import recipes as by_name
    rows = []
    for name, recipe in by_name(group).items():
        row = {
            "recipe": name,
            "convolutions": recipe.group,
            "augment": recipe.augment,
            "method": recipe.method,
            "start": recipe.start,
            "epochs": recipe.epochs,
            "data": recipe.data,
        }
        rows.append(row)
    return pd.DataFrame(rows).set_index("recipe")


def images() -> pd.DataFrame:
    """The bundled images, as `ek.lab.images.load` takes them: how many, of how many classes, and their size in pixels.

    Returns
    -------
    DataFrame
        Indexed by name; `data/` has a card for each with origin, licence and caveats.

    Raises
    ------
    ModuleNotFoundError
        The extra `lab` is not installed.

    >>> images().loc["digits/test", ["images", "classes", "height"]].tolist()
    [397, 10, 8]
    """
    with naming_extras():
        from eedkit.lab import images as lab_images
    rows = []
    for name in lab_images.BUNDLED:
        found = lab_images.load(name)
        channels, height, width = found[0]["image"].shape
        row = {
            "name": name,
            "images": len(found),
            "classes": found.features["label"].num_classes,
            "channels": channels,
            "height": height,
            "width": width,
        }
        rows.append(row)
    return pd.DataFrame(rows).set_index("name")
