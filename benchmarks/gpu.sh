#!/usr/bin/env bash
# Benchmarks and tests on one GPU: bash benchmarks/gpu.sh [--quick ...]
#
# Requires torch and torchvision; timm for its peer, pytest for the tests. The options are those of
# benchmarks/training_gpu.py. PYTHON selects an interpreter other than python3.
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
    echo "pytest is not installed: tests/gpu is skipped"
fi
"$python" -m benchmarks.training_gpu "$@"
exit "$tests"
