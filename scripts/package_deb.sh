#!/usr/bin/env bash
# build/packages/kvaq_*.deb and libkvaq-dev_*.deb by CPack. Needs dpkg-dev (dpkg-shlibdeps finds the dependencies).
set -euo pipefail
cd "$(dirname "$0")/.."
command -v dpkg-shlibdeps >/dev/null || {
    [ "$(id -u)" = 0 ] || { echo "package_deb: error: no dpkg-shlibdeps. Install dpkg-dev, or run as root" >&2; exit 1; }
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends dpkg-dev >/dev/null
}
# KVAQ_PACKAGE_TREE: a build tree to package as it is.
tree=${KVAQ_PACKAGE_TREE:-build/package}
[ -n "${KVAQ_PACKAGE_TREE:-}" ] || scripts/package_build.sh
mkdir -p build/packages
rm -f build/packages/*.deb
cpack --config "$tree/CPackConfig.cmake" -B build/packages >build/package_deb.log 2>&1 || {
    tail -20 build/package_deb.log >&2
    echo "package_deb: error: CPack failed; the whole log is build/package_deb.log" >&2
    exit 1
}
rm -rf build/packages/_CPack_Packages
for deb in build/packages/*.deb; do
    printf '%s: %s bytes, %s KiB installed\n  Depends: %s\n' "$deb" "$(stat -c %s "$deb")" "$(dpkg-deb -f "$deb" Installed-Size)" "$(dpkg-deb -f "$deb" Depends)"
done
