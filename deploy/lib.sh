# What the scripts of this folder share; sourced, not run. Bash 4 or newer.
# shellcheck shell=bash

# Keys must never be readable by others, not even for the moment between writing and chmod.
umask 077

DEPLOY="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
CHECKOUT="$(dirname "$DEPLOY")"
# The connection's name in Flower's config.toml, for `flwr run <app> <connection>`.
CONNECTION=centre

die() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

# The comment block at the head of each script is its help.
usage() {
    sed -n '2,/^[^#]/{/^#/!d;s/^# \{0,1\}//;p}' "$0"
}

for argument in "$@"; do
    case "$argument" in -h | --help) usage; exit 0 ;; esac
done

need() {
    command -v "$1" > /dev/null || die "$1 is not installed: $2"
}

# The Python that has Flower and this package: FEDBICROSS_PYTHON, else the checkout's own environment.
python_path() {
    local found="${FEDBICROSS_PYTHON:-$CHECKOUT/.venv/bin/python}"
    [ -x "$found" ] || die "$found is missing: run \`make setup\` in $CHECKOUT, or set FEDBICROSS_PYTHON"
    printf '%s' "$found"
}

script_path() {
    local python found
    python="$(python_path)" || exit
    found="$(dirname "$python")/$1"
    [ -x "$found" ] || die "$found is missing: Flower is not installed beside $python; run \`make setup\`"
    printf '%s' "$found"
}

refuse_to_overwrite() {
    [ ! -e "$1" ] || die "$1 exists and is not overwritten; move it away first if it is to be replaced"
}

existing() {
    [ -f "$1" ] || die "$1 is missing: $2"
}

private() {
    local mode
    mode="$(stat -c %a "$1" 2> /dev/null || stat -f %Lp "$1")"
    case "$mode" in
        *00) ;;
        *) die "$1 can be read by others (mode $mode): chmod 600 $1" ;;
    esac
}

is_loopback() {
    [[ "$1" =~ ^127(\.[0-9]{1,3}){3}$ || "$1" == localhost || "$1" == ::1 || "$1" == '[::1]' ]]
}

absolute() {
    case "$1" in /*) printf '%s' "$1" ;; *) printf '%s/%s' "$PWD" "$1" ;; esac
}

value_of() { # value_of "$@" : the value that follows the option at the head of the arguments
    [ $# -ge 2 ] && [ -n "$2" ] || die "$1 needs a value"
    printf "%s" "$2"
}

site_name() {
    [[ "$1" =~ ^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$ ]] ||
        die "'$1' is no name for a site: letters, digits, dots, dashes and underscores, at most 63"
}

port_number() {
    [[ "$1" =~ ^[0-9]{1,5}$ ]] && [ "$1" -ge 1 ] && [ "$1" -le 65535 ] || die "'$1' is no port: 1 to 65535"
}

# Flower reports its use to its makers, asks for updates, and installs an app's dependencies anew for each
# run: none of it has a place here. Its parts talk over loopback, which is no proxy's, and nobody may tell the
# SuperLink from where a connection comes.
flower_environment() { # flower_environment FOLDER
    local python
    python="$(python_path)" || exit
    mkdir -p "$1/flwr"
    export FLWR_HOME="$1/flwr" FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
    export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1 OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
    local near="${NO_PROXY:-${no_proxy:-}}"
    export NO_PROXY="${near:+$near,}127.0.0.1,localhost,::1"
    export no_proxy="$NO_PROXY"
    unset FORWARDED_ALLOW_IPS
    # Flower starts its own commands by name.
    PATH="$(dirname "$python"):$PATH"
    export PATH
}

at_the_centre_environment() { # expects $centre
    existing "$centre/flwr/config.toml" "start the SuperLink first: start-superlink $centre"
    flower_environment "$centre"
    export COLUMNS=1000 NO_COLOR=1 PYTHONPATH="$CHECKOUT" PYTHONUNBUFFERED=1
}

at_the_centre() { # at_the_centre PROGRAM ARGUMENTS... : a Python program of this folder, on the running SuperLink
    at_the_centre_environment
    local program="$1"
    shift
    exec "$(python_path)" "$DEPLOY/$program" "$centre" "$CONNECTION" "$@"
}
