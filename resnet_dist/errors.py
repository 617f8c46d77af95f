"""What can go wrong in the data plane. The control plane gives each class an exit code and a retry rule.

TrainingError
├── RecipeError            the recipe asks for what cannot be            never retried
│   └── MissingPackage     it asks for a package that is not installed
├── DataError              an image, a folder or an index is broken      never retried
├── CheckpointError        no checkpoint that can be trusted
├── DivergedError          the loss is not a number any more
├── OutOfMemory            a micro-batch does not fit; says how many would
└── StorageError           the run directory cannot be written
"""

from __future__ import annotations


class TrainingError(Exception):
    """Base of all errors that the data plane raises on purpose."""

    def __reduce__(self) -> tuple[object, ...]:
        # Errors travel between processes; subclasses keep their attributes whatever their signatures are.
        return (_rebuild, (type(self), str(self), self.__dict__.copy()))


def _rebuild(kind: type[TrainingError], message: str, attributes: dict[str, object]) -> TrainingError:
    error = kind.__new__(kind)
    error.args = (message,)
    error.__dict__.update(attributes)
    return error


class RecipeError(TrainingError):
    """A value of the recipe that cannot be trained. `key` is its dotted name in the config."""

    def __init__(self, key: str, problem: str, allowed: str) -> None:
        super().__init__(f"{key}: {problem}. Allowed: {allowed}")
        self.key, self.problem, self.allowed = key, problem, allowed


class MissingPackage(RecipeError):  # noqa: N818 - reads as what happened
    """A package that the recipe needs is not installed here."""

    def __init__(self, key: str, package: str, install: str) -> None:
        super().__init__(key, f"needs {package}, which is not installed here", f"install it with: {install}")


class DataError(TrainingError):
    """A data set that cannot be trusted. `path` names the file or folder, `sample_id` the row of the index."""

    def __init__(self, path: str, problem: str, sample_id: int | None = None) -> None:
        sample = "" if sample_id is None else f" (sample {sample_id})"
        super().__init__(f"{path}{sample}: {problem}")
        self.path, self.problem, self.sample_id = path, problem, sample_id


class CheckpointError(TrainingError):
    """A checkpoint that is torn, altered or of another run."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path, self.problem = path, problem


class DivergedError(TrainingError):
    """The loss or the gradient became infinite or not a number, or the loss scale fell too low; `value` is that number.

    `by_samples`: whether other samples may help, so that `faults.on_nonfinite: skip` may pass over these.

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
    """A device has too little memory for a micro-batch. `num_micro_batches` would fit; None: no number does."""

    def __init__(self, current: int, num_micro_batches: int | None, problem: str) -> None:
        if num_micro_batches is None:
            advice = "no larger number is allowed: use more workers, or a smaller batch_norm.span"
        else:
            advice = f"batch.num_micro_batches={num_micro_batches} would fit, with the same losses"
        super().__init__(f"out of memory with batch.num_micro_batches={current}; {advice} ({problem})")
        self.current, self.num_micro_batches = current, num_micro_batches


class StorageError(TrainingError):
    """The run directory cannot be written."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path, self.problem = path, problem
