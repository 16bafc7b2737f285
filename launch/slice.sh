# What every script here needs of a slice: its options, its state, and gcloud itself. Sourced, never run.
# shellcheck shell=bash disable=SC2034  # the scripts that source this file read what parse sets

name='' zone='' project='' type='' version='' network='' subnetwork='' service_account='' spot=''
bucket='' workdir='' sync_every='' restarts='' delete_when_done='' yes='' dry_run='' rest=() hoped=''
poll_s=${LAUNCH_POLL_S:-30} # between two looks at the state, in seconds
script=${0##*/}
turn=0

say() { printf '%s: %s\n' "$script" "$*" >&2; }
refuse() { say "error: $*"; exit 2; }

scratch=$(mktemp -d) ||
    refuse "no temporary folder (mktemp's message is above): set TMPDIR to a folder with space"
trap 'rm -rf "$scratch"' EXIT

# quoted WORD...: the words as a shell reads them back, whatever is in them.
quoted() {
    local word line='' quote="'" escape="'\\''"
    for word; do
        case $word in
            '' | *[!A-Za-z0-9_./:=@%+,-]*) word="'${word//$quote/$escape}'" ;;
        esac
        line+="${line:+ }$word"
    done
    printf '%s\n' "$line"
}

# parse TAKES ARGUMENT...: sets a variable for each option in TAKES ("zone=" has a value, "spot"
# has none), $name, $rest (what follows --) and $place (the zone and project for gcloud).
parse() {
    local takes=" $1 help dry-run zone= project= " key value
    shift
    while (($#)); do
        key=${1%%=*} key=${key#--}
        case $1 in
            --help | -h) sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; exit 0 ;;
            --) shift; rest=("$@"); break ;;
            --*)
                if [[ $takes == *" $key= "* && $1 == *=* ]]; then value=${1#*=}
                elif [[ $takes == *" $key= "* ]]; then
                    (($# > 1)) || refuse "$1 needs a value; $script --help shows one"
                    value=$2; shift
                elif [[ $takes == *" $key "* && $1 != *=* ]]; then value=yes
                else refuse "$1 is not an option of $script, which takes:${takes//=/} (see --help)"; fi
                [[ -n $value ]] || refuse "--$key = '' is empty: give it a value, or leave it out"
                printf -v "${key//-/_}" %s "$value" ;;
            -*) refuse "$1 is not an option of $script; long options begin with --" ;;
            *) [[ -z $name ]] || refuse "'$1' is one name too many after '$name'; quote or drop it"
                name=$1 ;;
        esac
        shift
    done
    zone=${zone:-${CLOUDSDK_COMPUTE_ZONE:-}}
    [[ -n $zone ]] || refuse "--zone is missing: give --zone us-west4-a, or set CLOUDSDK_COMPUTE_ZONE"
    place=(--zone="$zone" ${project:+--project="$project"})
}

need_name() {
    [[ -n $name ]] || refuse "the name of the slice is missing: $script NAME --zone $zone ..."
    [[ $name =~ ^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$ ]] ||
        refuse "NAME = '$name' is not allowed: lower-case letters, digits and hyphens, a letter first"
}

need_no_rest() { ((${#rest[@]} == 0)) || refuse "nothing may follow --, but '${rest[0]}' does"; }

# run COMMAND...: runs it; under --dry-run prints it instead.
run() { if [[ -n $dry_run ]]; then quoted "$@"; else "$@"; fi; }

# ask FILE COMMAND...: runs it with its output in FILE, and answers a trap at once. bash 5.2 now and
# then loses a SIGINT that comes while it expands $(...) or runs a command, but none within `wait`.
ask() {
    exec 8>"$1" # here, as the command may outlive an interrupt, and what is in $scratch
    "${@:2}" </dev/null >&8 8>&- &
    exec 8>&-
    wait "$!"
}

# report TEXT: a line for people once something was done; nothing was under --dry-run.
report() { [[ -n $dry_run ]] || say "$@"; }

# on_workers COMMAND: runs a line of shell on all workers at once.
on_workers() {
    run gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" --worker=all \
        --ssh-flag=-oServerAliveInterval=30 --command="$1"
}

# look: sets $state (of the queued resource), $initiator (who brought it there), $tier (spot or
# on-demand) and $node (the state of the VMs); ABSENT is what does not exist. Fails where gcloud
# does. Under --dry-run it finds what the script hopes for: $hoped.
look() {
    local mine="--filter=name~\"(^|/)$name\$\"" found='' resources vms
    resources=(gcloud compute tpus queued-resources list "${place[@]}" "$mine"
        --format='value[separator="|"](state.state,state.stateInitiator,spot.encode(base64))')
    vms=(gcloud compute tpus tpu-vm list "${place[@]}" "$mine" --format='value(state)')
    if [[ -n $dry_run ]]; then
        quoted "${resources[@]}"
        quoted "${vms[@]}"
        found=${hoped%% *} node=${hoped##* }
    else
        turn=$((1 - turn)) # other files than those of a look that was interrupted
        ask "$scratch/found$turn" "${resources[@]}" || return
        ask "$scratch/node$turn" "${vms[@]}" || return
        read -r found <"$scratch/found$turn" || true
        read -r node <"$scratch/node$turn" || true
    fi
    IFS='|' read -r state initiator tier <<<"${found:-ABSENT}"
    [[ -z $tier ]] && tier=on-demand || tier=spot
    state=${state:-UNKNOWN} node=${node:-ABSENT}
}

# over: whether what `look` saw will not train any more.
over() {
    case $state in ABSENT | DELETING | FAILED | SUSPENDING | SUSPENDED) return ;; esac
    case $node in PREEMPTED | TERMINATED | STOPPING | STOPPED) return ;; esac
    return 1
}

# taken_away: the same, and it was the service: what its user deleted or stopped is not brought back.
taken_away() {
    over && [[ $initiator != USER && $state != ABSENT && $state != DELETING && $node != STOP* ]]
}

# wait_until_ready: waits for the queue and for the VMs and says each change; fails if it is over.
# Ends the script if nothing was ever seen of the slice in ten tries; what was seen once is waited
# for through any outage.
wait_until_ready() {
    local before='' blind=0
    while :; do
        if look; then
            [[ $before == "$state $node" ]] || report "$name: queued resource $state, VMs $node"
            before="$state $node"
            if [[ $before == 'ACTIVE READY' ]]; then return; fi
            if over; then return 1; fi
        elif [[ -n ${state:-} ]] || ((++blind < 10)); then say "cannot see $name; trying again"
        else
            say "error: cannot see $name: is gcloud logged in, and are project and zone right?"
            exit 1
        fi
        sleep "$poll_s"
    done
}
