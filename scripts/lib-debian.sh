# Parts of setup: packages of a newer Debian suite, without touching the machine's own apt settings.
# Sourced, not run.

# The mirror this machine uses already; nothing is written down here.
debian_mirror() {
  apt-get indextargets --format '$(ORIGIN) $(CODENAME) $(REPO_URI)' 'Created-By: Packages' |
    awk '$1 == "Debian" && $2 !~ /-/ { print $3; exit }'
}

# private_apt DIR TYPE SUITE: prepares DIR as a world of its own for apt; then use apt_in DIR.
private_apt() {
  mirror=$(debian_mirror)
  [ -n "$mirror" ] || { echo "setup: apt on this machine knows no Debian mirror" >&2; return 1; }
  mkdir -p "$1/lists/partial" "$1/parts" "$1/cache/archives/partial"
  echo "$2 [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $3 main" >"$1/source.list"
  apt_in "$1" -qq update
}

apt_in() {
  world=$1
  shift
  apt-get -o Dir::Etc::sourcelist="$world/source.list" -o Dir::Etc::sourceparts="$world/parts" \
    -o Dir::State::Lists="$world/lists" -o Dir::Cache="$world/cache" \
    -o APT::Sandbox::User=root -o Acquire::Retries=3 "$@"
}

# Builds the newest libfuse of the first suite that has 3.18.3 or later, as a static library in $1.
build_libfuse() {
  prefix=$1
  for suite in forky sid; do
    world=$(mktemp -d)
    if private_apt "$world" deb-src "$suite" &&
      (cd "$world" && apt_in "$world" -qq source --download-only fuse3 >/dev/null && dpkg-source --no-check -x fuse3_*.dsc src >/dev/null) &&
      meson setup "$world/build" "$world/src" --prefix="$prefix" --libdir=lib --buildtype=release \
        -Ddefault_library=static -Db_staticpic=true -Dexamples=false -Dtests=false -Dutils=false \
        -Denable-io-uring=true >"$world/log" 2>&1 &&
      ninja -C "$world/build" install >>"$world/log" 2>&1 &&
      PKG_CONFIG_PATH="$prefix/lib/pkgconfig" pkg-config --atleast-version=3.18.3 fuse3; then
      rm -rf "$world"
      return 0
    fi
    [ -f "$world/log" ] && tail -n 20 "$world/log" >&2
    rm -rf "$world"
  done
  echo "setup: no suite has a libfuse of 3.18.3 or later that builds here" >&2
  return 1
}

# Unpacks Catch2 version 3 from the release's backports into $1.
fetch_catch2() {
  world=$(mktemp -d)
  release=$(. /etc/os-release && echo "$VERSION_CODENAME")
  private_apt "$world" deb "$release-backports" &&
    (cd "$world" && apt_in "$world" -qq download catch2 libcatch2-dev >/dev/null) &&
    for package in "$world"/*.deb; do dpkg-deb -x "$package" "$world/out" || return 1; done &&
    mkdir -p "$1" && cp -r "$world"/out/usr/* "$1/"
  result=$?
  rm -rf "$world"
  return $result
}
