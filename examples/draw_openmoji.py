"""Pictures to try the commands on: OpenMoji's held-out concepts, as line drawings and in colour.

python examples/draw_openmoji.py --out openmoji

OpenMoji (https://openmoji.org) is CC BY-SA 4.0. The bundled weights have not seen these pictures.
"""

import argparse
import re
from pathlib import Path

from sketchfusion_plugins.data.openmoji import held_out_concepts, load_concepts, render
from sketchfusion_plugins.inference.picture_files import write_png


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("openmoji"))
    parser.add_argument("--size", type=int, default=128, help="side in pixels")
    arguments = parser.parse_args()

    held_out = held_out_concepts()
    concepts = [concept for concept in load_concepts() if concept.hexcode in held_out]
    for layer in ("line", "color"):
        for concept, pixels in zip(concepts, render(concepts, arguments.size, layer), strict=True):
            name = re.sub(r"\W+", "-", concept.name).strip("-")
            write_png(pixels, arguments.out / layer / f"{name}.png")
    print(f"{len(concepts)} drawings and pictures in {arguments.out}")


if __name__ == "__main__":
    main()
