# Sourced by the scripts: makes .venv/ at the checkout's root and keeps it equal to a hashed lock file.
#   use_venv run|dev     sets PY to the environment's interpreter; prints the seconds that set-up took, if any

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
PY=$checkout/.venv/bin/python

say() { printf '%s\n' "$*" >&2; }

find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3 python3.11 python3.12 python3.13 python3.14; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  say "Python 3.11 or newer is needed; none of python3, python3.11 … python3.14 is one (set PYTHON to name it)."
  return 1
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

use_venv() {
  local kind=$1 lock=$checkout/scripts/setup/$1.lock began=$SECONDS stamp want uv
  stamp=$checkout/.venv/.setup-$kind
  want=$(cat "$lock" "$checkout/scripts/setup/tools.lock" "$checkout/pyproject.toml" | sha256sum | cut -c1-64)
  [ "$(cat "$stamp" 2>/dev/null)" = "$want" ] && return
  [ -x "$PY" ] || "$(find_python)" -m venv "$checkout/.venv" || {
    say "python -m venv failed (on Debian: the package python3-venv)."
    return 1
  }
  "$PY" -m pip install -q --disable-pip-version-check --require-hashes --no-deps -r "$checkout/scripts/setup/tools.lock"
  uv=$checkout/.venv/bin/uv
  # uv does not read pip's configuration: hand it the index a user may have set there.
  if [ -z "${UV_DEFAULT_INDEX:-}" ] && index=$("$PY" -m pip config get global.index-url 2>/dev/null); then
    export UV_DEFAULT_INDEX=$index
  fi
  say "set-up: installing the locked packages of $kind.lock (the first time: about 5 GB with CUDA's libraries)"
  requirements "$lock" | "$uv" pip install -q -p "$PY" --require-hashes --no-deps -r -
  "$uv" pip install -q -p "$PY" --no-deps --no-build-isolation -e "$checkout"
  rm -f "$checkout"/.venv/.setup-*
  printf %s "$want" >"$stamp"
  # dev holds everything that run does
  [ "$kind" = dev ] && cat "$checkout/scripts/setup/run.lock" "$checkout/scripts/setup/tools.lock" "$checkout/pyproject.toml" |
    sha256sum | cut -c1-64 | tr -d '\n' >"$checkout/.venv/.setup-run"
  say "set-up: $((SECONDS - began)) s"
}
