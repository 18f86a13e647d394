#!/usr/bin/env bash
# Sourced: packages of any Debian suite from the mirror that this machine uses already; its own apt stays as it is.

# Prints the mirror.
debian_mirror() {
  local sources=/etc/apt/sources.list.d/debian.sources mirror
  if [[ -e $sources ]]; then
    mirror=$(awk '/^URIs:/ {print $2; exit}' "$sources")
  else
    mirror=$(awk '$1 == "deb" {for (i = 2; i <= NF; i++) if ($i ~ /^[a-z]+:\/\//) {print $i; exit}}' /etc/apt/sources.list)
  fi
  [[ -n $mirror ]] || { echo "no Debian mirror in the configuration of apt" >&2; return 1; }
  echo "$mirror"
}

# suite_options SUITE FOLDER: sets the array `options` for apt-get and apt-cache; the lists are in FOLDER.
suite_options() {
  local suite=$1 folder=$2 mirror
  mirror=$(debian_mirror) || return 1
  mkdir -p "$folder"/{lists/partial,archives/partial}
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" > "$folder/sources.list"
  options=(-q -o Dir::Etc::sourcelist="$folder/sources.list" -o Dir::Etc::sourceparts=- -o Dir::State::Lists="$folder/lists"
    -o Dir::Cache="$folder" -o Acquire::Check-Valid-Until=false -o Acquire::Retries=3 -o APT::Sandbox::User=root)
  apt-get "${options[@]}" update > /dev/null
}

# in_cache NAME: the newest folder NAME-VERSION of what was fetched, in `found`, if there is one; sets `cache`, where they are.
in_cache() {
  cache=${XDG_CACHE_HOME:-$HOME/.cache}/espalier-kernels
  mkdir -p "$cache"
  found=$(find "$cache" -maxdepth 1 -name "$1-*" ! -name '*.new' | sort -V | tail -n 1)
  [[ -n $found ]]
}
