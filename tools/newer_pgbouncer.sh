#!/usr/bin/env bash
# Installs /usr/local/bin/pgbouncer-newer for the tests, as root: a PgBouncer that supports prepared statements
# in transaction mode (1.21 or newer), built from the source package of Debian 13. Does nothing if the
# package of this system is new enough.
set -euo pipefail
target=/usr/local/bin/pgbouncer-newer
if [ -x "$target" ] || dpkg --compare-versions "$(dpkg-query --show --showformat='${Version}' pgbouncer)" ge 1.21; then
  exit
fi
folder=$(mktemp --directory)
trap 'rm -rf "$folder"' EXIT
# The source package is fetched and verified by the user _apt.
chmod 755 "$folder"
mkdir -p "$folder/lists/partial"
install --directory --owner=_apt "$folder/source"
archive=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' | head -n 1)
echo "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $archive trixie main" > "$folder/sources.list"
options=(-q=2 -o "Dir::Etc::sourcelist=$folder/sources.list" -o Dir::Etc::sourceparts=/dev/null -o "Dir::State::lists=$folder/lists")
apt-get "${options[@]}" update
(cd "$folder/source" && apt-get "${options[@]}" source --download-only pgbouncer)
tar --extract --gzip --strip-components=1 --directory "$folder" --file "$folder"/source/pgbouncer_*.orig.tar.gz
cd "$folder"
./configure --quiet --without-openssl --without-cares --disable-evdns > configure.log
make --silent pgbouncer > make.log 2>&1 || { cat make.log; exit 1; }
install pgbouncer "$target"
"$target" --version | head -n 1
