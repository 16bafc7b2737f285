#!/usr/bin/env bash
# create.sh NAME --zone ZONE --type TYPE [--spot]: asks for a TPU slice, as a queued resource.
#
#     launch/create.sh demo --zone us-west4-a --type v5litepod-16 --spot
#
# The request waits in Google's queue for as long as it takes; from the moment it is ACTIVE the
# slice costs money, whether or not anything runs on it, until launch/delete.sh. A name that
# exists, as a queued resource or as a TPU VM, is refused: nothing is created twice.
#
#   --type TYPE             what gcloud calls the accelerator type: v4-8, v5litepod-16 (v5e, 16 chips),
#                           v5p-8, v6e-8; gcloud compute tpus accelerator-types list --zone ZONE
#   --spot                  cheaper, and may be taken away at any time (launch/run.sh then goes on
#                           by itself); without it the slice is on demand and stays
#   --version VERSION       the image; the default is the one for JAX on that type
#   --network, --subnetwork, --service-account    as in gcloud, where the project's defaults won't do
#   --zone ZONE             default: $CLOUDSDK_COMPUTE_ZONE
#   --project PROJECT       default: gcloud's own
#   --dry-run               print the gcloud commands, run none

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=slice.sh
source "${BASH_SOURCE[0]%/*}/slice.sh"
parse 'type= spot version= network= subnetwork= service-account=' "$@"
need_name
need_no_rest
case ${version:+given}:$type in # cloud.google.com/tpu/docs/runtimes
    *:) refuse "--type is missing: give --type v5litepod-16, v6e-8, v5p-8 or v4-8" ;;
    *:v5e-*) refuse "--type = '$type': gcloud calls v5e slices v5litepod-${type#v5e-}" ;;
    given:*) ;;
    :v[234]-*) version=tpu-ubuntu2204-base ;;
    :v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    :v5p-*) version=v2-alpha-tpuv5 ;;
    :v6e-*) version=v2-alpha-tpuv6e ;;
    *) refuse "--type = '$type' is not known here: give v4-N, v5litepod-N, v5p-N or v6e-N, or name" \
        "the image as well: --version VERSION" ;;
esac

hoped='ABSENT ABSENT'
look || refuse "cannot see what exists in $zone (gcloud's message is above); nothing was created"
[[ $state == ABSENT && $node == ABSENT ]] || refuse "NAME = '$name' exists in $zone (queued resource" \
    "$state, VMs $node): choose another name, or launch/delete.sh $(quoted "$name" "${place[@]}")"

run gcloud compute tpus queued-resources create "$name" "${place[@]}" --node-id="$name" \
    --accelerator-type="$type" --runtime-version="$version" ${spot:+--spot} \
    ${network:+--network="$network"} ${subnetwork:+--subnetwork="$subnetwork"} \
    ${service_account:+--service-account="$service_account"}
report "asked for $name. Next: launch/setup.sh $(quoted "$name" "${place[@]}")"
report "to withdraw it: launch/delete.sh $(quoted "$name" "${place[@]}")"
