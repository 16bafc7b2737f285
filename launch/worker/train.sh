#!/usr/bin/env bash
# Trains on one worker, apart from the connection that asked for it, and shows the log.
#
#   train.sh start ATTEMPT WORKDIR BUCKET SYNC_EVERY_S [ARGUMENT...]     BUCKET may be ''
#   train.sh stop                                                        as Ctrl-C would
#
# Asked again, because the connection broke or somebody wants to look, `start` joins the training
# that runs instead of starting a second one. It ends with the training's exit status.

set -euo pipefail
action=$1
shift
self=$(cd "${BASH_SOURCE[0]%/*}" && pwd)/train.sh
cd "${self%/launch/worker/*}"
runs=$HOME/prm_jax_runs # one folder per attempt: command, log, pid, train.pid, status
export JAX_COMPILATION_CACHE_DIR=$HOME/.cache/prm_jax/compiled
PATH=$PATH:$HOME/.local/gcsfuse/usr/bin # worker/setup.sh puts it there

metadata() {
    curl -sf -H 'Metadata-Flavor: Google' \
        "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}

start() {
    local attempt=$1 command number status
    command=$(printf '%q ' "${@:2}")
    # JAX reads its process number from the same place.
    number=$(metadata agent-worker-number)
    mkdir -p "$runs"
    exec 9>"$runs/lock"
    if ! flock -n 9; then
        attempt=$(<"$runs/current")
        if [[ $(<"$runs/$attempt/command") != "$command" ]]; then
            echo "[worker $number] error: another training runs here: $(<"$runs/$attempt/command")"
            status=2
        fi
    elif [[ ! -e $runs/$attempt/pid ]]; then
        mkdir -p "$runs/$attempt"
        echo "$command" >"$runs/$attempt/command"
        : >"$runs/$attempt/log"
        set -m # a group of its own, which can be interrupted
        nohup bash "$self" hold "$number" "$@" </dev/null >"$runs/$attempt/log" 2>&1 &
        set +m
        echo $! >"$runs/$attempt/pid"
        echo "$attempt" >"$runs/current"
    fi
    exec 9>&-
    if [[ -z ${status:-} ]]; then
        tail -n +1 -s 0.2 --pid="$(<"$runs/$attempt/pid")" -f "$runs/$attempt/log" | sed -u "s/^/[worker $number] /"
        status=$(cat "$runs/$attempt/status" || echo 1)
    fi
    echo "[worker $number] prm_jax.train ended with exit status $status"
    return "$status"
}

# several_hosts: sets $workdir to one folder that all hosts of the slice see, in the bucket or on a
# disk that they share; then there is nothing to mirror.
several_hosts() {
    local mount
    if [[ -z $bucket && $workdir != /* ]]; then
        echo "error: --workdir = '$workdir' is a folder of each host's own: give --bucket, or the" \
            "absolute path of a folder that all hosts have mounted"
        return 1
    fi
    if [[ -n $bucket ]]; then
        bucket=${bucket#gs://} mount=$HOME/prm_jax_buckets/${bucket%%/*}
        mkdir -p "$mount"
        # Other hosts' files are looked for anew each time. The bucket must rename folders at once,
        # as those with a hierarchical namespace do: so a checkpoint is there whole or not at all.
        mountpoint -q "$mount" ||
            gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 "${bucket%%/*}" "$mount" || {
            echo "error: --bucket = 'gs://$bucket' cannot be mounted: launch/setup.sh installs" \
                "gcsfuse, and the slice's service account needs the role Storage Object Admin on it"
            return 1
        }
        workdir=$mount${bucket#"${bucket%%/*}"}/${workdir#/} bucket=''
    fi
}

hold() { # keeps the lock (descriptor 9) as long as it lives
    local number=$1 attempt=$2 workdir=$3 bucket=$4 every=$5 status=0 train syncer
    shift 5
    if [[ $(metadata worker-network-endpoints) == *,* ]]; then several_hosts || status=2; fi
    bucket=${bucket:+$bucket/worker-$number}
    if ((status)); then : # it was said
    elif [[ -n $bucket && ! -d $workdir ]] && ! sync down; then
        echo "error: --bucket = '${bucket%/worker-*}' cannot be read and written: give the service" \
            "account of the slice the role Storage Object Admin on it"
        status=2
    else
        trap : TERM # a spot VM's notice is for the training; the last upload comes after it
        set -m
        .venv/bin/python -m prm_jax.train --workdir "$workdir" "$@" &
        train=$!
        echo "$train" >"$runs/$attempt/train.pid"
        while [[ -n $bucket ]] && sleep "$every" && kill -0 "$$"; do # $$ is the holder
            sync up || echo "warning: an upload failed"
        done 9>&- &
        syncer=$!
        echo "$syncer" >"$runs/$attempt/sync.pid"
        set +m
        while :; do
            status=0
            wait "$train" || status=$?
            if ((status != 143)) || ! kill -0 "$train" 2>/dev/null; then break; fi
        done
        kill -- "-$syncer" 2>/dev/null || true
        wait "$syncer" || true
        if [[ -n $bucket ]] && ! sync up && ! sync up; then
            echo "error: the last upload to $bucket failed; $workdir on this worker is whole"
            ((status)) || status=74 # EX_IOERR
        fi
    fi
    ((status != 255)) || status=1 # by 255 ssh means a broken connection
    echo "$status" >"$runs/$attempt/status"
}

sync() { bash "${self%/*}/sync.sh" "$1" "$workdir" "$bucket" "$JAX_COMPILATION_CACHE_DIR"; }

stop() { # waits for the last upload, too
    local attempt train holder
    attempt=$(cat "$runs/current") && holder=$(<"$runs/$attempt/pid") || return 0
    if ! train=$(cat "$runs/$attempt/train.pid"); then
        kill -- "-$holder" || true # it was still downloading
        return 0
    fi
    kill -INT "$train" 2>/dev/null || true
    for ((waited_s = 0; waited_s < 60; waited_s++)); do
        kill -0 "$train" 2>/dev/null || break
        sleep 1
    done
    kill -KILL -- "-$train" 2>/dev/null || true
    while kill -0 "$holder" 2>/dev/null; do sleep 1; done
}

"$action" "$@"
