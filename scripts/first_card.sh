#!/bin/sh
# The first measurements on a GPU, at most 40 minutes in all: `sh scripts/first_card.sh`, after `make setup`.
# A part that fails or takes too long leaves its log in OUT and does not stop the others; PARTS chooses some.
# A trial on a CPU:
#   SHAPE=random:tiny DTYPE=float32 NEGATIVES=1,3 MEMORY=trial QUANTIZATION=none MODEL=TINY ROWS=128 MINUTES=3 \
#       sh scripts/first_card.sh
set -u
OUT=${OUT:-runs/first-card}              # everything is written here
CARD=${CARD:-h100-80gb}                  # of `prefrec lab doctor --card`
SHAPE=${SHAPE:-random:llama-2-7b}        # what the bench measures; nothing is downloaded
DTYPE=${DTYPE:-bfloat16}
NEGATIVES=${NEGATIVES:-3,7,15,63}
MODEL=${MODEL:-meta-llama/Llama-2-7b-hf} # of the run: the largest at hand, a folder or a hub id
ROWS=${ROWS:-1200}                       # of each stage of the run
DATA=${DATA:-../data/lastfm-sdpo}        # docs/datasets.md says how to make it
MINUTES=${MINUTES:-14}                   # of the bench, and of the run; the load takes 3, the rest 4
PARTS=${PARTS:-predicted memory bench run load}
MEMORY=${MEMORY:-card}                   # of scripts/memory_forecast.py: card, or trial
QUANTIZATION=${QUANTIZATION:-nf4}        # of the run's base

mkdir -p "$OUT"
part() { # NAME SECONDS COMMAND…
    name=$1 seconds=$2
    shift 2
    case " $PARTS " in *" ${name%%-*} "*) ;; *) return ;; esac
    echo "$name: $*"
    if timeout --kill-after=20 "$seconds" "$@" >"$OUT/$name.txt" 2>"$OUT/$name.log"; then echo "  ok"; else
        echo "  failed ($?): $OUT/$name.log"
    fi
}

for n in $(echo "$NEGATIVES" | tr , ' '); do
    part "predicted-$n" 120 prefrec lab doctor --model "$SHAPE" --negatives "$n" --card "$CARD" --json
done
part memory 240 python scripts/memory_forecast.py "$MEMORY"
# Each method in turn, so that what the budget leaves out is the slowest at the largest N.
part bench $((60 * MINUTES + 60)) prefrec lab bench --model "$SHAPE" --dtype "$DTYPE" --negatives "$NEGATIVES" \
    --methods prefrec,separate,trl,published --sections steps --repetitions 3 --budget-minutes "$MINUTES" \
    --out "$OUT/bench" --json
part run $((60 * MINUTES)) prefrec run recipes/paper-lastfm.yaml --out "$OUT/paper-lastfm" \
    --set data.path="$DATA" --set model.name="$MODEL" --set model.quantization="$QUANTIZATION" \
    --set sft.rows="$ROWS" --set sft.epochs=1 --set sft.eval_rows=100 \
    --set align.s-dpo.rows="$ROWS" --set align.s-dpo.epochs=1 --set align.s-dpo.eval_rows=100 --set evaluate.rows=100
part load 180 python scripts/load.py "$OUT/paper-lastfm" --clients 1,8,64 --seconds 10 --warm-up 2 --rows 100 \
    --out "$OUT/load.json"
echo "Results: $OUT. Predicted against measured memory: memory.txt; MFU and peak memory: bench.txt."
