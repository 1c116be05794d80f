"""Least squares over a stream of samples, without negative coefficients."""

from __future__ import annotations

from collections.abc import Sequence
from operator import mul

FORGETTING = 0.995  # of what a new sample tells again
RIDGE = 1e-4  # weight of the prior that a cost is 0, in samples


class Fit:
    """Least squares over a stream of samples: the past fades, and no coefficient is below 0.

    Only the direction of the new sample is forgotten, so what is not seen for hours (an empty engine, say) is not
    lost while one state repeats (Cao and Schwartz, Automatica 36, 2000). Features are given in units of about 1.
    """

    __slots__ = ("_information", "_moment", "_stale", "_theta", "forgetting")

    def __init__(self, features: int, forgetting: float = FORGETTING) -> None:
        self.forgetting = forgetting
        self._information = [[RIDGE if row == column else 0.0 for column in range(features)] for row in range(features)]
        self._moment = [0.0] * features
        self._theta = [0.0] * features
        self._stale = False

    @property
    def theta(self) -> list[float]:
        """The coefficients, each at least 0."""
        if self._stale:
            self._theta = _solved_non_negative(self._information, self._moment)
            self._stale = False
        return self._theta

    def predict(self, x: Sequence[float]) -> float:
        """What the coefficients of now give for `x`."""
        predicted: float = sum(map(mul, self.theta, x))
        return predicted

    def learn(self, x: Sequence[float], y: float) -> None:
        """One more sample counts, and older ones like it a little less."""
        information, moment, dimensions = self._information, self._moment, range(len(x))
        along = [sum(row[each] * x[each] for each in dimensions) for row in information]
        share = (1 - self.forgetting) / max(1e-12, sum(along[each] * x[each] for each in dimensions))
        known = share * sum(moment[each] * x[each] for each in dimensions)
        for row in dimensions:
            for column in dimensions:
                information[row][column] += x[row] * x[column] - share * along[row] * along[column]
            moment[row] += x[row] * y - known * along[row]
        self._stale = True


def _solved_non_negative(matrix: Sequence[Sequence[float]], right: Sequence[float]) -> list[float]:
    """The solution; while some coefficient is below 0, that one is held at 0 and the rest is solved anew."""
    free = list(range(len(right)))
    while free:
        found = _solved([[matrix[row][column] for column in free] for row in free], [right[row] for row in free])
        worst = min(range(len(free)), key=found.__getitem__)
        if found[worst] >= 0:
            values = dict(zip(free, found, strict=True))
            return [values.get(each, 0.0) for each in range(len(right))]
        free.pop(worst)
    return [0.0] * len(right)


def _solved(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Gaussian elimination without pivoting: the matrix is positive definite."""
    size = len(right)
    for pivot in range(size):
        for row in range(pivot + 1, size):
            factor = matrix[row][pivot] / max(1e-12, matrix[pivot][pivot])
            right[row] -= factor * right[pivot]
            for column in range(pivot, size):
                matrix[row][column] -= factor * matrix[pivot][column]
    for row in reversed(range(size)):
        known = sum(matrix[row][column] * right[column] for column in range(row + 1, size))
        right[row] = (right[row] - known) / max(1e-12, matrix[row][row])
    return right
