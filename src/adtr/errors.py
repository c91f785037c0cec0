"""What a user can get wrong. The command line prints these as one line and exits with code 2."""


class AdtrError(ValueError):
    """A mistake that the user can mend; the message is one line that says what is wrong and what to do."""


class ConfigError(AdtrError):
    """An unknown preset, field or backbone, or a value out of its range."""


class DataError(AdtrError):
    """A folder of images that cannot be used as asked."""


class ImageError(DataError):
    """One image, or one mask, that cannot be read."""


class ModelError(AdtrError):
    """A model folder that is incomplete, altered, or made for something else."""


class AdtrWarning(UserWarning):
    """Something worth knowing that does not stop the work."""
