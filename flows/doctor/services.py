"""Look at what runs need: the DVC project with its lock and remotes, and a Prefect server."""

import http.client
import json
import urllib.error
import urllib.request
from pathlib import Path

from dvc.exceptions import DvcException
from dvc.lock import LockError
from dvc.repo import Repo
from dvc_objects.fs import localfs
from dvc_objects.fs.generic import test_links

from flows.doctor.finding import Finding
from flows.doctor.sources import TIMEOUT, request
from flows.mend import refuse_conflict
from masking import masked


def check_dvc(root: Path) -> list[Finding]:
    try:
        refuse_conflict(root / "dvc.lock")
        with Repo(str(root)) as repo:
            try:
                with repo.lock:
                    lock = Finding("ok", "dvc lock", "free")
            except LockError:
                lock = Finding("warn", "dvc lock", "held by a DVC process; a run waits until that one is done")
            return [lock, check_links(repo), *_remotes(repo.config["remote"], repo.config["core"].get("remote"))]
    except ValueError as error:
        return [Finding("fail", "dvc.lock", str(error))]
    except DvcException as error:
        return [Finding("fail", "dvc", f"{error}; run from the project's root, in a git clone")]


def check_links(repo: Repo) -> Finding:
    """The way DVC puts results from its cache into the workspace: the first of `cache.type` that the file system can do."""
    types = list(repo.cache.local.cache_types)
    cache, workspace = Path(repo.cache.local_cache_dir), Path(repo.root_dir, ".dvc", "tmp")
    for folder in (cache, workspace):
        folder.mkdir(parents=True, exist_ok=True)
    found = test_links(types, localfs, str(cache), localfs, str(workspace))
    if not found or found[0] == "copy":
        advice = (
            "copies: each result is on the disk twice; keep DVC's cache on this file system, or one that has reflinks"
        )
        return Finding("warn", "dvc links", advice)
    files = [path.stat() for path in Path(repo.root_dir, "artifacts").rglob("*") if path.is_file()]
    saved = sum(file.st_size for file in files if file.st_nlink > 1) / 10**9
    return Finding(
        "ok", "dvc links", f"{found[0]}: results share their bytes with DVC's cache; {saved:.1f} GB saved here"
    )


def _remotes(remotes: dict[str, dict[str, str]], default: str | None) -> list[Finding]:
    if not remotes:
        advice = "none: results stay on this machine; `dvc remote add --default NAME URL` shares them"
        return [Finding("warn", "dvc remote", advice)]
    findings = []
    for name, remote in remotes.items():
        url = remote["url"]
        if "://" not in url and not Path(url).is_dir():
            findings.append(
                Finding("fail", f"dvc remote {name}", f"{url}: no such folder; mount it, or `dvc remote modify`")
            )
        else:
            shown = masked(url)
            findings.append(Finding("ok", f"dvc remote {name}", f"{shown}{' (default)' if name == default else ''}"))
    return findings


def check_server(api_url: str) -> Finding:
    shown = masked(api_url)
    try:
        with urllib.request.urlopen(request(f"{api_url}/health"), timeout=TIMEOUT) as response:
            if json.load(response) is True:
                return Finding("ok", "prefect server", f"answers at {shown}")
    except (OSError, ValueError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.URLError) and not isinstance(error, urllib.error.HTTPError):
            advice = "a run starts one of its own (some 15 s); `make serve` keeps one, with the schedule"
            return Finding("warn", "prefect server", f"none at {shown}: {advice}")
    return Finding(
        "fail", "prefect server", f"{shown}: what answers is not Prefect; correct PREFECT_API_URL or the port"
    )
