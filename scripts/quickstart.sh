#!/usr/bin/env bash
# From a fresh clone to ranked space groups of real crystals: installs into .venv, then runs the main job.
# Usage: scripts/quickstart.sh [FOLDER]   (default quickstart/; made anew each time)
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh "" # no extras; without an argument it would see those of this script
folder="${1:-quickstart}"
mkdir -p "$folder"

hxrd simulate scripts/examples/prototype_ids.txt -o "$folder/prototypes.zarr" --force
hxrd plot "$folder/prototypes.zarr" 2 12 25 -o "$folder/patterns.png" --force
hxrd classify "$folder/prototypes.zarr" --topk 5 -o "$folder/result.parquet" --force
hxrd classify "$folder/prototypes.zarr" --topk 5

echo "Patterns: $folder/prototypes.zarr, a picture of three: $folder/patterns.png, results: $folder/result.parquet" >&2
