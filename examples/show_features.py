"""PCA maps of Stable Diffusion's, CLIP's and the fused features of your own drawings.

python examples/show_features.py drawing.png photo.jpg --out features.png
python examples/show_features.py drawing.png --preset paper
"""

import argparse

import torch

from sketchfusion_plugins import SketchFusionEncoder, open_image, preset, to_tensor
from sketchfusion_plugins.viz import feature_sheet, pca_rgb, save_figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", nargs="+")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--weights", default="pretrained", choices=("pretrained", "random"))
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--out", default="features.png")
    arguments = parser.parse_args()

    encoder = SketchFusionEncoder(preset(arguments.preset).replace(weights=arguments.weights))
    encoder.eval()
    images = torch.stack([to_tensor(open_image(path), arguments.size) for path in arguments.images])
    with torch.inference_mode():
        levels = encoder.forward_levels(images, fuse=False)
        columns = {"image": (images.movedim(1, -1) + 1) / 2}
        for level, stride in zip(levels.maps, levels.strides, strict=True):
            columns[f"diffusion, stride {stride}"] = pca_rgb(level)
        columns["CLIP"] = pca_rgb(encoder.forward_tokens(images))
        columns["fused"] = pca_rgb(encoder(images))
    save_figure(feature_sheet(columns), arguments.out)


if __name__ == "__main__":
    main()
