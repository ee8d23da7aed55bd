#!/usr/bin/env bash
# Download the wheels that scripts/gpu_check.sh needs on a machine without a network: Linux on x86-64, about 9 MB.
# Usage: scripts/gpu_wheels.sh WHEELS_DIR [PACKAGE...]
#   Packages beside the usual ones are named as pip takes them, e.g. `numba llvmlite pyarrow` (110 MB) where the
#   machine has none. PYTHON_VERSION (default 3.12) is that of the machine.
set -euo pipefail
if [ $# -lt 1 ] || [ "${1#-}" != "$1" ]; then
    echo "usage: scripts/gpu_wheels.sh WHEELS_DIR [PACKAGE...]" >&2
    exit 2
fi
folder="$1"
shift
# torch, triton, numpy and pytest come with a GPU image as a rule, with what they need; these do not.
packages=(zarr donfig numcodecs google-crc32c pyyaml gemmi periodictable pyparsing moyopy msgspec
    typing_extensions packaging click platformdirs safetensors)
platforms=()
for glibc in 17 24 26 27 28 31 34; do
    platforms+=(--platform "manylinux_2_${glibc}_x86_64")
done
"${PYTHON:-python3}" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --python-version "${PYTHON_VERSION:-3.12}" --implementation cp \
    "${platforms[@]}" --platform manylinux2014_x86_64 --platform manylinux1_x86_64 \
    --dest "$folder" "${packages[@]}" "$@"
echo "$(find "$folder" -name '*.whl' | wc -l) wheels, $(du -sm "$folder" | cut -f1) MB in $folder" >&2
