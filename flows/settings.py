"""Settings of the flows: Prefect's environment, the schedule, the rule of promotion."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from flows.overrides import applied
from flows.project import read_yaml

SCHEDULE = Path(__file__).parent / "schedule.yaml"


def prefect_environment(root: Path) -> dict[str, str]:
    """This process's environment with what Prefect must find before it is imported; what is set already stays.

    No telemetry of either kind (the server's, and the client's, which looks at DO_NOT_TRACK on import); a home of the
    project's own; and time for a cold start: 12-15 s on an idle machine, where Prefect allows 20.
    """
    ours = {
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_HOME": str(root.resolve() / ".cache" / "prefect"),
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
        "PREFECT_CLI_PROMPT": "false",
    }
    environment = {**ours, **os.environ}
    Path(environment["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)  # Prefect makes no parents
    return environment


def _valid_cron(cron: str) -> str:
    if (count := len(cron.split())) != 5:
        raise ValueError(f"`{cron}` has {count} fields; a cron has five: minute hour day month weekday, as `0 2 * * *`")
    try:
        CronSim(cron, datetime(2026, 1, 1, tzinfo=UTC))
    except CronSimError as error:
        day, month = cron.split()[2:4]
        never = day.isdigit() and month.isdigit() and int(day) <= 31 and 1 <= int(month) <= 12
        verdict = "never comes about" if never and "day-of-month" in str(error) else "is not a cron"
        raise ValueError(f"`{cron}` {verdict} ({error}); write minute hour day month weekday, as `0 2 * * *`") from None
    return cron


def _known_timezone(name: str) -> str:
    if name not in available_timezones():
        raise ValueError("not a time zone of the tz database, as `Europe/Berlin` or `UTC`")
    return str(ZoneInfo(name))


class Promotion(BaseModel):
    """The rule by which a model takes the promoted one's place: each limit is on the candidate against the promoted."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    max_accuracy_loss: Annotated[float, Field(ge=0, le=1)]  # on the same test images, with 95 % confidence
    max_class_loss: Annotated[float, Field(ge=0, le=1)]  # of the recall of any class
    max_ece_rise: Annotated[float, Field(ge=0, le=1)]
    max_latency_ratio: Annotated[float, Field(gt=0, strict=False)]
    max_size_ratio: Annotated[float, Field(gt=0, strict=False)]


class Schedule(BaseModel):
    """A schedule's YAML file."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    cron: Annotated[str, AfterValidator(_valid_cron)]
    timezone: Annotated[str, AfterValidator(_known_timezone)]
    timeout: Annotated[float, Field(gt=0, strict=False)]  # seconds
    experiment: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")]
    promote: bool
    promotion: Promotion
    notify: Annotated[str, Field(pattern=r"^[a-z0-9-]+/[a-z0-9-]+$")] | None
    host: str
    port: Annotated[int, Field(ge=1, le=65535)]

    @property
    def api_url(self) -> str:
        return f"http://{self.host}:{self.port}/api"


def load_schedule(path: Path = SCHEDULE) -> Schedule:
    """Read a schedule; what the file leaves out is as in the project's own.

    Raises ValueError naming the file, each offending key, and what is allowed.
    """
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path}: write keys and values, as in {SCHEDULE.name}")
    try:
        return Schedule.model_validate(applied(read_yaml(SCHEDULE), values))
    except ValidationError as error:
        problems = [
            f"  {'.'.join(map(str, p['loc'])) or 'file'}: {p['msg']} (found {p['input']!r})" for p in error.errors()
        ]
        raise ValueError("\n".join([f"{path}: {error.error_count()} problem(s)", *problems])) from None
