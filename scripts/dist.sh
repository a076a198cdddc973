#!/usr/bin/env bash
# Builds wheel and sdist into a directory (dist/): from the tracked files as they are here, the wheel from the sdist.
# The same files and commit give the same bytes: times are the commit's, or SOURCE_DATE_EPOCH.
set -euo pipefail
umask 022
target=$(realpath -m "${1:-dist}")
cd "$(dirname "$0")/.."

SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/tree" "$work/built" "$work/sdist"

pack() {
    tar --create --format=pax --pax-option=delete=atime,delete=ctime --mtime="@$SOURCE_DATE_EPOCH" \
        --sort=name --owner=0 --group=0 --numeric-owner --mode=u+rw,go=rX "$@"
}

# A copy: what lies about in a checkout, such as the list of an earlier build, stays out.
git ls-files -z | pack --null --files-from=- | tar --extract --directory "$work/tree"
.venv/bin/python -m build --outdir "$work/built" "$work/tree" >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }

# setuptools writes the time of the build into an sdist; a wheel it makes alike.
tar --extract --file "$work"/built/*.tar.gz --directory "$work/sdist"
name=$(ls "$work/sdist")
mkdir -p "$target"
pack --directory "$work/sdist" "$name" | gzip --no-name --best >"$target/$name.tar.gz"
cp "$work"/built/*.whl "$target"
echo "$target/$name.tar.gz"
(cd "$work/built" && printf "$target/%s\n" *.whl)
