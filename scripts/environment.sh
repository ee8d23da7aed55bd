# Sourced by the two set-up scripts: makes .venv once, installs hxrd with the extras named, activates it.
extras="${1:-}"
python="${PYTHON:-python3}"
[ -x .venv/bin/python ] || "$python" -m venv .venv
source .venv/bin/activate
python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
    --editable ".${extras:+[$extras]}"
