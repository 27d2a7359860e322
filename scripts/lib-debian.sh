# shellcheck shell=sh
# Parts of setup: software of a newer Debian suite, put below .deps/. Sourced, not run.
#
# apt gets a configuration of its own in a scratch directory: sources, lists and caches of the machine stay
# as they are, and what is downloaded is still checked against Debian's keys.

# The mirrors in this machine's own sources, in either format, one a line. No address is written down here.
debian_mirrors() {
  release=$(. /etc/os-release && echo "${VERSION_CODENAME:-stable}")
  apt-get update --print-uris | tr -d "'" | sed -n \
    -e "s,^\([^ ]*/\)dists/$release/InRelease .*,\1,p" \
    -e 's,^\([^ ]*/\)dists/\(stable\|oldstable\|testing\)/InRelease .*,\1,p' | awk '!seen[$0]++'
}

# private_apt DIRECTORY deb|deb-src SUITE: afterwards `apt_in DIRECTORY ...` knows that suite and nothing else.
private_apt() {
  mkdir -p "$1/lists/partial" "$1/archives/partial" "$1/sources.d"
  cat >"$1/apt.conf" <<END
Dir::Etc::SourceList "$1/sources.list";
Dir::Etc::SourceParts "$1/sources.d";
Dir::State::Lists "$1/lists";
Dir::Cache "$1";
APT::Sandbox::User "root";
APT::Get::List-Cleanup "false";
Acquire::Languages "none";
Acquire::Retries "3";
// Frozen mirrors serve lists past their date; signatures and the version asked for are still checked.
Acquire::Check-Valid-Until "false";
END
  for mirror in $(debian_mirrors); do
    echo "$2 [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $3 main" >"$1/sources.list"
    if apt_in "$1" -qq update -o APT::Update::Error-Mode=any >"$1/update.log" 2>&1; then return 0; fi
  done
  echo "setup: no mirror in this machine's apt sources has Debian's $3" >&2
  [ ! -f "$1/update.log" ] || cat "$1/update.log" >&2
  return 1
}

apt_in() (
  export APT_CONFIG="$1/apt.conf"
  shift
  exec apt-get "$@"
)

# build_libfuse SCRATCH PREFIX VERSION: a static libfuse, from the first suite that has VERSION or a later one.
build_libfuse() {
  for suite in forky sid; do
    tree=$1/$suite
    mkdir -p "$tree"
    if private_apt "$tree" deb-src "$suite" && compile_libfuse "$tree" "$2" "$3" >"$tree/build.log" 2>&1; then
      # Whole or not at all: an interrupted setup must not leave half a library behind.
      rm -rf "$2"
      mkdir -p "$(dirname "$2")"
      mv "$tree/out$2" "$2"
      return 0
    fi
    [ ! -f "$tree/build.log" ] || tail -n 30 "$tree/build.log" >&2
  done
  echo "setup: no suite has a libfuse of $3 or later that builds here" >&2
  return 1
}

compile_libfuse() (
  set -e
  cd "$1"
  apt_in "$1" -q source --download-only fuse3
  dpkg-source --no-check --extract fuse3_*.dsc src  # apt has compared the checksums
  meson setup build src --prefix="$2" --libdir=lib --buildtype=release -Ddefault_library=static \
    -Db_staticpic=true -Dexamples=false -Dtests=false -Dutils=false -Denable-io-uring=true
  DESTDIR=$1/out ninja -C build install
  PKG_CONFIG_PATH=$1/out$2/lib/pkgconfig pkg-config --atleast-version="$3" fuse3
)

# fetch_catch2 SCRATCH PREFIX: Catch2 version 3 from this release's backports, unpacked and not installed.
fetch_catch2() (
  set -e
  release=$(. /etc/os-release && echo "$VERSION_CODENAME")
  private_apt "$1" deb "$release-backports"
  cd "$1"
  apt_in "$1" -qq download libcatch2-dev >/dev/null
  dpkg-deb --extract libcatch2-dev_*.deb out
  rm -rf "$2"
  mkdir -p "$(dirname "$2")"
  mv out/usr "$2"
)

# build_peers SCRATCH TARGET VERSION: passthrough_hp of libfuse's examples, for scripts/bench.
build_peers() {
  for suite in forky sid; do
    tree=$1/$suite
    mkdir -p "$tree"
    private_apt "$tree" deb-src "$suite" || continue
    (
      cd "$tree"
      apt_in "$tree" -q source --download-only fuse3 && dpkg-source --no-check --extract fuse3_*.dsc src &&
        meson setup build src --buildtype=release -Ddefault_library=static -Dexamples=true -Dtests=false -Dutils=false &&
        ninja -C build example/passthrough_hp
    ) >"$tree/build.log" 2>&1 && mkdir -p "$2" && cp "$tree/build/example/passthrough_hp" "$2/" && return 0
    tail -n 30 "$tree/build.log" >&2
  done
  return 1
}

# clean_debian SUITE DIRECTORY: a debootstrap of that suite, made if it is not there, from this machine's own mirror.
clean_debian() {
  [ ! -d "$2" ] || return 0
  command -v debootstrap >/dev/null || apt-get -qq install -y --no-install-recommends debootstrap >/dev/null
  rm -rf --one-file-system "$2.new"
  debootstrap --variant=minbase --include=ca-certificates,mount "$1" "$2.new" "$(debian_mirrors | grep -v security | head -n 1)" >"$2.log" 2>&1 ||
    { tail "$2.log" >&2; return 1; }
  mv "$2.new" "$2"
}
