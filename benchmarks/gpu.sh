#!/usr/bin/env bash
# All figures of one GPU, and the tests that need one: bash benchmarks/gpu.sh [--quick ...]
#
# Needs torch and torchvision, nothing to be installed or built; timm to compare with it, pytest for the tests. The
# options are those of benchmarks/training_gpu.py. PYTHON names another interpreter than python3.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}

if command -v nvidia-smi > /dev/null; then
    nvidia-smi --query-gpu=name,driver_version,memory.total,power.limit,clocks.max.sm --format=csv
fi
tests=0
if "$python" -c 'import pytest' 2> /dev/null; then
    "$python" -m pytest -q -p no:cacheprovider tests/gpu || tests=$?
else
    echo "pytest is not installed: tests/gpu is left out"
fi
"$python" -m benchmarks.training_gpu "$@"
exit "$tests"
