"""DICOMweb: films without a report of ours are pulled (QIDO-RS, WADO-RS), results stored (STOW-RS).

A push alone loses films: a router may count what it could not deliver as sent.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from cxr.rules import RefusedError
from cxr.workdir import console
from hospital.journal import FILMS, NO_SPACE, PULLED, SUCCESS, Journal, has_room, is_own, take_in
from hospital.settings import Site, log, needs_pacs, where

MODALITIES = ("CR", "DX", "OT")  # OT and SC: secondary captures
_TIMEOUT_S = (10, 60)


@dataclass(frozen=True)
class PullConfig(Site):
    """Ask the PACS for films of the last days without a report of ours, and take them in."""


@dataclass
class Pulled:
    """What one pull found: films of the days asked for, those that were taken in, reported already,
    refused, and those that could not be had."""

    seen: int = 0
    new: int = 0
    reported: int = 0
    refused: int = 0
    failed: int = 0


def client(url: str) -> Any:
    """A DICOMweb client with what the environment says of user, password or token."""
    needs_pacs()
    from dicomweb_client.api import DICOMwebClient
    from dicomweb_client.session_utils import create_session_from_user_pass
    from requests import Session

    told = os.environ.get
    user, token = told("LUNGFIRST_DICOMWEB_USER"), told("LUNGFIRST_DICOMWEB_TOKEN")
    password = told("LUNGFIRST_DICOMWEB_PASSWORD") or ""
    session = create_session_from_user_pass(user, password) if user else Session()
    headers = {"Authorization": f"Bearer {token}"} if token else None
    found = DICOMwebClient(
        url, session=session, headers=headers, permissive_uid=True, timeout=_TIMEOUT_S
    )
    found.set_http_retry_params(retry=False)  # the outbox has its own patience
    return found


def store(url: str, objects: Sequence[Any]) -> tuple[dict[str, int], str]:
    """STOW-RS: the status of each object by its UID, 0x0000 for those that are kept, and why the
    others have none yet ("" where all have)."""
    import requests

    uids = [str(o.SOPInstanceUID) for o in objects]
    try:
        answer = client(url).store_instances(objects)
    except requests.HTTPError as error:
        code = error.response.status_code if error.response is not None else 0
        return _refusals(error, uids, code)
    except (requests.RequestException, OSError) as error:
        return {}, why_of(error)
    failed = _failed(answer)
    kept = {
        str(item.ReferencedSOPInstanceUID): 0x0000
        for item in answer.get("ReferencedSOPSequence") or ()
    }
    if not kept and not failed:  # some answer 200 with nothing
        kept = dict.fromkeys(uids, 0x0000)
    return kept | failed, ""


def _refusals(error: Any, uids: list[str], code: int) -> tuple[dict[str, int], str]:
    """Of an answer 409, which says what failed; codes but a few are of the server, not the
    objects."""
    from pydicom.dataset import Dataset

    if code not in (400, 409, 415):
        return {}, f"it answers HTTP {code}"
    failed = {}
    with suppress(Exception):  # no JSON
        if code == 409:
            failed = _failed(Dataset.from_json(json.loads(error.response.text)))
    return failed or dict.fromkeys(uids, 0xC000), ""


def why_of(error: Exception) -> str:
    """Why a request came to nothing, in words that hold no part of its URL."""
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"it answers HTTP {error.response.status_code}"
    if isinstance(error, requests.exceptions.SSLError):
        return "its certificate is not trusted, or TLS is refused"
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.ConnectionError):
        return "no answer: it is down, or the address is wrong"
    return "an answer that cannot be understood"


def _failed(answer: Any) -> dict[str, int]:
    return {
        str(item.ReferencedSOPInstanceUID): int(item.get("FailureReason", 0xC000))
        for item in answer.get("FailedSOPSequence") or ()
    }


# --- pull ---


def pull(site: Site, journal: Journal, today: date | None = None) -> Pulled:
    """Take in the films of the last days that are neither in the journal nor reported on; raises
    what requests raises where the PACS does not answer."""
    web, found = client(site.pull), Pulled()
    today = today or date.today()
    for back in range(site.pull_days):
        day = (today - timedelta(days=back)).strftime("%Y%m%d")
        # a day at a time and no offset: Orthanc answers an offset beside a filter with nothing
        for study in web.search_for_studies(search_filters={"StudyDate": day}):
            uid = _value(study, "0020000D")
            if uid:
                _pull_study(site, journal, web, str(uid), found)
    return found


def _pull_study(site: Site, journal: Journal, web: Any, study: str, found: Pulled) -> None:
    series = web.search_for_series(study)
    films = [
        (series_uid, str(film))
        for one in series
        if _value(one, "00080060") in MODALITIES and (series_uid := str(_value(one, "0020000E")))
        for instance in web.search_for_instances(study, series_uid)
        if _value(instance, "00080016") in FILMS and (film := _value(instance, "00080018"))
    ]
    found.seen += len(films)
    fresh = [(s, f) for s, f in films if not journal.knows(site.folders.key_of(f))]
    if not fresh:
        return
    reports = [str(_value(s, "0020000E")) for s in series if _value(s, "00080060") == "SR"]
    reported = set(_reported(web, study, reports))
    for series_uid, film in fresh:
        if film in reported:
            found.reported += 1
            continue
        try:
            status = _fetch(site, journal, web, study, series_uid, film)
        except Exception as error:  # the other films are asked for none the less
            log.warning("a film could not be pulled: %s", where(error))
            found.failed += 1
            continue
        found.new += status == SUCCESS
        found.refused += status != SUCCESS


def _reported(web: Any, study: str, series: Sequence[str]) -> Iterator[str]:
    """Films that reports of ours in the PACS are about, also those of an earlier journal."""
    from pydicom.dataset import Dataset

    for uid in series:
        for told in web.retrieve_series_metadata(study, uid):
            report = Dataset.from_json(told)
            if not is_own(report):
                continue
            for evidence in report.get("CurrentRequestedProcedureEvidenceSequence") or ():
                for one in evidence.get("ReferencedSeriesSequence") or ():
                    for film in one.get("ReferencedSOPSequence") or ():
                        yield str(film.ReferencedSOPInstanceUID)


def _fetch(site: Site, journal: Journal, web: Any, study: str, series: str, film: str) -> int:
    """One film as the PACS keeps it, into the spool; the status is `take_in`'s."""
    if not has_room(site, site.largest_mb << 20):
        return NO_SPACE
    kept = (("application/dicom", "*"),)  # the stored transfer syntax
    found = web.retrieve_instance(study, series, film, media_types=kept)
    handle, name = tempfile.mkstemp(dir=site.folders.arriving, prefix=PULLED)
    path = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            found.save_as(file, enforce_file_format=True)
        return take_in(site, journal, path, film)
    finally:
        path.unlink(missing_ok=True)


def _value(told: Any, tag: str) -> Any:
    return (told.get(tag, {}).get("Value") or [None])[0]


def keep_pulling(site: Site, ended: threading.Event) -> None:
    """Pull every few minutes until the event is set; what goes wrong is told and tried again."""
    with Journal(site.folders.journal) as journal:
        while not ended.is_set():
            try:
                found = pull(site, journal)
                journal.note("pull", "")
                log.info("pull: %d films asked for, %d new", found.seen, found.new)
            except Exception as error:
                log.warning("pull failed: %s", where(error))
                journal.note("pull", f"failed: {why_of(error)}")
            journal.note("pulled", time.strftime("%Y-%m-%d %H:%M:%S"))
            ended.wait(site.pull_minutes * 60)


def run(config: PullConfig) -> int:
    """`pull`: once; 1 where a film could not be had."""
    import requests

    if not config.pull:
        raise RefusedError("pull must be the root URL of DICOMweb. Got nothing.")
    config.folders.make()
    with Journal(config.folders.journal) as journal:
        try:
            found = pull(config, journal)
        except (requests.RequestException, OSError) as error:
            raise RefusedError(f"the PACS at {config.pull}: {why_of(error)}.") from error
    told = "films: {0.seen} seen, {0.new} new, {0.reported} reported on already, "
    told += "{0.refused} refused, {0.failed} could not be had"
    console.print(told.format(found), highlight=False)
    return 1 if found.failed else 0
