# shellcheck shell=bash
# Sourced by the scripts: the repository's root, Debian's packages, the virtual environment, an engine.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root" || exit

say() { echo "${0##*/}: $*" >&2; }
die() { say "$*"; exit 1; }

# usage: the comment at a script's beginning.
usage() { sed -n '2,/^[^#]/{ s/^# \{0,1\}//p; }' "$root/scripts/${0##*/}"; }
help() { case ${1:-} in -h|--help) usage; exit 0 ;; esac; }

# Programs of the system that a user's PATH may lack (`su` keeps the user's).
export PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

# install PACKAGE…: Debian's packages, said before it is done.
install() {
  command -v apt-get >/dev/null || die "not Debian or Ubuntu: install what these packages bring, then run this again: $*"
  [ "$(id -u)" = 0 ] || die "not root: run \`sudo apt-get install $*\`, then this again"
  say "installing $* (Debian's packages)"
  local log each packages=(); log=$(mktemp)
  for each; do  # docker's client is a package of its own since Debian 13
    [ "$each" != docker-cli ] || ! grep -qs '^VERSION_CODENAME=bookworm' /etc/os-release || each=docker.io
    packages+=("$each")
  done
  if ! { [ -n "${MANYOYO_APT_UPDATED:-}" ] || apt update; } >"$log" 2>&1 ||
    ! apt install --yes --no-install-recommends "${packages[@]}" >>"$log" 2>&1; then
    tail -n 15 "$log" >&2; rm -f "$log"
    die "apt-get could not install $*: see above, put it right, then run this again"
  fi
  rm -f "$log"
  export MANYOYO_APT_UPDATED=1
}

# apt-get, which waits up to five minutes for another one at work (it does so itself for some of its locks alone).
apt() {
  local code output
  for _ in {1..60}; do
    code=0
    output=$(DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 "$@" 2>&1 </dev/null) || code=$?
    case $code:$output in 0:*) break ;; *"Could not get lock"*) sleep 5 ;; *) break ;; esac
  done
  printf '%s\n' "$output"
  return "$code"
}

# need PROGRAM[=PACKAGE]…: the packages of those programs that are missing, in one go.
need() {
  local each want=()
  for each; do command -v "${each%%=*}" >/dev/null || want+=("${each#*=}"); done
  [ ${#want[@]} -eq 0 ] || install "${want[@]}"
}

# debian_sources RELEASE: the machine's own mirrors as apt reads them, as one-line sources of another release; nothing
# where the machine is not a Debian.
debian_sources() {
  apt-get indextargets --format '$(SITE) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
    awk -v own="$(. /etc/os-release && [ "$ID" = debian ] && echo "${VERSION_CODENAME:-}")" -v release="$1" '
      $3 == "main" && $2 ~ "^" own "(-updates|-security)?$" { sub(own, release, $2); print "deb", $1, $2, $3 }'
}

# interpreter: Python, from Debian's packages where there is none, unless PYTHON names one.
interpreter() {
  local python=${PYTHON:-python3}
  [ -n "${PYTHON:-}" ] || command -v python3 >/dev/null || install python3 python3-venv
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    die "$python is not Python 3.11 or newer: set PYTHON to one that is"
  "$python" -c 'import ensurepip, venv' 2>/dev/null || install python3-venv
}

# environment EXTRA…: .venv with the project and its extras, made again when pyproject.toml, the interpreter or the
# checkout's place changes. It keeps the extras of other scripts.
environment() {
  local python=${PYTHON:-python3} made
  interpreter
  made=$({ pwd; "$python" -VV; cat pyproject.toml; } | cksum)
  if [ "$(cat .venv/made 2>/dev/null)" != "$made" ]; then
    say "making the virtual environment (.venv)"
    rm -rf .venv
    "$python" -m venv .venv
    echo "$made" > .venv/made
  fi
  ! grep -qsxF "extras: $*" .venv/installed || return 0
  say "installing the project's Python packages into .venv"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".${*:+[$(IFS=,; echo "$*")]}" ||
    die "pip could not install them: see above; does this machine reach a Python package index?"
  echo "extras: $*" >> .venv/installed
}

# engine: an engine to work on; the user's own where one answers. It stays up, for the next time.
engine() {
  scripts/engine up
  eval "$(scripts/engine env)"
}
