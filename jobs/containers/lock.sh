#!/usr/bin/env bash
# Pins what the images hold: the newest releases that fit pyproject.toml, for every Python that it allows,
# with the hashes of their files; by `make lock`.
#
#     jobs/containers/lock.sh      writes requirements.lock and requirements-cuda12.lock beside itself
#
#   UV   the uv to ask; default: of the PATH
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$(dirname "$here")")
UV=${UV:-uv}

command -v "$UV" >/dev/null || {
  echo "lock: uv is missing; run: pip install uv, or: make lock" >&2
  exit 2
}
# Files of this machine, or of other indexes, may be other builds with other hashes.
unset UV_FIND_LINKS UV_INDEX UV_EXTRA_INDEX_URL UV_CONSTRAINT UV_OVERRIDE

made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT

# lock NAME EXTRA...; more requirements come from standard input
lock() {
  local name=$1
  shift
  local extras=()
  for extra in "$@"; do extras+=(--extra "$extra"); done
  {
    echo "# Written by \`make lock\`: what pdadmm[$(IFS=,; echo "$*")] needs. Install it with"
    echo "#     pip install --require-hashes --only-binary :all: -r $name"
  } >"$made/$name"
  (cd "$root" && "$UV" pip compile pyproject.toml - "${extras[@]}" --universal --python-version 3.10 \
    --generate-hashes --no-build --no-config --no-header --system-certs --quiet) >>"$made/$name" || {
    echo "lock: no lock was written: the package index was not reached, or no releases fit; see above" >&2
    exit 1
  }
}

lock requirements.lock mpich gnn </dev/null
# with the libraries of the CUDA toolkit, which the image does not have from elsewhere
lock requirements-cuda12.lock mpich gnn cuda12 <<<'cupy-cuda12x[ctk]'
mv "$made"/*.lock "$here"
