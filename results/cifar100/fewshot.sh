#!/usr/bin/env bash
# The few-shot students of results/README.md: every run is one call of tools/train.py; finished runs are skipped.
#   bash results/cifar100/fewshot.sh [LAST_SEED [PROCESSES [PYTHON]]]      from the root of the checkout, CIFAR-100 in ./data
set -u
last=${1:-4} processes=${2:-2} python=${3:-python}
lenses=results/cifar100/lenses
common="DISTILLER.TEACHER wrn_16_2 BENCH.TEACHER_CHECKPOINT results/cifar100/teacher/wrn_16_2.safetensors BENCH.PRECISION bfloat16 BENCH.VIEWS 16"
five="BENCH.FRACTION 0.05 BENCH.EVAL_EVERY 10"
ten="BENCH.FRACTION 0.1 BENCH.EVAL_EVERY 5 SOLVER.EPOCHS 25 SOLVER.LR_DECAY_STAGES [15,20,23]"  # the same number of steps

plan() {
  for seed in $(seq 0 "$last"); do
    for lens in identity $lenses/gain03.safetensors $lenses/jpeg.safetensors $lenses/random.safetensors; do
      echo "kd $seed $lens $five EXPERIMENT.NAME kd-5 $common"
    done
  done
  for seed in $(seq 0 "$last"); do
    for lens in identity $lenses/gain03.safetensors $lenses/jpeg.safetensors; do
      echo "rkd $seed $lens $five EXPERIMENT.NAME rkd-5 $common"
    done
    for lens in identity $lenses/gain03.safetensors; do
      echo "dkd $seed $lens $five EXPERIMENT.NAME dkd-5 $common"
    done
  done
  for seed in $(seq 0 "$last"); do
    for lens in identity $lenses/gain03.safetensors; do
      echo "kd $seed $lens $ten EXPERIMENT.NAME kd-10 $common"
    done
  done
}

one() {
  method=$1 seed=$2 lens=$3; shift 3
  "$python" tools/train.py --cfg configs/cifar100/fewshot/${method}_wrn_16_2_resnet8.yaml --djip-lens "$lens" --seed "$seed" --resume "$@" 2>/dev/null
}
export -f one; export python
plan | OMP_NUM_THREADS=1 xargs -P "$processes" -I{} bash -c 'one {}'
