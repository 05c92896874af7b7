#!/usr/bin/env bash
# Retrieval on Sketchy: by category in the 21 classes that Yelamarthi et al. (ECCV 2018) hold out,
# then of the very photo among those of all held-out classes.
#
# FOLDER holds 256x256/{photo,sketch} from https://sketchy.eye.gatech.edu and, for retrieval by
# category, the extended photos (Liu et al., CVPR 2017) in FOLDER/extended/<category>.
# Stable Diffusion 2.1 and CLIP are downloaded from the Hugging Face hub; a GPU is needed.
set -euo pipefail
folder=${1:?usage: sketchy.sh FOLDER}
for source in sketchy sketchy-fine; do
  sketchfusion train retrieval --data "$source:$folder" --model paper --iterations 20000 \
    --batch-size 32 --work-dir "runs/$source" --resume
  sketchfusion evaluate retrieval --data "$source:$folder" --model "runs/$source/adapters" \
    --ladder --out "reports/$source"
done
