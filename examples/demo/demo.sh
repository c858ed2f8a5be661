#!/bin/bash
# The main job without any server: submit an experiment to a queue that is a directory, run it, and show the results.
set -eu -o pipefail

here=$(cd "$(dirname "$0")" && pwd)
runner=$(cd "$here/../.." && pwd)/studio-runner.pyz
demo=$(mktemp -d "${TMPDIR:-/tmp}/studio-runner-demo.XXXXXX")
mkdir -p "$demo"/{code,queues/local_demo,store,work}
cp "$here/train.py" "$demo/code"
cd "$demo"

python3 "$runner" --queue-root queues --file-root store --working-dir work --clear-text-messages \
  --limit-idle-duration 2s >runner.log 2>&1 &
trap 'kill $! 2>/dev/null || true' EXIT

if ! python3 "$runner" submit --queue-root queues --queue local_demo --store "file://$demo/store" \
  --requirement six --key demo --output results --wait --timeout 5m code train.py 200; then
  echo "--- the runner's log:" >&2
  cat runner.log >&2
  exit 1
fi

echo "--- output of the experiment:"
grep -v '^{\|^\[\|^studio-runner\|^Collecting\|^Installing\|^  ' results/output/output | tail -n 6
echo "--- saved model:"
cat results/modeldir/model.json
echo
echo "--- metadata scraped from its output:"
python3 -c 'import json, sys; d = json.load(open(sys.argv[1])); print({k: v for k, v in d.items() if k != "studioml"}, d["studioml"]["status"])' \
  results/scrape-host-*.json
wait
echo "--- everything is in $demo"
