#!/bin/bash
# Run the unit tests on the oldest and the newest CPython that is supported, where pyenv has them.
set -eu -o pipefail

own=$(.venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
for minor in 3.10 3.13; do
  [ "$minor" != "$own" ] || continue
  python=$(compgen -G "${PYENV_ROOT:-$HOME/.pyenv}/versions/$minor.*/bin/python$minor" | sort -V | tail -n 1) || true
  if [ -z "$python" ]; then
    echo "no Python $minor in pyenv: not tested"
    continue
  fi
  venv=.venv-$minor
  if [ ! -e "$venv/ready" ] || [ requirements/dev.txt -nt "$venv/ready" ]; then
    .venv/bin/uv venv -q --clear --python "$python" "$venv"
    .venv/bin/uv pip install -q --python "$venv/bin/python" --require-hashes -r requirements/dev.txt
    touch "$venv/ready"
  fi
  echo "Python $minor:"
  "$venv/bin/pytest" -q -n 2 --dist loadfile -m "not servers and not once" tests
done
