#!/bin/bash
# Run the unit tests on another CPython, where pyenv has it: tools/test_python.sh 3.10
set -eu -o pipefail

minor=$1
own=$(.venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
if [ "$minor" = "$own" ]; then
  echo "Python $minor is what all tests run on"
  exit 0
fi
python=$(compgen -G "${PYENV_ROOT:-$HOME/.pyenv}/versions/$minor.*/bin/python$minor" | sort -V | tail -n 1) || true
if [ -z "$python" ]; then
  echo "no Python $minor in pyenv: not tested"
  exit 0
fi
venv=.venv-$minor
if [ ! -e "$venv/ready" ] || [ requirements/dev.txt -nt "$venv/ready" ]; then
  .venv/bin/uv venv -q --clear --python "$python" "$venv"
  .venv/bin/uv pip install -q --python "$venv/bin/python" --require-hashes -r requirements/dev.txt
  touch "$venv/ready"
fi
echo "Python $minor:"
# Another Python may be tried at the same time.
"$venv/bin/pytest" -q -p no:cacheprovider -n 2 --dist loadfile -m "not servers and not once" tests
