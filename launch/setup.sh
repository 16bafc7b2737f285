#!/usr/bin/env bash
# setup.sh NAME --zone ZONE: waits until the slice is up and installs this checkout on every worker.
#
#     launch/setup.sh demo --zone us-west4-a
#
# The checkout goes as it stands here (git's ignored files excepted) to ~/prm_jax on each worker,
# into an environment of its own with the `tpu` extra. The images for TPUs are Ubuntu 22.04 with
# Python 3.10; uv, installed with their pip, brings Python 3.12 (no sudo, no apt lock to wait for).
# Again after a change of the code: the same command.
#
#   --zone, --project, --dry-run    as in launch/create.sh

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=slice.sh
source "${BASH_SOURCE[0]%/*}/slice.sh"
parse '' "$@"
need_name
need_no_rest
here=$(cd "${BASH_SOURCE[0]%/*}/.." && pwd)

hoped='ACTIVE READY'
if ! wait_until_ready; then
    [[ $state != ABSENT ]] || refuse "NAME = '$name' does not exist in $zone: launch/create.sh makes it"
    say "error: $name is $state, VMs $node, and won't come up again:" \
        "launch/delete.sh $(quoted "$name" "${place[@]}"), then launch/create.sh"
    exit 1
fi
archive=$scratch/prm_jax.tar.gz
if [[ -n $dry_run ]]; then
    echo "# $archive: the checkout, packed with tar"
else # what git knows or would take up, less what was deleted since
    { git -C "$here" ls-files -z --cached --others --exclude-standard 2>/dev/null ||
        (cd "$here" && find . \( -name .venv -o -name runs \) -prune -o -type f -print0); } |
        while IFS= read -r -d '' file; do
            if [[ -e $here/$file ]]; then printf '%s\0' "$file"; fi
        done | tar -czf "$archive" -C "$here" --null -T -
fi
run gcloud compute tpus tpu-vm scp "$archive" "$name:prm_jax.tar.gz" "${place[@]}" --worker=all
on_workers 'rm -rf prm_jax/prm_jax && mkdir -p prm_jax && tar -xzf prm_jax.tar.gz -C prm_jax && bash prm_jax/launch/worker/setup.sh'
report "$name is ready and costs money from now on. Next:" \
    "launch/run.sh $(quoted "$name" "${place[@]}") -- --config configs/tiny.py"
