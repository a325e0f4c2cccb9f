#!/bin/sh
# A program that some tests need, from Debian's package of it.
#
#     sh scripts/install-package.sh PACKAGE WHAT-NEEDS-IT PROGRAM...
#
# Does nothing where one of the programs is installed already, installs the package where apt-get may be used, and
# otherwise says so and succeeds: without the program those tests are skipped, and under CI=true those in a browser fail.
set -u

package=$1
needs=$2
shift 2

for name; do
    if command -v "$name" >/dev/null 2>&1; then
        exit 0
    fi
done

if ! command -v apt-get >/dev/null 2>&1; then
    echo "install-package: no $package and no apt-get here; install $package by hand to run $needs"
    exit 0
fi

if [ "$(id -u)" -eq 0 ]; then
    as_root=""
elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
    as_root="sudo -n"
else
    echo "install-package: no $package, and apt-get needs root; install $package by hand to run $needs"
    exit 0
fi

echo "install-package: installing $package with apt-get"
# $as_root is empty or two words: it has to split.
# shellcheck disable=SC2086
if ! { $as_root apt-get update -q &&
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$package"; } >/dev/null; then
    echo "install-package: apt-get could not install $package; install it by hand to run $needs"
fi
exit 0
