"""One model, one stream of images, one labelled Dataset.

# Your own model

`model` is any `nn.Module` on images; `images` is a tensor, a `DataLoader`, a torch or Hugging Face data set.

```python
import torch, torchvision, eedkit as ek

model = torchvision.models.resnet18()  # random weights
images = ek.lab.images.load("patches/test?n=16", size=65)
ek.layers(model, images)  # how each layer will be read, before any computation
ds = ek.measure(model, images, group="C4")
ek.summarise(ds)
```

Nothing is averaged in `ds` yet, so every question is a slice:

```python
ds.eed  # what was measured, and what has no value and why
ds.latent_from_x.sel(layer="latent", element="r90").groupby("label").mean()
```

`ek.concat` and `ek.compare` put models side by side. `ds.eed.to_zarr(path)` and `ek.open(path)` keep results.

# Layers

`layers=` is `"blocks"`, `"all"`, a list of module paths, or a regular expression. A few small forward passes find how
each output is laid out, without guessing from sizes that happen to agree: maps (`b c h w`, `b h w c`) and tokens (`b
1+14x14 c`) are all measured channel by channel. What stays ambiguous is NaN with the reason, and
`layouts={"blocks.3": "b 1+14x14 c"}` settles it.

# Head and output

The head is the module whose output is the model's output, and its input is the latent vector; `head="fc"` names
another. A model that ends in features has no head, and what needs class scores is NaN with the reason.

`ds.attrs["output"]` says which entry of a dict, tuple or object was read; a warning lists the others where more than
one fits. `output=` names an entry (`"logits"`, `"decoder.mask"`, `0`), says what it is (`"scores"`,
`"probabilities"`, `"independent"` for yes-or-no answers, `"dense"`, `"features"`), or does both for several heads at
once: `{"cls": "scores", "mask": "dense"}`. `call=lambda model, images: model(images, prompt)` is for models that want
more than images.

# While it trains

A tracker measures at steps of your loop, and leaves mode, gradients and random state as they were.
`tracker.callback()` does it in Lightning and logs the relative values.

```python
tracker = ek.Tracker(model, images, group="C4", metrics=["latent"])
tracker.step(0)  # and again as training goes on
tracker.table.query("layer == 'latent'").relative
```
"""
