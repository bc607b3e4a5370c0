# Sourced by the scripts: the repository's root, its virtual environment, an engine.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"

say() { echo "${0##*/}: $*" >&2; }

# install PACKAGE…: Debian's packages, said before it is done.
install() {
  [ "$(id -u)" = 0 ] || { say "not root: ask the administrator for $*"; exit 1; }
  say "installing $* (Debian's packages)"
  apt-get update -qq >/dev/null
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# environment EXTRA…: .venv with the project and its extras, made again when pyproject.toml or the interpreter changes.
environment() {
  local python stamp
  command -v python3 >/dev/null || install python3 python3-venv
  python=${PYTHON:-python3}
  "$python" -c 'import ensurepip, venv' 2>/dev/null || install python3-venv
  stamp=$({ "$python" -VV; cat pyproject.toml; echo "$*"; } | cksum)
  [ "$(cat .venv/stamp 2>/dev/null)" != "$stamp" ] || return 0
  say "making the virtual environment (.venv)"
  rm -rf .venv
  "$python" -m venv .venv
  .venv/bin/pip install --quiet --disable-pip-version-check -e ".[$(IFS=,; echo "$*")]"
  echo "$stamp" > .venv/stamp
}

# engine: an engine to work on; the user's own where one answers. It stays up, for the next time.
engine() {
  scripts/engine up
  eval "$(scripts/engine env)"
}
