"""Every error that a user of this package can cause or has to act on. Knows nothing else.

    EdgeEmbedError                 one clear line: what, the number, what to do
    ├── InputError (ValueError)    texts, options and files that the caller handed in
    │   └── ShapeError             arrays that do not line up
    ├── ModelError                 a model folder that is missing, incomplete or contradictory
    │   ├── ModelNotFoundError     the reference names nothing on this machine
    │   ├── CheckpointError        config.json or *.safetensors cannot be used
    │   ├── IntegrityError         a file is not the one that was recorded
    │   └── CrashError             a process of its own, which ran a model, was ended by a signal
    ├── DeviceError                OpenVINO has no such device, or cannot compile for it
    ├── NumericsError              NaN, Inf or zero rows came out of a model
    ├── MismatchError              a reference is not of this model, these texts or these tokens
    ├── PullError                  a download failed, or was refused
    └── OutputError (OSError)      a result could not be written

The command line prints an EdgeEmbedError as one line and exits with 2, with 4 for a MismatchError, by which
nothing can be judged; anything else is a crash.
"""


class EdgeEmbedError(Exception):
    """Base of all errors that this package raises on purpose."""


class InputError(EdgeEmbedError, ValueError):
    """A text, an option or an input file cannot be used as given."""


class ShapeError(InputError):
    """Arrays do not line up."""


class ModelError(EdgeEmbedError):
    """A model folder is incomplete, or contradicts itself."""


class ModelNotFoundError(ModelError):
    """The model reference names nothing on this machine."""


class CheckpointError(ModelError):
    """A config.json or *.safetensors file cannot be used."""


class IntegrityError(ModelError):
    """A file is not the one that was recorded."""


class CrashError(ModelError):
    """A process that ran a model was ended by a signal."""


class DeviceError(EdgeEmbedError):
    """OpenVINO has no such device, or cannot compile for it."""


class NumericsError(EdgeEmbedError):
    """A model gave NaN, Inf or a zero vector."""


class MismatchError(EdgeEmbedError):
    """What was recorded earlier is not of this model, these texts or these tokens: nothing can be judged."""


class PullError(EdgeEmbedError):
    """A download failed or was refused."""


class OutputError(EdgeEmbedError, OSError):
    """A result could not be written."""
