#!/bin/sh
# Starts Triton with the Python backend from a virtual environment that holds genrec-batch and nvidia-pytriton.
#
#   jobs/triton/serve.sh VENV REPOSITORY [options of tritonserver]
#
# Triton comes with a stub for each version of Python, which has to lie beside the backend: a folder in the environment, or
# $TRITON_BACKENDS where that cannot be written, has both. The stub finds the environment by PATH, its libpython by LD_LIBRARY_PATH.
set -eu
venv=$(cd "$1" && pwd)
repository=$2
shift 2
python="$venv/bin/python"
packages=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
libraries=$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("LIBDIR"))')
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
server="$packages/pytriton/tritonserver"
stub="$server/python_backend_stubs/$version/triton_python_backend_stub"
[ -f "$stub" ] || { echo "nvidia-pytriton in $venv has no stub for Python $version" >&2; exit 5; }
backends="${TRITON_BACKENDS:-$venv/triton-backends}"
mkdir -p "$backends/python"
for file in "$server"/backends/python/*.so "$server"/backends/python/*.py "$stub"; do
    cp -p "$file" "$backends/python/.new.$$"
    mv -f "$backends/python/.new.$$" "$backends/python/$(basename "$file")"
done
[ -x "$server/bin/tritonserver" ] || chmod u+x "$server/bin/tritonserver"
chmod u+x "$backends/python/triton_python_backend_stub"
PATH="$venv/bin:$PATH"
LD_LIBRARY_PATH="$packages/nvidia_pytriton.libs:$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export PATH LD_LIBRARY_PATH
exec "$server/bin/tritonserver" --model-repository "$repository" --backend-directory "$backends" "$@"
