"""`ek.card`: one self-contained page about one model that answers its headings from the numbers, with a JSON twin.

Knows Datasets and figures, never models. Costs one `summarise` and a second for each figure.
"""

import base64
import html
import io
import json
import re
from collections.abc import Sequence
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
from eedkit.errors import Undefined, printable, unknown
from eedkit.plots.worst import SPATIAL
from eedkit.results import schema
from eedkit.results.doubts import ONE_CLASS, doubts
from eedkit.results.labels import class_names, labelled
from eedkit.results.orbits import REVERSE, averaging_gain
from eedkit.results.predictions import Predictions, predictions, right_in_own_classes
from eedkit.results.requirements import Requirement
from eedkit.results.summary import as_relative, ratio_from_x, summarise

PAPER = "Kvinge et al. 2022, In What Ways Are Deep Neural Networks Invariant and How Should We Measure This? (NeurIPS; arXiv 2210.03773)"
NUMBERS = ("relative", "relative.output", "accuracy.upright", "accuracy.moved", "accuracy.lowest", "kept")
"""What a card can be required to have: relative values of features and class probabilities; accuracy on unmoved images,
on moved ones, and under the element where it is lowest; the part of moved images whose class stays."""
EXACT = 1e-3
"""Relative values below this are rounding: a cosine of float32 that is off by one unit reads 3e-4."""
LOW = 0.5
"""Relative values up to this are called invariance; it is half the way from none."""
NEAR_ONE = 0.9
"""Relative values from this on are called as far away as a different image."""
STEP = 0.05
"""The least fall from one layer to the next that is pointed out."""
FALL = 0.02
"""The least fall of accuracy, and the least part of images whose class changes, that calls for something to be done."""
LISTED = 8
"""Elements that a sentence lists one by one."""
MOVES = {
    r"C\d+|SO\(2\).*": "turns",
    r"D\d+|O\(2\).*": "turns and mirrorings",
    "flip": "mirrorings",
    r"shift\d+(x\d+)?|T\(2\).*": "shifts",
    "rgb": "exchanges of colours",
    "sign": "changes of sign",
}
"""What the groups do to images."""
STYLE = """
.eedkit-card { font: 1rem/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }
.eedkit-card h1 { font-size: 1.5rem; }
.eedkit-card h2 { font-size: 1.15rem; margin-top: 2rem; }
.eedkit-card img { max-width: 100%; background: white; border-radius: 4px; }
"""
"""It sets no colours: those of JupyterLab's theme show in a notebook, those of the browser's on a page."""


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

    @property
    def failures(self) -> list[str]:
        """What was required and is not so, a line each; empty where the card passes, or nothing was required."""
        return self.facts["failures"]

    @property
    def html(self) -> str:
        """The page, which loads nothing."""
        head = (
            '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            '<meta name="color-scheme" content="light dark">'
            f"<title>{_escaped(self.title)}</title>"
        )
        return f'<!doctype html><html lang="en"><head>{head}</head><body>{self._repr_html_()}</body></html>'

    @cached_property
    def _body(self) -> str:
        parts = [f"<h1>{_escaped(self.title)}</h1>"]
        for section in self.sections:
            parts.append(f"<h2>{_escaped(section.title)}</h2>")
            parts += [f"<p>{_escaped(sentence)}</p>" for sentence in section.sentences]
            if section.figure is not None:
                said = " ".join(section.sentences)
                parts.append(f'<img alt="{_escaped(said)}" src="data:image/png;base64,{_png(section.figure)}">')
        return "".join(parts)

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
        return f'<style>{STYLE}</style><main class="eedkit-card">{self._body}</main>'


def card(
    results: xr.Dataset,
    images: Any = None,
    *,
    model: str | None = None,
    action: Any = None,
    require: Sequence[str] = (),
) -> Card:
    """One page about one model: how accurate is it moved, how invariant, where, on which images, is it real, what to do?

    Every sentence is made from the numbers, and says no more than they do.

    Parameters
    ----------
    results : Dataset
        Of `measure`, `Study.run` or `open`, with the latent metric.
    images : tensor, array or data set, or None
        The images that were measured, to show those that deviate most.
    model : str, or None
        Which model's; None where there is one.
    action : Action, or None
        How the group acted on the images, where that was a custom action; without it these are not shown moved.
    require : sequence of str
        What numbers must be for the card to pass: "relative<=0.1", "accuracy.moved>=0.9". `NUMBERS` lists them.

    Returns
    -------
    Card
        With `save(path)`, `html`, `json` and `failures`.

    Raises
    ------
    ValueError
        There is no such model, or there are several, no latent metric, or a requirement is none.

    Examples
    --------
    >>> import torch, eedkit as ek
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(25, 3))
    >>> made = card(ek.measure(net, torch.rand(8, 1, 5, 5), group="C4", progress=False), require=["relative<=0"])
    >>> made.facts["images"], made.facts["group"], len(made.failures)
    (8, 'C4', 1)
    """
    requirements = [Requirement.read(text, NUMBERS) for text in require]
    one = schema.one_model(results, model).compute()
    if "latent" not in schema.metrics_of(one):
        raise ValueError(unknown("metric", "latent", schema.metrics_of(one)) + "; a card needs it")
    table = summarise(one, full=True)
    by_layer = table[table.metric == "latent"].set_index("layer")
    latent = by_layer.loc["latent"]
    found = predictions(one)
    ratio = ratio_from_x(one, "latent", "latent")
    by_element = as_relative(ratio.mean("sample"), latent.order).to_series()
    numbers = _numbers(table, found)
    failures = []
    for requirement in requirements:
        failures.append(requirement.failure(*numbers[requirement.name]))
    facts = {
        "model": one.model.values[0],
        "group": one.attrs["group"],
        "data": one.attrs.get("data", ""),
        "images": int(one.sizes["sample"]),
        "elements": one.element.values.tolist(),
        "eedkit": one.attrs["eedkit_version"],
        "weights": one.weights.values[0],
        "created": one.attrs.get("created", ""),
        "numbers": _plain(pd.Series({name: value for name, (value, _) in numbers.items()})),
        "accuracy by element": _plain(found.accuracy),
        "same class by element": _plain(found.kept),
        "same class of different images": None if np.isnan(found.null) else found.null,
        "relative by element": _plain(by_element),
        "failures": [failure for failure in failures if failure],
        "summary": [_plain(row) for _, row in table.iterrows()],
    }
    sections = [_measured(one)]
    if requirements:
        sections.append(_does_it_pass(requirements, failures))
    sections += [
        _how_accurate(one, found),
        _how_invariant(table),
        _under_which_elements(one, by_element),
        _where(one, by_layer),
        _is_it_real(one, latent, found),
    ]
    of_labelled = labelled(ratio.mean("element"))
    if of_labelled.size:
        by_class = as_relative(of_labelled.groupby("label").mean(), latent.order).to_series()
        facts["relative by class"] = _plain(by_class)
        sections.append(_on_which_classes(one, by_class))
    if images is not None:
        sections.append(_on_which_images(one, images, action))
    gain = _averaging(one)
    if gain is not None:
        sections.append(gain)
    sections += [_what_to_do(one, found, latent), _how_to_cite(one)]
    return Card(printable(str(facts["model"])), tuple(sections), facts)


def _numbers(table: pd.DataFrame, found: Predictions) -> dict[str, tuple[float, str]]:
    """The value of each of `NUMBERS`, and why it has none."""
    no_kept = "no class is predicted for moved images"
    values = {
        "accuracy.upright": (found.upright, found.no_accuracy),
        "accuracy.moved": (found.moved, found.no_accuracy),
        "accuracy.lowest": (float(found.of_moved.min()), found.no_accuracy),
        "kept": (float(found.kept.mean()), no_kept),
    }
    for name, metric, layer in (("relative", "latent", "latent"), ("relative.output", "softmax", "output")):
        rows = table[(table.metric == metric) & (table.layer == layer)]
        values[name] = (np.nan, f"{metric} was not measured")
        if len(rows):
            values[name] = (float(rows.relative.iloc[0]), str(rows.reason.iloc[0]))
    return {name: values[name] for name in NUMBERS}


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


def _does_it_pass(requirements: Sequence[Requirement], failures: Sequence[str]) -> Section:
    sentences = []
    for requirement, failure in zip(requirements, failures, strict=True):
        required = f"{requirement.name} {requirement.sign} {requirement.bound:g}"
        sentences.append(f"Fails: {failure}." if failure else f"Passes: {required}.")
    return Section("Does it pass?", tuple(sentences))


def _how_accurate(one: xr.Dataset, found: Predictions) -> Section:
    sentences = []
    if found.no_accuracy:
        sentences.append(f"Its accuracy is not known: {found.no_accuracy}.")
    else:
        if not np.isnan(found.upright):
            sentences.append(f"Unmoved, {found.upright:.0%} of {found.n_labelled} images are classified correctly.")
        if len(found.of_moved):
            by_element = _by_element(found.of_moved, "{:.0%}")
            sentences.append(f"Moved, {found.moved:.0%} are: {by_element}.")
    if found.names_one_class:
        named = _class_name(one, found.classes.index[0])
        sentences.append(f"Every unmoved image is taken for class {named}, so that a class stays says nothing.")
    elif found.n and found.kept.notna().any():
        null = (
            ""
            if np.isnan(found.null)
            else f"; two different images get the same class in {found.null:.0%} of all pairs"
        )
        sentences.append(f"The predicted class stays for {found.kept.mean():.0%} of the moved images{null}.")
    return Section("How accurate is it, unmoved and moved?", tuple(sentences))


def _how_invariant(table: pd.DataFrame) -> Section:
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
            sentences.append(
                f"The {what} deviate by {row.relative:.2f}{_interval(row.relative_low, row.relative_high)} relative to "
                "other images."
            )
    if table.relative[table.metric.isin(["latent", "softmax"])].notna().any():
        sentences.append("At 0 they would be invariant; at 1 a moved copy would be as far away as a different image.")
    return Section("How invariant is it?", tuple(sentences))


def _under_which_elements(one: xr.Dataset, by_element: pd.Series) -> Section:
    ordered = by_element.dropna().sort_values(kind="stable")
    figure = plots.orbit_rose(one, title="") if _has_values(one) and len(by_element) else None
    if by_element.empty:
        return Section("Under which elements?", ("No element moves the image.",))
    if ordered.empty:
        return Section("Under which elements?", ("No element has a relative value.",), figure)
    if len(ordered) == 1:
        said = (
            f"Under {ordered.index[0]} the features deviate from those of the unmoved image by {ordered.iloc[0]:.2f}."
        )
    elif f"{ordered.iloc[0]:.2f}" == f"{ordered.iloc[-1]:.2f}":
        said = f"The features deviate from those of the unmoved image by {ordered.iloc[0]:.2f} under every element."
    else:
        said = (
            f"From those of the unmoved image, the features deviate least under {ordered.index[0]} "
            f"({ordered.iloc[0]:.2f}) and most under {ordered.index[-1]} ({ordered.iloc[-1]:.2f}), relative to other "
            "images."
        )
    return Section("Under which elements?", (said,), figure)


def _where(one: xr.Dataset, latent: pd.DataFrame) -> Section:
    title = "Where in the network does invariance arise?"
    value = "relative" if latent.relative.notna().any() else "estimate"
    rows = latent[latent[value].notna() & ~latent.index.str.endswith("[class]")].sort_values("depth", kind="stable")
    if len(rows) < 2:
        return Section(title, ("Fewer than two layers have a value.",))
    values = rows[value]
    what = (
        "The relative value of the features"
        if value == "relative"
        else "The deviation of the features, without a null,"
    )
    falls = -values.diff().iloc[1:]
    if value == "relative" and values.max() < EXACT:
        sentences = ["At every layer: the features are the same for an image and its moved copies, within rounding."]
    else:
        sentences = [
            f"{what} is {values.iloc[0]:.2f} at {rows.index[0]} and {values.iloc[-1]:.2f} at {rows.index[-1]}."
        ]
        if falls.max() >= STEP:
            at = int(falls.argmax()) + 1
            sentences.append(f"It falls most from {rows.index[at - 1]} to {rows.index[at]}, by {falls.max():.2f}.")
        elif falls.max() > 0:
            sentences.append(f"From no layer to the next does it fall by {STEP:g} or more.")
        else:
            sentences.append("It falls nowhere.")
    figure = plots.depth_profile(one, metric="latent", relative=value == "relative", title="")
    return Section(title, tuple(sentences), figure)


def _is_it_real(one: xr.Dataset, row: pd.Series, found: Predictions) -> Section:
    said = _real(row, found)
    if one.sizes["element"] < 2:
        said = "That stays open: no element moves the image."
    return Section("Is it invariance, or insensitivity?", (said,))


def _real(row: pd.Series, found: Predictions) -> str:
    """One sentence for each case."""
    if np.isnan(row.estimate):
        return f"That stays open: {row.reason}."
    if np.isnan(row.null):
        return "That stays open: there is no null, and so nothing to compare moved copies with."
    apart = row.null - row.best
    if np.isnan(row.relative):
        if "the null gap" in row.reason:
            return (
                f"Insensitivity: different images have the same features within rounding ({apart:.1g} apart), so that "
                "those of moved copies are the same, too."
            )
        return f"That stays open: {row.reason}."
    moved = row.estimate - row.best
    both = f"different images are {apart:.2g} apart, moved copies {moved:.2g}"
    is_at_one = row.relative >= NEAR_ONE or (row.relative_low <= 1 <= row.relative_high)
    if found.names_one_class and not is_at_one:
        return f"Partly insensitivity: every image gets the same class, although the features differ ({both})."
    if row.relative < EXACT:
        return f"Invariance, exact within rounding: different images are {apart:.2g} apart, moved copies of one not at all."
    if is_at_one:
        return f"Neither: moved copies are about as far apart as different images, so there is nothing to explain ({both})."
    if row.relative <= LOW:
        return f"Invariance: {both}, so the features tell images apart and change little as these move."
    return f"A part of invariance: {both}, which is closer but far from the same."


def _on_which_classes(one: xr.Dataset, by_class: pd.Series) -> Section:
    title = "On which classes does it fail?"
    ordered = by_class.dropna().sort_values(kind="stable")
    if len(by_class) < 2:
        return Section(title, ("The images have one class.",))
    sentences = []
    accuracies = _accuracy_by_class(one)
    if len(accuracies) > 1:
        least, most = (_class_name(one, accuracies.index[at]) for at in (0, -1))
        if f"{accuracies.iloc[0]:.0%}" == f"{accuracies.iloc[-1]:.0%}":
            sentences.append(f"Moved, every class is right for {accuracies.iloc[0]:.0%} of its copies.")
        else:
            sentences.append(
                f"Moved, class {least} is right least often ({accuracies.iloc[0]:.0%} of its copies) and class {most} "
                f"most often ({accuracies.iloc[-1]:.0%})."
            )
    if len(ordered) < 2 or f"{ordered.iloc[0]:.2f}" == f"{ordered.iloc[-1]:.2f}":
        if len(ordered):
            sentences.append(f"The features deviate by {ordered.iloc[0]:.2f} on every class.")
    else:
        least, most = (_class_name(one, ordered.index[at]) for at in (0, -1))
        sentences.append(
            f"The features deviate most from those of the unmoved image on class {most} ({ordered.iloc[-1]:.2f} "
            f"relative to other images) and least on class {least} ({ordered.iloc[0]:.2f})."
        )
    is_drawn = _has_values(labelled(one)) and len(by_class) <= plots.draw.CLASSES
    figure = plots.class_heatmap(one, title="") if is_drawn else None
    return Section(title, tuple(sentences or ["No class has a value."]), figure)


def _accuracy_by_class(one: xr.Dataset) -> pd.Series:
    """The part of each class's moved copies that are right, in rising order; empty where there are no predictions."""
    try:
        right = right_in_own_classes(one.isel(model=0))
    except Undefined:
        return pd.Series(dtype=float)
    moved = right.isel(element=right.element.values != one.element.attrs.get("identity", "e"))
    by_class = moved.mean("element").groupby("label").mean().to_series()
    return by_class.dropna().sort_values(kind="stable")


def _on_which_images(one: xr.Dataset, images: Any, action: Any) -> Section:
    title = "On which images does it fail?"
    if action is None and one.attrs.get("action") != SPATIAL:
        name = one.attrs.get("action")
        return Section(title, (f"The images were moved by the action {name!r}; card(…, action=…) shows them moved.",))
    if one.sizes["element"] < 2 or not _has_values(one):
        return Section(title, ("No image has a value under an element that moves it.",))
    said = "Each of these images stands above its moved copy that differs most from it, with the predictions on both."
    return Section(title, (said,), plots.worst(one, images, action=action, title=""))


def _averaging(one: xr.Dataset) -> Section | None:
    if REVERSE not in one:
        return None
    row = averaging_gain(one).iloc[0]
    if np.isnan(row.predicted):
        return None
    said = (
        f"Where {_moves(one)} occur, averaging the class probabilities over the orbit would lower the log-loss by "
        f"{row.predicted:.2g} nats{_interval(row.predicted_low, row.predicted_high)}, at {one.sizes['element']} times the "
        "cost. This is predicted from the probabilities, without labels."
    )
    return Section("What would averaging over the orbit buy?", (said,))


def _what_to_do(one: xr.Dataset, found: Predictions, latent: pd.Series) -> Section:
    return Section("What to do?", (_advice(one, found, latent),))


def _advice(one: xr.Dataset, found: Predictions, latent: pd.Series) -> str:
    """One sentence for each case."""
    if one.sizes["element"] < 2:
        return "Measure under a group that moves images."
    if doubts(one):
        return "First see that the model can read these images; until then nothing follows from what moving them does."
    if found.names_one_class and not found.upright >= ONE_CLASS:
        return "First see why every image gets the same class; until then nothing follows from what moving them does."
    moves = _moves(one)
    choice = f"if {moves} occur in use, train with them; if the class depends on the {moves}, do not"
    nothing = f"nothing needs to be done for {moves}, unless the class depends on them"
    fall = found.upright - found.moved
    if fall >= FALL:
        lowest = found.of_moved.idxmin()
        largest = found.upright - found.of_moved[lowest]
        most = f", most under {lowest} (by {largest:.2f})" if len(found.of_moved) > 1 else ""
        return f"Accuracy falls by {fall:.2f} under {moves}{most}: {choice}."
    if not np.isnan(fall):
        return f"Accuracy is {found.upright:.2f} unmoved and {found.moved:.2f} under {moves}: {nothing}."
    changed = 1 - found.kept.mean()
    if changed >= FALL:
        unknown_fall = "Labels would tell whether accuracy falls"
        return f"The predicted class changes for {changed:.0%} of the moved images: {choice}. {unknown_fall}."
    if not np.isnan(changed) and not found.names_one_class:
        return f"The predicted class changes for {changed:.0%} of the moved images: {nothing}."
    if np.isnan(latent.relative):
        return "Nothing follows from these numbers: neither predictions nor features say what moving the images does."
    if latent.relative > LOW:
        return (
            f"The features change under {moves}: if what is read off them must not depend on {moves}, train with them "
            f"or average the features over the orbit; if it does depend on {moves}, do not."
        )
    return (
        f"The features change little under {moves}: nothing needs to be done for {moves}, unless what is read off the "
        "features depends on them."
    )


def _moves(one: xr.Dataset) -> str:
    """What the group does to images, as a noun in the plural."""
    group = one.attrs["group"]
    if one.attrs.get("action") == "spatial":
        for pattern, noun in MOVES.items():
            if re.fullmatch(pattern, group):
                return noun
    return f"moves of {group}"


def _has_values(one: xr.Dataset) -> bool:
    """Whether some image has features under every element, so that there is something to draw."""
    from_x = one[schema.from_x(one, "latent")].sel(layer="latent")
    return bool(from_x.notnull().all("element").any())


def _by_element(values: pd.Series, form: str) -> str:
    """The values by element, or of many the lowest and the highest."""
    if len(values) <= LISTED:
        return ", ".join(f"{element} {form.format(value)}" for element, value in values.items())
    low, high = values.idxmin(), values.idxmax()
    return f"least under {low} ({form.format(values[low])}) and most under {high} ({form.format(values[high])})"


def _class_name(one: xr.Dataset, label: Any) -> Any:
    """The name of a class, or its number where it has none."""
    names = class_names(one)
    return names[int(label)] if not isinstance(label, str) and label < len(names) else label


def _how_to_cite(one: xr.Dataset) -> Section:
    return Section(
        "How to cite", (f"The measure is the G-empirical equivariance deviation of {PAPER}.", _provenance(one))
    )


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
