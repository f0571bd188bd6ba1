#!/usr/bin/env bash
# The tables and pictures of results/*.md from the records in tables/, without training:
#   bash results/cifar100/tables.sh [DJIP]
set -eu
cd "$(dirname "$0")/tables"
djip=${1:-djip}

few="5 % of CIFAR-100, wrn_16_2 to resnet8"
plain=fewshot/djip-identity   # folders as the runs had them, before djip collect
half=fewshot/djip-b1916d44    # lenses/gain015
lens=fewshot/djip-554685ee    # lenses/gain03
jpeg=fewshot/djip-dec9c692    # lenses/jpeg
random=fewshot/djip-addaec9b  # lenses/random
jpeg_dl=fewshot/djip-f6f0c0b8 # tables/frontier/JPEG-DL-s-code

compare() { # TITLE FILE NAME=FOLDER...
  local title=$1 file=$2
  shift 2
  $djip compare "$@" --out "fewshot/report/$file" --title "$title"
}

compare "KD, $few" kd-5 plain=$plain/kd-5 lens=$lens/kd-5 jpeg=$jpeg/kd-5 random=$random/kd-5
compare "KD, 5 %: the lens against JPEG at the same teacher accuracy" kd-5-against-jpeg \
  jpeg=$jpeg/kd-5 lens=$lens/kd-5
compare "DKD, $few" dkd-5 plain=$plain/dkd-5 lens=$lens/dkd-5
compare "RKD, $few" rkd-5 plain=$plain/rkd-5 lens=$lens/rkd-5
compare "KD, 10 % of CIFAR-100, wrn_16_2 to resnet8" kd-10 plain=$plain/kd-10 lens=$lens/kd-10
compare "KD, 5 %, 120 epochs, wrn_16_2 to resnet8" kd-5-long \
  plain=$plain/kd-5-long half=$half/kd-5-long lens=$lens/kd-5-long jpeg=$jpeg/kd-5-long \
  random=$random/kd-5-long JPEG-DL=$jpeg_dl/kd-5-long MCMI=$plain/kd-5-long-mcmi
compare "KD, 5 %, 120 epochs: the lens against JPEG" kd-5-long-against-jpeg \
  jpeg=$jpeg/kd-5-long lens=$lens/kd-5-long
compare "KD, 5 %, 120 epochs: the lens against random tables" kd-5-long-against-random \
  random=$random/kd-5-long lens=$lens/kd-5-long

for table in fewshot13 controls full regime_fifth regime_sharp regime_sure tune_sure tune_sure_longer \
             tune_vgg8 tune_vgg8_longer; do
  $djip report $table
done
for table in regime_vgg8 regime_vgg8_cpu regime_soft regime_logits regime_logits_cpu regime_published regime_features regime_dkd \
             regime_20 regime_20_short regime_100 regime_overfit regime_overfit_crops regime_short regime_vgg13 res32x4 res32x4_sharp; do
  $djip report $table --baseline plain
done
$djip report rivals --baseline plain
$djip report rivals_adversarial --baseline plain
$djip report beyond --baseline plain
$djip report beyond_sure --baseline plain
$djip report audit
$djip audit audit --out audit/report
$djip report audit_defences
$djip audit audit_defences --out audit_defences/report

# two pictures of results/when_it_helps.md, from these reports
python=$(dirname "$(command -v "$djip")")/python
(cd ../../.. && "$python" results/cifar100/regime_entropy.py > results/cifar100/tables/regime_soft/report/entropy.md)
(cd ../../.. && "$python" results/cifar100/regime_overfitting.py > results/cifar100/tables/regime_overfit/report/overfitting.md)
