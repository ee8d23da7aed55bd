#!/usr/bin/env bash
# Set up the test environment and run everything that CI runs: ruff, mypy, pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh test
ruff check .
ruff format --check .
mypy
TRITON_INTERPRET=1 pytest "$@"
