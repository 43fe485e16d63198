#!/usr/bin/env bash
# Collect what a bare JAX image (Python, jax, its CUDA plug-in) lacks for `make gpu`, on a machine with a network:
#
#   tools/pack_wheels.sh [FOLDER=wheels]
#
# Copy FOLDER next to the Makefile of the machine with the GPU; `make gpu` installs from it without a network. Run it
# with the image's Python version (PYTHON=python3.12). JAX itself, numpy and the CUDA libraries are the image's own.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-wheels}
python=${PYTHON:-python3}
pip=${PIP:-$python -m pip}
own='^(jax|jaxlib|jax[-_]cuda.*|nvidia[-_].*|numpy|scipy|ml[-_]dtypes|opt[-_]einsum)$'

mkdir -p "$folder"
"$python" - "$own" > "$folder/requirements.txt" <<'PY'
import re, sys, tomllib
with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
extra = project["optional-dependencies"]
wanted = project["dependencies"] + extra["test"] + extra["cuda"]
for line in dict.fromkeys(wanted):
    name = re.match(r"[A-Za-z0-9_.-]+", line)[0].lower()
    if name != "ruff" and not re.match(sys.argv[1], name):
        print(line)
PY
constraints=constraints/python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])').txt
pinned=()
[ -f "$constraints" ] && pinned=(-c "$constraints")
$pip download --only-binary=:all: --dest "$folder" "${pinned[@]}" -r "$folder/requirements.txt"

for wheel in "$folder"/*.whl; do
  name=$(basename "$wheel" | cut -d- -f1 | tr 'A-Z' 'a-z')
  if [[ $name =~ $own ]]; then rm "$wheel"; fi
done
echo "$folder: $(ls "$folder"/*.whl | wc -l) wheels, $(du -sh "$folder" | cut -f1)"
