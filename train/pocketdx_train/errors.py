"""What can go wrong in training, said to the user in one line each."""

from pocketdx_runtime.errors import PocketDxError, printable


class TrainError(PocketDxError):
    """Base of the training room's errors. Whatever a file's name or a library says, the message is one line."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(" ".join(message.split("\n"))))


class DataError(TrainError):
    """A data set that cannot be trained or evaluated on: empty, one class only, a broken manifest."""


class CheckpointError(TrainError):
    """A run, a checkpoint or a weights file that is missing, corrupted or of another model."""
