#!/usr/bin/env bash
# Retrieval on Sketchy: by category in the 21 classes that Yelamarthi et al. (ECCV 2018) hold out,
# then of the very photo, among those of all held-out classes and among those of its own class.
#
# mAP@200 and P@200 by category are reported by two formulas, since papers differ; see "How tasks are
# judged" in examples/README.md.
#
# FOLDER holds 256x256/{photo,sketch} from https://sketchy.eye.gatech.edu and, for retrieval by
# category, the extended photos (Liu et al., CVPR 2017) in FOLDER/extended/<category>.
# Stable Diffusion 2.1 and CLIP are downloaded from the Hugging Face hub; a GPU is needed.
set -euo pipefail
folder=${1:?usage: sketchy.sh FOLDER}
for source in sketchy sketchy-fine; do
  sketchfusion train retrieval --data "$source:$folder" --model paper --iterations 20000 \
    --batch-size 32 --work-dir "runs/$source" --resume
done
sketchfusion evaluate retrieval --data "sketchy:$folder" --model runs/sketchy/adapters --ladder \
  --definition standard --definition torchmetrics --out reports/sketchy
for source in sketchy-fine sketchy-fine-category; do
  sketchfusion evaluate retrieval --data "$source:$folder" --model runs/sketchy-fine/adapters \
    --ladder --out "reports/$source"
done
