"""Rasters in S3 buckets: with which rights they are read, and what a refusal means.

A bucket is read with the credentials of the environment only where the policy names it as
``s3://bucket``; a credential is never used for a bucket that nobody named.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store

from catalog.errors import DataError, SourceError

__all__ = ["Bucket", "bucket_entry", "has_access", "s3_env", "split_url"]

_BUCKET = r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"
_WAYS_TO_SIGN = (
    ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    ("AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE"),
    ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",),
    ("AWS_CONTAINER_CREDENTIALS_FULL_URI",),
)
# ^ of a user, of a Kubernetes service account, of a container


def bucket_entry(entry: str) -> bool:
    """Whether an entry of a policy names a bucket: ``s3://bucket``."""
    return re.fullmatch(rf"s3://{_BUCKET}/?", entry) is not None


def split_url(href: str) -> tuple[str, str]:
    """Bucket and key of ``s3://bucket/key``, or of GDAL's ``/vsis3/bucket/key``."""
    bucket, _, key = re.sub(r"^(s3://|/vsis3/)", "", href).partition("/")
    return bucket, key


def has_access() -> bool:
    """Whether the environment holds credentials, or names an endpoint of its own."""
    return _signs() or _endpoint() is not None


def _signs() -> bool:
    return any(all(os.environ.get(name) for name in way) for way in _WAYS_TO_SIGN)


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def _payer() -> bool:
    return os.environ.get("AWS_REQUEST_PAYER", "").lower() == "requester"


def s3_env() -> dict[str, str]:
    """GDAL's names for what the environment says about S3; keys and tokens it reads itself."""
    options = {"AWS_REGION": _region()}
    endpoint = _endpoint()
    if endpoint is not None:
        parts = urlsplit(endpoint)
        options |= {
            "AWS_S3_ENDPOINT": parts.netloc + parts.path.rstrip("/"),
            "AWS_HTTPS": "NO" if parts.scheme == "http" else "YES",
            "AWS_VIRTUAL_HOSTING": "FALSE",
        }
    if not _signs():
        options["AWS_NO_SIGN_REQUEST"] = "YES"
    if _payer():
        options["AWS_REQUEST_PAYER"] = "requester"
    return options


def _region() -> str:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"


class Bucket:
    """A bucket whose objects are asked for their size before GDAL reads them.

    Parameters
    ----------
    name
        Of the bucket.
    connect_s, read_s
        Seconds after which an attempt is given up.
    """

    def __init__(self, name: str, *, connect_s: float, read_s: float) -> None:
        config: dict[str, Any] = {
            "region": _region(),
            "virtual_hosted_style_request": _endpoint() is None,
            "skip_signature": not _signs(),
            "request_payer": _payer(),
        }
        endpoint = _endpoint()
        if endpoint is not None:
            config["endpoint"] = endpoint.rstrip("/")
        limits: Mapping[str, Any] = {
            "connect_timeout": f"{connect_s:g}s",
            "timeout": f"{read_s:g}s",
            "allow_http": os.environ.get("AWS_ALLOW_HTTP", "").lower() == "true",
        }
        self._name = name
        self._store = S3Store(
            name, config=config, client_options=limits, retry_config={"max_retries": 0}
        )

    def size(self, key: str) -> int:
        """Bytes of an object.

        Raises
        ------
        DataError
            ``asset-missing`` where it is not there, ``asset-forbidden`` where it may not be read.
        SourceError
            Where the server does not answer as it should. No message repeats the server's, which
            may repeat what was signed.
        """
        where = f"s3://{self._name}/{key}"
        try:
            return int(obstore.head(self._store, key)["size"])
        except FileNotFoundError:
            raise DataError(f"{where} is not there", kind="asset-missing") from None
        except (PermissionDeniedError, UnauthenticatedError):
            raise DataError(
                f"{where} may not be read with the credentials of the environment; where the "
                "reader pays, set AWS_REQUEST_PAYER=requester",
                kind="asset-forbidden",
            ) from None
        except obstore.exceptions.BaseError as error:
            raise SourceError(
                f"{where} cannot be reached ({type(error).__name__}); see AWS_REGION, and with a "
                "server of your own AWS_ENDPOINT_URL and AWS_ALLOW_HTTP"
            ) from None
