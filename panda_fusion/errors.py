"""Errors that a user can act on: one sentence each, printed by the CLI without a traceback."""


class PandaFusionError(Exception):
    """Base class. The message is one sentence: what, what was expected, what was found, what to do."""


class OptionError(PandaFusionError):
    """A method string or option does not parse, is unknown, or has a bad value."""


class UnknownNameError(PandaFusionError):
    """No plugin registered this name; the message lists the nearest known names."""


class PluginError(PandaFusionError):
    """A plugin could not be loaded, collides with another one, or breaks its contract."""


class DataError(PandaFusionError):
    """A data file or a task definition is missing, empty, broken, or does not fit the task."""


class BackboneError(PandaFusionError):
    """A backbone cannot be loaded or does not support what was asked of it."""


class PromptFileError(PandaFusionError):
    """A prompt file is not one, is damaged, or does not fit what it is used with."""


class TrainingError(PandaFusionError):
    """Training cannot start or cannot go on."""


class DeviceError(PandaFusionError):
    """The asked device or precision is not there."""


class OutputError(PandaFusionError):
    """A result cannot be written where it was asked for."""


class RecipeError(PandaFusionError):
    """A recipe, or a folder of results, is wrong or does not fit."""
