#!/usr/bin/env bash
# Installs the checkout around it on one worker: Python 3.12, and the package with its `tpu` extra.

set -euo pipefail
cd "${BASH_SOURCE[0]%/*}/../.."
PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user --upgrade uv
[[ -x .venv/bin/python ]] || python3 -m uv venv --quiet --python 3.12 .venv
python3 -m uv pip install --quiet --python .venv/bin/python -e '.[tpu]'
attributes=http://metadata.google.internal/computeMetadata/v1/instance/attributes
endpoints=$(curl -sf -H 'Metadata-Flavor: Google' "$attributes/worker-network-endpoints")
if [[ $endpoints == *,* ]] && ! command -v gcsfuse; then # several hosts share a workdir in a bucket
    version=3.6.0 deb=$(mktemp)
    curl -sfL -o "$deb" \
        "https://github.com/GoogleCloudPlatform/gcsfuse/releases/download/v$version/gcsfuse_${version}_amd64.deb"
    dpkg -x "$deb" ~/.local/gcsfuse # without sudo
    rm "$deb"
fi
.venv/bin/python -c 'import prm_jax.train, sys; print("prm_jax on Python", sys.version.split()[0])'
