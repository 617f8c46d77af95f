"""A time as a sum of amounts times their costs, fitted to runs; errors are those on configurations left out of the fit.

    time = sum over the amounts of cost x amount        every cost is 0 or more

The fit minimises the squared relative errors. Amounts whose costs do not follow from these runs are left out: of all
subsets, the one with the smallest error on configurations that were left out is used.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Amounts = Sequence[float]


@dataclass(frozen=True)
class Row:
    """The amounts of a run, and the time that they took, above 0."""

    amounts: Amounts
    seconds: float
    configuration: str


@dataclass(frozen=True)
class Fit:
    """The costs of the amounts, and for each configuration log(actual / computed) by a fit without it."""

    costs: Sequence[float]
    errors: Sequence[float]

    @property
    def num_costs(self) -> int:
        """The number of costs that are not 0."""
        return sum(cost > 0 for cost in self.costs)

    def seconds(self, amounts: Amounts) -> float:
        """The computed time."""
        return sum(cost * amount for cost, amount in zip(self.costs, amounts, strict=True))


def fit(rows: Sequence[Row]) -> Fit | None:
    """The best fit; None if the rows are of fewer than two configurations, or nothing fits."""
    by_configuration: dict[str, list[Row]] = {}
    for row in rows:
        by_configuration.setdefault(row.configuration, []).append(row)
    if len(by_configuration) < 2:
        return None
    num = len(rows[0].amounts)
    used = [index for index in range(num) if any(row.amounts[index] for row in rows)]
    subsets = (subset for size in range(1, len(used) + 1) for subset in itertools.combinations(used, size))
    found = [one for subset in subsets if (one := _fit(by_configuration, subset, num)) is not None]
    return min(found, key=lambda one: sum(error**2 for error in one.errors), default=None)


def _fit(rows: Mapping[str, Sequence[Row]], subset: Sequence[int], num: int) -> Fit | None:
    """The fit with the amounts of `subset` only; None if a cost is negative or undetermined, also without some rows."""
    sums = {name: _sums(of_one, subset) for name, of_one in rows.items()}
    total = _added(sums.values())
    costs = _solve(total)
    if costs is None:
        return None
    errors = []
    for name, of_one in rows.items():
        without = _solve(
            [[a - b for a, b in zip(*lines, strict=True)] for lines in zip(total, sums[name], strict=True)]
        )
        if without is None:
            return None
        logs = []
        for row in of_one:
            computed = sum(cost * row.amounts[index] for cost, index in zip(without, subset, strict=True))
            if computed <= 0:
                return None
            logs.append(math.log(row.seconds / computed))
        errors.append(sum(logs) / len(logs))
    # The squared relative error is smaller for times that are too short: the median of the errors corrects that.
    shift = statistics.median(errors)
    at = dict(zip(subset, costs, strict=True))
    return Fit([at.get(index, 0.0) * math.exp(shift) for index in range(num)], [error - shift for error in errors])


def _sums(rows: Iterable[Row], subset: Sequence[int]) -> list[list[float]]:
    """The normal equations of the relative errors, with the right side as the last column."""
    matrix = [[0.0] * (len(subset) + 1) for _ in subset]
    for row in rows:
        scaled = [row.amounts[index] / row.seconds for index in subset]
        for i, left in enumerate(scaled):
            for j, right in enumerate([*scaled, 1.0]):
                matrix[i][j] += left * right
    return matrix


def _added(matrices: Iterable[list[list[float]]]) -> list[list[float]]:
    return [[sum(column) for column in zip(*lines, strict=True)] for lines in zip(*matrices, strict=True)]


def _solve(equations: Sequence[Sequence[float]]) -> list[float] | None:
    """The solution, by Gauss-Jordan with scaling; None if it is not unique or has a negative number."""
    num = len(equations)
    scales = [math.sqrt(abs(equations[i][i])) or 1.0 for i in range(num)]
    matrix = [
        [*(equations[i][j] / scales[i] / scales[j] for j in range(num)), equations[i][num] / scales[i]]
        for i in range(num)
    ]
    for column in range(num):
        pivot = max(range(column, num), key=lambda row: abs(matrix[row][column]))
        if abs(matrix[pivot][column]) < 1e-9:
            return None
        matrix[column], matrix[pivot] = matrix[pivot], matrix[column]
        for row in range(num):
            if row != column:
                factor = matrix[row][column] / matrix[column][column]
                matrix[row] = [a - factor * b for a, b in zip(matrix[row], matrix[column], strict=True)]
    found = [matrix[row][num] / matrix[row][row] / scales[row] for row in range(num)]
    return found if all(cost >= 0 for cost in found) else None
