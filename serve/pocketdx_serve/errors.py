"""Errors of the serve room that a user can act on."""

from __future__ import annotations

from pocketdx_runtime.errors import PocketDxError


class ServeError(PocketDxError):
    """The server cannot start: a port is taken, a setting is out of range, the model does not answer."""


class AuditError(ServeError):
    """A record cannot be written to the audit log, so the answer must not be given."""
