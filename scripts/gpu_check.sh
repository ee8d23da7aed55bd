#!/usr/bin/env bash
# Test and time hxrd on a GPU machine that has Python, torch and triton, and no network; at most 8 minutes.
# Usage: scripts/gpu_check.sh [--check] [WHEELS_DIR [OUT_DIR]]
#   WHEELS_DIR  what scripts/gpu_wheels.sh downloaded beforehand ("" for none)
#   OUT_DIR     gets summary.json, network.json and the logs (default gpu-check/)
#   --check     a dry run of every part on the CPU, with tiny sizes
set -euo pipefail
exec "${PYTHON:-python3}" "$(dirname "$0")/gpu_check.py" "$@"
