#!/usr/bin/env bash
# A venv with moto, a server of S3. Usage: moto.sh DIR; then ARGOSY_MOTO=DIR names it to the long tier.
set -euo pipefail
dir=${1:?usage: moto.sh DIR}
python3 -m venv "$dir"
"$dir/bin/pip" install -q 'moto[s3,server]==5.2.5'
"$dir/bin/python" -c 'import moto; print("moto", moto.__version__)'
