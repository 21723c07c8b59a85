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
    [ -f "$1" ] || die "$1 is missing, or in a folder that $(id -un) cannot read: $2"
}

# What a program says when it fails is of many lines and of its own making: the last of them is our reason.
quietly() { # quietly WHAT PROGRAM ARGUMENTS... : run the program; die with WHAT when it fails
    local what="$1" said
    shift
    said="$("$@" 2>&1)" || die "$what: ${said##*$'\n'}"
}

make_folder() {
    local said
    not_as_root_for_another "$1"
    said="$(mkdir -p "$1" 2>&1)" ||
        die "cannot make the folder $1: ${said##*: }; name another, or check the path and its permissions"
}

# Files are made here and then renamed to where they belong, so that nothing is ever there by half.
make_work_folder() { # make_work_folder FOLDER : sets $work, a folder in FOLDER that goes when the script ends
    make_folder "$1"
    work="$(mktemp -d "$1/.new.XXXXXX" 2> /dev/null)" || cannot_write_in "$1"
    trap 'rm -rf "$work"' EXIT
}

cannot_write_in() {
    die "cannot write in $1; check the folder's permissions and free space"
}

# By its exit status, openssl does not tell when there was no room for what it wrote.
openssl_makes() { # openssl_makes FILE WHAT ARGUMENTS... : have openssl write the file; die with WHAT when it fails
    local file="$1" what="$2"
    shift 2
    quietly "$what" openssl "$@" -out "$file"
    [ -s "$file" ] || cannot_write_in "$(dirname "$work")"
}

# They are copied: until new ones are renamed over them, they are in their place, and never nowhere.
keep_former() { # keep_former FOLDER FILE... : copy what there is of the files to FOLDER/former/<time>/
    local former="$1/former" kept file
    kept="$former/$(date -u +%Y%m%dT%H%M%SZ)"
    refuse_to_overwrite "$kept"
    shift
    for file in "$@"; do
        [ -e "$file" ] || continue
        make_folder "$work/former"
        quietly "$file could not be kept, so nothing is replaced" cp -p "$file" "$work/former/"
    done
    [ -e "$work/former" ] || return 0
    make_folder "$former"
    quietly "$kept could not be made, so nothing is replaced" mv "$work/former" "$kept"
}

put_in_place() { # put_in_place FROM TO
    quietly "cannot put $2 in its place" mv -f "$1" "$2"
}

# Of a link, it is the file behind it that others may read.
private() {
    local mode
    mode="$(stat -L -c %a "$1" 2> /dev/null || stat -L -f %Lp "$1")"
    case "$mode" in
        *00) ;;
        *) die "$1 can be read by others (mode $mode): chmod 600 $1" ;;
    esac
}

is_loopback() {
    [[ "$1" =~ ^127(\.[0-9]{1,3}){3}$ || "$1" == localhost || "$1" == ::1 || "$1" == '[::1]' ]]
}

# Files that root makes in another's folder are root's, and their owner could go on with nothing.
not_as_root_for_another() { # not_as_root_for_another FOLDER : of one that is to be made, the folder around it counts
    local folder="$1" owner
    [ "$(id -u)" = 0 ] || return 0
    while [ ! -e "$folder" ]; do folder="$(dirname "$folder")"; done
    owner="$(stat -L -c %U "$folder" 2> /dev/null || stat -L -f %Su "$folder")"
    [ "$owner" != UNKNOWN ] || owner="'#$(stat -L -c %u "$folder")'" # as sudo has it, and no comment to a shell
    [ "$owner" = root ] ||
        die "$folder belongs to $owner, who could not use what root makes in it: sudo -u $owner does this"
}

covered_by() { # covered_by CERTIFICATE HOST : whether a certificate is for a name or an address
    local kind=-checkhost
    [[ "$2" == *:* || "$2" =~ ^[0-9.]+$ ]] && kind=-checkip
    openssl x509 -in "$1" -noout "$kind" "$2" 2> /dev/null | grep -q "does match"
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
    not_as_root_for_another "$1"
    make_folder "$1/flwr"
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

at_the_centre() { # at_the_centre PROGRAM ARGUMENTS... : a Python program of this folder, on the running SuperLink
    existing "$centre/flwr/config.toml" "start the SuperLink first: start-superlink $centre"
    flower_environment "$centre"
    export COLUMNS=1000 NO_COLOR=1 PYTHONPATH="$CHECKOUT" PYTHONUNBUFFERED=1
    local program="$1"
    shift
    exec "$(python_path)" "$DEPLOY/$program" "$centre" "$CONNECTION" "$@"
}
