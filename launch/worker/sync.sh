#!/usr/bin/env bash
# Mirrors one worker's workdir and compilation cache in its own folder of a bucket.
#
#   sync.sh up WORKDIR gs://BUCKET/RUN/worker-0 CACHE      sync.sh down WORKDIR ... CACHE
#
# The folder holds two copies, a and b, and the object `latest` that names the whole one: an upload
# goes into the other and renames last, so that no cut leaves half a checkpoint to resume from.

set -euo pipefail
direction=$1 workdir=$2 remote=$3 cache=$4

latest() { # prints a, b, or nothing where there is no copy yet; fails where the bucket can't be read
    local problem
    problem=$(mktemp)
    if ! gcloud storage cat "$remote/latest" 2>"$problem"; then
        grep -q 'matched no objects' "$problem" || { cat "$problem" >&2; return 1; }
    fi
}

mirror() { gcloud storage rsync "$1" "$2" --recursive --delete-unmatched-destination-objects; }

whole=$(latest)
case $direction in
down) # `latest` is written back to prove, before any work, that the bucket can be written
    printf %s "$whole" | gcloud storage cp - "$remote/latest"
    [[ -n $whole ]] || exit 0
    rm -rf "$workdir.part"
    mkdir -p "$workdir.part" "$cache"
    mirror "$remote/$whole" "$workdir.part"
    gcloud storage rsync "$remote/compiled" "$cache" --recursive || true # only costs time
    mv "$workdir.part" "$workdir" ;;
up)
    [[ -n $(ls -A "$workdir" 2>/dev/null) ]] || exit 0 # never replace a copy by nothing
    next=a
    [[ $whole != a ]] || next=b
    snapshot=$workdir.snapshot # checkpoints never change once they have their name: links will do
    rm -rf "$snapshot"
    mkdir -p "$snapshot"
    snapshot=$(cd "$snapshot" && pwd)
    (
        cd "$workdir"
        find . -type f ! -path '*orbax-checkpoint-tmp*' -size +64M -exec cp -l --parents -t "$snapshot" {} +
        find . -type f ! -path '*orbax-checkpoint-tmp*' ! -size +64M -exec cp -p --parents -t "$snapshot" {} +
    )
    [[ -z $whole ]] || mirror "$remote/$whole" "$remote/$next" # inside the bucket: little is sent
    mirror "$snapshot" "$remote/$next"
    printf %s "$next" | gcloud storage cp - "$remote/latest"
    rm -rf "$snapshot"
    [[ ! -d $cache ]] || gcloud storage rsync "$cache" "$remote/compiled" --recursive ;;
esac
