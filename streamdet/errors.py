"""What can go wrong outside a record, as exceptions whose message is meant for the user.

A bad record is not here: it is a value (`streamdet.events.Reject`). The command line prints the message of a
`StreamdetError` as it stands and exits with its `exit_code`; anything else is a defect and shows its trace.
"""


class StreamdetError(Exception):
    """Base of all errors that a user can mend. The message says what, where, expected and what to do."""

    exit_code = 1


class ConfigError(StreamdetError):
    """The configuration, or the way a command was called, cannot be used."""

    exit_code = 2


class BrokerError(StreamdetError):
    """Kafka refused something that waiting will not mend: a missing topic, a login, an authorisation."""


class BrokerUnavailableError(StreamdetError):
    """Kafka does not answer at the moment; the caller may wait and try again."""


class RecordingError(StreamdetError):
    """A recording cannot be read or written."""


class DeviceError(StreamdetError):
    """The device asked for is not there and `model.strict` forbids another."""


class CheckpointError(StreamdetError):
    """A checkpoint is torn, tampered with, or belongs to another stream or version."""


class StoreUnavailableError(CheckpointError):
    """The store of checkpoints fails or does not answer at the moment; the caller may wait and try again."""
