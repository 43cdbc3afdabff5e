"""`fasthg` and `python -m fasthg`: the command line, or one line where its packages are missing."""

from __future__ import annotations

import os
import sys
import traceback

from fasthg.errors import missing_package

# What a verb needs beside torch and NumPy; all others need `train`.
_EXTRAS = {verb: "predict" for verb in ("config", "doctor", "export", "import-tf", "predict")}


def main() -> None:
    """Run the command line; where a package of an extra is missing, one line names the extra.

    With FASTHG_DEBUG=1 in the environment the traceback comes before that line.
    """
    try:
        from fasthg.cli import main as run

        run()
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "fasthg"):
            raise
        if os.environ.get("FASTHG_DEBUG", "") not in ("", "0"):
            traceback.print_exception(error)
        verb = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
        what = f"fasthg {verb}".rstrip()
        fault = missing_package(what, package, _EXTRAS.get(verb, "train"))
        print(f"error: {fault}", file=sys.stderr)
        sys.exit(fault.exit_code)


if __name__ == "__main__":
    main()
