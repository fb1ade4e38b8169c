"""`ek.card`: one self-contained page about one model, in words and figures made from the numbers, with a JSON twin.

Knows Datasets and figures, never models. Costs one `summarise` and a second for each figure.
"""

import base64
import html
import io
import json
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from eedkit import plots
from eedkit.bridges import prediction_consistency
from eedkit.errors import printable, unknown
from eedkit.results import schema
from eedkit.results.doubts import doubts
from eedkit.results.labels import class_names, labelled
from eedkit.results.summary import summarise

PAPER = "Kvinge et al. 2022, In What Ways Are Deep Neural Networks Invariant and How Should We Measure This? (NeurIPS; arXiv 2210.03773)"
STYLE = """
:root { color-scheme: light dark; }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
img { max-width: 100%; background: white; border-radius: 4px; }
table { border-collapse: collapse; display: block; overflow-x: auto; font-size: 0.9rem; }
th, td { padding: 0.2rem 0.7rem; text-align: right; border-bottom: 1px solid #8886; }
th:first-child, td:first-child { text-align: left; }
footer { margin-top: 2rem; font-size: 0.85rem; }
"""


@dataclass(frozen=True)
class Section:
    """A question, the sentences that answer it, and a figure of what they were read off."""

    title: str
    sentences: tuple[str, ...]
    figure: Figure | None = None


@dataclass(frozen=True)
class Card:
    """A page about one model; Jupyter shows it as such.

    Parameters
    ----------
    title : str
        The model's name.
    sections : tuple of Section
        What the page says.
    facts : dict
        The same as numbers.
    """

    title: str
    sections: tuple[Section, ...]
    facts: dict[str, Any]

    @cached_property
    def html(self) -> str:
        """The page, which loads nothing."""
        parts = [f"<h1>{_escaped(self.title)}</h1>"]
        for section in self.sections:
            parts.append(f"<h2>{_escaped(section.title)}</h2>")
            parts += [f"<p>{_escaped(sentence)}</p>" for sentence in section.sentences]
            if section.figure is not None:
                said = " ".join(section.sentences)
                parts.append(f'<img alt="{_escaped(said)}" src="data:image/png;base64,{_png(section.figure)}">')
        head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{_escaped(self.title)}</title>'
        return f'<!doctype html><html lang="en"><head>{head}<style>{STYLE}</style></head><body><main>{"".join(parts)}</main></body></html>'

    @property
    def json(self) -> str:
        """The facts as JSON; NaN is null."""
        return json.dumps(self.facts, indent=1, default=str, allow_nan=False)

    def save(self, path: str | PathLike) -> Path:
        """Write the page to `path`, and its JSON twin beside it.

        Parameters
        ----------
        path : str or PathLike
            Ends in .html.

        Returns
        -------
        Path
            Of the page.
        """
        page = Path(path)
        if page.suffix != ".html":
            raise ValueError(f"a card is a page, so its path must end in .html, got {str(path)!r}")
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(self.html, encoding="utf-8")
        page.with_suffix(".json").write_text(self.json, encoding="utf-8")
        return page

    def _repr_html_(self) -> str:
        return (
            f'<iframe srcdoc="{html.escape(self.html, quote=True)}" style="width:100%;height:40rem;border:0"></iframe>'
        )


def card(results: xr.Dataset, images: Any = None, *, model: str | None = None) -> Card:
    """One page about one model: how invariant it is, where, under which elements, on which classes and images, and is it real?

    Every sentence is made from the numbers, and says no more than they do.

    Parameters
    ----------
    results : Dataset
        Of `measure`, `Study.run` or `open`, with the latent metric and its null.
    images : tensor, array or data set, or None
        The images that were measured, to show those that deviate most.
    model : str, or None
        Which model's; None where there is one.

    Returns
    -------
    Card
        With `save(path)`, `html` and `json`.

    Raises
    ------
    ValueError
        There is no such model, or there are several, or no latent metric.

    Examples
    --------
    >>> import torch, eedkit as ek
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(25, 3))
    >>> made = card(ek.measure(net, torch.rand(8, 1, 5, 5), group="C4", progress=False))
    >>> made.facts["images"], made.facts["group"]
    (8, 'C4')
    """
    one = schema.one_model(results, model).compute()
    if "latent" not in schema.metrics_of(one):
        raise ValueError(unknown("metric", "latent", schema.metrics_of(one)) + "; a card needs it")
    table = summarise(one, full=True)
    latent = table[table.metric == "latent"].set_index("layer")
    from_x = one[schema.from_x(one, "latent")].sel(layer="latent").isel(model=0)
    deviations = (from_x - one.latent.attrs["best"]).astype("float64")
    facts = {
        "model": one.model.values[0],
        "group": one.attrs["group"],
        "data": one.attrs.get("data", ""),
        "images": int(one.sizes["sample"]),
        "elements": one.element.values.tolist(),
        "eedkit": one.attrs["eedkit_version"],
        "weights": one.weights.values[0],
        "created": one.attrs.get("created", ""),
        "by element": _plain(deviations.mean("sample").to_series()),
        "summary": [_plain(row) for _, row in table.iterrows()],
    }
    sections = [
        _measured(one),
        _how_invariant(one, table),
        _under_which_elements(one, deviations),
        _where(one, latent),
        _is_it_real(latent.loc["latent"]),
    ]
    of_labelled = labelled(deviations.mean("element"))
    if of_labelled.size:
        by_class = of_labelled.groupby("label").mean().to_series()
        facts["by class"] = _plain(by_class)
        sections.append(_on_which_classes(one, by_class))
    if images is not None:
        said = (
            "Each of these images stands above its moved copy that deviates most, with the model's predictions on both."
        )
        sections.append(Section("On which images?", (said,), plots.worst(one, images)))
    sections.append(
        Section("How to cite", (f"The measure is the G-empirical equivariance deviation of {PAPER}.", _provenance(one)))
    )
    return Card(printable(str(facts["model"])), tuple(sections), facts)


def _measured(one: xr.Dataset) -> Section:
    layers = [layer for layer in one.layer.values.tolist() if layer != "latent"]
    said = (
        f"{one.sizes['sample']} images, each moved by the {one.sizes['element']} elements of {one.attrs['group']}, "
        f"at {len(layers)} layers and the head's input."
    )
    preprocessing = one.attrs.get("preprocessing") or "not known; the images were taken as they were given"
    sentences = [said, f"Preprocessing: {preprocessing}."]
    sentences += [f"{doubt}." for doubt in doubts(one)]
    return Section("What was measured", tuple(sentences))


def _how_invariant(one: xr.Dataset, table: pd.DataFrame) -> Section:
    sentences = []
    for metric, layer, what in (("latent", "latent", "features"), ("softmax", "output", "class probabilities")):
        rows = table[(table.metric == metric) & (table.layer == layer)]
        if rows.empty:
            continue
        row = rows.iloc[0]
        if np.isnan(row.estimate):
            sentences.append(f"The {what} have no value: {row.reason}.")
        elif np.isnan(row.relative):
            sentences.append(
                f"The {what} deviate by {row.estimate - row.best:.3g}, with no relative value: {row.reason}."
            )
        else:
            interval = _interval(row.relative_low, row.relative_high)
            sentences.append(
                f"Relative to other images, the {what} deviate by {row.relative:.2f}{interval}: at 0 they would be invariant, at "
                "1 a transformed copy would be as far away as a different image."
            )
    identity = one.element.attrs.get("identity", "e")
    if "prediction" in one and identity in one.element.values and one.sizes["element"] > 1:
        kept = prediction_consistency(one).mean().item()
        if not np.isnan(kept):
            sentences.append(f"The predicted class stays for {kept:.0%} of the moved images.")
    return Section("How invariant is it?", tuple(sentences))


def _under_which_elements(one: xr.Dataset, deviations: xr.DataArray) -> Section:
    identity = one.element.attrs.get("identity", "e")
    by_element = deviations.mean("sample").to_series().drop(identity, errors="ignore").sort_values()
    said = "No element moves the image."
    if len(by_element):
        said = (
            f"From those of the unmoved image, the features deviate least under {by_element.index[0]} ({by_element.iloc[0]:.2g}) "
            f"and most under {by_element.index[-1]} ({by_element.iloc[-1]:.2g})."
        )
    return Section("Under which elements?", (said,), plots.orbit_rose(one))


def _where(one: xr.Dataset, latent: pd.DataFrame) -> Section:
    value = "relative" if latent.relative.notna().any() else "estimate"
    rows = latent[latent[value].notna() & ~latent.index.str.endswith("[class]")].sort_values("depth", kind="stable")
    if len(rows) < 2:
        return Section("Where in the network?", ("Fewer than two layers have a value.",))
    steps = rows[value].diff().iloc[1:]
    sentences = [
        f"The {value} latent value is {rows[value].iloc[0]:.2f} at {rows.index[0]} and {rows[value].iloc[-1]:.2f} at {rows.index[-1]}."
    ]
    if steps.min() < 0:
        at = int(steps.argmin()) + 1
        sentences.append(f"It falls most from {rows.index[at - 1]} to {rows.index[at]}, by {-steps.min():.2f}.")
    else:
        sentences.append("It never falls from one layer to the next.")
    return Section(
        "Where in the network?",
        tuple(sentences),
        plots.depth_profile(one, metric="latent", relative=value == "relative"),
    )


def _is_it_real(row: pd.Series) -> Section:
    if np.isnan(row.relative):
        return Section("Is it invariance, or insensitivity?", (f"That stays open: {row.reason}.",))
    said = (
        f"Other images are {row.null - row.best:.2g} apart by the same measure, moved copies {row.estimate - row.best:.2g}: the "
        "first is what a value of 1 stands for, so a low value here is not that of a model that tells nothing apart."
    )
    return Section("Is it invariance, or insensitivity?", (said,))


def _on_which_classes(one: xr.Dataset, by_class: pd.Series) -> Section:
    ordered = by_class.dropna().sort_values()
    if len(ordered) < 2:
        return Section("On which classes?", ("The images have one class.",))
    names = class_names(one)
    least, most = (names[label] if names else label for label in (ordered.index[0], ordered.index[-1]))
    said = (
        f"The features deviate most on class {most} ({ordered.iloc[-1]:.2g}) and least on class {least} "
        f"({ordered.iloc[0]:.2g})."
    )
    figure = plots.class_heatmap(one) if len(ordered) <= plots.draw.CLASSES else None
    return Section("On which classes?", (said,), figure)


def _provenance(one: xr.Dataset) -> str:
    return (
        f"Made by eedkit {one.attrs['eedkit_version']} from weights {one.weights.values[0]} and images {one.attrs.get('data', '')}, "
        f"seed {one.attrs.get('seed')}, {one.attrs.get('precision')}, {one.attrs.get('created', '')}."
    )


def _interval(low: float, high: float) -> str:
    return "" if np.isnan(low) else f" ({low:.2f} to {high:.2f})"


def _plain(row: pd.Series) -> dict[str, Any]:
    """By name, as JSON has it."""
    values = {}
    for name, value in row.items():
        value = value.item() if hasattr(value, "item") else value
        values[str(name)] = None if isinstance(value, float) and not np.isfinite(value) else value
    return values


def _escaped(text: str) -> str:
    return html.escape(printable(text), quote=True)


def _png(figure: Figure) -> str:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=130, bbox_inches="tight", facecolor="white", metadata={"Software": None})
    return base64.b64encode(picture.getvalue()).decode()
