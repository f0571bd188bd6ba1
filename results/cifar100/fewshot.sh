#!/usr/bin/env bash
# The few-shot students of results/at_t4.md, those of fewshot13.yaml apart: every run is one call of
# tools/train.py; finished runs are skipped. From the root of the checkout, CIFAR-100 in ./data:
#   bash results/cifar100/fewshot.sh short|long [LAST_SEED [PROCESSES [PYTHON]]]
set -u
mkdir -p output
length=$1 last=${2:-4} processes=${3:-2} python=${4:-python}
folder=results/cifar100
half=$folder/lenses/gain015.safetensors
lens=$folder/lenses/gain03.safetensors
jpeg=$folder/lenses/jpeg.safetensors
random=$folder/lenses/random.safetensors
jpeg_dl=$folder/tables/frontier/JPEG-DL-s-code.safetensors
common="DISTILLER.TEACHER wrn_16_2 BENCH.PRECISION bfloat16"
plain="BENCH.TEACHER_CHECKPOINT $folder/teacher/wrn_16_2.safetensors"
mcmi="BENCH.TEACHER_CHECKPOINT $folder/teacher/mcmi_gain_0.3.safetensors"
five="BENCH.FRACTION 0.05 BENCH.EVAL_EVERY 10 BENCH.VIEWS 16"
five_long="$five SOLVER.EPOCHS 120 SOLVER.LR_DECAY_STAGES [75,90,105]"
ten="BENCH.FRACTION 0.1 BENCH.EVAL_EVERY 5 BENCH.VIEWS 16" # as many steps as with five
ten="$ten SOLVER.EPOCHS 25 SOLVER.LR_DECAY_STAGES [15,20,23]"

runs() { # METHOD SEED NAME OPTIONS ARM...
  local method=$1 seed=$2 name=$3 options=$4
  shift 4
  for arm in "$@"; do
    echo "$method $seed $arm $options EXPERIMENT.NAME $name $common"
  done
}

short() {
  for seed in $(seq 0 "$last"); do
    runs kd "$seed" kd-5 "$five $plain" identity $lens $jpeg $random
  done
  for seed in $(seq 0 "$last"); do
    runs rkd "$seed" rkd-5 "$five $plain" identity $lens
    runs dkd "$seed" dkd-5 "$five $plain" identity $lens
  done
  for seed in $(seq 0 "$last"); do
    runs kd "$seed" kd-10 "$ten $plain" identity $lens
  done
}

long() {
  for seed in $(seq 0 "$last"); do
    runs kd "$seed" kd-5-long "$five_long $plain" identity $half $lens $jpeg $random $jpeg_dl
    runs kd "$seed" kd-5-long-mcmi "$five_long $mcmi" identity
  done
}

one() {
  local method=$1 seed=$2 lens=$3
  shift 3
  local cfg=configs/cifar100/fewshot/${method}_wrn_16_2_resnet8.yaml
  "$python" tools/train.py --cfg "$cfg" --djip-lens "$lens" --seed "$seed" --resume "$@" \
    2>> output/fewshot.log ||
    echo "FAILED: $method, seed $seed, lens $lens; see output/fewshot.log"
}
export -f one
export python
"$length" | OMP_NUM_THREADS=1 xargs -P "$processes" -I{} bash -c 'one {}'
