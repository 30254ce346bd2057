# Sourced by the scripts: makes .venv/ at the checkout's root and keeps it equal to a hashed lock file.
#   use_venv run|dev     sets PY to the environment's interpreter; prints the seconds that set-up took, if any
# Every step says `|| return`: a caller that writes `use_venv … ||` switches errexit off in here.

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
PY=$checkout/.venv/bin/python

say() { printf '%s\n' "$*" >&2; }

find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3 python3.11 python3.12 python3.13 python3.14; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  say "Python 3.11 or newer is needed; none of python3, python3.11 … python3.14 is one (set PYTHON to name it)."
  return 1
}

# An environment with pip in it. What an attempt without python3-venv left behind is made anew.
make_venv() {
  local python
  "$PY" -m pip --version >/dev/null 2>&1 && return
  python=$(find_python) || return
  "$python" -m venv --clear "$checkout/.venv" >&2 || {
    say "$python -m venv failed (on Debian: install the package python3-venv)."
    return 1
  }
}

# The lock file without what an already installed CPU build of torch makes superfluous (README, "CPU only").
requirements() {
  if "$PY" - <<'PYTHON' 2>/dev/null
import importlib.metadata as m, sys
sys.exit(0 if "+cpu" in m.version("torch") else 1)
PYTHON
  then
    awk '/^[a-zA-Z0-9]/ { drop = $0 ~ /^(torch|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+)==/ } !drop' "$1"
  else
    cat "$1"
  fi
}

# What an environment of that kind was made from.
fingerprint() {
  cat "$checkout/scripts/setup/$1.lock" "$checkout/scripts/setup/tools.lock" "$checkout/pyproject.toml" |
    sha256sum | cut -c1-64
}

install_locked() {
  local kind=$1 uv=$checkout/.venv/bin/uv index
  make_venv || return
  "$PY" -m pip install -q --disable-pip-version-check --require-hashes --no-deps \
    -r "$checkout/scripts/setup/tools.lock" >&2 || return
  # uv does not read pip's configuration: hand it the index a user may have set there.
  if [ -z "${UV_DEFAULT_INDEX:-}" ]; then
    index=${PIP_INDEX_URL:-$("$PY" -m pip config get global.index-url 2>/dev/null || true)}
    [ -z "$index" ] || export UV_DEFAULT_INDEX=$index
  fi
  say "set-up: installing the locked packages of $kind.lock (the first time: about 5 GB with CUDA's libraries)"
  (
    set -o pipefail
    requirements "$checkout/scripts/setup/$kind.lock" |
      "$uv" pip install -q -p "$PY" --require-hashes --no-deps -r - >&2
  ) || return
  "$uv" pip install -q -p "$PY" --no-deps --no-build-isolation -e "$checkout" >&2
}

use_venv() {
  local kind=$1 began=$SECONDS stamp=$checkout/.venv/.setup-$1 want
  want=$(fingerprint "$kind") || return
  [ -x "$PY" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$want" ] && return
  rm -f "$checkout"/.venv/.setup-*
  install_locked "$kind" || {
    say "set-up failed (see above); run this again when that is mended."
    return 1
  }
  printf %s "$want" >"$stamp" || return
  if [ "$kind" = dev ]; then # which holds everything that run does
    fingerprint run | tr -d '\n' >"$checkout/.venv/.setup-run" || return
  fi
  say "set-up: $((SECONDS - began)) s"
}
