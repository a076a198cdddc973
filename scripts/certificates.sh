#!/usr/bin/env bash
# Makes the certificates of a cluster: an authority, and for each node one that is good for its etcd member, for
# other members, and for its mount.
#
#     scripts/certificates.sh DIR NAME=ADDRESS [NAME=ADDRESS…]
#
# What is in DIR already is kept, so a node that comes later gets its own from the same authority. ca.key signs:
# whoever has it is let in everywhere, so it stays where this was run.
set -euo pipefail

readonly directory=${1:?usage: scripts/certificates.sh DIR NAME=ADDRESS…}
shift
readonly DAYS=3650

fail() { echo "certificates: $*" >&2; exit 1; }
quietly() { local said; said=$("$@" 2>&1) || fail "$1 ${2-}: $said"; }
new_key() { quietly openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1"; }

command -v openssl >/dev/null || fail "no openssl: install it"
umask 077
mkdir -p "$directory"
cd "$directory"

if [ ! -e ca.crt ]; then
    new_key ca.key
    quietly openssl req -x509 -new -key ca.key -days "$DAYS" -subj "/CN=dnpipefs cluster" -out ca.crt
fi
for node in "$@"; do
    name=${node%%=*} address=${node#*=}
    [ -n "$name" ] && [ -n "$address" ] && [ "$name" != "$node" ] || fail "'$node' is not NAME=ADDRESS"
    [ ! -e "$name.crt" ] || continue
    [ -e ca.key ] || fail "no ca.key in $directory: only where the first certificates were made can more be made"
    case "$address" in
        *[!0-9.:]*) kind=DNS ;;
        *) kind=IP ;;
    esac
    new_key "$name.key"
    quietly openssl req -new -key "$name.key" -subj "/CN=$name" -out "$name.csr"
    quietly openssl x509 -req -in "$name.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days "$DAYS" \
        -out "$name.crt" -extfile <(
            echo "subjectAltName = $kind:$address, IP:127.0.0.1, DNS:$name, DNS:localhost"
            echo "extendedKeyUsage = serverAuth, clientAuth"
        )
    rm "$name.csr"
done
