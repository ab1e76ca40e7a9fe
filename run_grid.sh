#!/usr/bin/env bash
# Every experiment of "Posterior Sampling on SimSiam" as a list of commands, and the controls that the paper lacks.
#
#   bash run_grid.sh [TARGET] [--list] [FLAGS]    FLAGS go to every run and win: bash run_grid.sh fig4 --data gratings
#
#   quick     the argument in minutes on two cores, on drawn images or on --data FOLDER: three verdicts and the pictures
#   fig1      Figures 1 and 3: 16 chains of 50,000 samples without stop-gradient (the default)
#   null      Figure 1 without any energy            pretrain  the SimSiam of 800 epochs that Figure 2 starts from
#   fig2a     Figure 2a: SGD without stop-gradient   fig2b     Figure 2b: SGHMC without stop-gradient
#   fig4      Figure 4: friction and velocities      fig5      Figure 5: the energy as the loss, the cosine beside it
#   controls  one factor at a time around L 3, eps 1e-3        all   everything but quick, cpu, long and scale
#   for two cores: cpu    the claims of all figures            long  a chain of Figure 1 in full length, and its noise
#                  scale  energy scale by eps and L            note  what the loss is made of, and what moves its parts
#
# --list prints the commands, one a line, and runs nothing. OUT=runs is the folder of all runs, SEEDS="0" their seeds
# (controls and cpu: "0 1 2"), JOBS=1 how many run at a time (they share the GPUs, and the cores if OMP_NUM_THREADS is
# not set), PYTHON=python who runs them. SLURM_ARRAY_TASK_ID=i takes line i alone, from 0. The same command again goes
# on: finished runs are skipped, others resumed. FLAGS that change the chains want another OUT, longer ones do not.
# Exit codes: 0 done, 1 runs failed, 2 bad input, 129, 130, 141 and 143 by a signal, after all runs have saved.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
OUT=${OUT:-runs} JOBS=${JOBS:-1} PYTHON=${PYTHON:-python} seeds=${SEEDS:-0} three=${SEEDS:-0 1 2}

# ------------------------------------------------------------------------------------------------------- experiments
# add NAME FLAGS: one run per seed. each KEY "VALUES" COMMAND: the command for each value, which replaces {KEY} in it.
chain="--method sghmc --no-sg --alpha 0.01" chain_sg="--method sghmc --sg --alpha 0.01" # Section 3.1
sgd="--method sgd --no-sg" sgd_sg="--method sgd --sg"
steps="1e-1 1e-2 1e-3 1e-4" six="1e-1 1e-2 1e-3 1e-4 1e-5 1e-6" start=(--init "$OUT/pretrain/seed{seed}/checkpoint.pt")
small="--batch-size 64 --precision bf16 --knn-train 3000 --knn-test 1500" # what two cores can do

quick() { # SGD shows that a collapse is seen where there is one
    local i data=gratings tiny="--data gratings --batch-size 32 --knn-train 2000 --knn-test 500 --eval-every 25"
    local wide="--L 1 --eps 1e-1 --samples 100 $tiny" rate="--warmup-epochs 0 --no-cosine --updates 100 $tiny"
    for i in "${!flags[@]}"; do [[ ${flags[i]} != --data ]] || data=${flags[i + 1]}; done
    append "$OUT/quick" tools/divergence.py --quick --data "$data" --out "$OUT/quick"
    each s "0 1 512 5e4" add quick/scale/L1_eps1e-1_scale{s} $chain $wide --energy-scale {s}
    add quick/scale/L1_eps1e-1_scale5e4_sg $chain_sg $wide --energy-scale 5e4
    each sg "no-sg sg" add quick/fig5/{sg}-cos --method sgd --{sg} --similarity cos $rate
}
chains() { each L "$2" each eps "$steps" add "$1/L{L}_eps{eps}" $chain --L {L} --eps {eps} "${@:3}"; }
fig1() { chains fig1 "1 2 3 5" --samples 50000; } # 3,600,000 gradients
null() { chains null "1 2 3 5" --samples 50000 --energy-scale 0 --eval-every 2500; }
pretrain() { add pretrain/ $sgd_sg --similarity cos --epochs 800 --eval-every 970; } # the standard SimSiam (D15)
fig2a() { # 50 epochs of 97 updates, the schedule restarted (D10); evaluated within the first too: the fall is there
    each lr "3e-2 3e-3" add fig2a/lr{lr} $sgd --similarity cos --lr {lr} --updates 4850 --eval-every 25 "${start[@]}"
}
# caption and text name different steps: their union (D9); 15,000: past the 13,000 of the paper's collapse
fig2b() { each eps "$six" add fig2b/eps{eps} $chain --L 3 --eps {eps} --samples 15000 --eval-every 100 "${start[@]}"; }
velocities() { # their standard deviation s read as --velocity-std s and as --mass s^2 (D6)
    local name=$1/{std}_alpha{alpha}_eps{eps} line="--method sghmc --no-sg --L 3 --alpha {alpha} --eps {eps} --{std}"
    each std "velocity-std=0.1 velocity-std=0.01 mass=0.01 mass=0.0001" each alpha "0.1 0.01" \
        each eps "1e-3 1e-2" add "$name" $line "${@:2}"
}
fig4() { velocities fig4 --samples 2000 --eval-every 50; }
fig5() { # 400 epochs of 97 updates out of a schedule of 800 (D16)
    local length="--epochs 800 --updates 38800 --eval-every 194"
    add fig5/all-tricks $sgd_sg --similarity abscos $length
    add fig5/no-warmup $sgd_sg --similarity abscos $length --warmup-epochs 0
    add fig5/no-momentum $sgd_sg --similarity abscos $length --momentum 0
    add fig5/no-warmup-no-cosine $sgd_sg --similarity abscos $length --warmup-epochs 0 --no-cosine
    add fig5/no-sg $sgd --similarity abscos $length
    add fig5/cosine-loss $sgd_sg --similarity cos $length # "doesn't affect the original SimSiam results"
}
star() { # one factor at a time, same batches and noise in all (D3, D5); prior 0.1: W forgets its start in 2,000 samples
    each s "0 1 1e3 5e4" add "$1/scale{s}" $chain --L 3 --eps 1e-3 --energy-scale {s} "${@:2}"
    add "$1/scale5e4_eps-over-sqrtN" $chain --L 3 --eps 4.47213595e-6 --energy-scale 5e4 "${@:2}" # drift without noise
    add "$1/scale5e4_prior0.1" $chain --L 3 --eps 1e-3 --energy-scale 5e4 --prior-std 0.1 "${@:2}"
    add "$1/scale5e4_sg" $chain_sg --L 3 --eps 1e-3 --energy-scale 5e4 "${@:2}"
    add "$1/batch-per-sample" $chain --L 3 --eps 1e-3 --batch-per sample "${@:2}"
}
controls() { seeds=$three star controls --samples 10000 --eval-every 200; } # no chain of the paper collapses earlier
note() { # 5,100 gradients of 0.3 s, and 119 evaluations of 10 s: three quarters of an hour on two cores
    local rest="--warmup-epochs 0 --no-cosine --updates 300 --eval-every 50 $small" cos="$sgd_sg --similarity cos"
    local line="add note/{like}_{sg}_predictor-steps{k} --method sgd --{sg} --similarity {like} --predictor-steps {k}"
    each like "abscos cos" each sg "sg no-sg" each k "1 5" $line --lr 1e-2 $rest
    each like l2 each sg "sg no-sg" each k "1 5" $line --lr 1e-4 $rest # its rows keep their length: diverges at 1e-3
    each m "5 10" add entropy/cos_sg_predictor-lr{m} $cos --predictor-lr-mult {m} --lr 1e-2 $rest
    each lr "1e-2 1e-1" add entropy/cos_sg_momentum0_lr{lr} $cos --momentum 0 --lr {lr} $rest
    add entropy/cos_sg_frozen-encoder $cos --predictor-lr-mult 1e10 --lr 1e-12 $rest
}
scale() { # 34,800 gradients of 0.3 s, 308 evaluations of 10 s: under four hours on two cores
    local scales="1 8 64 512 4e3 5e4" at="--eps {eps} --energy-scale {s} --samples 300 --eval-every 50 $small"
    each L "1 3" each eps "1e-1 1e-2 1e-3" each s "$scales" add scale/L{L}_eps{eps}_scale{s} $chain --L {L} $at
    each eps 1e-1 each s "$scales" add scale/L1_eps{eps}_scale{s}_sg $chain_sg --L 1 $at
    each eps "1e-2 1e-3" each s 5e4 add scale/L1_eps{eps}_scale{s}_sg $chain_sg --L 1 $at
}
cpu() { # 25,300 gradients of 0.3 s, 413 evaluations of 10 s: over three hours on two cores; SEEDS=0: 15,500, 245, two
    local seeds=$three one=${three%% *} short="--updates 300 --eval-every 50 $small" half="--eval-every 30 $small"
    local rate="--epochs 800 --warmup-epochs 0 --lr 1e-2" # no warm-up: its ten epochs are 7,810 updates at batch 64
    start=(--init "$OUT/cpu/pretrain/seed$one/checkpoint.pt")
    seeds=$one add cpu/pretrain/ $sgd_sg --similarity cos $rate --updates 7000 --eval-every 500 $small \
        --knn-train 4000 --knn-test 2000 # the longest run, with a finer k-NN
    star cpu/controls --samples 40 --eval-every 20 $small
    each like "cos abscos" add cpu/fig5/no-sg-{like} $sgd --similarity {like} $rate $short
    add cpu/fig5/cosine-loss $sgd_sg --similarity cos $rate --updates 600 --eval-every 200 $small
    add cpu/fig5/energy-loss $sgd_sg --similarity abscos $rate --updates 600 --eval-every 200 $small
    chains cpu/fig1 3 --samples 60 $half
    chains cpu/null 3 --samples 60 $half --energy-scale 0
    each lr "3e-2 3e-3" add cpu/fig2a/lr{lr} $sgd --similarity cos $rate --lr {lr} $short "${start[@]}"
    seeds=$one # the rest once. The walk: W_t - W_0 ~ N(0, t v eps^2), v of L: a sample of 100 eps has the law of 10,000
    local walk="$chain --eps {eps} --energy-scale 0 $small"
    each L "1 2 5" each eps "1e1 1e0 1e-1 1e-2" add cpu/walk/L{L}_100eps{eps} $walk --L {L} --samples 5 --eval-every 5
    each eps "1e1 1e0 1e-1 1e-2" add cpu/walk/L3_100eps{eps} $walk --L 3 --samples 5 --eval-every 1
    each eps "1e1 1e0 $steps" add cpu/walk/pretrained_L3_100eps{eps} $walk --L 3 --samples 2 --eval-every 1 \
        "${start[@]}" # the 15,000 samples of fig2b lie between the two of these
    each eps "$six" add cpu/fig2b/eps{eps} $chain --eps {eps} --samples 20 --eval-every 10 $small "${start[@]}"
    each eps "1e-1 1e-3" add cpu/running-bn/L3_eps{eps} $chain --L 3 --eps {eps} --samples 60 $half --bn running # D7
    chains cpu/fig1 "1 2 5" --samples 30 $half
    velocities cpu/fig4 --samples 10 --eval-every 10 $small
}
long() { # at the step where the paper saw collapse; three hours, and an hour without energy, beside another run
    local line="$chain --L 1 --eps 1e-1 --samples 50000 --eval-every 2500 $small --batch-size 16"
    add long/fig1/L1_eps1e-1 $line && add long/null/L1_eps1e-1 $line --energy-scale 0
    each eps "1e1 3e0 1e0 3e-1 1e-1 3e-2 1e-2 3e-3 1e-3 3e-4" add long/walk/L1_eps{eps} $chain --L 1 --eps {eps} \
        --energy-scale 0 --samples 10 --eval-every 1 $small # the noise of all eps and L, at other times
}
all() { each target "pretrain fig1 fig5 fig4 null note fig2a fig2b controls" {target}; }

# ---------------------------------------------------------------------------------------------------------- machinery
stop() { echo "run_grid: $1" >&2 && exit 2; } # bad input
each() { local value words=("${@:3}") && for value in $2; do "${words[@]//\{$1\}/$value}"; done; }
add() {
    local base=${1//=/}_seed{seed} word name value && local folder=$OUT/${base/\/_/\/} && shift # a NAME may end in /
    for word in "${flags[@]}"; do # folders are named after what the lines differ in, lengths and evaluation apart
        [[ $word =~ ^--(no-)?([A-Za-z-]+)$ ]] && name=${BASH_REMATCH[2]} || continue
        [[ " $* " =~ .*(\ --(no-)?$name([\ =][^-][^ ]*)?)\  ]] && value=${BASH_REMATCH[1]} || value=none
        [[ ${values[$name]:=$value} == "$value" || $name =~ ^(samples|updates|eval-every|knn-.*)$ ]] ||
            stop "$word: the lines of $target differ in it; leave it out"
    done
    each seed "$seeds" append "$folder" simsiam_sghmc.py "$@" --seed {seed} --out "$folder" "${flags[@]}"
}
append() { # append FOLDER PROGRAM FLAGS: a line, and the three words of run_one if it is still to do
    local i init= line
    for ((i = 3; i < $#; i++)); do [[ ${!i} != --init ]] || init=${@:i+1:1}; done
    printf -v line '%q ' "$PYTHON" "$here/$2" "${@:3}" && line=${line% }
    [[ ${SLURM_ARRAY_TASK_ID:-$count} == "$((count++))" ]] || return 0
    lines+=("$line")
    [[ -n $missing || " ${first[*]} " == *" ${init%/*} "* ]] || ready "$init" || missing=$init
    finished "$1" "$line" || if [[ -z $init ]]; then first+=("$1" "$line" ""); else second+=("$1" "$line" "$init"); fi
}
finished() { [[ $(tail -n 1 "$1/log.txt" 2>/dev/null) == "finished: $2" ]]; } # did this very command end well?
# is the checkpoint $1 there, if one is asked for, and final? One without a log was made by hand
ready() { [[ -z $1 || (-s $1 && (! -e ${1%/*}/log.txt || $(tail -n 1 "${1%/*}/log.txt") == "finished: "*)) ]]; }
run_one() { # FOLDER LINE INIT, from xargs; file 3 keeps the pipe to `pass` open until the program itself has ended
    local log=$1/log.txt last gpus=(${GPUS//,/ })
    [[ -z $GPUS ]] || export CUDA_VISIBLE_DEVICES=${gpus[SLOT % ${#gpus[@]}]}
    mkdir -p "$1" && echo "\$ $2" >>"$log" && echo "start    $1" || exit 0
    if ! ready "$3"; then echo "its start $3 is not there or not finished"; elif eval "$2"; then echo "finished: $2"
    else echo "exit code $?, $(tail -n 1 "$log")"; fi 3>&1 >>"$log" 2>&1 </dev/null
    last=$(tail -n 1 "$log") && echo "${last%": $2"} $1"
}
pass() { # run lines JOBS at a time, in a process group of their own: Ctrl-C reaches this script alone, which sends each
    (($# && !signal)) || return 0 # run one signal, at which it saves, and waits for all (a second would end it at once)
    exec 4< <(set -m; xargs -0 -n 3 -P "$JOBS" ${GPUS:+--process-slot-var=SLOT} "$BASH" -c 'run_one "$@"' run_one \
        < <(printf '%s\0' "$@") & echo $!)
    read -r group <&4 && pass_on "$signal"
    while read -r line <&4; do echo "$line" 2>/dev/null; done; group=
}
pass_on() { # a signal that ends with code $1, if one came, to the runs, if there are any: once
    ((!$1)) || { signal=$1 && trap '' HUP INT PIPE TERM && echo "all runs save and end" 2>/dev/null; }
    ((!signal)) || [[ -z $group ]] || { kill -TERM -- "-$group" 2>/dev/null; group=; }
}
verdicts() { # on posterior and chains by tools/divergence.py, on the scale from the last rows of the tables
    sed 'H; /^\$ /h; $!d; x' "$OUT/quick/log.txt" | grep -E '^(posterior|chain)' # since its last start
    cd "$OUT/quick" && awk -F, 'FNR == 1 { n++; for (i = 1; i <= NF; i++) at[$i] = i } # the names of the columns
        { r[n] = sprintf("%.3f (%s)", $at["center"], $at["collapsed"]) }
        END { print "scale: centre ratio (collapsed?) without energy " r[1] ", at scale 1 " r[2] ", at 512 " r[3] \
            ", at 5e4 " r[4] ", with stop-gradient " r[5] "; SGD without stop-gradient " r[6] ", with it " r[7] }' \
        {scale/L1_eps1e-1_scale{0,1,512,5e4,5e4_sg},fig5/{no-sg,sg}-cos}_seed${seeds%% *}/metrics.csv
}
{ # all of this is read before it begins: the file may change while the runs go on
targets="quick fig1 pretrain fig2a fig2b fig4 fig5 controls null note cpu scale long all"
flags=() lines=() first=() second=() failed=() count=0 list= missing= signal=0 group= target=fig1 && declare -A values
for word in "$@"; do
    case $word in
        -h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit ;;
        --list) list=1 ;;
        --out | --out=* | --seed | --seed=*) stop "$word is made from the target; set OUT= or SEEDS= instead" ;;
        --*=*) flags+=("${word%%=*}" "${word#*=}") ;;
        *) flags+=("$word") ;;
    esac
done
[[ ${flags[0]} != [!-]* ]] || target=${flags[0]} flags=("${flags[@]:1}")
[[ " $targets " == *" $target "* ]] || stop "no target '$target'; choose from $targets"
[[ $JOBS =~ ^[1-9][0-9]*$ ]] || stop "JOBS='$JOBS': give a whole number >= 1"
[[ ${SEEDS:-0} =~ ^[0-9]+(\ [0-9]+)*$ ]] || stop "SEEDS='$SEEDS': give whole numbers >= 0 with a blank between them"
[[ -z $(tr ' ' '\n' <<<"$three" | sort | uniq -d) ]] || stop "SEEDS='$SEEDS': a seed twice would be one folder twice"
$target
((${#lines[@]})) || stop "SLURM_ARRAY_TASK_ID='$SLURM_ARRAY_TASK_ID': $target has lines 0 to $((count - 1))"
check='import shlex, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C: no traceback
try:
    import simsiam_sghmc as program
    runs = [program.parse(words[2:]) for words in map(shlex.split, sys.stdin) if words[1].endswith("simsiam_sghmc.py")]
    for data in {cfg.data for cfg in runs} - {"gratings"} if sys.argv[1] == "run" else ():
        print("images:", program.one_line(data), flush=True)  # a folder takes its time, a download, too
        images = program.load_data(data)
        [program.check_sizes(cfg, images) for cfg in runs if cfg.data == data]
except Exception as error: sys.exit("run_grid: " + " ".join(str(error).split()))' # bad input, or a Python without torch
if [[ -z $list || ${#flags[@]} -gt 0 ]]; then # judged by the program itself, before anything runs
    command -v "$PYTHON" >/dev/null || stop "no '$PYTHON' here; name one that has torch in PYTHON="
    printf '%s\n' "${lines[@]}" | PYTHONPATH=$here:$PYTHONPATH "$PYTHON" -c "$check" ${list:-run} || exit 2
fi
[[ -z $list ]] || { printf '%s\n' "${lines[@]}" && exit; }
cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN) # nproc: those that this process may use
[[ $JOBS == 1 ]] || export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > JOBS ? cores / JOBS : 1))} # more would wait
GPUS=${CUDA_VISIBLE_DEVICES-$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null)}
[[ " ${flags[*]} " != *" --device "* ]] || GPUS=; export GPUS && export -f run_one ready
[[ -z $missing ]] || stop "$target starts from $missing, which is not there or not finished: bash run_grid.sh pretrain"
mkdir -p -- "$OUT" 2>/dev/null && [[ -w $OUT ]] || stop "OUT='$OUT': cannot make this folder, or not write to it"
todo=("${first[@]}" "${second[@]}")
echo "$target: ${#lines[@]} runs, $((${#todo[@]} / 3)) of them to do, $JOBS at a time; log.txt in each folder has more"
for i in "HUP 129" "INT 130" "PIPE 141" "TERM 143"; do trap "pass_on ${i#* }" "${i% *}"; done
pass "${first[@]}" && pass "${second[@]}"
((!signal)) || { echo "the same command goes on from here"; exit "$signal"; } 2>/dev/null # the pipe may be closed
for ((i = 0; i < ${#todo[@]}; i += 3)); do
    finished "${todo[@]:i:2}" || failed+=("${todo[i]}: $(tail -n 1 "${todo[i]}/log.txt")")
done
((${#failed[@]})) || [[ $target != quick ]] || (verdicts)
[[ -n $SLURM_ARRAY_TASK_ID ]] || "$PYTHON" "$here/tools/figures.py" "$OUT" --out "$OUT/figures" || echo "no pictures"
((!${#failed[@]})) || { printf 'failed: %s\n' "${failed[@]}" >&2; exit 1; }; exit; }
