"""The paper's mathematics on tensors: groups, actions, distances, deviation. Knows torch and nothing of labels.

# Groups by name

`group=` takes a name: `"C4"` (quarter turns), `"D4"` (with mirrors), `"flip"`, `"shift4"` (rolls by quarters of the
height), products such as `"shift4*flip"`. `eedkit.theory.groups.parse` lists them all, `ek.available.groups()` shows
examples. It also takes a `Group` with a table of its own, or an `Action`.

Quarter turns need square images. Strided convolutions keep the symmetry on odd sides only (17 → 9 → 5): an even grid
has no centre to turn about.

# Between the pixels

`C8`, `D3`, and samples of the continuous `SO(2)`, `O(2)` and `T(2)` interpolate, and are not exact. Maps are then
compared within a circle, and the column `round_trip` bounds from above what interpolation adds at each layer: the
image moved there and back, on the relative scale.

# A custom action

An action is a group, and what its elements do to images. `check_action` explains why something is not a group action.

```python
import torch, eedkit as ek


def upside_down(element, z):  # z: (…, H, W)
    return z.flip(-2) if element else z


two = ek.groups.Group("up-down", elements=("e", "u"), table=((0, 1), (1, 0)))
action = ek.actions.Action("up-down", two, move=upside_down)
images = torch.rand(8, 1, 5, 5)
ek.actions.check_action(action, images[0])  # 0.0: exact
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(25, 3))
ek.summarise(ek.measure(model, images, group=action, metrics=["latent"]))
```
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(__name__, submodules=["actions", "deviation", "distances", "groups"])
