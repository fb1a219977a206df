"""What can go wrong in setting a device up."""

from pocketdx_export.errors import ExportError


class DeviceError(ExportError):
    """A device that cannot be set up here: a program is missing, a package cannot be had."""
