#!/usr/bin/env bash
# Every experiment of "Posterior Sampling on SimSiam" as a list of commands, and the controls that the paper lacks.
#
#   bash run_grid.sh [TARGET] [--list] [FLAGS]    FLAGS go to every run and win: bash run_grid.sh fig4 --data gratings
#
#   fig1      Figures 1 and 3: 16 chains of 50,000 samples without stop-gradient (the default)
#   pretrain  the SimSiam of 800 epochs that fig2a and fig2b start from
#   fig2a     Figure 2a: SGD goes on from it without stop-gradient        fig2b  Figure 2b: SGHMC does
#   fig4      Figure 4: friction and standard deviation of the velocities, in both readings
#   fig5      Figure 5: the energy as the loss of SimSiam, five scenarios, and the cosine loss beside them
#   controls  one factor at a time around L 3, eps 1e-3               null   Figure 1 without any energy
#   note      what the loss is made of, with and without stop-gradient, at the scale of two cores
#   cpu       the claims of all figures at the scale of two cores
#   long      one chain of Figure 1 at that scale in its full length, with and without energy
#   all       everything except cpu and long
#
# --list prints the commands, one a line, and runs nothing. OUT=runs is the folder of all runs, SEEDS="0" their seeds
# (controls and cpu: "0 1 2"), JOBS=1 how many run at a time (they share the cores, unless OMP_NUM_THREADS is set),
# PYTHON=python who runs them. SLURM_ARRAY_TASK_ID=i takes line i alone, from 0. Finished runs are skipped, interrupted
# ones resumed: the same command again goes on. A length (--samples, --updates) can be raised later; other FLAGS that
# change the chains want another OUT. A run that fails does not stop the others. Exit codes: 0 done, 1 runs failed, 2
# bad input, 129, 130 and 143 by a signal.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
OUT=${OUT:-runs} JOBS=${JOBS:-1} PYTHON=${PYTHON:-python}

# ------------------------------------------------------------------------------------------------------- experiments
# add NAME FLAGS: one run per seed; {seed} is replaced in both. A line states what the figure varies, and its source.

sghmc="--method sghmc" sgd="--method sgd"
chain="$sghmc --no-sg --alpha 0.01" # Section 3.1
small="--batch-size 64 --precision bf16 --knn-train 3000 --knn-test 1500" # what two cores can do

fig1() { # 3,600,000 gradients
    for L in 1 2 3 5; do for eps in 1e-1 1e-2 1e-3 1e-4; do
        add "fig1/L${L}_eps${eps}" $chain --L $L --eps $eps --samples 50000
    done; done
}
null() { # no gradients, the same noise as fig1. A core takes 0.016 s (L 1), 0.05 s (L 3) a sample: about 6 hours on two
    # cores with JOBS=2, and 1 for the evaluations with --knn-train 5000 --knn-test 2000 (without: 10)
    for L in 1 2 3 5; do for eps in 1e-1 1e-2 1e-3 1e-4; do
        add "null/L${L}_eps${eps}" $chain --L $L --eps $eps --samples 50000 --energy-scale 0 --eval-every 2500
    done; done
}
pretrain() { # the standard SimSiam: stop-gradient, cosine loss (D15), 800 epochs
    add pretrain/ $sgd --sg --similarity cos --epochs 800 --eval-every 970
}
fig2a() { # 50 epochs of 97 updates, the schedule restarted (D10); evaluated within the first too: the fall is there
    for lr in 3e-2 3e-3; do
        add "fig2a/lr$lr" $sgd --no-sg --similarity cos --lr $lr --updates 4850 --eval-every 25 --init "$pretrained"
    done
}
fig2b() { # caption and text name different steps: their union (D9); 15,000: past the 13,000 of the paper's collapse
    for eps in 1e-1 1e-2 1e-3 1e-4 1e-5 1e-6; do
        add "fig2b/eps$eps" $chain --L 3 --eps $eps --samples 15000 --eval-every 100 --init "$pretrained"
    done
}
velocities() { # velocities PREFIX FLAGS: their standard deviation s read as --velocity-std s and as --mass s^2 (D6)
    local prefix=$1 reading alpha eps && shift
    for reading in "velocity-std 0.1" "velocity-std 0.01" "mass 0.01" "mass 0.0001"; do
        for alpha in 0.1 0.01; do for eps in 1e-3 1e-2; do
            add "${prefix}fig4/${reading/ /}_alpha${alpha}_eps$eps" $sghmc --no-sg --alpha $alpha --L 3 --eps $eps \
                --$reading "$@"
        done; done
    done
}
fig4() { velocities "" --samples 2000 --eval-every 50; }
fig5() { # 400 epochs of 97 updates out of a schedule of 800 (D16)
    local length="--epochs 800 --updates 38800 --eval-every 194"
    add fig5/all-tricks $sgd --sg --similarity abscos $length
    add fig5/no-warmup $sgd --sg --similarity abscos $length --warmup-epochs 0
    add fig5/no-momentum $sgd --sg --similarity abscos $length --momentum 0
    add fig5/no-warmup-no-cosine $sgd --sg --similarity abscos $length --warmup-epochs 0 --no-cosine
    add fig5/no-sg $sgd --no-sg --similarity abscos $length
    add fig5/cosine-loss $sgd --sg --similarity cos $length # "doesn't affect the original SimSiam results"
}
star() { # star PREFIX FLAGS: one factor at a time, same batches and noise in all (D3, D5). eps/sqrt(N): the drift of
    # eps without its noise. Prior 0.1: W forgets its start within 2,000 samples; a prior of 1 would need 100 times that
    local prefix=${1}controls/ s && shift
    for s in 0 1 1e3 5e4; do add "${prefix}scale$s" $chain --L 3 --eps 1e-3 --energy-scale $s "$@"; done
    add "${prefix}scale5e4_eps-over-sqrtN" $chain --L 3 --eps 4.47213595e-6 --energy-scale 5e4 "$@"
    add "${prefix}scale5e4_prior0.1" $chain --L 3 --eps 1e-3 --energy-scale 5e4 --prior-std 0.1 "$@"
    add "${prefix}scale5e4_sg" $sghmc --sg --alpha 0.01 --L 3 --eps 1e-3 --energy-scale 5e4 "$@"
    add "${prefix}batch-per-sample" $chain --L 3 --eps 1e-3 --batch-per sample "$@"
}
controls() { star "" --samples 10000 --eval-every 200; } # no chain of the paper collapses earlier
note() { # 3,600 gradients of 0.3 s, and 84 evaluations of 10 s: half an hour on two cores
    local similarity k lr
    for k in 1 5; do for similarity in abscos cos l2; do
        lr=1e-2 && [[ $similarity != l2 ]] || lr=1e-4 # at 1e-2 and 1e-3 l2, whose rows keep their length, diverges
        for sg in --sg --no-sg; do
            add "note/${similarity}_${sg#--}_predictor-steps$k" $sgd $sg --similarity $similarity --predictor-steps $k \
                --lr $lr --warmup-epochs 0 --no-cosine --updates 300 --eval-every 50 $small
        done
    done; done
}
cpu() { # 25,300 gradients of 0.3 s, 413 evaluations of 10 s: over three hours on two cores; SEEDS=0: 15,500, 245, two
    local one=${SEEDS%% *} eps L loss lr
    local rate="--epochs 800 --warmup-epochs 0 --lr 1e-2" # no warm-up: its ten epochs are 7,810 updates at batch 64
    pretrained=$OUT/cpu/pretrain/seed$one/checkpoint.pt
    SEEDS=$one add cpu/pretrain/ $sgd --sg --similarity cos $rate --updates 7000 --eval-every 500 $small \
        --knn-train 4000 --knn-test 2000 # the longest run, with a finer k-NN
    star cpu/ --samples 40 --eval-every 20 $small
    for loss in cos abscos; do
        add cpu/fig5/no-sg-$loss $sgd --no-sg --similarity $loss $rate --updates 300 --eval-every 50 $small
    done
    add cpu/fig5/cosine-loss $sgd --sg --similarity cos $rate --updates 600 --eval-every 200 $small
    add cpu/fig5/energy-loss $sgd --sg --similarity abscos $rate --updates 600 --eval-every 200 $small
    for eps in 1e-1 1e-2 1e-3 1e-4; do
        add "cpu/fig1/L3_eps$eps" $chain --L 3 --eps $eps --samples 60 --eval-every 30 $small
        add "cpu/null/L3_eps$eps" $chain --L 3 --eps $eps --samples 60 --eval-every 30 $small --energy-scale 0
    done
    for lr in 3e-2 3e-3; do
        add "cpu/fig2a/lr$lr" $sgd --no-sg --similarity cos $rate --lr $lr --updates 300 --eval-every 50 $small \
            --init "$pretrained"
    done
    SEEDS=$one # the rest once
    for L in 1 2 3 5; do for eps in 1e1 1e0 1e-1 1e-2; do
        local every=5 && ((L != 3)) || every=1
        # Figure 1's 50,000 samples of the random walk in 5: without energy and prior W_t - W_0 ~ N(0, t v eps^2), v a
        # function of L and alpha, so that one sample of 100 eps has the law of 10,000 samples of eps
        add "cpu/walk/L${L}_100eps$eps" $chain --L $L --eps $eps --energy-scale 0 --samples 5 --eval-every $every \
            $small
    done; done
    for eps in 1e1 1e0 1e-1 1e-2 1e-3 1e-4; do # and the 15,000 samples of fig2b lie between the two of these
        add "cpu/walk/pretrained_L3_100eps$eps" $chain --L 3 --eps $eps --energy-scale 0 --samples 2 --eval-every 1 \
            $small --init "$pretrained"
    done
    for eps in 1e-1 1e-2 1e-3 1e-4 1e-5 1e-6; do
        add "cpu/fig2b/eps$eps" $chain --L 3 --eps $eps --samples 20 --eval-every 10 $small --init "$pretrained"
    done
    for eps in 1e-1 1e-3; do # as common code evaluates: with the statistics that lag behind the moving weights (D7)
        add "cpu/running-bn/L3_eps$eps" $chain --L 3 --eps $eps --samples 60 --eval-every 30 $small --bn running
    done
    for L in 1 2 5; do for eps in 1e-1 1e-2 1e-3 1e-4; do
        add "cpu/fig1/L${L}_eps$eps" $chain --L $L --eps $eps --samples 30 --eval-every 30 $small
    done; done
    velocities cpu/ --samples 10 --eval-every 10 $small
}
long() { # one chain of the paper's length, at the step where it saw collapse, and the same noise without the energy:
    # three hours and half an hour beside another run on two cores
    local settings="--L 1 --eps 1e-1 --samples 50000 --eval-every 2500 $small --batch-size 16" # one gradient a sample
    add long/fig1/L1_eps1e-1 $chain $settings
    add long/null/L1_eps1e-1 $chain $settings --energy-scale 0
}
all() { # what other runs start from comes first
    for part in pretrain fig1 fig5 fig4 null note fig2a fig2b; do $part; done
    SEEDS=${seeds_given:-0 1 2} controls
}

# ------------------------------------------------------------------------------------------------------- the machinery

stop() { # one line on stderr, exit code 2
    echo "run_grid: $1" >&2
    exit 2
}

add() { # appends to runs (a quoted command each), outs (its folder) and inits (the checkpoint it needs, or nothing)
    local name=$1 seed i words line init && shift
    [[ $name == */ ]] || name+=_
    for seed in $SEEDS; do
        words=("$PYTHON" "$here/simsiam_sghmc.py" "${@//\{seed\}/$seed}" --seed "$seed" --out "$OUT/${name}seed$seed")
        words+=("${flags[@]}") init=
        for i in "${!words[@]}"; do [[ ${words[i]} != --init ]] || init=${words[i + 1]}; done
        printf -v line '%q ' "${words[@]}"
        runs+=("${line% }") outs+=("$OUT/${name}seed$seed") inits+=("$init")
    done
}

count() { # sets steps and gradients of run $1; a length in epochs is taken for 50,000 images
    local method=sghmc L=3 samples=50000 updates= epochs=800 batch_per=kick batch_size=512 energy_scale=1 words name
    eval "words=(${runs[$1]})" # quoted by add
    set -- "${words[@]}"
    while (($#)); do # the last occurrence wins, as in the program
        case $1 in --method | --L | --samples | --updates | --epochs | --batch-per | --batch-size | --energy-scale)
            name=${1#--}
            local "${name//-/_}=$2" ;;
        esac
        shift
    done
    steps=$samples gradients=$((samples * (2 * L - 1)))
    [[ $batch_per == kick ]] || gradients=$((samples * L))
    [[ ! $energy_scale =~ ^[0.]+$ ]] || gradients=0
    [[ $method == sghmc ]] || steps=${updates:-$((50000 / batch_size * epochs))}
    [[ $method == sghmc ]] || gradients=$steps
}

commas() { # 3600000 -> 3,600,000
    local n=$1 text=
    while ((${#n} > 3)); do text=,${n: -3}$text n=${n:0:${#n}-3}; done
    echo "$n$text"
}

last_line() { tail -n 1 "$1" 2>/dev/null; }

finished() { # did this very command end well? Its log says so; to ask the program would take seconds
    [[ -s ${outs[$1]}/checkpoint.pt && $(last_line "${outs[$1]}.log") == "finished: ${runs[$1]}" ]]
}

ready() { # is the checkpoint that run $1 starts from there and final? One without a log was made by hand
    local init=${inits[$1]} log
    log=${init%/*}.log
    [[ -z $init || (-s $init && (! -e $log || $(last_line "$log") == "finished: "*)) ]]
}

start() { # run $1 in a process group of its own: Ctrl-C then reaches this script alone, which passes it on once;
    # two signals would end the program before it has saved
    local words log=${outs[$1]}.log
    eval "words=(${runs[$1]})"
    mkdir -p "${log%/*}" && echo "\$ ${runs[$1]}" >>"$log" || {
        fail "${outs[$1]}" "cannot write $log"
        return
    }
    set -m
    "${words[@]}" >>"$log" 2>&1 </dev/null &
    set +m
    running[$!]=$1
}

fail() { # fail PATH WHY
    failed+=("$1: $2")
    echo "FAILED  $1: $2"
}

collect() { # note what has ended
    local pid i code
    for pid in "${!running[@]}"; do
        ! kill -0 "$pid" 2>/dev/null || continue
        wait "$pid"
        code=$? i=${running[pid]}
        unset "running[pid]"
        if ((code == 0)); then
            echo "finished: ${runs[i]}" >>"${outs[i]}.log"
            echo "done    ${outs[i]}"
        elif ((signal)); then
            echo "stopped ${outs[i]}"
        else
            fail "${outs[i]}" "exit code $code, $(last_line "${outs[i]}.log")"
        fi
    done
}

hours() { # say once how long it will take, from the first time per step that a run logs
    local i log seconds
    for i in "${running[@]}"; do
        log=$(<"${outs[i]}.log")
        log=${log##*$'\n$ '} # since its last start
        [[ $log =~ ([0-9.e+-]+)\ s\ per\ step ]] || continue
        seconds=${BASH_REMATCH[1]}
        count "$i"
        ((gradients || !all_gradients)) || continue
        awk -v t="$seconds" -v n="$steps" -v g="$gradients" -v N="$all_steps" -v G="$all_gradients" \
            -v jobs="$JOBS" 'BEGIN {
                if (G) printf "%.2g s per gradient: ", t * n / g
                h = (G ? t * n / g * G : t * N) / 3600 / jobs
                printf "about %.2g %s for all, evaluations apart\n", h < 1 ? 60 * h : h, h < 1 ? "minutes" : "hours" }'
        told=1
        return
    done
}

draw() { # the pictures of everything under OUT
    if [[ -n $SLURM_ARRAY_TASK_ID ]]; then
        echo "when all lines are done: $PYTHON $here/tools/figures.py $OUT --out $OUT/figures"
    elif "$PYTHON" -c 'import matplotlib' 2>/dev/null; then
        "$PYTHON" "$here/tools/figures.py" "$OUT" --out "$OUT/figures" || failed+=("the pictures")
    else
        echo "no pictures without matplotlib: pip install -e \".[figures]\", then the same command again"
    fi
}

# --------------------------------------------------------------------------------------------------------------- main

flags=() runs=() outs=() inits=() running=() failed=() list= told= signal=0 all_steps=0 all_gradients=0
for word in "$@"; do
    case $word in
        -h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit ;;
        --list) list=1 ;;
        --out | --out=*) stop "--out is made from the target; set OUT= instead" ;;
        --seed | --seed=*) stop "--seed is made from SEEDS; set SEEDS= instead" ;;
        --*=*) flags+=("${word%%=*}" "${word#*=}") ;;
        *) flags+=("$word") ;;
    esac
done
target=fig1
if ((${#flags[@]})) && [[ ${flags[0]} != -* ]]; then
    target=${flags[0]} flags=("${flags[@]:1}")
fi
targets="fig1 pretrain fig2a fig2b fig4 fig5 controls null note cpu long all"
[[ -n $target && " $targets " == *" $target "* ]] || stop "no target '$target'; choose from $targets"
[[ $JOBS =~ ^[1-9][0-9]*$ ]] || stop "JOBS='$JOBS': give a whole number >= 1"
if [[ -z $OMP_NUM_THREADS && $JOBS -gt 1 ]]; then # threads beyond the cores wait for one another
    cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN) # nproc: those that this process may use
    export OMP_NUM_THREADS=$((cores > JOBS ? cores / JOBS : 1))
fi
seeds_given=$SEEDS SEEDS=${SEEDS:-0}
[[ $target != controls && $target != cpu ]] || SEEDS=${seeds_given:-0 1 2}
[[ $SEEDS =~ ^[0-9]+(\ [0-9]+)*$ ]] || stop "SEEDS='$SEEDS': give whole numbers >= 0 with a blank between them"
pretrained=$OUT/pretrain/seed{seed}/checkpoint.pt
$target
if [[ -n $SLURM_ARRAY_TASK_ID ]]; then
    i=$SLURM_ARRAY_TASK_ID last=$((${#runs[@]} - 1))
    [[ $i =~ ^(0|[1-9][0-9]*)$ ]] && ((i <= last)) || stop "SLURM_ARRAY_TASK_ID='$i': $target has lines 0 to $last"
    runs=("${runs[i]}") outs=("${outs[i]}") inits=("${inits[i]}")
fi

check='import os, shlex, sys
try:
    import simsiam_sghmc
    configs = [simsiam_sghmc.parse(shlex.split(line)[2:])[0] for line in sys.stdin]
    for data in {cfg.data for cfg in configs} - {"cifar10", "gratings"}:
        if sys.argv[1] == "run" and not os.path.isdir(os.path.join(data, "train")):
            sys.exit(f"run_grid: --data {data}: no folder {data}/train here")
except ImportError as error:
    sys.exit(f"run_grid: {sys.executable} has no {error.name}; name a Python that has it in PYTHON=")
except simsiam_sghmc.BadInput as error:
    sys.exit(f"run_grid: {error}")'
if [[ -z $list ]] || ((${#flags[@]})); then # judged by the program itself, before anything runs
    command -v "$PYTHON" >/dev/null || stop "no '$PYTHON' here; name one that has torch in PYTHON="
    printf '%s\n' "${runs[@]}" | PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}" "$PYTHON" -c "$check" ${list:-run} || exit 2
fi
if [[ -n $list ]]; then
    printf '%s\n' "${runs[@]}"
    exit
fi

waiting=()
for i in "${!runs[@]}"; do
    finished "$i" && continue
    [[ $target != fig2? ]] || ready "$i" || stop "$target needs ${inits[i]} of a finished: bash run_grid.sh pretrain"
    waiting+=("$i")
    count "$i"
    ((all_steps += steps, all_gradients += gradients))
done
echo "$target: ${#runs[@]} runs, $((${#runs[@]} - ${#waiting[@]})) of them finished; to do: $(commas $all_gradients)" \
    "gradients, $(commas $all_steps) samples or updates, less what interrupted runs have done"

on_signal() { # the program saves and ends; a second signal ends it at once
    local pid
    signal=$1
    echo "stopping, the same command goes on from here"
    for pid in "${!running[@]}"; do kill -TERM -- "-$pid"; done
}
trap 'on_signal 130' INT
trap 'on_signal 143' TERM
trap 'on_signal 129' HUP
while ((${#running[@]} || (${#waiting[@]} && !signal))); do
    while ((${#waiting[@]} && ${#running[@]} < JOBS && !signal)); do
        i=${waiting[0]}
        if ready "$i"; then
            start "$i"
        elif ((${#running[@]})); then
            break # a run may be making its checkpoint
        else
            fail "${outs[i]}" "its start ${inits[i]} is not there or not finished"
        fi
        waiting=("${waiting[@]:1}")
    done
    sleep 0.2
    [[ -n $told ]] || hours
    collect
done
((!signal)) || exit "$signal"
draw
if ((${#failed[@]})); then
    printf 'failed: %s\n' "${failed[@]}" >&2
    echo "${#failed[@]} of ${#runs[@]} failed; the log of each run is beside its folder" >&2
    exit 1
fi
