#!/usr/bin/env bash
# Makes the checkout runnable: the distribution's packages, a .venv, dnpipefs in it (editable, with its tests).
# Says nothing and takes no time when that is already so. With --tests, also what only tests need; with --packages or
# --systemd, what those of the packages or those under systemd do.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly OLDEST_PYTHON="3, 11"
readonly STAMP=.venv/set-up
readonly WITH="${1:-}"

fail() { echo "setup: $*" >&2; exit 1; }

# What an up-to-date .venv was made from, and where.
fingerprint() { pwd -P; cksum pyproject.toml scripts/setup.sh; }

has() { command -v "$1" >/dev/null; }

is_set_up() {
    has_programs && ! lacks_tools && .venv/bin/python -c '' 2>/dev/null &&
        [ "$(fingerprint)" = "$(cat "$STAMP" 2>/dev/null)" ]
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# A Python that can make a .venv and compile an extension for it. The distribution's first: it is built with optimizations
# that one from pyenv lacks unless asked for, and half as fast again (docs/benchmarks.md).
find_python() {
    local candidate
    for candidate in /usr/bin/python3 python3 python3.13 python3.12 python3.11; do
        if "$candidate" - 2>/dev/null <<PYTHON
import ensurepip, os, sys, sysconfig, venv
header = os.path.join(sysconfig.get_path("include"), "Python.h")
sys.exit(sys.version_info < ($OLDEST_PYTHON) or not os.path.exists(header))
PYTHON
        then
            echo "$candidate"
            return
        fi
    done
    return 1
}

python_packages() {
    local version
    for version in 3.13 3.12 3.11; do
        if has "python$version"; then
            echo "python$version-dev python$version-venv"
            return
        fi
    done
    if apt-cache policy python3 | grep -q 'Candidate: 3\.\([0-9]\|10\)\.'; then
        echo "python3.11 python3.11-dev python3.11-venv" # Ubuntu 22.04: 3.10 is its python3
    else
        echo "python3 python3-dev python3-venv"
    fi
}

# etcdctl and the attr tools are for the tests: they look at what is stored, and set topics up, as a user would.
has_programs() { has etcd && has fusermount3 && has etcdctl && has getfattr; }
# For tests: many writers at once, a terminal; mandoc judges the man pages. For those of the cluster, which are root's:
# hosts, what cuts them off and delays their packets, clocks that jump.
has_test_tools() {
    has parallel && has tmux && has jq && has mandoc && has ip && has iptables && has_queue_headers && compgen -G '/usr/lib/*/faketime/libfaketimeMT.so.1' >/dev/null
}
has_queue_headers() { has pkg-config && pkg-config --exists libnetfilter_queue; }
has_package_tools() { has pipx && has zsh && has fish; }
has_systemd_tools() { has debootstrap && has systemd-nspawn; }
# Whether tools for tests were asked for, are missing, and can be had.
lacks_tools() {
    [ "$(id -u)" = 0 ] && has apt-get || return 1
    case "$WITH" in
        --tests) ! has_test_tools ;;
        --packages) ! has_package_tools ;;
        --systemd) ! has_systemd_tools ;;
        *) return 1 ;;
    esac
}
tools() {
    case "$WITH" in
        --tests) echo parallel tmux jq mandoc iproute2 iptables libfaketime libnetfilter-queue-dev ;;
        --packages) echo pipx zsh fish ;;
        --systemd)
            echo debootstrap systemd-container
            if apt-cache show vagrant >/dev/null 2>&1; then echo vagrant; fi # not in each release of Debian
            ;;
    esac
}
has_headers() { has pkg-config && pkg-config --exists fuse3; }
compiles() { has cc && echo '#include <stdlib.h>' | cc -E - >/dev/null 2>&1; }
is_complete() { has_programs && has_headers && compiles && find_python >/dev/null && ! lacks_tools; }

install_packages() {
    local packages=() had_etcd=yes
    has apt-get || fail "this machine has no apt-get; install fuse3 and its headers, pkg-config, a C compiler," \
        "Python >= 3.11 with headers, attr, and etcd 3.4 to 3.6 with etcdctl yourself"
    [ "$(id -u)" = 0 ] || has sudo ||
        fail "packages are missing and there is no sudo: run 'scripts/setup.sh' once as root"
    echo "setup: installing missing packages" >&2
    export DEBIAN_FRONTEND=noninteractive
    as_root apt-get update -qq || fail "apt-get update failed, see above"
    has fusermount3 || packages+=(fuse3)
    has getfattr || packages+=(attr)
    has_headers || packages+=(libfuse3-dev pkg-config)
    compiles || packages+=(gcc libc6-dev)
    # shellcheck disable=SC2207 # package names have no spaces
    find_python >/dev/null || packages+=($(python_packages))
    if ! has etcdctl && apt-cache show etcd-client >/dev/null 2>&1; then packages+=(etcd-client); fi
    if ! has etcd; then
        had_etcd=no
        if apt-cache show etcd-server >/dev/null 2>&1; then packages+=(etcd-server); else packages+=(etcd); fi
    fi
    # shellcheck disable=SC2207 # package names have no spaces
    if lacks_tools; then packages+=($(tools)); fi
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${packages[@]}" >&2 ||
        fail "could not install ${packages[*]}, see above"
    [ "$had_etcd" = yes ] || disable_etcd_service
}

# The package starts a server of its own and at every boot. dnpipefs starts its own when it needs one, so
# a service that came only with this set-up is switched off; one that was there before is not ours to touch.
disable_etcd_service() {
    if [ -d /run/systemd/system ]; then
        as_root systemctl --quiet disable --now etcd.service || true
    elif [ -x /etc/init.d/etcd ]; then
        as_root update-rc.d etcd disable >/dev/null || true
        as_root /etc/init.d/etcd stop >/dev/null 2>&1 || true
    fi
}

check_etcd() {
    case "$(etcd --version | head -n 1)" in
        *" 3."[456].*) ;;
        *) fail "$(command -v etcd) has '$(etcd --version | head -n 1)'; put one of 3.4 to 3.6 on the PATH" ;;
    esac
}

# A .venv that was moved with its checkout has the old path in all its programs.
was_moved() { [ -e "$STAMP" ] && [ "$(head -n 1 "$STAMP")" != "$(pwd -P)" ]; }

make_venv() {
    local python
    python=$(find_python) || fail "found no Python >= 3.11 with headers and venv, even after installing packages"
    if was_moved ||
        ! .venv/bin/python -c "import pip, sys; sys.exit(sys.version_info < ($OLDEST_PYTHON))" 2>/dev/null; then
        "$python" -m venv --clear .venv
    fi
    echo "setup: installing dnpipefs into .venv" >&2
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test]' >&2
    ! has_queue_headers ||
        .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[cluster]' >&2 ||
        echo "setup: no NetfilterQueue, see above: tests of bad lines are skipped" >&2
}

if is_set_up; then exit 0; fi
is_complete || install_packages
check_etcd
make_venv
fingerprint >"$STAMP"
