"""Signed links: tokens for files that a catalogue lends, such as those of the Planetary Computer.

The one law: a token lives in the memory of one process and in the requests it signs, nowhere else.
Scenes, fingerprints, receipts and saved searches keep the plain link; it is signed when it is
opened.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import urllib3

from catalog.errors import DataError, SourceError, UsageError

__all__ = ["SUBSCRIPTION_KEY", "Token", "TokenSource", "token_source", "unsigned"]

SUBSCRIPTION_KEY = "PC_SDK_SUBSCRIPTION_KEY"
"""Environment variable of a subscription key; without one the service allows fewer requests."""
_RENEW_S = 300.0
_LONGEST_WAIT_S = 60
_TALKATIVE = (
    "rasterio",
    "rasterio._base",
    "rasterio._env",
    "rasterio._err",
    "rasterio._io",
    "rasterio.env",
    "urllib3.connectionpool",
    "urllib3.util.retry",
)
# ^ loggers that write whole URLs when they are asked for everything


@dataclass(frozen=True, slots=True, eq=False)
class Token:
    """A shared access signature for one container, told apart by identity."""

    _query: str = field(repr=False)
    renew_at: float
    """On the clock of its source, seconds."""

    def sign(self, href: str) -> str:
        """Link with this signature in the place of any other; the result is a secret."""
        plain = unsigned(href)
        return f"{plain}{'&' if '?' in plain else '?'}{self._query}"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a token stays in its process")


def unsigned(href: str) -> str:
    """Link without a signature; another query string stays."""
    plain, _, query = href.partition("?")
    return plain if re.search(r"(^|&)sig=", query) else href


class TokenSource:
    """The tokens of one service, each asked for once for all threads and kept until it ages.

    Parameters
    ----------
    url
        Where tokens are given: ``<url>/<account>/<container>`` answers with ``token`` and
        ``msft:expiry``.
    backoff_s
        Seconds before a failed request is made again; doubled each time, five times. A longer wait
        that the service asks for is kept to, up to a minute.
    clock
        Seconds that only grow.
    """

    def __init__(
        self,
        url: str,
        *,
        backoff_s: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.url = url.rstrip("/")
        self._clock = clock
        self._lock = threading.Lock()
        self._shelves: dict[tuple[str, str], _Shelf] = {}
        retry = urllib3.Retry(
            total=5,
            redirect=False,
            backoff_factor=backoff_s,
            backoff_jitter=backoff_s,
            status_forcelist=(429, 500, 502, 503, 504),
            raise_on_status=False,
            retry_after_max=_LONGEST_WAIT_S,
        )
        self._http = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=5.0, read=60.0), retries=retry
        )
        for name in _TALKATIVE:
            logging.getLogger(name).addFilter(_keep_queries_out)

    def __repr__(self) -> str:
        return f"TokenSource({self.url!r})"

    def token(self, href: str, *, refused: Token | None = None) -> Token:
        """Token for the container that a link leads into.

        It is renewed when it has less than five minutes to live, or half its life where it lives
        for less than ten.

        Parameters
        ----------
        href
            Link to a blob.
        refused
            A token that the storage did not take: if it is still the one at hand, it is replaced.

        Raises
        ------
        DataError
            ``href-refused`` where the link names no container, ``asset-forbidden`` where the
            service gives no token for it.
        SourceError
            ``signing-unavailable`` where the service cannot be reached or makes no sense.
        UsageError
            ``subscription-refused`` where the service wants another subscription key.
        """
        place = _container(href)
        with self._lock:
            shelf = self._shelves.setdefault(place, _Shelf())
        with shelf.lock:
            kept = shelf.token
            if kept is None or kept is refused or self._clock() >= kept.renew_at:
                kept = shelf.token = self._ask("/".join(place))
            return kept

    def _ask(self, place: str) -> Token:
        key = os.environ.get(SUBSCRIPTION_KEY)
        headers = {"Ocp-Apim-Subscription-Key": key} if key else None
        try:
            answer = self._http.request("GET", f"{self.url}/{place}", headers=headers)
        except urllib3.exceptions.HTTPError as error:
            raise self._fault(f"cannot be reached: {type(error).__name__}") from None
        if answer.status == 401:
            raise UsageError(
                f"{self.url} wants {'another' if key else 'a'} subscription key in the environment "
                f"variable {SUBSCRIPTION_KEY}",
                kind="subscription-refused",
            )
        if answer.status in (400, 404):
            raise DataError(
                f"{self.url} gives no token for {place}: HTTP {answer.status}",
                kind="asset-forbidden",
            )
        if answer.status != 200:
            raise self._fault(f"answers HTTP {answer.status}")
        try:
            return self._parse(answer)
        except (ValueError, TypeError, LookupError):
            raise self._fault("answers with something that is not a token that lives") from None

    def _parse(self, answer: Any) -> Token:
        given = answer.json()
        query = str(given["token"]).removeprefix("?")
        expiry, now = datetime.fromisoformat(given["msft:expiry"]), datetime.now(UTC)
        if "date" in answer.headers:
            now = parsedate_to_datetime(answer.headers["date"])
            # ^ by the service's own clock: that of this machine may be wrong
        life = (expiry - now).total_seconds()
        if life <= 0 or not re.fullmatch(r"[!-~]*\bsig=[!-~]+", query):
            raise ValueError
        return Token(query, self._clock() + max(life - _RENEW_S, life / 2))

    def _fault(self, what: str) -> SourceError:
        return SourceError(f"{self.url} {what}", kind="signing-unavailable")


@dataclass(slots=True)
class _Shelf:
    """Place of one container's token; whoever asks for it holds the lock."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    token: Token | None = None


@lru_cache(maxsize=8)
def token_source(url: str) -> TokenSource:
    """Source of tokens that all tasks of this process share."""
    return TokenSource(url)


def _container(href: str) -> tuple[str, str]:
    """Storage account and container that a link leads into."""
    parts = urlsplit(href)
    account = (parts.hostname or "").partition(".")[0]
    container, _, blob = parts.path.lstrip("/").partition("/")
    if not blob or not re.fullmatch(r"[a-z0-9-]+/[a-z0-9$-]+", f"{account}/{container}"):
        raise DataError(
            f"{parts.hostname}{parts.path} is not opened: it names no blob in a container",
            kind="href-refused",
        )
    return account, container


def _keep_queries_out(record: logging.LogRecord) -> bool:
    """Log filter: query strings of URLs are left out of the message."""
    text = record.getMessage()
    if "?" in text:
        record.msg, record.args = re.sub(r"\?[^\s'\"<>]*", "?***", text), ()
    return True
