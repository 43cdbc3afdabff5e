"""The command line. Verbs import what they need when they run, so that `--help` is quick."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated, NoReturn

import typer

from fasthg import __version__
from fasthg.cli import (
    bench,
    config,
    data,
    doctor,
    export,
    init,
    listing,
    predict,
    report,
    runs,
    suggest,
    tf,
)
from fasthg.cli.common import refuse_ranks
from fasthg.errors import FasthgError
from fasthg.runtime.output import spell_out

app = typer.Typer(
    help="Train and evaluate stacked-hourglass networks for animal pose estimation.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"fasthg {__version__}")
        raise typer.Exit


@app.callback()
def _before(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    if context.invoked_subcommand not in (None, "train", "doctor"):
        refuse_ranks(str(context.invoked_subcommand))


app.command()(init.init)
app.command()(runs.train)
app.command("eval")(runs.evaluate)
app.command()(predict.predict)
app.command()(listing.runs)
app.command()(suggest.suggest)
app.command()(report.report)
app.command("import-tf")(tf.import_tf)
app.command()(export.export)
app.command()(bench.bench)
app.add_typer(config.app, name="config")
app.add_typer(data.app, name="data")
app.command()(doctor.doctor)


def main() -> None:
    """Run the command line; an error that a user can act on ends in one line.

    With FASTHG_DEBUG=1 in the environment its traceback comes before that line.
    """
    spell_out()
    try:
        app()
    except FasthgError as error:
        _fail(error, str(error), error.exit_code)
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        cause = f"{error.filename or 'file'}: {error.strerror or error}"
        remedy = "check the path and its rights; FASTHG_DEBUG=1 shows where it happened"
        _fail(error, f"{cause}; {remedy}", 1)


def _fail(error: Exception, line: str, code: int) -> NoReturn:
    if os.environ.get("FASTHG_DEBUG", "") not in ("", "0"):
        traceback.print_exception(error)
    print(f"error: {line}", file=sys.stderr)
    sys.exit(code)
