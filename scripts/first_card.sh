#!/bin/sh
# The first measurements on a GPU: `sh scripts/first_card.sh`, after `make setup`. It ends after LIMIT minutes at the
# latest, prints what each part did, and goes on after a stop: finished parts are not run again, and what earlier
# calls spent counts. A part that fails or takes too long leaves its log in OUT and does not stop the others.
# A trial on a CPU:
#   SHAPE=random:tiny DTYPE=float32 NEGATIVES=1,3 MEMORY=trial QUANTIZATION=none ROWS=64 EVALUATED=16 LENGTH=1024 \
#       CLIENTS=1,4 OUT=runs/first-card-trial sh scripts/first_card.sh
set -u
OUT=${OUT:-runs/first-card}              # everything is written here
LIMIT=${LIMIT:-40}                       # minutes of all parts and all calls together
CARD=${CARD:-h100-80gb}                  # of `prefrec lab doctor --card`
SHAPE=${SHAPE:-random:llama-2-7b}        # what the bench measures; nothing is downloaded
DTYPE=${DTYPE:-bfloat16}
NEGATIVES=${NEGATIVES:-3,7,15,63}
MODEL=${MODEL:-}                         # of the run: a folder or a hub id; empty: SHAPE with random weights
ROWS=${ROWS:-1200}                       # of each stage of the run
EVALUATED=${EVALUATED:-100}             # rows that are scored and answered, of validation and test
LENGTH=${LENGTH:-512}                    # tokens of a prompt with its answer, of the run
DATA=${DATA:-../data/lastfm-sdpo}        # docs/datasets.md says how to make it
MINUTES=${MINUTES:-13}                   # of the bench, and of the run
CLIENTS=${CLIENTS:-1,8,64}               # of the load
PARTS=${PARTS:-predicted memory bench model run load}
MEMORY=${MEMORY:-card}                   # of prefrec_lab.trials.memory_forecast: card, or trial
QUANTIZATION=${QUANTIZATION:-nf4}        # of the run's base

mkdir -p "$OUT"
PARTS_TSV=$OUT/parts.tsv                 # part, result, seconds: a line for each try
touch "$PARTS_TSV"
spent() { awk -F '\t' '{ s += $3 } END { print s + 0 }' "$PARTS_TSV"; }

part() { # NAME SECONDS COMMAND…
    name=$1 seconds=$2
    shift 2
    case " $PARTS " in *" ${name%%-*} "*) ;; *) return ;; esac
    if grep -q "^$name	ok	" "$PARTS_TSV"; then echo "$name: done before"; return; fi
    left=$((60 * LIMIT - $(spent)))
    if [ "$left" -lt "$seconds" ]; then seconds=$left; fi
    if [ "$seconds" -le 0 ]; then echo "$name: no time is left of $LIMIT minutes"; return; fi
    echo "$name, at most $seconds s: $*"
    began=$(date +%s)
    timeout --kill-after=20 "$seconds" "$@" >"$OUT/$name.txt" 2>"$OUT/$name.log"
    case $? in 0) result=ok ;; 124 | 137) result="stopped" ;; *) result="failed" ;; esac
    printf '%s\t%s\t%s\n' "$name" "$result" $(($(date +%s) - began)) >>"$PARTS_TSV"
    [ "$result" = ok ] || echo "  $result: $OUT/$name.log"
}

for n in $(echo "$NEGATIVES" | tr , ' '); do
    part "predicted-$n" 120 prefrec lab doctor --model "$SHAPE" --negatives "$n" --card "$CARD" --json
done
part memory 240 python -m prefrec_lab.trials.memory_forecast "$MEMORY"
# An N at a time into one folder, so that what no time is left for is the largest N; the last one's output has all.
count=$(echo "$NEGATIVES" | tr , '\n' | wc -l)
for n in $(echo "$NEGATIVES" | tr , ' '); do
    part "bench-$n" $((60 * MINUTES / count)) prefrec lab bench --model "$SHAPE" --dtype "$DTYPE" --negatives "$n" \
        --methods prefrec,separate,trl,published --sections steps --repetitions 3 --out "$OUT/bench" --json
done
if [ -z "$MODEL" ]; then
    MODEL=$OUT/model
    part model 180 python -c 'import sys
from prefrec_lab.bench.settings import BenchSettings
from prefrec_lab.bench.workload import plain_model, tokenizer_of
shape = BenchSettings(model=sys.argv[1], dtype=sys.argv[2])
for saved in (plain_model(shape), tokenizer_of(shape)):
    saved.save_pretrained(sys.argv[3])' "$SHAPE" "$DTYPE" "$MODEL"
fi
part run $((60 * MINUTES)) prefrec run recipes/paper-lastfm.yaml --out "$OUT/paper-lastfm" \
    --set data.path="$DATA" --set model.name="$MODEL" --set model.quantization="$QUANTIZATION" \
    --set model.max_length="$LENGTH" \
    --set sft.rows="$ROWS" --set sft.epochs=1 --set sft.eval_rows="$EVALUATED" \
    --set align.s-dpo.rows="$ROWS" --set align.s-dpo.epochs=1 --set align.s-dpo.eval_rows="$EVALUATED" \
    --set evaluate.rows="$EVALUATED"
part load 240 python -m prefrec_lab.bench.load "$OUT/paper-lastfm" --clients "$CLIENTS" --seconds 10 --warm-up 2 --rows 100 \
    --out "$OUT/load.json"

echo
awk -F '\t' 'BEGIN { printf "%-14s %-8s %8s\n", "part", "result", "seconds" }
    { printf "%-14s %-8s %8d\n", $1, $2, $3; s += $3 } END { printf "%-14s %-8s %8d\n", "all", "", s }' "$PARTS_TSV"
echo "Results: $OUT. Predicted against measured memory: memory.txt; MFU and peak memory: bench-N.txt; load: load.txt."
