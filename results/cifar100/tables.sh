#!/usr/bin/env bash
# The tables and pictures of results/README.md from the records: bash results/cifar100/tables.sh [DJIP]     (no training)
set -eu
cd "$(dirname "$0")"
djip=${1:-djip}
plain=records/djip-identity lens=records/djip-554685ee jpeg=records/djip-dec9c692 random=records/djip-addaec9b jpeg_dl=records/djip-f6f0c0b8 half=records/djip-b1916d44
mkdir -p tables
$djip compare plain=$plain/kd-5 lens=$lens/kd-5 jpeg=$jpeg/kd-5 random=$random/kd-5 --out tables/kd-5 --title "KD, 5 % of CIFAR-100, wrn_16_2 to resnet8"
$djip compare jpeg=$jpeg/kd-5 lens=$lens/kd-5 --out tables/kd-5-against-jpeg --title "KD, 5 %: the lens against JPEG at the same teacher accuracy"
for method in dkd rkd; do
  $djip compare plain=$plain/$method-5 lens=$lens/$method-5 --out tables/$method-5 --title "${method^^}, 5 % of CIFAR-100, wrn_16_2 to resnet8"
done
$djip compare plain=$plain/kd-10 lens=$lens/kd-10 --out tables/kd-10 --title "KD, 10 % of CIFAR-100, wrn_16_2 to resnet8"
$djip compare plain=$plain/kd-5-long half=$half/kd-5-long lens=$lens/kd-5-long jpeg=$jpeg/kd-5-long random=$random/kd-5-long JPEG-DL=$jpeg_dl/kd-5-long MCMI=$plain/kd-5-long-mcmi --out tables/kd-5-long --title "KD, 5 %, 120 epochs, wrn_16_2 to resnet8"
$djip compare jpeg=$jpeg/kd-5-long lens=$lens/kd-5-long --out tables/kd-5-long-against-jpeg --title "KD, 5 %, 120 epochs: the lens against JPEG"
$djip compare random=$random/kd-5-long lens=$lens/kd-5-long --out tables/kd-5-long-against-random --title "KD, 5 %, 120 epochs: the lens against random tables"
for table in fewshot13 controls full; do $djip report $table --out tables/$table; done
