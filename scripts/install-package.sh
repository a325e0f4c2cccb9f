#!/bin/sh
# A browser for the test that opens the report. Does nothing where one is installed already, installs Debian's
# chromium where apt-get may be used, and otherwise says so and succeeds: without a browser that test is skipped,
# and under CI=true it fails by itself.
set -u

for name in chromium chromium-browser google-chrome; do
    if command -v "$name" >/dev/null 2>&1; then
        exit 0
    fi
done

if ! command -v apt-get >/dev/null 2>&1; then
    echo "install-chromium: no browser and no apt-get here; install Chromium by hand to run the browser test"
    exit 0
fi

if [ "$(id -u)" -eq 0 ]; then
    as_root=""
elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
    as_root="sudo -n"
else
    echo "install-chromium: no browser, and apt-get needs root; install Chromium by hand to run the browser test"
    exit 0
fi

echo "install-chromium: installing chromium with apt-get"
# $as_root is empty or two words: it has to split.
# shellcheck disable=SC2086
if ! { $as_root apt-get update -q &&
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends chromium; } >/dev/null; then
    echo "install-chromium: apt-get could not install chromium; install it by hand to run the browser test"
fi
exit 0
