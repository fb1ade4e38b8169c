"""`measure` and its kin by specs: a model and images that are named are loaded for each other; all else goes on as it is.

Must not know layers or metrics. Costs what loading costs; a recipe that was never trained is tried on a few images before.
"""

import inspect
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import xarray as xr
from torch import nn

from eedkit.probe import features
from eedkit.probe import interchange as exchange
from eedkit.probe import measure as probe
from eedkit.probe.measure import Options, measure_block
from eedkit.probe.samples import chain_length, preprocessing
from eedkit.progress import note
from eedkit.results.doubts import doubts
from eedkit.theory import deviation

Arguments = ParamSpec("Arguments")
Results = TypeVar("Results", xr.Dataset, xr.DataArray)


def _by_specs(measure: Callable[Arguments, Results]) -> Callable[Arguments, Results]:
    signature = inspect.signature(measure)
    call: Callable[..., Results] = measure

    @wraps(measure)
    def measure_named(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Results:
        given = signature.bind(*args, **kwargs).arguments
        if isinstance(given["model"], str):
            loaded = _loaded(given)
            given |= {key: loaded[key] for key in loaded if key in signature.parameters}
        elif isinstance(given["images"], str | Path):
            from eedkit.lab import images

            given["images"] = images.load(given["images"])
            note(f"Preprocessing: {preprocessing(given['images'])}", show=given.get("progress", True))
        found = call(**given)
        if isinstance(found, xr.Dataset):
            for doubt in doubts(found):
                warnings.warn(doubt, stacklevel=2)
        return found

    return measure_named


def _loaded(given: dict[str, Any]) -> dict[str, Any]:
    """The arguments that stand in place of a model's spec, and of the images' where they are named, too."""
    from eedkit.lab import models, recipes

    spec = given["model"]
    images = given["images"]
    options = Options(**{key: value for key, value in given.items() if key in Options.__dataclass_fields__})

    def how(loaded: models.Loaded) -> dict[str, Any]:
        layers = given.get("layers") or loaded.layers or "blocks"
        return {"head": given.get("head") or loaded.head, "layers": layers}

    show = given.get("progress", True)
    if isinstance(images, str | Path):
        if recipes.untrained([models.resolve(spec).trained_by]):
            untrained, some_images = models.with_images(spec, images, weights=False)
            _try(untrained.model, some_images, replace(options, **how(untrained)), given.get("labels"))
        loaded, images = models.with_images(spec, images)
        note(f"Preprocessing for {spec}: {preprocessing(images)}", show=show)
    else:
        loaded = models.load(spec)
        note(f"Images for {spec} are taken as given: {preprocessing(images) or 'unknown preprocessing'}", show=show)
    return {"model": loaded.model, "images": images, "name": given.get("name") or spec, **how(loaded)}


def _try(model: nn.Module, images: Any, options: Options, labels: Any) -> None:
    """Measure the first few images with random weights: what is wrong is known before the training."""
    chain = deviation.chains(len(images), chain_length(options.action.group.order, options.null))[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they come again
        values, _ = measure_block(model, images, options, places=chain, labels=labels)
    reasons = []
    for metric in options.metrics:
        if values[metric.name].notnull().any():
            return
        reason = values[metric.name].attrs.get("nan_reason") or "no layer has one"
        reasons.append(f"{metric.name}: {reason}")
    raise ValueError(f"no metric would have a value for this model ({'; '.join(reasons)}); choose other metrics")


measure = _by_specs(probe.measure)
interchange = _by_specs(exchange.interchange)
orbit_features = _by_specs(features.orbit_features)
