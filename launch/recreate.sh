#!/usr/bin/env bash
# recreate.sh NAME --zone ZONE: brings back a spot slice that was taken away, as it was, once.
#
#     launch/recreate.sh demo --zone us-west4-a
#
# Deletes what is left of it, asks for it again with the same type, image, network and service
# account, waits for it and installs this checkout. launch/run.sh calls it by itself. A slice that
# runs, is on demand, or was deleted or stopped by its user is refused.
#
#   --zone, --project, --dry-run    as in launch/create.sh

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=slice.sh
source "${BASH_SOURCE[0]%/*}/slice.sh"
parse '' "$@"
need_name
need_no_rest
here=${BASH_SOURCE[0]%/*}
slice=("$name" "${place[@]}" ${dry_run:+--dry-run})

hoped='SUSPENDED|SERVICE|e30= PREEMPTED'
look || refuse "cannot see what became of $name (gcloud's message is above); nothing was changed"
taken_away || refuse "NAME = '$name' was not taken away by the service (queued resource $state, VMs" \
    "$node): launch/status.sh $(quoted "${place[@]}") shows what exists"
[[ $tier == spot ]] || refuse "NAME = '$name' is on demand: launch/delete.sh, then launch/create.sh"
node_of='tpu.nodeSpec[0].node'
describe=(gcloud compute tpus queued-resources describe "$name" "${place[@]}"
    --format="value[separator='|']($node_of.acceleratorType.basename(),$node_of.runtimeVersion,$node_of.networkConfig.network,$node_of.networkConfig.subnetwork,$node_of.serviceAccount.email)")
if [[ -n $dry_run ]]; then quoted "${describe[@]}"; found='TYPE|VERSION'; else found=$("${describe[@]}"); fi
IFS='|' read -r type version network subnetwork service_account <<<"$found"

say "$name was taken away (queued resource $state, VMs $node): creating it again"
while [[ $state == SUSPENDING ]]; do sleep "$poll_s"; look || true; done
tries=3
until "$here/delete.sh" "${slice[@]}" --yes; do ((--tries)) || exit 1; sleep "$poll_s"; done
until "$here/create.sh" "${slice[@]}" --type="$type" --version="$version" --spot \
    ${network:+--network="$network"} ${subnetwork:+--subnetwork="$subnetwork"} \
    ${service_account:+--service-account="$service_account"}; do
    sleep "$poll_s"
    if look && [[ $state != ABSENT ]]; then break; fi # it was asked for in spite of the error
    ((--tries)) || exit 1
done
"$here/setup.sh" "${slice[@]}"
