#!/usr/bin/env bash
# Quick, Draw!: recognition, and zero-shot retrieval in the 30 classes that Dey et al. (CVPR 2019)
# hold out.
#
# DRAWINGS holds <category>.ndjson of https://github.com/googlecreativelab/quickdraw-dataset;
# EXTENDED holds QuickDraw_sketches_final and QuickDraw_images_final of Doodle2Search.
set -euo pipefail
drawings=${1:?usage: quickdraw.sh DRAWINGS EXTENDED}
extended=${2:?usage: quickdraw.sh DRAWINGS EXTENDED}
for pair in "recognition quickdraw:$drawings" "retrieval quickdraw-extended:$extended"; do
  task=${pair%% *} source=${pair#* }
  sketchfusion train "$task" --data "$source" --model paper --iterations 20000 \
    --batch-size 32 --work-dir "runs/quickdraw-$task" --resume
done
sketchfusion evaluate recognition --data "quickdraw:$drawings" --ladder \
  --model runs/quickdraw-recognition/adapters --out reports/quickdraw
# Papers differ in the formulas of mAP and P@k.
sketchfusion evaluate retrieval --data "quickdraw-extended:$extended" --ladder \
  --definition standard --definition torchmetrics \
  --model runs/quickdraw-retrieval/adapters --out reports/quickdraw
