#!/bin/bash
# Nine minutes on a GPU:  bash tests/gpu.sh [FOLDER]
#
# The tests marked cuda, then the benchmarks, then nano's default training in what time is left. All that is printed
# lands in FOLDER (default gpu), with the card's name, to copy figures from. One part that fails stops no other. Most
# of these commands ran on an H200 (docs/HARDWARE.md says which), but never this script as a whole.
out=${1:-gpu}
cd "$(dirname "$0")/.." && mkdir -p "$out" || exit 2
nvidia-smi > "$out/card.txt" 2>&1
python -c "import torch; print(torch.__version__, torch.version.cuda, torch.cuda.get_device_name())" >> "$out/card.txt" \
    || { echo "error: torch sees no GPU, expected one; see $out/card.txt" >&2; exit 2; }

part() {                                     # part NAME SECONDS COMMAND...: its output and its end, into the folder
    local start=$SECONDS name=$1 limit=$(($2 < 530 - SECONDS ? $2 : 530 - SECONDS))      # 10 s are left to the ends
    ((limit > 0)) || { echo "$name: no time was left" | tee -a "$out/summary.txt"; return; }
    timeout -k 5 "$limit" "${@:3}" > "$out/$name.txt" 2>&1
    echo "$name: exit $? after $((SECONDS - start)) s (124: limit $limit s)" | tee -a "$out/summary.txt"
}

rm -f "$out/summary.txt"
part tests 350 python -m pytest -q tests -m cuda
bench="python -m nanoharmon.bench --device cuda"
for preset in nano micro harmon-0.5b harmon-1.5b; do
    for dtype in float32 bfloat16; do
        name=bench_${preset}_$dtype
        part "$name" 60 $bench --preset $preset --dtype $dtype --json "$out/$name.json"
    done
done
part bench_compiled 120 $bench --compile --only draw --only "stage 3" --json "$out/bench_compiled.json"
part dry_run 30 python train.py --procs 1 --dry-run --out "$out/nano"
part train 530 python train.py --out "$out/nano"
grep images_per_s "$out/nano/log.jsonl" | tail -n 3 >> "$out/summary.txt"
cat "$out/summary.txt"
