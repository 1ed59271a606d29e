#!/usr/bin/env bash
# The peers of regret.py in a virtual environment of their own, benchmarks/.venv-peers: they want other versions of
# what this package is tested with. Then, with the same seeds and into the same file as the rest:
#
#   benchmarks/.venv-peers/bin/python benchmarks/regret.py --methods ax smac hebo skopt --append
#
# A peer that cannot be installed is named at the end, and left out of the benchmark; the others stay.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
VENV=${1:-benchmarks/.venv-peers}
test -x "$VENV/bin/python" || "$PYTHON" -m venv "$VENV" || exit 1

pins=$(mktemp)
trap 'rm -f "$pins"' EXIT
# scikit-learn: SMAC3 2.4.0 imports sklearn.tree._tree.DTYPE, which 1.9 no longer has. All else as in constraints.txt,
# torch above all, so that pip takes the same (CPU) build.
grep -E '^(torch|gpytorch|linear_operator|botorch|numpy|scipy|tqdm|optuna|pandas)==' constraints.txt > "$pins"
echo 'scikit-learn==1.8.0' >> "$pins"

failed=()
install() {  # name of the peer, what pip is to install
    local name=$1
    shift
    # pip can search for fitting versions for hours; with everything pinned, minutes are plenty.
    timeout 1200 "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check -c "$pins" "$@" && return
    failed+=("$name")
    return 1
}

install llamatune --editable . scikit-learn || exit 1
install optuna optuna
install ax ax-platform==1.3.1
install smac smac==2.4.0
install skopt scikit-optimize==0.10.2
# HEBO's wheel asks for numpy < 1.25 and pymoo == 0.6.0, which has no wheels, and GPy's for an old scipy; both work with
# the versions of the others. So these come without their dependencies, and those by name.
install hebo pymoo==0.6.2 pandas disjoint-set==0.8.0 catboost==1.2.10
install hebo --no-deps HEBO==0.3.6 GPy==1.13.2 paramz==0.10.0

for import in optuna ax.api.client smac skopt hebo.optimizers.hebo; do
    "$VENV/bin/python" -W ignore -c "import $import" > /dev/null 2>&1 || failed+=("import $import")
done
if ((${#failed[@]})); then
    printf 'not usable: %s\n' "${failed[@]}"
    exit 1
fi
echo "all peers are in $VENV"
