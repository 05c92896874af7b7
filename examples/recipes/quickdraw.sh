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
  sketchfusion evaluate "$task" --data "$source" --ladder \
    --model "runs/quickdraw-$task/adapters" --out reports/quickdraw
done
