r"""Pictures of what a model makes of your own drawings and photos, and of how it was trained.

python examples/show_features.py drawing.png photo.jpg --out features
python examples/show_features.py drawing.png photo.jpg --model runs/retrieval/adapters \
    --log runs/retrieval

Writes features.png, the PCA maps of every level of Stable Diffusion, CLIP and their fusion, one
basis for all images of a level; branch_weights.png, what the aggregation learned; matches.png, the
first image's points in the second; and with --log, training.png.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from sketchfusion_plugins import open_image, to_tensor
from sketchfusion_plugins.aggregation import AdaptiveAggregation
from sketchfusion_plugins.evaluation.training_log import read_training_log
from sketchfusion_plugins.inference.answers import match_pictures
from sketchfusion_plugins.inference.models import default_size, open_model
from sketchfusion_plugins.maps import all_maps
from sketchfusion_plugins.viz import (
    draw_branch_weights,
    draw_matches,
    draw_training,
    feature_sheet,
    pca_rgb,
    save_figure,
)
from sketchfusion_plugins.wrappers import find_encoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", nargs="+")
    parser.add_argument("--model", default="sketchfusion/tiny")
    parser.add_argument("--weights", default="pretrained", choices=("pretrained", "random"))
    parser.add_argument("--size", type=int)
    parser.add_argument("--log", nargs="*", default=[], help="work folders or .jsonl files")
    parser.add_argument("--out", type=Path, default=Path("features"))
    arguments = parser.parse_args()

    model = open_model(arguments.model, weights=arguments.weights)
    encoder = find_encoder(model)[1]
    size = arguments.size or default_size(arguments.model)
    pictures = [open_image(path) for path in arguments.images]
    images = torch.stack([to_tensor(picture, size) for picture in pictures])
    with torch.inference_mode():
        maps = all_maps(encoder, images)
    columns = {"image": (images.movedim(1, -1) + 1) / 2}
    columns |= {name: pca_rgb(own) for name, own in maps.items()}
    names = [Path(path).stem for path in arguments.images]
    save_figure(feature_sheet(columns, names), arguments.out / "features.png")

    if encoder.aggregator is not None:
        single = isinstance(encoder.aggregator, AdaptiveAggregation)
        parts = [encoder.aggregator] if single else encoder.aggregator.maps
        weights = {
            name: part.branch_weights
            for name, part in zip(
                [name for name in maps if name.startswith("aggregated")], parts, strict=True
            )
        }
        levels = [f"stride {block.stride}" for block in encoder.level_blocks]
        save_figure(draw_branch_weights(weights, levels), arguments.out / "branch_weights.png")
    if len(pictures) > 1:
        matches = match_pictures(model, pictures[0], pictures[1], size)
        figure = draw_matches(*map(np.asarray, pictures[:2]), matches.source, matches.target)
        save_figure(figure, arguments.out / "matches.png")
    if arguments.log:
        runs = {path: read_training_log(path) for path in arguments.log}
        save_figure(draw_training(runs), arguments.out / "training.png")
    print("written:", *sorted(str(path) for path in arguments.out.glob("*.png")))


if __name__ == "__main__":
    main()
