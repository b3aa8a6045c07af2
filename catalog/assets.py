"""The trust border: which rasters may be opened, with which settings, and what their faults mean.

The one law: nothing is opened that the policy did not allow, and only as a GeoTIFF.
"""

from __future__ import annotations

import ipaddress
import os
import random
import re
import socket
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import numpy as np
import numpy.typing as npt
import urllib3

from catalog.checksums import check_file
from catalog.errors import DataError, SourceError, UsageError
from catalog.s3 import Bucket, bucket_entry, has_access, s3_env, split_url
from catalog.scenes import BandSource
from catalog.signing import Token, token_source

_SKIPPED_DRIVERS = "VRT GTI STACIT STACTA WMS WCS WMTS HTTP PLMOSAIC EEDA EEDAI DERIVED"
# ^ drivers that read other files or the network; GDAL heeds only the variable of the process, and
#   only before it is first used, so this stands above the import of rasterio
os.environ["GDAL_SKIP"] = " ".join(
    dict.fromkeys([*os.environ.get("GDAL_SKIP", "").split(), *_SKIPPED_DRIVERS.split()])
)

import rasterio  # noqa: E402
from affine import Affine  # noqa: E402
from rasterio.crs import CRS  # noqa: E402
from rasterio.errors import (  # noqa: E402
    CRSError,
    NotGeoreferencedWarning,
    RasterioError,
    RasterioIOError,
)
from rasterio.windows import Window  # noqa: E402

__all__ = ["AssetPolicy", "OpenAssets", "gdal_env", "public_href", "retrying"]

T = TypeVar("T")

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_MAX_PIXELS = 2_000_000_000
_MAX_BLOCK_BYTES = 128 * 2**20
# ^ a header can claim anything: GDAL allocates one block before it notices a lie
_MOST_OPEN = 160
# ^ an open GeoTIFF keeps the last block it has read, compressed: up to 2 MB each
_CONNECT_S, _READ_S = 5.0, 60.0
_TRIES = 5
_HTTP, _S3 = "/vsicurl/", "/vsis3/"
# ^ how GDAL names files behind a URL, and objects of a bucket
_GARBLED = "source-garbled"
# ^ the server answers, but not with a raster; after five times it is the content


def gdal_env() -> dict[str, str | int]:
    """GDAL settings under which every raster is opened."""
    return {
        "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
        "GDAL_PAM_ENABLED": "NO",
        # ^ an .aux.xml beside a raster could change what its pixels mean
        "GDAL_CACHEMAX": 64 * 2**20,
        "GDAL_NUM_THREADS": "1",
        "GDAL_HTTP_CONNECTTIMEOUT": str(int(_CONNECT_S)),
        "GDAL_HTTP_TIMEOUT": str(int(_READ_S)),
        "GDAL_HTTP_MAX_RETRY": "2",
        "GDAL_HTTP_RETRY_DELAY": "0.2",
        # ^ for single bad answers; it does not cure a body that was cut half-way, so we try again
        #   around it, see `retrying`
        "GDAL_INGESTED_BYTES_AT_OPEN": "32768",
        "CPL_VSIL_CURL_NON_CACHED": f"{_HTTP}:{_S3}",
        # ^ a failed answer must not be remembered by the next try
        "CPL_DEBUG": "OFF",
        "CPL_CURL_VERBOSE": "NO",
        # ^ at its loudest GDAL writes signed links and headers past every filter
        **s3_env(),
    }


def public_href(href: str) -> str:
    """Href as it may appear in logs and messages: no query string, no credentials."""
    text = re.sub(r"^/vsicurl/", "", re.sub(r"^/vsis3/", "s3://", str(href)))
    text = re.split(r"[?#]", text, maxsplit=1)[0]
    return re.sub(r"^([A-Za-z][A-Za-z0-9+.-]*://)[^/]*@", r"\1", text)


@dataclass(frozen=True, slots=True)
class AssetPolicy:
    """Which rasters may be opened."""

    allowed: tuple[str, ...]
    """Host names (``example.org``, ``*.example.org``, ``127.0.0.1:8080``), buckets
    (``s3://bucket``: read with the environment's credentials) and local folders (``/data``,
    ``./data``, ``~/data``)."""
    token_url: str = ""
    """Where tokens are given for links that must be signed; empty: links are opened as they are."""
    signed_hosts: tuple[str, ...] = ("*.blob.core.windows.net",)
    """Hosts whose links are signed, where there is a ``token_url``."""

    def __post_init__(self) -> None:
        for entry in self.allowed:
            host = re.fullmatch(r"(\*\.)?[A-Za-z0-9.-]+(:\d+)?", entry)
            if not (host or _is_folder(entry) or bucket_entry(entry)):
                raise UsageError(
                    f"{entry!r} is neither a host name nor a folder (a folder starts with '/', "
                    "'.' or '~') nor a bucket (s3://name)"
                )
        parts = urlsplit(self.token_url)
        safe = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)
        if self.token_url and (not safe or parts.query or "@" in parts.netloc):
            raise UsageError(
                f"{public_href(self.token_url)!r} gives no tokens: expected an https URL without "
                "user name and query string"
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready description, the inverse of :meth:`from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AssetPolicy:
        """Rebuild a policy from :meth:`to_dict`."""
        return cls(tuple(values["allowed"]), values["token_url"], tuple(values["signed_hosts"]))

    def signs(self, url: str) -> bool:
        """Whether a link is signed before it is opened."""
        if not self.token_url:
            return False
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port or 443
        return any(_host_matches(entry, host, port) for entry in self.signed_hosts)

    def check(self, href: str) -> str:
        """Path or URL under which GDAL may open an asset.

        Raises
        ------
        DataError
            ``href-refused``, before anything is contacted.
        """
        if not href or re.search(r"[\x00-\x1f\x7f]", href) or href != href.strip():
            raise _refused(href, "it is empty or contains control characters")
        if "://" in href and not re.fullmatch(r"[!-~]+", href):
            raise _refused(href, "a URL has no spaces and only ASCII characters")
        if href.startswith("s3://"):
            return self._check_object(href)
        if "://" in href:
            return self._check_url(href)
        return self._check_path(href)

    def check_address(self, url: str) -> None:
        """Refuse a host let in by a wildcard whose address is not a public one.

        Raises
        ------
        DataError
            ``href-refused``.
        SourceError
            Where the name cannot be resolved.
        """
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port or 443
        if any(_host_matches(entry, host, port) for entry in self.allowed if "*" not in entry):
            return
        if any(
            bucket_entry(e) and host == f"{split_url(e)[0]}.s3.amazonaws.com" for e in self.allowed
        ):
            return
        try:
            found = {str(info[4][0]) for info in socket.getaddrinfo(host, port)}
        except OSError as error:
            raise SourceError(f"host {host!r} cannot be resolved: {error}") from None
        if not all(ipaddress.ip_address(address).is_global for address in found):
            raise _refused(url, "its host has a private address")

    def _check_object(self, href: str) -> str:
        bucket, key = split_url(href)
        public = f"https://{bucket}.s3.amazonaws.com/{key}"
        if not any(bucket_entry(e) and split_url(e)[0] == bucket for e in self.allowed):
            return self._check_url(public)
        if not key or re.search(r"[?#]", key) or ".." in unquote(key).split("/"):
            raise _refused(href, "it names no object of its bucket")
        return f"{_S3}{bucket}/{key}" if has_access() else f"{_HTTP}{public}"

    def _check_url(self, href: str) -> str:
        try:
            parts = urlsplit(href)
            host, port = (parts.hostname or "").lower(), parts.port
        except ValueError:
            raise _refused(href, "it is not a URL") from None
        if parts.username is not None or parts.password is not None or "@" in parts.netloc:
            raise _refused(href, "it carries a user name")
        loopback = host in _LOOPBACK
        if parts.scheme != "https" and not (parts.scheme == "http" and loopback):
            raise _refused(href, f"scheme {parts.scheme!r} is not https")
        if ".." in unquote(parts.path).split("/"):
            raise _refused(href, "its path contains '..'")
        default = 443 if parts.scheme == "https" else 80
        if not any(_host_matches(entry, host, port or default) for entry in self.allowed):
            raise _refused(href, f"host {parts.netloc!r} is not among the allowed ones")
        return f"{_HTTP}{href}"

    def _check_path(self, href: str) -> str:
        path = Path(href)
        if not path.is_absolute() or href.startswith("/vsi") or path.suffix.lower() == ".vrt":
            raise _refused(href, "it is not the absolute path of a raster")
        try:
            real = path.resolve()
            folders = [Path(e).expanduser().resolve() for e in self.allowed if _is_folder(e)]
        except (OSError, RuntimeError) as error:
            raise _refused(href, f"it cannot be resolved ({error})") from error
        if not any(real.is_relative_to(folder) for folder in folders):
            raise _refused(href, "it lies in none of the allowed folders")
        return str(real)


def _is_folder(entry: str) -> bool:
    return entry.startswith(("/", "~", "."))


def _is_remote(path: str) -> bool:
    return path.startswith((_HTTP, _S3))


def _host_matches(entry: str, host: str, port: int) -> bool:
    if _is_folder(entry) or bucket_entry(entry):
        return False
    name, _, wanted_port = entry.lower().partition(":")
    if port != (int(wanted_port) if wanted_port else 443):
        return False
    if name.startswith("*."):
        return host.endswith(name[1:]) and len(host) > len(name) - 1
    return host == name


def _refused(href: str, why: str) -> DataError:
    return DataError(f"{public_href(href)[:300]!r} is not opened: {why}", kind="href-refused")


def retrying(
    work: Callable[[], T],
    *,
    before_retry: Callable[[], None] | None = None,
    tries: int = _TRIES,
    first_wait_s: float = 0.5,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Do something that may fail with a :class:`SourceError`, again after a growing pause.

    Parameters
    ----------
    work
        What to do.
    before_retry
        Called before each further try, for example to drop a handle.
    tries
        How often at most.
    first_wait_s
        Seconds before the second try; doubled each time, with jitter.
    sleep
        How to wait.

    Raises
    ------
    SourceError
        That of the last try.
    """
    jitter = random.SystemRandom()
    for attempt in range(tries):
        try:
            return work()
        except SourceError:
            if attempt == tries - 1:
                raise
        sleep(first_wait_s * 2**attempt * jitter.uniform(0.5, 1.5))
        if before_retry is not None:
            before_retry()
    raise UsageError(f"tries must be positive, found {tries}")


class OpenAssets:
    """The rasters one task has open. Not shared between threads; close it after use.

    Parameters
    ----------
    policy
        What may be opened.
    sleep
        How to wait between tries.
    """

    def __init__(self, policy: AssetPolicy, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._policy = policy
        self._sleep = sleep
        self._open: dict[str, Any] = {}
        self._paths: dict[str, str] = {}
        self._sizes: dict[str, int] = {}
        self._tokens: dict[str, Token] = {}
        self._buckets: dict[str, Bucket] = {}
        self._http = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=_CONNECT_S, read=_READ_S), retries=False
        )
        self._env = rasterio.Env(**gdal_env())

    def __enter__(self) -> OpenAssets:
        self._env.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for path in list(self._open):
            self._drop(path)
        self._http.clear()
        self._env.__exit__(kind, error, trace)

    def __dask_tokenize__(self) -> str:
        return "catalog.assets.OpenAssets"

    def dataset(self, band: BandSource) -> Any:
        """Open a band, or find it open, and hold its header against what the item promises.

        Returns
        -------
        rasterio.DatasetReader

        Raises
        ------
        DataError
            ``href-refused``, ``asset-missing``, ``asset-forbidden``, ``checksum-mismatch`` (local
            files only), ``not-a-geotiff``, ``raster-too-large`` or ``geo-mismatch``.
        SourceError
            Where the source cannot be reached in five tries.
        """
        path = self._path(band)
        try:
            return retrying(lambda: self._dataset(path, band), sleep=self._sleep)
        except SourceError as error:
            if error.kind != _GARBLED:
                raise
            raise DataError(str(error), kind="not-a-geotiff") from None

    def _path(self, band: BandSource) -> str:
        if band.href not in self._paths:
            self._paths[band.href] = self._policy.check(band.href)
        return self._paths[band.href]

    def _dataset(self, path: str, band: BandSource) -> Any:
        if path in self._open and not self._is_fresh(path):
            self._drop(path)
        dataset = self._open.pop(path, None)
        if dataset is None:
            while len(self._open) >= _MOST_OPEN:
                self._drop(next(iter(self._open)))
            dataset = self._open_checked(path, band)
        self._open[path] = dataset
        # ^ last in order, so that the one longest unused is closed first
        return dataset

    def _is_fresh(self, path: str) -> bool:
        """Whether an open raster's link carries the token of the day, or needs none."""
        used = self._tokens.get(path)
        return used is None or used is self._token(path)

    def _token(self, path: str, *, refused: Token | None = None) -> Token:
        url = path.removeprefix(_HTTP)
        return token_source(self._policy.token_url).token(url, refused=refused)

    def read(self, band: BandSource, window: Window, *, shrink: int = 1) -> npt.NDArray[Any]:
        """Read a window of pixels in the asset's own grid.

        Parameters
        ----------
        band, window
            Which pixels.
        shrink
            Factor of an overview that the raster has, to read that in the place of its pixels; the
            window begins and ends at multiples of it.

        Returns
        -------
        ``(y, x)`` array of the asset's dtype

        Raises
        ------
        DataError
            As :meth:`dataset`, and ``raster-truncated`` where pixels are missing or broken.
        SourceError
            Where the source cannot be reached in five tries.
        """
        path = self._path(band)
        self.dataset(band)
        shape = (int(window.height) // shrink, int(window.width) // shrink)

        def attempt() -> npt.NDArray[Any]:
            try:
                pixels: npt.NDArray[Any] = self._dataset(path, band).read(
                    1, window=window, out_shape=shape
                )
            except RasterioError as error:
                raise self._read_fault(path, window, error) from None
            return pixels

        return retrying(attempt, before_retry=lambda: self._drop(path), sleep=self._sleep)

    def _drop(self, path: str) -> None:
        dataset = self._open.pop(path, None)
        if dataset is not None:
            dataset.close()

    def _open_checked(self, path: str, band: BandSource) -> Any:
        opened = path
        if path.startswith(_HTTP):
            opened = f"{_HTTP}{self._probe(path)}"
        elif path.startswith(_S3):
            bucket, key = split_url(path)
            if bucket not in self._buckets:
                self._buckets[bucket] = Bucket(bucket, connect_s=_CONNECT_S, read_s=_READ_S)
            self._sizes[path] = self._buckets[bucket].size(key)
        elif not Path(path).is_file():
            raise DataError(f"{path} does not exist", kind="asset-missing")
        elif band.checksum is not None:
            check_file(Path(path), band.checksum)
            # ^ of a remote file only ranges are read, and its checksum is of the whole
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NotGeoreferencedWarning)
                # ^ the header is held against the item's promise below
                dataset = rasterio.open(opened, driver="GTiff", sharing=False)
        except RasterioIOError as error:
            raise self._open_fault(path, error) from None
        try:
            _check_header(dataset, band)
        except DataError:
            dataset.close()
            raise
        return dataset

    def _probe(self, path: str) -> str:
        """Ask for the first byte: GDAL's own errors do not tell an absence from an outage.

        Returns the URL that answered, signed where it must be.
        """
        url = path.removeprefix(_HTTP)
        self._policy.check_address(url)
        if not self._policy.signs(url):
            self._check_status(path, *self._first_byte(url))
            return url
        token = self._token(path)
        status, size = self._first_byte(token.sign(url))
        if status == 403:
            token = self._token(path, refused=token)
            status, size = self._first_byte(token.sign(url))
        self._check_status(path, status, size)
        self._tokens[path] = token
        return token.sign(url)

    def _first_byte(self, url: str) -> tuple[int, str]:
        """Status of the answer, and its ``content-range``."""
        try:
            answer = self._http.request(
                "GET", url, headers={"Range": "bytes=0-0"}, redirect=False, preload_content=False
            )
            status, size = answer.status, answer.headers.get("content-range", "")
            answer.close()
        except urllib3.exceptions.HTTPError as error:
            raise SourceError(
                f"{public_href(url)} cannot be reached: {type(error).__name__}"
            ) from None
        return status, size

    def _check_status(self, path: str, status: int, size: str) -> None:
        if 300 <= status < 400:
            raise _refused(path, "it is a redirect, and those are not followed")
        if status == 429 or status >= 500:
            raise SourceError(f"{public_href(path)} answers HTTP {status}")
        if status >= 400:
            kind = "asset-forbidden" if status in (401, 403) else "asset-missing"
            raise DataError(f"{public_href(path)} answers HTTP {status}", kind=kind)
        total = size.rpartition("/")[2]
        if total.isdigit():
            self._sizes[path] = int(total)

    def _open_fault(self, path: str, error: Exception) -> DataError | SourceError:
        text = f"{public_href(path)} is not a readable GeoTIFF: {_fault_text(error)}"
        garbage = "not recognized as" in str(error) and path not in self._tokens
        # ^ GDAL may take the refusal of a token for the file
        if garbage or not _is_remote(path):
            return DataError(text, kind="not-a-geotiff")
        return SourceError(text, kind=None if "HTTP" in str(error) else _GARBLED)

    def _read_fault(
        self, path: str, window: Window, error: BaseException
    ) -> DataError | SourceError:
        text = f"pixels of {public_href(path)} cannot be read: {_fault_text(error)}"
        size = self._sizes.get(path)
        if not _is_remote(path) or (
            size is not None and _last_byte(self._open[path], window) > size
        ):
            return DataError(text, kind="raster-truncated")
        return SourceError(text)


def _last_byte(dataset: Any, window: Window) -> int:
    """Where in the file the pixels of a window end, from the offsets in its header."""
    height, width = dataset.block_shapes[0]
    rows = range(
        int(window.row_off) // height, int(window.row_off + window.height - 1) // height + 1
    )
    cols = range(int(window.col_off) // width, int(window.col_off + window.width - 1) // width + 1)
    ends = [0]
    for row in rows:
        for col in cols:
            place = (f"{name}_{col}_{row}" for name in ("BLOCK_OFFSET", "BLOCK_SIZE"))
            offset, size = (dataset.get_tag_item(item, "TIFF", bidx=1) for item in place)
            ends.append(int(offset or 0) + int(size or 0))
    return max(ends)


def _fault_text(error: BaseException) -> str:
    """Messages of an error and its causes, without any query string or fragment."""
    texts: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(texts) < 4:
        texts.append(re.sub(r"[?#][^\s'\"]*", "", str(cause)))
        cause = cause.__cause__ or cause.__context__
    return "; ".join(dict.fromkeys(texts))[:400]


def _check_header(dataset: Any, band: BandSource) -> None:
    name = public_href(dataset.name)
    rows, cols = dataset.shape
    block = int(np.prod(dataset.block_shapes[0])) * np.dtype(dataset.dtypes[0]).itemsize
    if dataset.count != 1:
        raise DataError(f"{name} has {dataset.count} bands, expected 1", kind="geo-mismatch")
    if rows * cols > _MAX_PIXELS or block > _MAX_BLOCK_BYTES:
        raise DataError(
            f"{name} claims {rows} x {cols} pixels in blocks of {block} bytes",
            kind="raster-too-large",
        )
    if dataset.crs is None:
        raise DataError(f"{name} has no projection", kind="geo-mismatch")
    if band.crs is not None and dataset.crs != _parsed_crs(band.crs):
        raise DataError(
            f"{name} is in {dataset.crs.to_string()[:80]}, its item promises {band.crs[:80]}",
            kind="geo-mismatch",
        )
    found = dataset.transform
    if found.b or found.d or found.a <= 0 or found.e >= 0:
        raise DataError(f"{name} is rotated or not north-up", kind="geo-mismatch")
    if band.shape is not None and (rows, cols) != band.shape:
        raise DataError(
            f"{name} has {rows} x {cols} pixels, its item promises {band.shape}",
            kind="geo-mismatch",
        )
    if band.transform is not None:
        relative = ~found @ Affine(*band.transform)
        end_col, end_row = relative @ (cols, rows)
        off = (relative.c, relative.f, end_col - cols, end_row - rows)
        if max(abs(pixels) for pixels in off) > 0.01:
            raise DataError(
                f"{name} lies at {found[:6]}, its item promises {band.transform}",
                kind="geo-mismatch",
            )


def _parsed_crs(text: str) -> CRS:
    try:
        return CRS.from_user_input(text)
    except CRSError:
        raise DataError(f"{text[:80]!r} is not a projection", kind="geo-mismatch") from None
