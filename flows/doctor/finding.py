"""One look at the machine, told to a person."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """The result of a look."""

    level: str  # ok, warn, fail
    subject: str
    message: str  # what is wrong, and what to do
