#!/usr/bin/env bash
# Correspondence on PSC6K, by SketchFusion's protocol (30 of a class's 50 annotated pairs train, 20
# are judged, 336 px). `--data psc6k-pscnet:FOLDER --size 256` judges by PSCNet's, which trains on no
# key point: figures of the two do not compare, and a model trained here has seen its test pairs
# and is refused.
#
# FOLDER holds test_pairs_ps.csv of PSC6K and Sketchy's folders photo and sketch (256x256).
set -euo pipefail
folder=${1:?usage: psc6k.sh FOLDER}
sketchfusion train correspondence --data "psc6k:$folder" --model paper \
  --iterations 20000 --batch-size 8 --work-dir runs/psc6k --resume
sketchfusion evaluate correspondence --data "psc6k:$folder" \
  --model runs/psc6k/adapters --ladder --out reports/psc6k
