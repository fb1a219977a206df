"""What can go wrong in exporting, said to the user in one line each."""

from pocketdx_runtime.errors import PocketDxError


class ExportError(PocketDxError):
    """A model that cannot be exported, a bundle that cannot be written or read."""


class ParityError(PocketDxError):
    """A comparison that cannot be made: other classes, no images, no bundle. (One that fails is a result.)"""
