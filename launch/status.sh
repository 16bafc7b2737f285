#!/usr/bin/env bash
# status.sh --zone ZONE: lists what exists: requests in the queue, and VMs, which cost money.
#
#     launch/status.sh --zone us-west4-a
#     launch/status.sh --zone -               # in all zones: nothing is overlooked
#
#   --zone, --project, --dry-run    as in launch/create.sh

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=slice.sh
source "${BASH_SOURCE[0]%/*}/slice.sh"
parse '' "$@"
[[ -z $name ]] || refuse "'$name': no name is needed, all slices are listed"
need_no_rest

run gcloud compute tpus queued-resources list "${place[@]}"
run gcloud compute tpus tpu-vm list "${place[@]}"
