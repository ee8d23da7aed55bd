#!/usr/bin/env bash
# Set up the test environment and run everything that CI runs: ruff, mypy, pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh test
ruff check .
ruff format --check .
mypy
export TRITON_INTERPRET=1
if [ $# -gt 0 ]; then
    pytest "$@"
else  # OpenVINO and a later fork, as some tests of training do it, crash in one process
    beside=(tests/test_backends.py tests/test_bench_classify.py tests/test_onnx.py)
    pytest "${beside[@]/#/--ignore=}"
    pytest "${beside[@]}"
fi
