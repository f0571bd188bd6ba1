#!/usr/bin/env bash
# The few-shot students of results/README.md, those of fewshot13.yaml apart: every run is one call of tools/train.py; finished runs are skipped.
#   bash results/cifar100/fewshot.sh short|long [LAST_SEED [PROCESSES [PYTHON]]]      from the root of the checkout, CIFAR-100 in ./data
set -u
mkdir -p output
length=$1 last=${2:-4} processes=${3:-2} python=${4:-python}
lens=results/cifar100/lenses/gain03.safetensors jpeg=results/cifar100/lenses/jpeg.safetensors random=results/cifar100/lenses/random.safetensors
jpeg_dl=results/cifar100/frontier/JPEG-DL-s-code.safetensors half=results/cifar100/lenses/gain015.safetensors
common="DISTILLER.TEACHER wrn_16_2 BENCH.PRECISION bfloat16"
plain="BENCH.TEACHER_CHECKPOINT results/cifar100/teacher/wrn_16_2.safetensors"
mcmi="BENCH.TEACHER_CHECKPOINT results/cifar100/teacher/mcmi_gain_0.3.safetensors"
five="BENCH.FRACTION 0.05 BENCH.EVAL_EVERY 10 BENCH.VIEWS 16"
ten="BENCH.FRACTION 0.1 BENCH.EVAL_EVERY 5 SOLVER.EPOCHS 25 SOLVER.LR_DECAY_STAGES [15,20,23] BENCH.VIEWS 16"  # the same number of steps
five_long="BENCH.FRACTION 0.05 BENCH.EVAL_EVERY 10 SOLVER.EPOCHS 120 SOLVER.LR_DECAY_STAGES [75,90,105] BENCH.VIEWS 16"

short() {
  for seed in $(seq 0 "$last"); do
    for arm in identity $lens $jpeg $random; do echo "kd $seed $arm $five EXPERIMENT.NAME kd-5 $common $plain"; done
  done
  for seed in $(seq 0 "$last"); do
    for arm in identity $lens; do echo "rkd $seed $arm $five EXPERIMENT.NAME rkd-5 $common $plain"; done
    for arm in identity $lens; do echo "dkd $seed $arm $five EXPERIMENT.NAME dkd-5 $common $plain"; done
  done
  for seed in $(seq 0 "$last"); do
    for arm in identity $lens; do echo "kd $seed $arm $ten EXPERIMENT.NAME kd-10 $common $plain"; done
  done
}

long() {
  for seed in $(seq 0 "$last"); do
    for arm in identity $half $lens $jpeg $random $jpeg_dl; do echo "kd $seed $arm $five_long EXPERIMENT.NAME kd-5-long $common $plain"; done
    echo "kd $seed identity $five_long EXPERIMENT.NAME kd-5-long-mcmi $common $mcmi"
  done
}

one() {
  method=$1 seed=$2 lens=$3; shift 3
  "$python" tools/train.py --cfg configs/cifar100/fewshot/${method}_wrn_16_2_resnet8.yaml --djip-lens "$lens" --seed "$seed" --resume "$@" 2>> output/fewshot.log || echo "FAILED: $method, seed $seed, lens $lens; see output/fewshot.log"
}
export -f one; export python
"$length" | OMP_NUM_THREADS=1 xargs -P "$processes" -I{} bash -c 'one {}'
