#!/usr/bin/env bash
# TU-Berlin: recognition of 250 classes, and zero-shot retrieval in the 30 that Shen et al.
# (CVPR 2018) hold out.
#
# FOLDER holds png/<category> from https://cybertron.cg.tu-berlin.de/eitz/projects/classifysketch
# and, for retrieval, the extended photos (Zhang et al., CVPR 2016) in FOLDER/extended/<category>.
# Recognition holds out a random 30 % of every class; the literature's splits differ between papers.
set -euo pipefail
folder=${1:?usage: tuberlin.sh FOLDER}
for task in recognition retrieval; do
  sketchfusion train "$task" --data "tuberlin:$folder" --model paper --iterations 20000 \
    --batch-size 32 --work-dir "runs/tuberlin-$task" --resume
done
sketchfusion evaluate recognition --data "tuberlin:$folder" --ladder \
  --model runs/tuberlin-recognition/adapters --out reports/tuberlin
# Papers differ in the formulas of mAP and P@k.
sketchfusion evaluate retrieval --data "tuberlin:$folder" --ladder \
  --definition standard --definition torchmetrics \
  --model runs/tuberlin-retrieval/adapters --out reports/tuberlin
