#!/bin/bash
# The first nine minutes on a GPU:  bash tests/gpu.sh [FOLDER]
#
# The tests marked cuda, then nano's default training, timed, then the benchmarks. All that is printed lands in FOLDER
# (default gpu), with the card's name, to copy figures from. Each part has its limit; one that fails stops no other.
# Written without a GPU at hand: it has never run.
out=${1:-gpu}
cd "$(dirname "$0")/.." && mkdir -p "$out" || exit 2
nvidia-smi > "$out/card.txt" 2>&1
python -c "import torch; print(torch.__version__, torch.version.cuda, torch.cuda.get_device_name())" >> "$out/card.txt" \
    || { echo "error: torch sees no GPU, expected one; see $out/card.txt" >&2; exit 2; }

part() {                                     # part NAME SECONDS COMMAND...: its output and its end, into the folder
    local start=$SECONDS name=$1
    timeout -k 5 "$2" "${@:3}" > "$out/$name.txt" 2>&1
    echo "$name: exit $? after $((SECONDS - start)) s (124: limit $2 s)" | tee -a "$out/summary.txt"
}

rm -f "$out/summary.txt"
part tests 110 python -m pytest -q tests -m cuda
part dry_run 20 python train.py --procs 1 --dry-run --out "$out/nano"
part nano 150 python train.py --out "$out/nano"
for dtype in float32 bfloat16; do
    for preset in nano micro harmon-0.5b harmon-1.5b; do
        part "bench_${preset}_$dtype" 25 \
            python -m nanoharmon.bench --preset $preset --device cuda --dtype $dtype --json "$out/bench_${preset}_$dtype.json"
    done
done
grep images_per_s "$out/nano/log.jsonl" | tail -n 3 >> "$out/summary.txt"
cat "$out/summary.txt"
