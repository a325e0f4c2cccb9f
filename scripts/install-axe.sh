#!/bin/sh
# axe-core for the test that checks the report's accessibility, into .venv/axe, which git ignores. Does nothing where
# it is there already, and says so and succeeds where npm is missing or cannot install it: without axe-core that test
# is skipped, and under CI=true it fails by itself.
set -u

version=4.14.1
folder="$(dirname "$0")/../.venv/axe"

if grep -qs "\"version\": \"$version\"" "$folder/node_modules/axe-core/package.json"; then
    exit 0
fi

if ! command -v npm >/dev/null 2>&1; then
    echo "install-axe: no npm here; install Node.js to run the test of the report's accessibility"
    exit 0
fi

echo "install-axe: installing axe-core $version with npm"
mkdir -p "$folder"
if ! npm install --prefix "$folder" --no-save --no-audit --no-fund --loglevel=error "axe-core@$version" >/dev/null; then
    echo "install-axe: npm could not install axe-core $version; without it the accessibility test is skipped"
fi
exit 0
