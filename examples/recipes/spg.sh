#!/usr/bin/env bash
# Parts of free-hand sketches on SPG, with MMSegmentation: P- and C-metric beside mIoU.
#
# FOLDER holds spg.csv, spg_strokes.npz and parts.json.
set -euo pipefail
folder=${1:?usage: spg.sh FOLDER}
sketchfusion mm-train base_fpn_spg_336 --work-dir runs/spg --resume --cfg-options \
  "train_dataloader.dataset.data_root=$folder" "val_dataloader.dataset.data_root=$folder" \
  "test_dataloader.dataset.data_root=$folder"
