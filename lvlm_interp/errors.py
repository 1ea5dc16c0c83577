"""The exceptions a user can catch.

Each message is one sentence that names what was expected, what came, and what to do.
The command line turns any `LvlmInterpError` into one line on stderr and exit code 2.
"""

__all__ = [
    "DataError",
    "InputError",
    "LvlmInterpError",
    "ModelError",
    "SiteError",
    "StoreError",
    "UsageError",
]


class LvlmInterpError(Exception):
    """Root of every error this package raises on purpose; catch it to catch them all."""


class ModelError(LvlmInterpError):
    """No model at that path, an unsupported architecture, or a failed self-check."""


class SiteError(LvlmInterpError):
    """A site name does not parse, or this model has no such site; the nearest name is given."""


class InputError(LvlmInterpError):
    """A run's input does not fit: no image, a wrong placeholder count, unaligned positions."""


class DataError(LvlmInterpError):
    """A data file or a pair is wrong; the message gives the path, the line and the field."""


class UsageError(LvlmInterpError):
    """A call or command asks for what cannot be done: an unknown option, an occupied folder."""


class StoreError(LvlmInterpError):
    """A saved artifact cannot be read or written: unfinished, or of another model or format."""
