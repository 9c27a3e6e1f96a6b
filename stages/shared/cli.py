"""How a stage ends: bad input is one line on stderr and exit 1; a fault worth retrying is exit 75."""

import os
import sys
from collections.abc import Callable


class TransientError(Exception):
    """A fault that may be gone on the next try (the network); flows retry a stage only for this."""


def run(main: Callable[..., None]) -> None:
    """Call `main` with the command line's words; turn errors meant for people into messages and exit codes."""
    try:
        main(*sys.argv[1:])
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    except OSError as error:  # the disk is full, a folder is read-only, …
        where = f"{error.filename}: " if error.filename else ""
        raise SystemExit(
            f"error: {where}{error.strerror or error}; make room or mend the permissions, then run again"
        ) from None
    except TransientError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(os.EX_TEMPFAIL) from None
