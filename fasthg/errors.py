"""Errors a user can act on. Each carries the exit code that the command line ends with."""

from __future__ import annotations


class FasthgError(Exception):
    """A failure with one line of cause and one remedy; shown without a traceback."""

    exit_code = 1


class DataError(FasthgError):
    """A record, image or annotation cannot be used as it is."""


class ConfigError(FasthgError):
    """A configuration file or override is wrong."""

    exit_code = 2


class EnvironmentFault(FasthgError):
    """The machine lacks what was asked for: a device, a driver, a package."""

    exit_code = 3
