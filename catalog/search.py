"""Search: which scenes there are. The only room besides ``assets`` that talks to the network.

The one law: what a catalogue answers is never believed blindly. Pages are followed to the end but
not in circles and not to other hosts, repeated items count once, a missing one is an error.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import pystac_client
import requests
import urllib3
from pystac_client.stac_api_io import StacApiIO
from urllib3.exceptions import HTTPError

from catalog.assets import AssetPolicy, public_href
from catalog.errors import DataError, EngineError, SetAside, SourceError, UsageError
from catalog.grid import LonLatBox, split_box
from catalog.processings import newest_processings
from catalog.revisit import Revisit, count_revisits
from catalog.scenes import Scene, boxes_meet
from catalog.sensors import describe_item
from catalog.user_sensors import SensorSpec

__all__ = ["SceneSource", "SearchResult", "open_source"]

_CONNECT_S, _READ_S, _RETRY_AFTER_S = 5.0, 60.0, 60
_TRIES = 4
# ^ of an answer that breaks off half-way; requests that get no answer have their own
_PAGE_ITEMS = 100
_MAX_PAGES = 10_000
_IDLE_PAGES = 50
# ^ without anything new, each under another link, before a search counts as endless
_MAX_FILES = 200_000
_MAX_BYTES = 64 * 2**20

_Item = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What a search found."""

    scenes: tuple[Scene, ...]
    """Sorted by time and id."""
    set_aside: tuple[SetAside, ...]
    """Items that cannot be used, and superseded processings; sorted."""
    revisits: tuple[Revisit, ...] = ()
    """Days on which each tile was seen, cloudy ones too; empty for a season without both ends."""


class SceneSource:
    """A catalogue: an API, a static catalogue or a file of items. Made by :func:`open_source`."""

    def __init__(
        self, items: _ApiItems | _StaticItems, sensors: Mapping[str, SensorSpec] | None = None
    ) -> None:
        self._items = items
        self._sensors = sensors

    def search(
        self,
        *,
        collections: Sequence[str],
        boxes: Sequence[LonLatBox],
        start: str | None,
        end: str | None,
        max_cloud_percent: float | None = None,
    ) -> SearchResult:
        """Find scenes.

        Parameters
        ----------
        collections
            Names of collections.
        boxes
            Where, in degrees, longitudes of any range, see :func:`catalog.grid.split_box`; one
            scene that meets several counts once.
        start, end
            Days (``2024-07-01``; the last one counts in full) or RFC 3339 times; None is open.
        max_cloud_percent
            Optical scenes with more cloud are passed over; those that do not say are kept.

        Raises
        ------
        SourceError
            ``catalog-unreachable``, or ``catalog-incomplete`` where fewer items came than were
            announced or pages go in circles.
        DataError
            ``href-refused`` where the catalogue leads to another host.
        UsageError
            Where the question makes no sense or the catalogue refuses it.
        """
        first, last = _moment(start, end_of_day=False), _moment(end, end_of_day=True)
        if first and last and first > last:
            raise UsageError(f"the season ends before it begins: {start} to {end}")
        valid = [part for box in boxes for part in split_box(*box)]
        unique: dict[tuple[str, str], _Item] = {}
        faults: list[SetAside] = []
        for item in self._items.find(sorted(collections), valid, first, last):
            if isinstance(item, Mapping):
                unique.setdefault(_names(item), item)
            else:
                faults.append(SetAside("item", "bad-item", "found something that is no item"))
        scenes = []
        for key in sorted(unique):
            try:
                scenes.append(describe_item(unique[key], extra=self._sensors))
            except EngineError as error:
                faults.append(SetAside(key[1][:140], error.kind, str(error)))
        revisits = _revisits(scenes, first, last)
        scenes = [s for s in scenes if _is_clear_enough(s, max_cloud_percent)]
        kept, superseded = newest_processings(scenes)
        kept.sort(key=lambda scene: (scene.datetime, scene.id))
        return SearchResult(tuple(kept), tuple(sorted({*faults, *superseded})), revisits)


def open_source(
    location: str,
    *,
    policy: AssetPolicy,
    backoff_s: float = 0.5,
    read_s: float = _READ_S,
    sensors: Mapping[str, SensorSpec] | None = None,
) -> SceneSource:
    """Open a catalogue.

    Parameters
    ----------
    location
        URL of a STAC API, or path or URL of a static ``catalog.json``, ``collection.json`` or of a
        FeatureCollection of items.
    policy
        Its hosts and folders bound where a static catalogue may lead. The catalogue itself is the
        user's own choice and need not be among them.
    backoff_s
        Seconds before a failed request is made again; doubled each time, five times. A longer wait
        that the catalogue asks for is kept to, up to a minute.
    read_s
        Seconds of silence after which a request has failed; a whole answer may take twice as long.
    sensors
        Collections that the user describes, by name.

    Raises
    ------
    SourceError
        ``catalog-unreachable``.
    UsageError
        Where there is no catalogue at the location.
    """
    io = _GuardedIO(location, backoff_s=backoff_s, read_s=read_s)
    document = _read_json(io, location)
    kind = document.get("type")
    if kind == "Catalog" and document.get("conformsTo"):
        if not _is_url(location):
            raise UsageError(f"{location} describes an API: give its URL")
        return SceneSource(_ApiItems(location, io), sensors)
    if kind in ("Catalog", "Collection", "FeatureCollection", "Feature"):
        return SceneSource(_StaticItems(location, document, io, policy, sensors), sensors)
    raise UsageError(
        f"{public_href(location)} is neither a STAC catalogue nor a collection of items "
        f"(type is {str(kind)[:40]!r})"
    )


class _GuardedIO(StacApiIO):  # type: ignore[misc]
    """Reads pages of one catalogue: with retries and timeouts, from its own host only."""

    def __init__(self, home: str, *, backoff_s: float, read_s: float) -> None:
        retry = urllib3.Retry(
            total=5,
            backoff_factor=backoff_s,
            backoff_jitter=backoff_s,
            backoff_max=30,
            status_forcelist=(429, 500, 502, 503, 504),
            allowed_methods=None,
            # ^ a search is a POST and changes nothing; urllib3 retries no POST by default
            respect_retry_after_header=True,
            retry_after_max=_RETRY_AFTER_S,
            raise_on_status=False,
            redirect=0,
        )
        super().__init__(max_retries=retry, timeout=(_CONNECT_S, read_s))
        self._backoff_s = backoff_s
        self._answer_s = 2 * read_s
        self._home = _origin(home) if _is_url(home) else ""
        self.session.max_redirects = 3
        self.session.hooks["response"].append(self._check_response)

    def _check_response(self, response: Any, **_: object) -> None:
        if response.is_redirect:
            self.require_home(urljoin(response.url, response.headers["location"]))

    def require_home(self, href: str) -> None:
        """Refuse to be led to another host: it would receive what was meant for this one."""
        if _origin(href) != self._home:
            raise DataError(
                f"the catalogue {self._home} leads to {public_href(href)}, another host",
                kind="href-refused",
            )

    def request(
        self,
        href: str,
        method: str | None = None,
        headers: dict[str, str] | None = None,
        parameters: dict[str, Any] | None = None,
    ) -> str:
        """Ask the catalogue; errors are typed."""
        self.require_home(href)
        for attempt in range(_TRIES):
            with self._send(href, (method or "GET").upper(), headers, parameters) as response:
                try:
                    body = self._read(response)
                    break
                except HTTPError as error:
                    fault = type(error).__name__
            time.sleep(self._backoff_s * 2**attempt)
        else:
            raise _unreachable(href, fault)
        status = response.status_code
        if 400 <= status < 500 and status != 429:
            said = body[:300].decode("utf-8", "replace")
            raise UsageError(
                f"{public_href(href)} refuses the question with HTTP {status}: {said}",
                kind="catalog-refused",
            )
        if not 200 <= status < 300:
            raise _unreachable(href, f"HTTP {status}")
        try:
            return body.decode()
        except UnicodeDecodeError:
            raise _senseless(href, "text in UTF-8") from None

    def _send(
        self,
        href: str,
        method: str,
        headers: dict[str, str] | None,
        parameters: dict[str, Any] | None,
    ) -> requests.Response:
        if method not in ("GET", "POST"):
            raise _senseless(href, f"a link to be followed, but one to {method[:20]}")
        asked = {"json": parameters} if method == "POST" else {"params": parameters}
        try:
            answer: requests.Response = self.session.request(
                method, href, headers=headers, timeout=self.timeout, stream=True, **asked
            )
        except (requests.RequestException, HTTPError, ValueError) as error:
            raise _unreachable(href, type(error).__name__) from None
        return answer

    def _read(self, response: requests.Response) -> bytes:
        """Body of an answer, as it comes: it may be endless, or drip for ever."""
        end = time.monotonic() + self._answer_s
        body = bytearray()
        while part := response.raw.read1(2**16, decode_content=True):
            body += part
            if len(body) > _MAX_BYTES:
                raise SourceError(
                    f"{public_href(response.url)} answers with more than {_MAX_BYTES} bytes",
                    kind="catalog-bad-answer",
                )
            if time.monotonic() > end:
                raise urllib3.exceptions.TimeoutError("the answer takes too long")
        return bytes(body)

    def get_pages(
        self,
        url: str,
        method: str | None = None,
        parameters: dict[str, Any] | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Follow pages to the end, over empty ones, but never twice over the same."""
        asked: set[str] = set()
        link: dict[str, Any] = {"href": url, "method": method, "body": parameters or {}}
        while len(asked) < _MAX_PAGES:
            question = json.dumps([link["href"], link.get("method"), link.get("body")])
            if question in asked:
                raise SourceError(f"{public_href(url)} pages in circles", kind="catalog-incomplete")
            asked.add(question)
            text = self.request(
                link["href"],
                method=link.get("method"),
                headers=link.get("headers"),
                parameters=link.get("body"),
            )
            page, following = _parse_page(text, link["href"])
            yield page
            if following is None:
                return
            link = {**following, "href": urljoin(url, following["href"])}
            if link.get("merge"):
                link["body"] = {**(parameters or {}), **(link.get("body") or {})}
        raise SourceError(
            f"{public_href(url)} has more than {_MAX_PAGES} pages", kind="catalog-incomplete"
        )


class _ApiItems:
    """Items of a STAC API."""

    def __init__(self, url: str, io: _GuardedIO) -> None:
        self._url = url
        self._io = io
        self._client = pystac_client.Client.open(url, stac_io=io, timeout=io.timeout)
        # ^ opening resets the timeout of the io unless it is given here as well

    def find(
        self,
        collections: Sequence[str],
        boxes: Sequence[LonLatBox],
        first: datetime | None,
        last: datetime | None,
    ) -> Iterator[_Item]:
        """All items of the collections that meet a box in a time."""
        for box in boxes:
            search = self._client.search(
                collections=list(collections),
                bbox=list(box),
                datetime=_interval(first, last),
                limit=_PAGE_ITEMS,
                method="POST",
            )
            found: set[tuple[str, str]] = set()
            announced = 0
            pages = self._io.get_pages(search.url, search.method, search.get_parameters())
            # ^ not search.pages_as_dicts: it ends at an empty page
            idle = 0
            for page in pages:
                announced, known = max(announced, _matched(page)), len(found)
                for item in page["features"]:
                    found.add(_names(item))
                    yield item
                idle = idle + 1 if len(found) == known else 0
                if idle == _IDLE_PAGES:
                    raise SourceError(
                        f"{public_href(self._url)} sent {idle} pages in a row without a new item",
                        kind="catalog-incomplete",
                    )
            if len(found) < announced:
                raise SourceError(
                    f"{public_href(self._url)} announced {announced} items and delivered "
                    f"{len(found)}",
                    kind="catalog-incomplete",
                )


def _parse_page(text: str, location: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """A page of items, and the link to the next one where there is one."""
    page = _parse(text, location)
    features, links = page.get("features", []), page.get("links") or []
    if not isinstance(features, list) or not isinstance(links, list):
        raise _senseless(location, "a page of items")
    for link in links:
        if not isinstance(link, dict):
            raise _senseless(location, "a page with links")
        if link.get("rel") == "next":
            if not isinstance(link.get("href"), str):
                raise _senseless(location, "a page with a link to the next")
            return {**page, "features": features}, link
    return {**page, "features": features}, None


def _unreachable(href: str, why: str) -> SourceError:
    return SourceError(f"{public_href(href)} cannot be reached: {why}", kind="catalog-unreachable")


def _senseless(location: str, expected: str) -> SourceError:
    return SourceError(
        f"{public_href(location)} answers with something that is not {expected}",
        kind="catalog-bad-answer",
    )


def _names(item: Any) -> tuple[str, str]:
    """Collection and id of an item, or what stands in their place."""
    if not isinstance(item, Mapping):
        return "", repr(item)[:200]
    return str(item.get("collection")), str(item.get("id"))


def _matched(page: Mapping[str, Any]) -> int:
    for holder in (page, page.get("context")):
        if isinstance(holder, Mapping):
            for key in ("numberMatched", "matched"):
                if isinstance(holder.get(key), int):
                    return int(holder[key])
    return 0


class _StaticItems:
    """Items of a static catalogue or of one file."""

    def __init__(
        self,
        location: str,
        document: _Item,
        io: _GuardedIO,
        policy: AssetPolicy,
        sensors: Mapping[str, SensorSpec] | None,
    ) -> None:
        self._location = location if _is_url(location) else str(Path(location).resolve())
        self._document = document
        self._io = io
        self._policy = policy
        self._sensors = sensors

    def find(
        self,
        collections: Sequence[str],
        boxes: Sequence[LonLatBox],
        first: datetime | None,
        last: datetime | None,
    ) -> Iterator[_Item]:
        """All items of the collections that meet a box in a time."""
        for item in self._walk():
            if isinstance(item, Mapping) and item.get("collection") not in collections:
                continue
            try:
                scene = describe_item(item, extra=self._sensors)
            except EngineError:
                yield item  # to be set aside by name
                continue
            moment = datetime.fromisoformat(scene.datetime) if scene.datetime else None
            if moment and ((first and moment < first) or (last and moment > last)):
                continue
            if any(boxes_meet(scene.bbox, box) for box in boxes):
                yield item

    def _walk(self) -> Iterator[_Item]:
        """Every item, hrefs made absolute; each file is read once."""
        waiting = [(self._location, self._document)]
        seen = {self._location}
        while waiting:
            base, document = waiting.pop()
            if document.get("type") == "FeatureCollection":
                yield from (_absolute(item, base) for item in _list(document, "features", base))
            elif document.get("type") == "Feature":
                yield _absolute(document, base)
            else:
                for target in _targets(document, base):
                    if target not in seen:
                        seen.add(target)
                        self._check(target)
                        waiting.append((target, _read_json(self._io, target)))
            if len(seen) > _MAX_FILES:
                raise SourceError(
                    f"{public_href(self._location)} has more than {_MAX_FILES} files",
                    kind="catalog-incomplete",
                )

    def _check(self, target: str) -> None:
        if _is_url(target) or _is_url(self._location):
            self._io.require_home(target)
        elif not Path(target).resolve().is_relative_to(Path(self._location).parent):
            self._policy.check(target)


def _list(document: _Item, field: str, location: str) -> list[Any]:
    found = document.get(field) or []
    if not isinstance(found, list):
        raise _senseless(location, f"a document with a list of {field}")
    return found


def _targets(document: _Item, base: str) -> Iterator[str]:
    """Where the links of a catalogue to its children and items lead."""
    for link in _list(document, "links", base):
        if isinstance(link, Mapping) and link.get("rel") in ("child", "item", "items"):
            yield _resolve(str(link.get("href")), base)


def _absolute(item: Any, base: str) -> Any:
    """Item with the hrefs of its assets made absolute."""
    assets = item.get("assets") if isinstance(item, Mapping) else None
    if not isinstance(assets, Mapping):
        return item
    changed = {
        key: {**asset, "href": _resolve(asset["href"], base)}
        if isinstance(asset, Mapping) and isinstance(asset.get("href"), str)
        else asset
        for key, asset in assets.items()
    }
    return {**item, "assets": changed}


def _resolve(href: str, base: str) -> str:
    if "://" in href or href.startswith("/"):
        return href
    if _is_url(base):
        return urljoin(base, href)
    return os.path.normpath(Path(base).parent / href)


def _read_json(io: _GuardedIO, location: str) -> dict[str, Any]:
    if _is_url(location):
        text = io.request(location)
    else:
        try:
            text = Path(location).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"no catalogue can be read at {location}: {error}") from None
    return _parse(text, location)


def _parse(text: str, location: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise _senseless(location, "a JSON object")
    return document


def _is_url(location: str) -> bool:
    return "://" in location


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}".lower()


def _moment(text: str | None, *, end_of_day: bool) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            f"{text!r} is neither a day like 2024-07-01 nor an RFC 3339 time"
        ) from None
    if len(text) == 10 and end_of_day:
        moment += timedelta(days=1, seconds=-1)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _interval(first: datetime | None, last: datetime | None) -> str | None:
    if first is None and last is None:
        return None
    ends = [m.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if m else ".." for m in (first, last)]
    return "/".join(ends)


def _revisits(
    scenes: Sequence[Scene], first: datetime | None, last: datetime | None
) -> tuple[Revisit, ...]:
    """Days on which each tile was seen, up to the last scene: a season may still be going on.

    The day of today plays no part, so that equal answers give equal counts.
    """
    days = [date.fromisoformat(scene.datetime[:10]) for scene in scenes if scene.datetime]
    if first is None or last is None or not days:
        return ()
    return count_revisits(scenes, start=first.date(), end=min(last.date(), max(days)))


def _is_clear_enough(scene: Scene, limit: float | None) -> bool:
    cloud = scene.cloud_percent
    return limit is None or scene.kind != "optical" or cloud is None or cloud <= limit
