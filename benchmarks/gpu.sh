#!/usr/bin/env bash
# Benchmarks and tests on one GPU, in 8 minutes: bash benchmarks/gpu.sh [--minutes M] [--only SECTION]
#
# Requires torch and torchvision; timm and DALI for their rows, pytest for the tests. The options are those of
# benchmarks/training_gpu.py. PYTHON selects an interpreter other than python3.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if command -v nvidia-smi > /dev/null; then
    nvidia-smi --query-gpu=name,driver_version,memory.total,power.limit,clocks.max.sm --format=csv
fi
exec "${PYTHON:-python3}" -m benchmarks.training_gpu "$@"
