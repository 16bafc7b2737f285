#!/usr/bin/env bash
# run.sh NAME --zone ZONE [--bucket gs://...] -- ARGUMENTS: trains on all workers until it is done.
#
#     launch/run.sh demo --zone us-west4-a --bucket gs://my-bucket/a -- --config configs/tiny.py
#
# Starts `python -m prm_jax.train ARGUMENTS` on every worker, shows their logs together, each line
# with its worker, and ends with the exit status of the worst. The hosts of a slice find each other.
# A spot slice that is taken away is brought back (launch/recreate.sh), and the same command goes on
# from the bucket.
#
# Ctrl-C stops the training (checkpoints stay). A lost connection or a closed laptop does not: the
# same command joins the training again. The slice stays up, and costs money, until launch/delete.sh.
#
#   --bucket gs://BUCKET/RUN    one folder per run: where a slice of one host mirrors its workdir, and
#                           where that of several hosts lies; a spot slice without it cannot go on
#                           after it was taken away
#   --workdir WORKDIR       on the workers, in ~/prm_jax, or in the bucket; default: runs/NAME
#   --sync-every SECONDS    between two uploads (and one at the end); default: 600
#   --restarts N            how often to go on after a preemption, exit status 75 or a lost
#                           connection; default: 20
#   --delete-when-done      delete the slice after exit status 0
#   --zone, --project, --dry-run    as in launch/create.sh

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=slice.sh
source "${BASH_SOURCE[0]%/*}/slice.sh"
parse 'bucket= workdir= sync-every= restarts= delete-when-done' "$@"
need_name
here=${BASH_SOURCE[0]%/*} bucket=${bucket%/} workdir=${workdir:-runs/$name}
sync_every=${sync_every:-600} restarts=${restarts:-20} me=$(quoted "$name" "${place[@]}")
[[ $bucket =~ ^(gs://[^/]+/.+)?$ ]] ||
    refuse "--bucket = '$bucket' is no folder of a bucket: give gs://BUCKET/RUN, one for each run"
[[ $workdir != gs://* ]] || refuse "--workdir = '$workdir' is a bucket: give --bucket '$workdir'"
[[ $sync_every =~ ^[1-9][0-9]*$ ]] || refuse "--sync-every = '$sync_every': give whole seconds"
[[ $restarts =~ ^(0|[1-9][0-9]*)$ ]] || refuse "--restarts = '$restarts': give a whole number, or 0"
for word in ${rest[@]+"${rest[@]}"}; do
    [[ $word != --workdir* ]] || refuse "$word goes before the --, so that it can be mirrored"
    [[ $word != --dry-run ]] || refuse "$word goes before the --: it is no argument of the training"
done

if [[ $poll_s =~ ^[1-9][0-9]*$ ]]; then naps=$poll_s nap_s=1; else naps=1 nap_s=$poll_s; fi
job='' training='' attempts=0 status=''
# shellcheck disable=SC2329  # trap calls these two
finish() {
    if [[ -n $dry_run ]]; then :
    elif ! look; then
        say "cannot see whether $name is still up: launch/status.sh $(quoted "${place[@]}")"
    elif [[ $state != ABSENT || $node != ABSENT ]]; then
        say "$name STILL EXISTS (queued resource $state, VMs $node); VMs cost money until" \
            "launch/delete.sh $me"
    else say "$name does not exist: nothing of it costs money"; fi
    rm -rf "$scratch"
}
# shellcheck disable=SC2329
interrupt() {
    trap 'exit 130' INT TERM
    [[ -z $job ]] || kill -- "-$job" 2>/dev/null || true
    if [[ -n $training ]]; then
        say "stopping the training on all workers (Ctrl-C again: leave it running there)"
        on_workers 'bash prm_jax/launch/worker/train.sh stop' </dev/null ||
            say "could not reach all workers: the training may still be running on $name"
    fi
    exit 130
}
trap finish EXIT
trap interrupt INT TERM

child() { # a script in a group of its own, so that a signal is answered at once
    local code=0
    set -m
    "$@" </dev/null &
    job=$!
    set +m
    wait "$job" || code=$?
    job=''
    return "$code"
}

bring_back() {
    [[ $spot && $bucket ]] || { say "error: $name is $state, VMs $node; only a spot slice with" \
        "--bucket is created again"; exit 1; }
    while ((restarts-- > 0)); do
        if taken_away; then
            if child "$here/recreate.sh" "$name" "${place[@]}"; then return; fi
        elif over; then break
        elif child "$here/setup.sh" "$name" "${place[@]}"; then return; fi
        sleep "$poll_s"
        look || true
    done
    say "error: $name could not be brought back"
    exit 1
}

attempt() { # one training; sets $status to the worst worker's, or to '' when the slice is lost
    local command code='' each shown
    command=$(quoted bash prm_jax/launch/worker/train.sh start "$(date +%Y%m%dT%H%M%S)-$$-$((++attempts))" \
        "$workdir" "$bucket" "$sync_every" ${rest[@]+"${rest[@]}"})
    if [[ -n $dry_run ]]; then on_workers "$command"; return; fi
    rm -f "$scratch/code"
    set -m # a group of its own: Ctrl-C is for `interrupt`
    { on_workers "$command" </dev/null 2>&1 || code=$?; echo "${code:-0}" >"$scratch/code"; } |
        tee "$scratch/log" &
    shown=$! job=$(jobs -p %%) training=yes
    set +m
    until [[ -s $scratch/code ]]; do
        for ((nap = 0; nap < naps; nap++)); do [[ -s $scratch/code ]] || { sleep "$nap_s" & wait "$!"; }; done
        if look && over; then
            kill -- "-$job" 2>/dev/null || true
            break
        fi
    done
    wait "$shown" || true # then the log is whole
    [[ ! -s $scratch/code ]] || read -r code <"$scratch/code"
    job='' training='' status=$code # gcloud's is that of the first worker that failed
    [[ -n $code && $code != 0 ]] || return 0
    sed -n 's/^\[worker [0-9]*\] prm_jax.train ended with exit status //p' "$scratch/log" >"$scratch/ends"
    [[ -s $scratch/ends || $code == 127 ]] || status=255 # it was the connection that failed
    while read -r each; do
        if ((status == 75 && each > 0 || each != 75 && each > status)); then status=$each; fi
    done <"$scratch/ends"
    # JAX ends the others with 134 when worker 0 is gone. It is, if it did not say how it ended.
    if ((status == 134)) && ! grep -q '^\[worker 0\] prm_jax.train ended' "$scratch/log"; then
        status=255
    fi
}

hoped='ACTIVE|SERVICE|e30= READY'
look || refuse "cannot see whether $name is up (gcloud's message is above); nothing was started"
[[ $state != ABSENT ]] || refuse "NAME = '$name' does not exist in $zone: launch/create.sh makes it"
[[ $tier != spot ]] || spot=yes
[[ -z $spot || -n $bucket ]] || say "warning: no --bucket: if $name is taken away, the training is lost"
wait_until_ready || bring_back
while :; do
    attempt
    [[ -z $dry_run ]] || break
    case $status in 0 | 2 | 127 | 130) break ;; esac
    # The workers of a preempted slice may end before its state says why.
    for _ in 1 2 3; do
        if look && { over || [[ -z $spot ]]; }; then break; fi
        sleep "$poll_s"
    done
    if taken_away; then bring_back
    elif [[ $status == 75 || $status == 255 ]] && ! over && ((restarts-- > 0)); then
        say "exit status $status: the same command again"
    else break; fi
done
if [[ -n $dry_run ]]; then
    echo "# should the slice be taken away: launch/recreate.sh $me, and the training again"
    exit 0
fi
if [[ -n $status ]]; then say "the training ended with exit status $status"
else say "error: the training is over: $name is $state, VMs $node"; fi
[[ $status != 127 ]] || say "prm_jax is not installed there: launch/setup.sh $me"
if [[ $status == 0 && -n $delete_when_done ]]; then "$here/delete.sh" "$name" "${place[@]}" --yes; fi
exit "${status:-1}"
