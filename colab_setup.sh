#!/usr/bin/env bash
# Sets up the lab. On Colab, it installs the package into the running Python and changes nothing that Colab ships.
# Elsewhere, it makes .venv beside this file. Running it again takes seconds.
# Usage: bash colab_setup.sh [--dev]     --dev adds what the tests need. PYTHON=/path/to/python chooses the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# Without an NVIDIA GPU, pip is asked for exactly this release: if it finds a CPU build of it, it takes that one.
# A plain "torch" would take the newest release, which on Linux brings gigabytes of CUDA libraries.
torch_without_gpu="torch==2.13.0"
supported="3.11 to 3.13"

say() { echo "colab_setup.sh: $*"; }
fail() { say "$*" >&2; exit 1; }
is_supported() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; }
can_make_venv() { "$1" -c 'import ensurepip, venv' 2>/dev/null; }
# Whether Python finds the lab and what it needs, without this folder on its path (-I).
is_complete() {
    "$1" -I -c 'import sys; from importlib.util import find_spec
found = map(find_spec, ("tinystories_lab", "torch", "datasets", "tokenizers")); sys.exit(not all(it and it.origin for it in found))' 2>/dev/null
}
on_colab() { "${PYTHON:-python3}" -c 'import google.colab' 2>/dev/null; }

case "${1:-}" in
    "" | --dev) extras=${1:+[dev]} ;;
    *) fail "unknown option '$1'; usage: bash colab_setup.sh [--dev]" ;;
esac

if on_colab; then
    python=${PYTHON:-python3}
    is_supported "$python" || fail "Python $supported is needed, but this is $("$python" --version 2>&1)."
    installed=$(mktemp)
    # With the installed versions as constraints, pip can add packages but never replace one. A new torch would break
    # the runtime.
    "$python" -m pip list --format=freeze --exclude tinystories-lab >"$installed"
    "$python" -m pip install --quiet --constraint "$installed" ".$extras" \
        || fail "could not install into Colab's Python: restart the runtime (Runtime > Restart session) and run this cell again."
    say "installed tinystories_lab into Colab's $("$python" --version); nothing that Colab ships was changed."
    exit 0
fi

python=.venv/bin/python
stamp=.venv/set-up-for
wanted="$(cat requirements.txt pyproject.toml colab_setup.sh | cksum) ${extras:-}"
if is_supported "$python" && { [ ! -f "$stamp" ] || is_complete "$python"; }; then
    # A .venv made with --dev is also enough without it.
    if [ -f "$stamp" ] && { [ "$(cat "$stamp")" = "$wanted" ] || [ "$(cat "$stamp")" = "$wanted[dev]" ]; }; then
        say "ready: .venv ($("$python" --version)) was set up before."
        exit 0
    fi
else
    base=
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if is_supported "$candidate"; then
            base=$(command -v "$candidate")
            can_make_venv "$candidate" && break
        fi
    done
    [ -n "$base" ] || fail "Python $supported is needed, found $(${PYTHON:-python3} --version 2>&1 || true): install one, or name it with PYTHON=/path/to/python."
    can_make_venv "$base" || fail "$base cannot make virtual environments: install its venv package (on Debian and Ubuntu: python3-venv)."
fi

needed_gb=3
torch=$torch_without_gpu
if nvidia-smi -L >/dev/null 2>&1; then
    needed_gb=9
    torch=$(grep '^torch' requirements.txt)
fi
free_gb=$(df -Pk . | awk 'NR == 2 { print int($4 / 1048576) }')
[ "$free_gb" -ge "$needed_gb" ] || fail "the disk has $free_gb GB free here, and set-up needs about $needed_gb GB: make room and run this again."

if [ -n "${base:-}" ]; then
    say "making .venv with $base ($("$base" --version))"
    "$base" -m venv --clear .venv
fi
say "installing $torch, then the rest of requirements.txt${extras:+ and what the tests need} (this takes some minutes the first time)"
"$python" -m pip install --quiet "$torch" && "$python" -m pip install --quiet --editable ".${extras:-}" \
    || fail "pip could not install the requirements (see its message above): check the network and the disk, then run this again."
is_complete "$python" || fail "packages are missing in .venv although pip installed them: delete .venv and run this again."
echo "$wanted" >"$stamp"
say "ready: .venv ($("$python" --version), torch $("$python" -c 'import torch; print(torch.__version__)'))."
