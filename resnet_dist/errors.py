"""The errors of the data plane. The control plane assigns an exit code and a retry rule to each class.

TrainingError
├── RecipeError            the recipe is invalid                         never retried
│   └── MissingPackage     a package that it needs is not installed
├── DataError              an image, a folder or an index is invalid     never retried
├── StoreUnavailable       a store or disk stays away, or refuses        never retried
├── CheckpointError        a checkpoint is damaged or of another run
├── DivergedError          the loss or the gradient is not finite
├── OutOfMemory            a micro-batch does not fit into memory
├── StorageError           the run directory cannot be written
└── LedgerError            an epoch had a sample twice, or never        never retried
"""

from __future__ import annotations


class TrainingError(Exception):
    """Base of all errors that the data plane raises for a known problem."""

    def __reduce__(self) -> tuple[object, ...]:
        # Errors are sent between processes: keep the attributes, whatever the subclass's signature.
        return (_rebuild, (type(self), str(self), self.__dict__.copy()))


def _rebuild(kind: type[TrainingError], message: str, attributes: dict[str, object]) -> TrainingError:
    error = kind.__new__(kind)
    error.args = (message,)
    error.__dict__.update(attributes)
    return error


class RecipeError(TrainingError):
    """An invalid value in the recipe, at `key`, its dotted name in the config. It conflicts with the keys `others`."""

    def __init__(self, key: str, problem: str, allowed: str, others: tuple[str, ...] = ()) -> None:
        super().__init__(f"{key}: {problem}. Allowed: {allowed}")
        self.key, self.problem, self.allowed, self.others = key, problem, allowed, others


class MissingPackage(RecipeError):  # noqa: N818 - reads as what happened
    """A package that the recipe needs is not installed."""

    def __init__(self, key: str, package: str, install: str) -> None:
        super().__init__(key, f"needs {package}, which is not installed here", f"install it with: {install}")


class DataError(TrainingError):
    """An invalid data set. `path` is the file or folder, `sample_id` the row of the index."""

    def __init__(self, path: str, problem: str, sample_id: int | None = None) -> None:
        sample = "" if sample_id is None else f" (sample {sample_id})"
        super().__init__(f"{path}{sample}: {problem}")
        self.path, self.problem, self.sample_id = path, problem, sample_id


class StoreUnavailable(TrainingError):  # noqa: N818 - reads as what happened
    """A place of data that stays away: an object store that does not answer or refuses access, or a disk or network
    file system that keeps failing. `path` is an address or a file in it.
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path, self.problem = path, problem


class CheckpointError(TrainingError):
    """A checkpoint that is incomplete, altered or of another run."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path, self.problem = path, problem


class DivergedError(TrainingError):
    """The loss or the gradient is not finite, or the loss scale is too small; `value` is that number.

    `by_samples`: whether other samples may avoid it, so that `faults.on_nonfinite: skip` applies.

    >>> str(DivergedError(3, float("nan")))
    'training diverged: the loss of step 3 is nan. Lower the peak LR or lengthen warm-up'
    """

    def __init__(
        self,
        step: int,
        value: float,
        problem: str = "",
        advice: str = "Lower the peak LR or lengthen warm-up",
        by_samples: bool = True,
    ) -> None:
        super().__init__(f"training diverged: {problem or f'the loss of step {step} is {value}'}. {advice}")
        self.step, self.value, self.by_samples = step, value, by_samples


class OutOfMemory(TrainingError):  # noqa: N818 - reads as what happened
    """A micro-batch does not fit into memory. `num_micro_batches` is a number that would fit, or None."""

    def __init__(self, current: int, num_micro_batches: int | None, problem: str) -> None:
        if num_micro_batches is None:
            advice = "no larger number is allowed that fits: use more workers, or a smaller batch_norm.span"
        else:
            advice = f"batch.num_micro_batches={num_micro_batches} would fit, with the same losses"
        super().__init__(f"out of memory with batch.num_micro_batches={current}; {advice} ({problem})")
        self.current, self.num_micro_batches = current, num_micro_batches


class StorageError(TrainingError):
    """The run directory cannot be written."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path, self.problem = path, problem


class LedgerError(TrainingError):
    """The workers have not consumed each sample of an epoch once: an error in this package."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"the ledger of the samples does not balance: {problem}. Please report this")
        self.problem = problem
