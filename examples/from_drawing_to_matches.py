"""From a drawing to features, matches, parts and a search, with the bundled weights.

A notebook in percent format: editors run it cell by cell, ``python
examples/from_drawing_to_matches.py`` runs it as a whole, well under a minute on a CPU. Figures go
to ``from_drawing_to_matches/``. It needs ``pip install ".[tasks]"`` and no download.
"""

# %% [markdown]
# # From a drawing to matches
# Drawings are OpenMoji's line drawings of concepts that the bundled weights were never trained on;
# their photos are the coloured pictures, warped so that nothing lies where it lay.

# %%
from pathlib import Path

import torch
import torch.nn.functional as F

from sketchfusion_plugins.data.openmoji_parts import CLASSES, part_mask
from sketchfusion_plugins.data.sources import load_task_data
from sketchfusion_plugins.heads.matching import match_points
from sketchfusion_plugins.inference.models import open_model
from sketchfusion_plugins.maps import all_maps
from sketchfusion_plugins.viz import (
    draw_branch_weights,
    draw_matches,
    draw_segmentation,
    feature_sheet,
    pca_rgb,
    retrieval_grid,
    save_figure,
)

OUT = Path("from_drawing_to_matches")
SIZE = 128


def pixels(image: torch.Tensor) -> torch.Tensor:
    """Images -1..1 ``[..., 3, H, W]`` as pictures 0..1 ``[..., H, W, 3]``."""
    return ((image + 1) / 2).movedim(-3, -1).clamp(0, 1)


# %% [markdown]
# ## A drawing and its photo
# `limit` keeps this short: 150 concepts, of which those held out are used here.

# %%
model = open_model("sketchfusion/tiny")
data = load_task_data("correspondence", "openmoji", SIZE, limit=150)
concepts = data.test.drawings.concepts
shown = [
    next(i for i, c in enumerate(concepts) if c.group.startswith(group))
    for group in ("Animals", "Food", "Objects", "Travel")
]
pair = data.test[shown[0]]
print("drawing:", concepts[shown[0]].name)

# %% [markdown]
# ## Features
# Every map by its first three principal components; one basis for both images of a column, so equal
# colours mean similar features. CLIP's tokens are injected into Stable Diffusion's levels, which
# are aggregated to one map with learned weights.

# %%
images = torch.stack([pair["source"], pair["target"]])
with torch.inference_mode():
    maps = all_maps(model.encoder, images)
columns = {"image": pixels(images), **{name: pca_rgb(own) for name, own in maps.items()}}
save_figure(feature_sheet(columns, ["drawing", "photo"]), OUT / "features.png")

levels = [f"stride {block.stride}" for block in model.encoder.level_blocks]
weights = {"branch weights": model.encoder.aggregator.branch_weights}
save_figure(draw_branch_weights(weights, levels), OUT / "branch_weights.png")

# %% [markdown]
# ## Matches
# The most similar place of the photo for every point of the drawing. Points within a tenth of the
# photo's side count as right: that is PCK@10.

# %%
points, truth, visible = (pair[name] for name in ("source_points", "target_points", "visible"))
source_map, target_map = maps["aggregated"].split(1)
found = match_points(
    source_map, target_map, points[None], source_stride=model.stride, target_stride=model.stride
)[0]
threshold = SIZE / 10
right = ((found - truth).norm(dim=1) <= threshold)[visible]
print(f"matches: {int(right.sum())} of {len(right)} points within {threshold:.1f} px")
figure = draw_matches(*pixels(images), points[visible], found[visible], truth[visible], threshold)
save_figure(figure, OUT / "matches.png")

# %% [markdown]
# ## Parts
# Labels go from one picture to another by the same similarity: every cell of the second takes the
# label of the most similar cell of the first.

# %%
masks = [torch.from_numpy(part_mask(c.svg.read_bytes(), SIZE)).long() for c in concepts]
people = [i for i, mask in enumerate(masks) if {2, 3} <= set(mask.unique().tolist())][:2]
coloured = torch.stack([torch.from_numpy(data.test.drawings.color[i]) for i in people])
with torch.inference_mode():
    cells = F.normalize(model(coloured.movedim(-1, 1) / 127.5 - 1), dim=1).flatten(2)
known, asked = (masks[i] for i in people)
stride = int(model.stride)
labels = known[stride // 2 :: stride, stride // 2 :: stride].flatten()
nearest = torch.einsum("cs,ct->ts", cells[0], cells[1]).argmax(1)
predicted = labels[nearest].reshape(SIZE // stride, -1)
predicted = predicted.repeat_interleave(stride, 0).repeat_interleave(stride, 1)
share = (predicted == asked).float().mean()
print(f"parts: {share:.0%} of pixels right, {(asked == 0).float().mean():.0%} are background")
figure = draw_segmentation(
    coloured,
    {"truth": torch.stack([known, asked]), "transferred": torch.stack([known, predicted])},
    CLASSES,
    ignored=(0,),
    row_labels=["labelled", "asked"],
)
save_figure(figure, OUT / "parts.png")

# %% [markdown]
# ## Retrieval
# Drawings search among the coloured pictures of all held-out concepts here, by the cosine
# similarity of 4 x 4 pooled maps.

# %%
with torch.inference_mode():
    gallery = [data.test[i]["target"] for i in range(len(concepts))]
    described = torch.cat(
        [model.describe(torch.stack(gallery[i : i + 16])) for i in range(0, len(gallery), 16)]
    )
    queries = torch.stack([data.test[i]["source"] for i in shown])
    ranks = (model.describe(queries) @ described.T).topk(5).indices.tolist()
rows = zip(shown, ranks, strict=True)
judged = [[result == query for result in found] for query, found in rows]
print(
    f"retrieval: {sum(map(any, judged))} of {len(shown)} drawings found their concept's picture "
    f"in the first 5 of {len(gallery)}"
)
figure = retrieval_grid(
    list(pixels(queries)),
    [[pixels(gallery[result]) for result in found] for found in ranks],
    judged,
    [concepts[i].name for i in shown],
)
save_figure(figure, OUT / "retrieval.png")
print("figures:", *sorted(str(path) for path in OUT.glob("*.png")))
