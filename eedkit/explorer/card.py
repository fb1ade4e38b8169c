"""`ek.card`: one self-contained page about one model that answers its headings from the numbers, with a JSON twin.

Knows Datasets and figures, never models. Costs one `summarise` and a second for each figure.
"""

import html
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

from eedkit.errors import Undefined, printable, unknown
from eedkit.explorer.pictures import INK, inline_svg
from eedkit.plots.draw import CLASSES
from eedkit.plots.figures import FromUnmoved, class_heatmap, depth_profile, from_unmoved, orbit_rose
from eedkit.plots.style import width
from eedkit.plots.worst import SPATIAL, worst
from eedkit.results import schema
from eedkit.results.doubts import ONE_CLASS, doubts
from eedkit.results.labels import class_names, labelled
from eedkit.results.orbits import REVERSE, averaging_gain
from eedkit.results.predictions import MOVED, Predictions, predictions, right_in_own_classes
from eedkit.results.requirements import Requirement
from eedkit.results.summary import summarise

PAPER = "Kvinge et al. 2022, In What Ways Are Deep Neural Networks Invariant and How Should We Measure This? (NeurIPS; arXiv 2210.03773)"
NUMBERS = ("relative", "relative.output", "accuracy.upright", "accuracy.moved", "accuracy.lowest", "kept")
"""What a card can be required to have: relative values of features and output; accuracy on upright images, on moved ones,
and under the element where it is lowest; the part of moved images whose class stays."""
EXACT = 1e-3
"""Relative values below this are rounding: a cosine of float32 that is off by one unit reads 3e-4."""
LOW = 0.5
"""Relative values up to this are called small; it is half the way from none."""
NEAR_ONE = 0.9
"""Relative values from this on are called as far away as a different image."""
STEP = 0.05
"""The least fall from one layer to the next that is pointed out."""
FALL = 0.02
"""The least fall of accuracy, and the least part of images whose class changes, that calls for something to be done."""
GAIN = 0.005
"""The least gain in nats that is given as a number."""
LISTED = 10
"""Elements or classes that a sentence lists one by one."""
MOVES = {
    r"C\d+|SO\(2\).*": "turns",
    r"D\d+|O\(2\).*": "turns and reflections",
    "flip": "reflections",
    r"shift\d+(x\d+)?|T\(2\).*": "shifts",
    "rgb": "swaps of colour channels",
    "sign": "changes of sign",
}
"""What the groups do to images."""
HEAD = (
    '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    '<meta name="color-scheme" content="light dark">'
)
STYLE = f"""
.eedkit-card {{ color: {INK}; font: 1rem/1.5 system-ui, sans-serif; max-width: 40rem; margin: auto; padding: 1rem; }}
.eedkit-card h1 {{ font-size: 1.5rem; overflow-wrap: anywhere; }}
.eedkit-card h2 {{ font-size: 1.15rem; margin: 2rem 0 0; }}
.eedkit-card p {{ margin: 0.5rem 0; }}
.eedkit-card svg {{ display: block; margin: 1rem 0; }}
"""


@dataclass(frozen=True)
class Section:
    """A question, the sentences that answer it, and a figure of what they were read off."""

    title: str
    sentences: list[str]
    figure: Figure | None = None


@dataclass(frozen=True)
class Card:
    """A page about one model; Jupyter shows it as such.

    Parameters
    ----------
    title : str
        The model's name.
    sections : list of Section
        What the page says.
    facts : dict
        The same as numbers.
    """

    title: str
    sections: list[Section]
    facts: dict[str, Any]

    @property
    def failures(self) -> list[str]:
        """What was required and is not so, a line each; empty where the card passes, or nothing was required."""
        return self.facts["failures"]

    @cached_property
    def _body(self) -> str:
        parts = [f"<h1>{html.escape(self.title)}</h1>"]
        for section in self.sections:
            parts.append(f"<h2>{section.title}</h2>")
            parts += [f"<p>{html.escape(printable(sentence))}</p>" for sentence in section.sentences]
            if section.figure is not None:
                parts.append(inline_svg(section.figure, printable(" ".join(section.sentences))))
        return f'<style>{STYLE}</style><main class="eedkit-card">{"".join(parts)}</main>'

    @property
    def html(self) -> str:
        """The page, which loads nothing and is light or dark as the browser is."""
        head = f"{HEAD}<title>{html.escape(self.title)}</title>"
        return f'<!doctype html><html lang="en"><head>{head}</head><body>{self._body}</body></html>'

    def _repr_html_(self) -> str:
        return self._body

    @property
    def json(self) -> str:
        """The facts as JSON; NaN is null."""
        return json.dumps(self.facts, indent=1, allow_nan=False)

    def save(self, path: str | PathLike) -> Path:
        """Write the page to `path`, which ends in .html, and its JSON twin beside it; returns the page's path."""
        page = Path(path)
        if page.suffix != ".html":
            raise ValueError(f"a card is a page, so its path must end in .html, got {str(path)!r}")
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(self.html, encoding="utf-8")
        page.with_suffix(".json").write_text(self.json, encoding="utf-8")
        return page

    def to_model_index(self) -> list[dict[str, Any]]:
        """The `model-index` of a Hugging Face model card: accuracy upright and moved, relative values of features and output.

        Returns
        -------
        list of dict
            For the YAML block of a model's README, or `huggingface_hub.repocard_data.model_index_to_eval_results`. Every
            metric has its interval, the number of images and the group in `args`; what has no value is left out.

        Examples
        --------
        >>> import eedkit as ek
        >>> [entry] = ek.card(ek.example(), model="plain").to_model_index()
        >>> entry["results"][0]["metrics"][1]["name"]
        'accuracy, moved (C4)'
        """
        group = self.facts["group"]
        metrics = []
        for row in self.facts["summary"]:
            args = {"group": group, "n": row["n"]}
            if row["metric"] == "accuracy" and row["element"] in (self.facts["identity"], MOVED):
                name = f"accuracy, {'moved' if row['element'] == MOVED else 'upright'} ({group})"
                value = row["estimate"]
                low = row["low"]
                high = row["high"]
            elif row["layer"] in ("latent", "output"):
                name = f"relative deviation of {row['metric']} ({group})"
                value = row["relative"]
                low = row["relative_low"]
                high = row["relative_high"]
                args["layer"] = row["layer"]
            else:
                continue
            if value is not None:
                interval = {} if low is None else {"low": low, "high": high, "confidence": 0.95}
                metric_type = "accuracy" if row["metric"] == "accuracy" else f"relative_{row['metric']}"
                metrics.append({"type": metric_type, "value": value, "name": name, "args": args | interval})
        has_classes = self.facts["numbers"]["kept"] is not None
        task = {"type": "image-classification" if has_classes else "image-feature-extraction"}
        data = self.facts["data"].rpartition(" [")[0] or "images"
        results = [{"task": task, "dataset": {"name": data, "type": data}, "metrics": metrics}]
        return [{"name": self.title, "results": results}]


def card(
    results: xr.Dataset,
    images: Any = None,
    *,
    model: str | None = None,
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
    require : sequence of str
        What numbers must be for the card to pass: "relative<=0.1", "accuracy.moved>=0.9". `NUMBERS` lists them.

    Returns
    -------
    Card
        With `save(path)`, `html`, `json`, `failures` and `to_model_index()`.

    Raises
    ------
    ValueError
        There is no such model, or there are several, no latent metric, or a requirement is none.

    Examples
    --------
    >>> import eedkit as ek
    >>> made = card(ek.example(), model="plain", require=["relative<=0.1"])
    >>> made.facts["images"], made.facts["group"], made.failures
    (60, 'C4', ['relative is 0.96, required <= 0.1'])
    """
    requirements = [Requirement.read(text, NUMBERS) for text in require]
    one = schema.one_model(results, model).compute()
    if "latent" not in schema.metrics_of(one):
        raise ValueError(unknown("metric", "latent", schema.metrics_of(one)) + "; a card needs it")
    table = summarise(one, full=True)
    features = table[table.metric == "latent"].set_index("layer")
    latent = features.loc["latent"]
    found = predictions(one)
    numbers = _numbers(table, found)
    failures = [requirement.failure(*numbers[requirement.name]) for requirement in requirements]
    facts = {
        "model": one.model.item(),
        "group": one.attrs["group"],
        "data": one.attrs.get("data", ""),
        "images": one.sizes["sample"],
        "elements": one.element.values.tolist(),
        "identity": found.identity,
        "eedkit": one.attrs["eedkit_version"],
        "weights": one.weights.item(),
        "created": one.attrs.get("created", ""),
        "numbers": {name: None if np.isnan(value) else value for name, (value, _) in numbers.items()},
        "failures": list(filter(None, failures)),
        "summary": json.loads(str(table.to_json(orient="records", double_precision=15))),
    }
    # figures have no room for a long name
    one = one.drop_vars("recipe", errors="ignore").assign_coords(model=["this model"])
    far = _from_upright(one)
    with width("column"):
        sections = [
            _does_it_pass(requirements, failures),
            Section("What to do?", [_advice(one, found, latent)]),
            _how_accurate(one, found),
            _how_invariant(one, table, far),
            _where(one, features),
            _on_which_classes(one, found, far),
            _on_which_images(one, far, images),
            Section("Is it invariance, or insensitivity?", [_real(one, latent, found)]),
            _averaging(one),
            _measured(one),
            _how_to_cite(one),
        ]
    return Card(printable(str(facts["model"])), [section for section in sections if section.sentences], facts)


def _numbers(table: pd.DataFrame, found: Predictions) -> dict[str, tuple[float, str]]:
    """The value of each of `NUMBERS`, and why it has none."""
    numbers = {}
    for name, rows in _features_and_output(table).items():
        numbers[name] = (np.nan, "no metric of the output was measured")
        if len(rows):
            numbers[name] = (float(rows.relative.iloc[0]), str(rows.reason.iloc[0]))
    return numbers | {
        "accuracy.upright": (found.upright, found.no_accuracy),
        "accuracy.moved": (found.moved, found.no_accuracy),
        "accuracy.lowest": (float(found.of_moved.min()), found.no_accuracy),
        "kept": (float(found.kept.mean()), "no class is predicted for moved images"),
    }


def _features_and_output(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The row of the features, and that of the first metric of the output, where there is one."""
    of_features = (table.metric == "latent") & (table.layer == "latent")
    of_output = (table.layer == "output") & (table.metric != REVERSE)
    return {"relative": table.loc[of_features], "relative.output": table.loc[of_output].head(1)}


def _from_upright(one: xr.Dataset) -> FromUnmoved | None:
    """How far moved copies are from their upright images; None where nothing moves, or nothing has a value."""
    try:
        far = from_unmoved(one, "latent", "latent")
    except ValueError:
        return None
    return far if far.values.size else None


def _measured(one: xr.Dataset) -> Section:
    layers = one.sizes["layer"] - 1
    extent = (
        f"{one.sizes['sample']} images, each moved by the {one.sizes['element']} elements of {one.attrs['group']}, "
        f"at {f'{layers} layers and ' if layers else ''}the head's input."
    )
    preprocessing = one.attrs.get("preprocessing") or "not known; the images were taken as they were given"
    # a doubt names the preprocessing, too
    about_reading = [doubt[0].upper() + doubt[1:] for doubt in doubts(one)] or [f"Preprocessing: {preprocessing}"]
    return Section("What was measured", [extent, *(f"{sentence}." for sentence in about_reading)])


def _does_it_pass(requirements: Sequence[Requirement], failures: Sequence[str]) -> Section:
    sentences = []
    for requirement, failure in zip(requirements, failures, strict=True):
        required = f"{requirement.name} {requirement.sign} {requirement.bound:g}"
        sentences.append(f"Fails: {failure}." if failure else f"Passes: {required}.")
    return Section("Does it pass?", sentences)


def _how_accurate(one: xr.Dataset, found: Predictions) -> Section:
    sentences = []
    if found.no_accuracy:
        sentences.append(f"Not known: {found.no_accuracy}.")
    if not np.isnan(found.upright):
        sentences.append(f"Upright: {found.upright:.0%} of {found.n_labelled} images are classified correctly.")
    if not np.isnan(found.moved):
        by_element = _extremes(found.of_moved, "{:.0%}", "lowest under", "highest under")
        if found.of_moved.nunique() == 1:
            by_element = "the same under every element"
        elif len(found.of_moved) <= LISTED:
            by_element = ", ".join(f"{element} {value:.0%}" for element, value in found.of_moved.items())
        sentences.append(f"Moved: {found.moved:.0%} ({by_element}).")
    kept = found.kept.mean()
    if found.names_one_class:
        name = _class_name(one, found.classes.index[0])
        sentences.append(f"Every upright image is called class {name}, so it means nothing that a class stays.")
    elif not np.isnan(kept):
        null = "" if np.isnan(found.null) else f"; two different images share a class in {found.null:.0%} of all pairs"
        sentences.append(f"{kept:.0%} of the moved copies keep the class of their upright image{null}.")
    return Section("How accurate is it, upright and moved?", sentences)


def _how_invariant(one: xr.Dataset, table: pd.DataFrame, far: FromUnmoved | None) -> Section:
    values = []
    sentences = []
    for what, rows in zip(("features", "output"), _features_and_output(table).values(), strict=True):
        for _, row in rows.iterrows():
            if np.isnan(row.relative):
                sentences.append(f"Not known for the {what}: {row.reason}.")
            else:
                values.append(f"{row.relative:.2f}{_interval(row.relative_low, row.relative_high)} for the {what}")
    if values:
        scale = "At 0, nothing changes as images move; at 1, a moved copy is as far away as a different image."
        sentences.insert(0, f"Relative deviation: {' and '.join(values)}. {scale}")
    if far is None:
        return Section("How invariant is it?", sentences)
    by_element = far.on_scale(far.values.isel(model=0).mean("sample")).to_series()
    extremes = _extremes(by_element, "{:.2f}", "Least under", "most under")
    if not extremes:
        extremes = f"{by_element.iloc[0]:.2f} under every element but the identity"
    sentences.append(f"{extremes}, measured from the upright image.")
    return Section("How invariant is it?", sentences, orbit_rose(one, title=""))


def _where(one: xr.Dataset, features: pd.DataFrame) -> Section:
    title = "Where in the network does invariance arise?"
    is_shown = features.relative.notna() & ~features.index.str.endswith("[class]")
    values = features.loc[is_shown].sort_values(by="depth", kind="stable").relative
    if len(values) < 2:
        return Section(title, ["Not known: fewer than two layers have a relative value."])
    falls = -values.diff().iloc[1:]
    first, last = (f"{values.iloc[at]:.2f} at {values.index[at]}" for at in (0, -1))
    what = "the relative deviation of the features"
    if values.max() < EXACT:
        answer = "At every layer: the features are the same for an image and its moved copies, within rounding."
    elif falls.max() >= STEP:
        at = int(falls.argmax())
        place = f"from {values.index[at]} to {values.index[at + 1]}"
        answer = f"Most {place}: there {what} falls by {falls.max():.2f}. It is {first} and {last}."
        if values.iloc[-1] >= values.iloc[0]:
            answer = f"On the whole nowhere: {what} is {first} and {last}. It falls most {place}, by {falls.max():.2f}."
    else:
        never = f"never falls by {STEP:g} or more from one layer to the next"
        answer = f"At no layer: {what} {never}. It is {first} and {last}."
    return Section(title, [answer], depth_profile(one, metric="latent", title=""))


def _on_which_classes(one: xr.Dataset, found: Predictions, far: FromUnmoved | None) -> Section:
    title = "On which classes does it fail?"
    if _is_exact(far):
        return Section(
            title,
            ["Moving makes it fail on none: moved copies have the features of their upright image, within rounding."],
        )
    deviations = _deviation_by_class(far)
    accuracies = pd.Series(dtype=float) if found.names_one_class else _accuracy_by_class(one)
    sentences = []
    for values, form, least, most in (
        (accuracies, "{:.0%}", "Moved copies are right least often in class", "most often in class"),
        (deviations, "{:.2f}", "Features change least in class", "most in class"),
    ):
        extremes = _extremes(values.rename(lambda label: _class_name(one, label)), form, least, most)
        if extremes:
            sentences.append(f"{extremes}.")
    is_drawn = 1 < len(deviations) <= CLASSES
    return Section(title, sentences, class_heatmap(one, title="") if is_drawn else None)


def _on_which_images(one: xr.Dataset, far: FromUnmoved | None, images: Any) -> Section:
    title = "On which images does it fail?"
    if images is None or _is_exact(far):
        return Section(title, [])
    if far is None:
        return Section(title, ["No image has a value under an element that moves it."])
    if one.attrs.get("action") != SPATIAL:
        name = one.attrs.get("action")
        return Section(title, [f"Not shown: the images were moved by the action {name!r}; pass it to ek.plots.worst."])
    answer = "On these most: each stands above its moved copy that differs most from it."
    return Section(title, [answer], worst(one, images, title=""))


def _is_exact(far: FromUnmoved | None) -> bool:
    """Whether moved copies have the features of their upright image, but for rounding."""
    return far is not None and far.is_relative and bool(far.on_scale(far.values).max() < EXACT)


def _accuracy_by_class(one: xr.Dataset) -> pd.Series:
    """The part of each class's moved copies that are right; empty where there are no predictions."""
    try:
        right = right_in_own_classes(one.isel(model=0))
    except Undefined:
        return pd.Series(dtype=float)
    moved = right.isel(element=right.element.values != one.element.attrs.get("identity", "e"))
    return moved.mean("element").groupby("label").mean().to_series().dropna()


def _deviation_by_class(far: FromUnmoved | None) -> pd.Series:
    """How far the features of each class's moved copies are from those of upright images; empty without labels."""
    if far is None:
        return pd.Series(dtype=float)
    of_labelled = labelled(far.values.isel(model=0))
    if not of_labelled.sizes["sample"]:
        return pd.Series(dtype=float)
    return far.on_scale(of_labelled.mean("element").groupby("label").mean()).to_series().dropna()


def _real(one: xr.Dataset, row: pd.Series, found: Predictions) -> str:
    """One sentence for each case."""
    if one.sizes["element"] < 2:
        return "Not known: no element moves the image."
    if np.isnan(row.relative):
        if "the null gap" in row.reason:
            return "Insensitivity: even different images have the same features, within rounding."
        return f"Not known: {row.reason or 'there is no null to compare moved copies with'}."
    times = f"moved copies are {row.relative:.2f} times as far apart as different images"
    if row.relative >= NEAR_ONE or row.relative_low <= 1 <= row.relative_high:
        return f"Neither: {times}, so there is no invariance to explain."
    if found.names_one_class:
        return f"Partly insensitivity: every image gets the same class, although features differ ({times})."
    if row.relative < EXACT:
        return (
            "Invariance, exact within rounding: different images have different features, moved copies have the same."
        )
    return f"{'Invariance' if row.relative <= LOW else 'Invariance in part'}: {times}."


def _averaging(one: xr.Dataset) -> Section:
    title = "What would averaging over the orbit buy?"
    if REVERSE not in one:
        return Section(title, [])
    gain = averaging_gain(one).iloc[0]
    if np.isnan(gain.predicted):
        return Section(title, [])
    nats = f"{gain.predicted:.2f} nats of log-loss{_interval(gain.predicted_low, gain.predicted_high)}"
    if gain.predicted < GAIN:
        nats = f"Less than {GAIN:g} nats of log-loss"
    answer = (
        f"{nats} at {one.sizes['element']} times the cost, where all elements are equally frequent. This is predicted from the "
        "class probabilities, without labels."
    )
    return Section(title, [answer])


def _advice(one: xr.Dataset, found: Predictions, latent: pd.Series) -> str:
    """One sentence for each case."""
    if one.sizes["element"] < 2:
        return "Measure under a group that moves images."
    if doubts(one):
        return "First see that the model can read these images; until then nothing follows from what moving them does."
    if found.names_one_class and not found.upright >= ONE_CLASS:
        return "First see why every image gets the same class; until then nothing follows from what moving them does."
    moves = _moves(one)
    fall = found.upright - found.moved
    changed = 1 - found.kept.mean()
    if not np.isnan(fall):
        matters = fall >= FALL
        finding = f"Accuracy is {found.upright:.2f} upright and {found.moved:.2f} under {moves}"
        if matters:
            finding = f"Accuracy falls by {fall:.2f} under {moves}"
    elif not np.isnan(changed):
        matters = changed >= FALL
        finding = f"The predicted class changes for {changed:.0%} of the moved images"
    elif not np.isnan(latent.relative):
        matters = latent.relative > LOW
        finding = f"The features change under {moves} by {latent.relative:.2f}"
    else:
        return "Nothing follows from these numbers: neither predictions nor features say what moving the images does."
    if matters:
        return f"{finding}: if {moves} occur in use, train with them; if the answer depends on the {moves}, do not."
    return f"{finding}: nothing needs to be done for {moves}, unless the answer depends on them."


def _moves(one: xr.Dataset) -> str:
    """What the group does to images, as a noun in the plural."""
    group = one.attrs["group"]
    if one.attrs.get("action") == SPATIAL:
        for pattern, noun in MOVES.items():
            if re.fullmatch(pattern, group):
                return noun
    return f"moves of {group}"


def _extremes(values: pd.Series, form: str, least: str, most: str) -> str:
    """The lowest and the highest value with all the names that have it, as it is written; "" where all are the same.

    >>> _extremes(pd.Series({"r90": 0.5, "r180": 0.2, "r270": 0.5}), "{:.1f}", "least under", "most under")
    'least under r180 (0.2), most under r90, r270 (0.5)'
    """
    texts = values.dropna().sort_values(kind="stable").map(form.format)
    if texts.nunique() < 2:
        return ""
    ends = []
    for what, text in ((least, texts.iloc[0]), (most, texts.iloc[-1])):
        names = texts.index[texts == text].map(str).tolist()
        more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
        ends.append(f"{what} {', '.join(names[:LISTED])}{more} ({text})")
    return ", ".join(ends)


def _class_name(one: xr.Dataset, label: Any) -> Any:
    """The name of a class, or its number where it has none."""
    names = class_names(one)
    return names[int(label)] if not isinstance(label, str) and label < len(names) else label


def _how_to_cite(one: xr.Dataset) -> Section:
    provenance = [
        one.attrs.get("data"),
        f"seed {one.attrs.get('seed')}",
        one.attrs.get("precision"),
        one.attrs.get("created"),
    ]
    made = (
        f"Made by eedkit {one.attrs['eedkit_version']} from weights {one.weights.item()} and images "
        f"{', '.join(filter(None, provenance))}."
    )
    return Section("How to cite", [f"The measure is the G-empirical equivariance deviation of {PAPER}.", made])


def _interval(low: float, high: float) -> str:
    return "" if np.isnan(low) else f" ({low:.2f} to {high:.2f})"
