#!/usr/bin/env bash
# delete.sh NAME --zone ZONE: deletes a slice with its disks, and says what still exists.
#
#     launch/delete.sh demo --zone us-west4-a
#
# Works in any state: waiting, running, preempted, failed. What launch/run.sh has not put into a
# bucket is lost. Ends with 0 only when neither the queued resource nor its VMs are there any more.
#
#   --yes                           don't ask
#   --zone, --project, --dry-run    as in launch/create.sh

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=slice.sh
source "${BASH_SOURCE[0]%/*}/slice.sh"
parse 'yes' "$@"
need_name
need_no_rest

hoped='ACTIVE READY'
look || refuse "cannot see what exists in $zone (gcloud's message is above); nothing was deleted"
if [[ $state != ABSENT ]]; then
    run gcloud compute tpus queued-resources delete "$name" "${place[@]}" --force ${yes:+--quiet} ||
        say "gcloud could not delete the queued resource $name"
elif [[ $node != ABSENT ]]; then
    run gcloud compute tpus tpu-vm delete "$name" "${place[@]}" ${yes:+--quiet} ||
        say "gcloud could not delete the VMs of $name"
else
    say "$name does not exist in $zone: nothing to delete"
fi
[[ -z $dry_run ]] || exit 0
look || state=UNKNOWN
if [[ $state != ABSENT || $node != ABSENT ]]; then
    say "error: $name STILL EXISTS (queued resource $state, VMs $node) and may cost money:" \
        "run this again, or delete it at console.cloud.google.com/compute/tpus"
    exit 1
fi
say "$name is gone. What is left in $zone:"
"${BASH_SOURCE[0]%/*}/status.sh" "${place[@]}"
