#!/usr/bin/env bash
# Makes this Debian host a node of a cluster, as root: a member of its etcd, with TLS, and /dnp mounted by systemd,
# now and at every boot. Run again it upgrades; the configuration that is there stays as it is.
#
#     scripts/provision.sh --name NAME --nodes NAME=ADDRESS,NAME=ADDRESS,… --certificates DIR [--wheels DIR]
#
# --nodes         all members, the same on all of them; an odd number of at least three stands the loss of one
# --certificates  where ca.crt, NAME.crt and NAME.key are, as scripts/certificates.sh makes them
# --wheels        install from the wheels in DIR and ask no index; without it: from this checkout
#
# Returns before /dnp is there, since a majority of the members has to run first: `systemctl status dnpipefs`.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly PREFIX=/opt/dnpipefs
readonly SETTINGS=/etc/dnpipefs
readonly UNITS=/etc/systemd/system
name='' nodes='' certificates='' wheels=''

fail() { echo "provision: $*" >&2; exit 1; }
say() { echo "provision: $*"; }

parse_arguments() {
    while [ $# -gt 0 ]; do
        [ $# -gt 1 ] || fail "$1 needs a value"
        case "$1" in
            --name) name=$2 ;;
            --nodes) nodes=$2 ;;
            --certificates) certificates=$2 ;;
            --wheels) wheels=$2 ;;
            *) fail "there is no option $1: see the head of scripts/provision.sh" ;;
        esac
        shift 2
    done
    [ -n "$name" ] && [ -n "$nodes" ] && [ -n "$certificates" ] || fail "--name, --nodes and --certificates are needed"
    address=$(tr ',' '\n' <<<"$nodes" | sed -n "s/^$name=//p")
    [ -n "$address" ] || fail "$name is not among --nodes $nodes"
    for file in ca.crt "$name.crt" "$name.key"; do
        [ -r "$certificates/$file" ] || fail "no $certificates/$file: scripts/certificates.sh makes it"
    done
    [ "$(id -u)" = 0 ] || fail "only root can do this"
    [ -d /run/systemd/system ] || fail "this host does not run systemd"
}

# What each node's member is called from elsewhere: `urls SCHEME PORT` joined by commas.
endpoints() { sed "s/[^=,]*=\([^,]*\)/https:\/\/\1:2379/g" <<<"$nodes"; }
peers() { sed "s/=\([^,]*\)/=https:\/\/\1:2380/g" <<<"$nodes"; }

install_packages() {
    local package missing=() wanted=(etcd-server etcd-client fuse3 python3 python3-venv openssl)
    # pyfuse3 comes as source.
    [ -n "$wheels" ] || wanted+=(gcc libc6-dev libfuse3-dev pkg-config python3-dev)
    for package in "${wanted[@]}"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q ' installed$' || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    say "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
}

install_dnpipefs() {
    # Anew also where the distribution's Python is a later one than it was made with.
    "$PREFIX/bin/python" -c 'import pip' 2>/dev/null || python3 -m venv --clear "$PREFIX"
    if [ -n "$wheels" ]; then
        "$PREFIX/bin/pip" install --quiet --upgrade --no-index --find-links "$wheels" dnpipefs
    else
        "$PREFIX/bin/pip" install --quiet --upgrade .
    fi
    ln -sf "$PREFIX/bin/dnpipefs" /usr/local/bin/dnpipefs
    ln -sf "$PREFIX/bin/mount.dnpipefs" /sbin/mount.dnpipefs # where mount(8) looks
    say "$(dnpipefs --version)"
}

# Puts standard input in a file, unless that is there.
keep() { [ -e "$1" ] || install -m "${2:-644}" /dev/stdin "$1"; }

configure() {
    local own
    own=$(endpoints | tr ',' '\n' | grep -F "https://$address:2379")
    mkdir -p "$SETTINGS"
    install -m 644 "$certificates/ca.crt" "$SETTINGS/ca.crt"
    install -m 644 "$certificates/$name.crt" "$SETTINGS/node.crt"
    install -m 640 -g etcd "$certificates/$name.key" "$SETTINGS/node.key" # the member shows it, too
    keep "$SETTINGS/etcd.conf" <<CONF
ETCD_NAME=$name
ETCD_DATA_DIR=/var/lib/etcd/dnpipefs
ETCD_LOGGER=zap
ETCD_LISTEN_CLIENT_URLS=https://$address:2379,https://127.0.0.1:2379
ETCD_ADVERTISE_CLIENT_URLS=https://$address:2379
ETCD_LISTEN_PEER_URLS=https://$address:2380
ETCD_INITIAL_ADVERTISE_PEER_URLS=https://$address:2380
ETCD_INITIAL_CLUSTER=$(peers)
ETCD_INITIAL_CLUSTER_STATE=new
ETCD_INITIAL_CLUSTER_TOKEN=dnpipefs
ETCD_CLIENT_CERT_AUTH=true
ETCD_TRUSTED_CA_FILE=$SETTINGS/ca.crt
ETCD_CERT_FILE=$SETTINGS/node.crt
ETCD_KEY_FILE=$SETTINGS/node.key
ETCD_PEER_CLIENT_CERT_AUTH=true
ETCD_PEER_TRUSTED_CA_FILE=$SETTINGS/ca.crt
ETCD_PEER_CERT_FILE=$SETTINGS/node.crt
ETCD_PEER_KEY_FILE=$SETTINGS/node.key
CONF
    # Its own member first: that is the nearest.
    keep /etc/dnpipefs.toml <<CONF
endpoints = "$own,$(endpoints | tr ',' '\n' | grep -vF "$own" | paste -sd ,)"
cacert = "$SETTINGS/ca.crt"
cert = "$SETTINGS/node.crt"
key = "$SETTINGS/node.key"
CONF
}

install_units() {
    install -m 644 systemd/dnpipefs.service systemd/dnpipefs@.service "$UNITS"
    install -d -m 755 "$UNITS/etcd.service.d"
    install -m 644 systemd/etcd.service.d/dnpipefs.conf "$UNITS/etcd.service.d/dnpipefs.conf"
    printf '[Service]\nEnvironmentFile=%s/etcd.conf\n' "$SETTINGS" >"$UNITS/etcd.service.d/member.conf"
    systemctl daemon-reload
    systemctl --quiet enable etcd dnpipefs
}

# What a running member does not read again by itself, as it does its certificates.
settings_of_etcd() { cksum "$SETTINGS/etcd.conf" "$UNITS"/etcd.service.d/*.conf 2>/dev/null || echo none; }

parse_arguments "$@"
install_packages
install_dnpipefs
before=$(settings_of_etcd)
configure
install_units
[ "$(settings_of_etcd)" = "$before" ] && systemctl --quiet is-active etcd || systemctl restart --no-block etcd
systemctl restart --no-block dnpipefs
say "$name: /dnp is mounted as soon as a majority of the members runs"
