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

from eedkit import plots
from eedkit.errors import Undefined, printable, unknown
from eedkit.explorer.pictures import svg
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
ENDS = {("latent", "latent"): "features", ("softmax", "output"): "class probabilities"}
"""The metrics, and where they are taken, that say how invariant a model is."""
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
GAIN = 0.005
"""The least gain in nats that is called one."""
LISTED = 8
"""Elements that a sentence lists one by one."""
TIED = 2
"""Elements or classes that share the highest or lowest value and are named."""
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
.eedkit-card svg { display: block; width: 100%; max-width: 32rem; }
"""
"""It sets no colours: those of JupyterLab's theme show in a notebook, those of the browser's on a page."""


@dataclass(frozen=True)
class Section:
    """A question, the sentences that answer it, and figures of what they were read off."""

    title: str
    sentences: Sequence[str]
    figures: Sequence[Figure] = ()


@dataclass(frozen=True)
class Card:
    """A page about one model; Jupyter shows it as such.

    Parameters
    ----------
    title : str
        The model's name.
    sections : sequence of Section
        What the page says.
    facts : dict
        The same as numbers.
    """

    title: str
    sections: Sequence[Section]
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
            parts += [svg(figure) for figure in section.figures]
        return "".join(parts)

    def _repr_html_(self) -> str:
        return f'<style>{STYLE}</style><main class="eedkit-card">{self._body}</main>'

    @property
    def json(self) -> str:
        """The facts as JSON; NaN is null."""
        return json.dumps(self.facts, indent=1, default=str, allow_nan=False)

    def save(self, path: str | PathLike) -> Path:
        """Write the page to `path`, which ends in .html, and its JSON twin beside it; gives the path of the page."""
        page = Path(path)
        if page.suffix != ".html":
            raise ValueError(f"a card is a page, so its path must end in .html, got {str(path)!r}")
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(self.html, encoding="utf-8")
        page.with_suffix(".json").write_text(self.json, encoding="utf-8")
        return page

    def to_model_index(self) -> list[dict[str, Any]]:
        """The evaluation results as `model-index` of a model card on Hugging Face.

        Accuracy, and the relative values of features and class probabilities; each says in `args` under which group, at
        which layer, on how many images and with which 95 % interval.

        Returns
        -------
        list of dict
            For `huggingface_hub.ModelCardData(**{"model-index": …})`, or for the head of a README as YAML.

        Examples
        --------
        >>> import eedkit as ek
        >>> index = card(ek.example(), model="plain").to_model_index()
        >>> index[0]["results"][0]["metrics"][1]
        {'type': 'accuracy', 'name': 'accuracy (r90)', 'value': 0.1, 'args': {'group': 'C4', 'element': 'r90', 'n': 60, ...}}
        """
        metrics = []
        for row in self.facts["summary"]:
            if row["metric"] == "accuracy":
                metric = {"type": "accuracy", "name": f"accuracy ({row['element']})"}
                value, low, high = row["estimate"], row["low"], row["high"]
            elif (row["metric"], row["layer"]) in ENDS:
                metric = {"type": "relative_eed", "name": f"relative EED of the {ENDS[row['metric'], row['layer']]}"}
                value, low, high = row["relative"], row["relative_low"], row["relative_high"]
            else:
                continue
            if value is not None:
                where = {name: row[name] for name in ("element", "layer") if row[name]}
                interval = {"low": low, "high": high} if low is not None else {}
                args = {"group": self.facts["group"], **where, "n": row["n"], **interval}
                metrics.append({**metric, "value": value, "args": args})
        data = self.facts["data"] or "unknown"
        result = {
            "task": {"type": "image-classification"},
            "dataset": {"name": data, "type": data},
            "metrics": metrics,
        }
        return [{"name": self.title, "results": [result]}]


@dataclass(frozen=True)
class _Findings:
    """What the sections read.

    results : of one model
    table, latent : its summary, and the row of the features
    predictions : accuracy, and how often the predicted class stays
    by_element, by_class : relative values of the features, from the unmoved image; by class none without labels
    """

    results: xr.Dataset
    table: pd.DataFrame
    latent: pd.Series
    predictions: Predictions
    by_element: pd.Series
    by_class: pd.Series

    @property
    def moves(self) -> str:
        """What the group does to images, as a noun in the plural."""
        group = self.results.attrs["group"]
        if self.results.attrs.get("action") == SPATIAL:
            for pattern, noun in MOVES.items():
                if re.fullmatch(pattern, group):
                    return noun
        return f"moves of {group}"

    @property
    def nothing_moves(self) -> bool:
        """Whether the identity is the only element."""
        return self.results.sizes["element"] < 2

    @property
    def is_drawn(self) -> bool:
        """Whether the features of moved images differ from the unmoved ones' by more than rounding, which is no picture."""
        return self.by_element.max() >= EXACT

    def class_name(self, label: Any) -> str:
        """The name of a class, or its number where it has none."""
        names = class_names(self.results)
        return f"class {names[int(label)] if not isinstance(label, str) and label < len(names) else label}"


def card(results: xr.Dataset, images: Any = None, *, model: str | None = None, require: Sequence[str] = ()) -> Card:
    """One page about one model: how accurate is it moved, how invariant, where, on which images, is it real, what to do?

    Every sentence is made from the numbers, and says no more than they do.

    Parameters
    ----------
    results : Dataset
        Of `measure`, `Study.run` or `open`, with the latent metric.
    images : tensor, array or data set, or None
        The images that were measured, to show those whose features change most.
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
    latent = table[(table.metric == "latent") & (table.layer == "latent")].iloc[0]
    has_value = one[schema.from_x(one, "latent")].sel(layer="latent").notnull().all(("model", "element"))
    ratio = ratio_from_x(one, "latent", "latent").isel(sample=np.flatnonzero(has_value))
    of_labelled = labelled(ratio.mean("element"))
    by_class = pd.Series(dtype=float)
    if of_labelled.size:
        by_class = as_relative(of_labelled.groupby("label").mean(), latent.order).to_series()
    by_element = as_relative(ratio.mean("sample"), latent.order).to_series()
    found = _Findings(one, table, latent, predictions(one), by_element, by_class)
    numbers = _numbers(found)
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
        "relative by element": _plain(by_element),
        "relative by class": _plain(by_class),
        "failures": [failure for failure in failures if failure],
        "summary": [_plain(row) for _, row in table.iterrows()],
    }
    with plots.width("column"):  # a phone's width, and half a notebook's
        sections = [
            _what_was_measured(found),
            _does_it_pass(requirements, failures),
            _how_accurate(found),
            _how_invariant(found),
            _where(found),
            Section("Is it invariance, or insensitivity?", [_real(found)]),
            _on_which(found, images),
            _what_averaging_buys(found),
            Section("What to do?", [_advice(found)]),
            _how_to_cite(one),
        ]
    return Card(printable(str(facts["model"])), [section for section in sections if section.sentences], facts)


def _numbers(found: _Findings) -> dict[str, tuple[float, str]]:
    """The value of each of `NUMBERS`, and why it has none."""
    predicted = found.predictions
    values = {
        "accuracy.upright": (predicted.upright, predicted.no_accuracy),
        "accuracy.moved": (predicted.moved, predicted.no_accuracy),
        "accuracy.lowest": (float(predicted.of_moved.min()), predicted.no_accuracy),
        "kept": (float(predicted.kept.mean()), "no class is predicted for moved images"),
        "relative": (found.latent.relative, found.latent.reason),
        "relative.output": (np.nan, "softmax was not measured"),
    }
    output = found.table[found.table.metric == "softmax"]
    if len(output):
        values["relative.output"] = (float(output.relative.iloc[0]), output.reason.iloc[0])
    return {name: values[name] for name in NUMBERS}


def _what_was_measured(found: _Findings) -> Section:
    one = found.results
    depth = (one.layer != "latent").sum().item()
    places = "at the head's input"
    if depth:
        places = f"at {depth} layer{'s' if depth > 1 else ''} and the head's input"
    moved = f"{one.sizes['sample']} images, each moved by the {one.sizes['element']} elements of {one.attrs['group']}"
    sentences = [f"{moved}, {places}."]
    doubtful = [f"{doubt}." for doubt in doubts(one)]  # which say how the images were prepared
    prepared = one.attrs.get("preprocessing") or "unknown, the images were taken as given"
    return Section("What was measured", sentences + (doubtful or [f"Preprocessing: {prepared}."]))


def _does_it_pass(requirements: Sequence[Requirement], failures: Sequence[str]) -> Section:
    sentences = []
    for requirement, failure in zip(requirements, failures, strict=True):
        required = f"{requirement.name} {requirement.sign} {requirement.bound:g}"
        sentences.append(f"Fails: {failure}." if failure else f"Passes: {required}.")
    return Section("Does it pass?", sentences)


def _how_accurate(found: _Findings) -> Section:
    predicted = found.predictions
    sentences = []
    if predicted.no_accuracy:
        sentences.append(f"Not known: {predicted.no_accuracy}.")
    else:
        parts = []
        if not np.isnan(predicted.upright):
            parts.append(f"{predicted.upright:.0%} unmoved")
        if len(predicted.of_moved):
            parts.append(f"{predicted.moved:.0%} moved{_by_element(predicted.of_moved)}")
        sentences.append(f"{', '.join(parts)}; {predicted.n_labelled} images have a label.")
    if predicted.names_one_class:
        named = found.class_name(predicted.classes.index[0])
        sentences.append(f"Every unmoved image is taken for {named}, so an unchanged class says nothing.")
    elif predicted.kept.notna().any():
        null = ""
        if not np.isnan(predicted.null):
            null = f"; two different images share a class in {predicted.null:.0%} of all pairs"
        sentences.append(f"The predicted class is the same for {predicted.kept.mean():.0%} of the moved images{null}.")
    return Section("How accurate is it, unmoved and moved?", sentences)


def _how_invariant(found: _Findings) -> Section:
    known, sentences = [], []
    for (metric, layer), what in ENDS.items():
        for row in found.table[(found.table.metric == metric) & (found.table.layer == layer)].itertuples():
            if np.isnan(row.relative):
                deviation = "" if np.isnan(row.estimate) else f", only a deviation of {row.estimate - row.best:.3g}"
                sentences.append(f"No relative value for the {what}{deviation}: {row.reason}.")
            elif row.relative < EXACT:
                known.append(f"0 within rounding in the {what}")
            else:
                known.append(f"{row.relative:.2f}{_interval(row.relative_low, row.relative_high)} in the {what}")
    if known:
        scale = "where 0 is invariant and at 1 a moved copy is as far away as a different image"
        sentences.insert(0, f"{' and '.join(known)}, {scale}.")
    of_elements = found.by_element.dropna()
    if found.nothing_moves:
        sentences.append("No element moves the image.")
    elif len(of_elements) > 1 and found.is_drawn:
        extremes = _extremes(of_elements, "{:.2f}", "under", "elements")
        sentences.append(f"From those of the unmoved image, the features differ {extremes}.")
    figures = [plots.orbit_rose(found.results, title="")] if found.is_drawn else []
    return Section("How invariant is it?", sentences, figures)


def _where(found: _Findings) -> Section:
    title = "Where in the network does invariance arise?"
    latent = found.table[found.table.metric == "latent"]
    rows = latent[latent.relative.notna() & ~latent.layer.str.endswith("[class]")].sort_values("depth", kind="stable")
    if len(rows) < 2:
        return Section(title, ["That stays open: fewer than two layers have a relative value."])
    figure = plots.depth_profile(found.results, metric="latent", title="")
    values, layers = rows.relative.to_numpy(), rows.layer.tolist()
    if values.max() < EXACT:
        return Section(title, ["At every layer: moving an image changes its features by no more than rounding."])
    course = f"goes from {values[0]:.2f} at {layers[0]} to {values[-1]:.2f} at {layers[-1]}"
    falls = -np.diff(values)
    at = int(falls.argmax())
    place = f"between {layers[at]} and {layers[at + 1]}"
    if falls[at] < STEP:
        sentence = f"Nowhere: the relative value {course}, and no layer lowers it by {STEP:g} or more."
    elif values[-1] >= values[0]:
        sentence = f"Not on the whole: the relative value {course}. Its largest fall is {falls[at]:.2f}, {place}."
    else:
        sentence = f"Most {place}, where the relative value falls by {falls[at]:.2f}; it {course}."
    return Section(title, [sentence], [figure])


def _real(found: _Findings) -> str:
    """One sentence for each case."""
    row = found.latent
    if found.nothing_moves:
        return "That stays open: no element moves the image."
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
    both = f"different images are {apart:.2g} apart, moved copies {row.estimate - row.best:.2g}"
    is_at_one = row.relative >= NEAR_ONE or (row.relative_low <= 1 <= row.relative_high)
    if found.predictions.names_one_class and not is_at_one:
        return f"Partly insensitivity: every image gets the same class, although the features differ ({both})."
    if row.relative < EXACT:
        return f"Invariance, exact within rounding: different images are {apart:.2g} apart, moved copies of one not at all."
    if is_at_one:
        return f"Neither: moved copies are no closer than different images, or hardly ({both})."
    if row.relative <= LOW:
        return f"Invariance: {both}, so the features tell images apart and change little as these move."
    return f"A part of invariance: {both}, which is closer but far from the same."


def _on_which(found: _Findings, images: Any) -> Section:
    sentences, figures = [], []
    accuracies = _accuracy_by_class(found.results)
    if len(accuracies) > 1 and not found.predictions.names_one_class:
        extremes = _extremes(accuracies.rename(found.class_name), "{:.0%}", "on", "classes", " often")
        sentences.append(f"Moved copies are classified correctly {extremes}.")
    of_classes = found.by_class.dropna()
    if found.by_element.max() < EXACT:
        sentences.append("The features of no image change as it moves, within rounding.")
    if found.is_drawn:
        if len(of_classes) > 1:
            extremes = _extremes(of_classes.rename(found.class_name), "{:.2f}", "on", "classes")
            sentences.append(f"The features change {extremes}, relative to other images.")
            if len(found.by_class) <= plots.draw.CLASSES:
                figures.append(plots.class_heatmap(found.results, title=""))
        if images is not None and found.results.attrs.get("action") != SPATIAL:
            action = found.results.attrs.get("action")
            sentences.append(f"The action {action!r} moved the images; ek.plots.worst(…, action=…) shows them.")
        elif images is not None:
            sentences.append(
                "Of these images the features change most; below each is the moved copy that differs most."
            )
            figures.append(plots.worst(found.results, images, title=""))
    return Section("On which classes and images does it fail?", sentences, figures)


def _accuracy_by_class(one: xr.Dataset) -> pd.Series:
    """The part of each class's moved copies that are right; empty where there are no predictions."""
    try:
        right = right_in_own_classes(one.isel(model=0))
    except Undefined:
        return pd.Series(dtype=float)
    moved = right.isel(element=right.element.values != one.element.attrs.get("identity", "e"))
    return moved.mean("element").groupby("label").mean().to_series().dropna()


def _what_averaging_buys(found: _Findings) -> Section:
    title = "What would averaging over the orbit buy?"
    if REVERSE not in found.results:
        return Section(title, [])
    row = averaging_gain(found.results).iloc[0]
    if np.isnan(row.predicted):
        return Section(title, [])
    cost = f"at {found.results.sizes['element']} times the cost"
    gain = f"{row.predicted:.2f} nats{_interval(row.predicted_low, row.predicted_high)}"
    if row.predicted < GAIN:
        gain = f"Less than {GAIN:g} nats"
    return Section(
        title,
        [f"{gain} of log-loss where {found.moves} occur, {cost}, as predicted from the probabilities without labels."],
    )


def _advice(found: _Findings) -> str:
    """One sentence for each case."""
    predicted = found.predictions
    if found.nothing_moves:
        return "Measure under a group that moves images."
    if doubts(found.results) or (predicted.names_one_class and not predicted.upright >= ONE_CLASS):
        return "First see whether the model can read these images; until then, what moving them does means nothing."
    moves = found.moves
    choice = f"if {moves} occur in use, train with them; if the class depends on the {moves}, do not"
    nothing = f"nothing needs to be done for {moves}, unless the class depends on them"
    fall = predicted.upright - predicted.moved
    if fall >= FALL:
        falls = predicted.upright - predicted.of_moved
        most = ""
        if falls.nunique() > 1:
            most = f", most under {_named(falls, falls.idxmax(), 'by {:.2f}', 'elements')}"
        return f"Accuracy falls by {fall:.2f} under {moves}{most}: {choice}."
    if not np.isnan(fall):
        return f"Accuracy is {predicted.upright:.2f} unmoved and {predicted.moved:.2f} under {moves}: {nothing}."
    changed = 1 - predicted.kept.mean()
    if not np.isnan(changed) and not predicted.names_one_class:
        mend = f"{choice}. Labels would tell whether accuracy falls" if changed >= FALL else nothing
        return f"The predicted class changes for {changed:.0%} of the moved images: {mend}."
    if np.isnan(found.latent.relative):
        return "Nothing follows from these numbers: neither predictions nor features say what moving the images does."
    if found.latent.relative > LOW:
        return (
            f"The features change under {moves}: if what is read off them must not depend on {moves}, train with them "
            f"or average the features over the orbit; if it does depend on {moves}, do not."
        )
    return (
        f"The features change little under {moves}: nothing needs to be done for {moves}, unless what is read off the "
        "features depends on them."
    )


def _how_to_cite(one: xr.Dataset) -> Section:
    attrs = one.attrs
    images, created = attrs.get("data"), attrs.get("created")
    made = [f"Made by eedkit {attrs['eedkit_version']} from weights {one.weights.values[0]}"]
    made.append(f"images {images}" if images else "")
    made += [f"seed {attrs.get('seed')}", str(attrs.get("precision")), created or ""]
    measure = f"The measure is the G-empirical equivariance deviation of {PAPER}."
    return Section("How to cite", [measure, ", ".join(filter(None, made)) + "."])


def _by_element(values: pd.Series) -> str:
    """The shares by element, or of many the lowest and the highest; nothing of a single one."""
    if len(values) == 1:
        return ""
    if values.nunique() == 1:
        return ", the same under every element"
    if len(values) > LISTED:
        return f" ({_extremes(values, '{:.0%}', 'under', 'elements')})"
    return " (" + ", ".join(f"{element} {value:.0%}" for element, value in values.items()) + ")"


def _extremes(values: pd.Series, form: str, at: str, nouns: str, often: str = "") -> str:
    """ "least under r180 (0.80) and most under r90 (1.02)", or "equally under all elements (0.80)"."""
    least, most = (_named(values, end, form, nouns) for end in (values.idxmin(), values.idxmax()))
    if least == most:
        return f"equally{often} {at} all {nouns} ({form.format(values.iloc[0])})"
    return f"least{often} {at} {least} and most{often} {at} {most}"


def _named(values: pd.Series, end: Any, form: str, nouns: str) -> str:
    """A name with its value, and those whose value looks the same: "r90 and r270 (1.02)"; many are counted."""
    shown = values.map(form.format)
    names = shown.index[shown == shown[end]].map(str)
    named = " and ".join(names) if len(names) <= TIED else f"{len(names)} of {len(values)} {nouns}"
    return f"{named} ({shown[end]})"


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
