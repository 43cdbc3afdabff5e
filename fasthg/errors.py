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


def install_hint(extra: str) -> str:
    """What installs an extra of fasthg, for the end of a message: from a package index or a file,
    and in a checkout, where no index knows fasthg.
    """
    return f"pip install 'fasthg[{extra}]' (in a checkout: pip install '.[{extra}]')"


def missing_package(what: str, package: str, extra: str, otherwise: str = "") -> EnvironmentFault:
    """The error of a use without a package.

    Args:
        what: what needs it: a verb, an option, or "FILE: reading HDF5".
        extra: the extra of fasthg that brings it.
        otherwise: what to do without it, such as "use the CSV".
    """
    remedy = install_hint(extra) + (f", or {otherwise}" if otherwise else "")
    return EnvironmentFault(f"{what} needs {package}; {remedy}")
