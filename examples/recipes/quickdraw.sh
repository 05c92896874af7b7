#!/usr/bin/env bash
# Quick, Draw!: recognition, and zero-shot retrieval in the 30 classes that Dey et al. (CVPR 2019)
# hold out.
#
# Recognition takes the first 3,000 drawings of each of 345 classes: 20,000 steps of 32 do not get
# round the 70 % of these that train, and to judge the rest of all 50 million takes days per model.
#
# DRAWINGS holds <category>.ndjson of https://github.com/googlecreativelab/quickdraw-dataset;
# EXTENDED holds QuickDraw_sketches_final and QuickDraw_images_final of Doodle2Search.
set -euo pipefail
drawings=${1:?usage: quickdraw.sh DRAWINGS EXTENDED}
extended=${2:?usage: quickdraw.sh DRAWINGS EXTENDED}
sketchfusion train recognition --data "quickdraw:$drawings" --limit 3000 --model paper \
  --iterations 20000 --batch-size 32 --work-dir runs/quickdraw-recognition --resume
sketchfusion train retrieval --data "quickdraw-extended:$extended" --model paper \
  --iterations 20000 --batch-size 32 --work-dir runs/quickdraw-retrieval --resume
sketchfusion evaluate recognition --data "quickdraw:$drawings" --limit 3000 --ladder \
  --model runs/quickdraw-recognition/adapters --out reports/quickdraw
# Papers differ in the formulas of mAP and P@k.
sketchfusion evaluate retrieval --data "quickdraw-extended:$extended" --ladder \
  --definition standard --definition torchmetrics \
  --model runs/quickdraw-retrieval/adapters --out reports/quickdraw
