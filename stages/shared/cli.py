"""Run a stage: bad input ends in one line on stderr and exit 1, a fault worth retrying in exit 75."""

import inspect
import os
import sys
from collections.abc import Callable

from stages.shared.artifacts import CACHE


class TransientError(Exception):
    """A fault that may be gone on the next try (the network); flows retry a stage only for this."""


def run(main: Callable[..., None]) -> None:
    """Call `main` with the command line's words; turn errors meant for people into messages and exit codes."""
    try:
        inspect.signature(main).bind(*sys.argv[1:])
    except TypeError:
        words = " ".join(f"<{name}>" for name in inspect.signature(main).parameters)
        raise SystemExit(f"usage: python -m {_module()} {words}".rstrip()) from None
    # Where torch.compile keeps its kernels; its own default, below /tmp, is lost with the next boot.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str((CACHE / "inductor").absolute()))
    try:
        main(*sys.argv[1:])
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    except FileNotFoundError as error:
        # safetensors sets no filename and names the file in its words.
        missing = f"{error.filename}: no such file" if error.filename else error
        raise SystemExit(f"error: {missing}; run the stages before this one: dvc repro") from None
    except OSError as error:  # the disk is full, a folder is read-only, …
        where = f"{error.filename}: " if error.filename else ""
        raise SystemExit(
            f"error: {where}{error.strerror or error}; make room or mend the permissions, then run again"
        ) from None
    except TransientError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(os.EX_TEMPFAIL) from None


def _module() -> str:
    """The name by which `python -m` runs this stage."""
    spec = sys.modules["__main__"].__spec__
    return spec.name.removesuffix(".__main__") if spec else sys.argv[0]
