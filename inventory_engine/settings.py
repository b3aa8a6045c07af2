"""What a glaciologist writes: one YAML file, checked completely before any work.

Every finding names the key, its line in the file, what was expected and the nearest valid name; all
findings are reported at once. This is also the one module that sets the process environment.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from datetime import date
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from catalog.assets import public_href
from inventory_engine.sensor_settings import UserSensor, require_kinds

__all__ = [
    "CatalogSettings",
    "CollectionSettings",
    "ComputeSettings",
    "CoregistrationSettings",
    "DaskSettings",
    "GridSettings",
    "InventorySettings",
    "LayerSettings",
    "ModelSettings",
    "PublicationSettings",
    "RaySettings",
    "SeasonSettings",
    "Settings",
    "environment_secrets",
    "set_process_environment",
    "settings_json",
]

_LABEL = r"^[A-Za-z0-9][A-Za-z0-9-]{0,31}$"
_TAKEN_LABELS = re.compile(r"region|terrain|layers|x|y|\d+m")
# ^ arrays of the cube and units of the receipts that lie beside the seasons
_KNOWN_HOSTS = {
    "earth-search.aws.element84.com": (
        "sentinel-cogs.s3.us-west-2.amazonaws.com",
        "e84-earth-search-sentinel-data.s3.us-west-2.amazonaws.com",
        "copernicus-dem-30m.s3.amazonaws.com",
        "copernicus-dem-30m.s3.eu-central-1.amazonaws.com",
        "copernicus-dem-90m.s3.amazonaws.com",
        "copernicus-dem-90m.s3.eu-central-1.amazonaws.com",
    ),
    "planetarycomputer.microsoft.com": ("*.blob.core.windows.net",),
}
# ^ where the assets of a large public catalogue lie
_TOKEN_URLS = {
    "planetarycomputer.microsoft.com": "https://planetarycomputer.microsoft.com/api/sas/v1/token",
}
# ^ catalogues whose links must be signed, and where the tokens for that are given

CompositeName = Literal["least_snow", "best_scene", "median", "medoid"]

Workers = Literal["auto"] | Annotated[int, Field(ge=1, le=1024)]
"""A number of worker processes, or ``auto``: as many as cores and memory allow."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class CollectionSettings(_Strict):
    """Collections of the catalogue, by what they are used for."""

    optical: list[str] = Field(min_length=1)
    """Sentinel-2 and Landsat collections."""
    sar: list[str] = Field(default_factory=list)
    """Terrain-corrected Sentinel-1 collections; none: radar is not used."""
    dem: list[str] = Field(default_factory=list)
    """Elevation collections; none: terrain is not used."""


class CatalogSettings(_Strict):
    """Where scenes are searched and from where their files may be read."""

    url: str = Field(min_length=1)
    """STAC API URL, or the path of a static catalogue or item collection."""
    collections: CollectionSettings
    allowed: list[str] = Field(default_factory=list)
    """Hosts and folders assets may lie in; empty: the catalogue's own and its known ones."""
    max_cloud_percent: float = Field(default=80.0, ge=0, le=100)
    sar_orbit: Literal["both", "ascending", "descending"] = "both"
    """Which passes of radar are used."""

    @field_validator("url")
    @classmethod
    def _no_secret(cls, url: str) -> str:
        if "://" in url:
            parts = urlsplit(url)
            if parts.scheme not in {"http", "https"} or not parts.hostname:
                raise ValueError("expected an http(s) URL or a path")
            if parts.username or parts.query:
                raise ValueError("expected a URL without user name, password or query string")
        return url

    @property
    def is_api(self) -> bool:
        """Whether the catalogue is a server rather than a file."""
        return "://" in self.url

    @property
    def policy_allowed(self) -> tuple[str, ...]:
        """Hosts and folders assets may be read from."""
        if self.allowed:
            return tuple(self.allowed)
        if not self.is_api:
            path = Path(self.url)
            return (str(path if path.is_dir() else path.parent),)
        parts = urlsplit(self.url)
        host, port = parts.hostname or "", parts.port or {"http": 80}.get(parts.scheme, 443)
        own = host if port == 443 else f"{host}:{port}"
        return (own, *_KNOWN_HOSTS.get(host, ()))

    @property
    def token_url(self) -> str:
        """Where tokens are given for the links of the catalogue; empty where it needs none."""
        return _TOKEN_URLS.get(urlsplit(self.url).hostname or "", "") if self.is_api else ""

    @property
    def public_url(self) -> str:
        """The catalogue's name for a report: a file name, or a URL without a loopback port."""
        if not self.is_api:
            return Path(self.url).name
        parts = urlsplit(self.url)
        if parts.hostname in {"127.0.0.1", "localhost", "::1"}:
            return f"{parts.scheme}://{parts.hostname}{parts.path}"
        # ^ a port that was free by chance says nothing about the result
        return self.url


class SeasonSettings(_Strict):
    """One window of acquisition dates, both days included, and how its scenes become one."""

    start: date
    end: date
    optical: list[str] | None = Field(default=None, min_length=1)
    """Optical collections of this season; those of the catalogue section by default."""
    sar: list[str] | None = None
    """Radar collections of this season, [] for none; those of the catalogue section by default."""
    composite: CompositeName = "least_snow"
    """Which look is taken at each pixel, see ``catalog.composites``."""
    resolution_m: float | None = Field(default=None, ge=1, le=1000)
    """Pixel of this season: the region's own times a whole number, for coarser sensors."""

    @model_validator(mode="after")
    def _in_order(self) -> SeasonSettings:
        if self.end <= self.start:
            raise ValueError(f"expected end after start, found {self.start} to {self.end}")
        return self


class GridSettings(_Strict):
    """The pixel grid; fixed for the life of a workspace."""

    resolution_m: float = Field(default=10.0, ge=1, le=1000)
    margin_m: float = Field(default=1000.0, ge=0, le=100_000)
    """How far around the outlines is mapped."""
    shard_px: int = Field(default=2048, ge=64, le=16384)
    """Edge of the unit of work."""
    chunk_px: int = Field(default=512, ge=16, le=4096)

    @model_validator(mode="after")
    def _whole_chunks(self) -> GridSettings:
        if self.shard_px % self.chunk_px:
            raise ValueError(
                f"expected shard_px to be a multiple of chunk_px, "
                f"found {self.shard_px} and {self.chunk_px}"
            )
        return self


class ModelSettings(_Strict):
    """Which ensemble maps the ice."""

    ensemble: str = "default"
    """``default`` or the folder of an ensemble made by ``inventory-engine train``."""
    runtime: Literal["auto", "fused", "torch", "onnx", "openvino", "cuda"] = "auto"
    """How the networks are run; ``inventory-engine doctor`` says which can run here."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """``bfloat16``: with OpenVINO, faster on processors that have it, or on GPUs."""


class CoregistrationSettings(_Strict):
    """How scenes are laid on each other."""

    measure: bool = True
    """Whether each scene's shift is measured, corrected above half a pixel, and counted."""
    reference: str | None = None
    """Season whose scenes the others are laid on; by default the last of the first run."""


class LayerSettings(_Strict):
    """Rasters of the user's own that are brought onto the grid."""

    files: list[str] = Field(min_length=1)
    """GeoTIFFs of one band."""
    scale: float = 1.0
    offset: float = 0.0
    """Value = pixel x scale + offset."""
    nodata: float | None = None

    @field_validator("scale")
    @classmethod
    def _not_zero(cls, scale: float) -> float:
        if scale == 0:
            raise ValueError("expected a number other than 0")
        return scale


class InventorySettings(_Strict):
    """How outlines are drawn."""

    growth_m: float = Field(default=150.0, ge=0, le=5000)
    """How far ice may be found beyond the reference outline."""
    min_area_km2: float = Field(default=0.01, ge=0, le=10)
    """Smaller polygons are not published (RGI: 0.01)."""


class PublicationSettings(_Strict):
    """Who stands behind an inventory; told in the table of submissions of its package."""

    affiliation: str = Field(default="", max_length=254)
    submitters: str = Field(default="", max_length=254)
    analysts: str = Field(default="", max_length=254)


class DaskSettings(_Strict):
    """Where cubes and outlines are made."""

    address: str = "local"
    """``local``, ``serial`` or the address of a scheduler."""
    workers: Workers = "auto"
    threads_per_worker: int = Field(default=1, ge=1, le=64)


class RaySettings(_Strict):
    """Where maps are made."""

    address: str = "local"
    """``local``, ``serial`` or the address of a cluster."""
    workers: Workers = "auto"
    gpus_per_worker: float = Field(default=1.0, gt=0, le=1)
    """Share of a GPU that each worker holds; with ``model.runtime: cuda`` only."""


class ComputeSettings(_Strict):
    """Where the work runs; never changes a result, except ``threads_per_task``."""

    dask: DaskSettings = DaskSettings()
    ray: RaySettings = RaySettings()
    threads_per_task: int = Field(default=1, ge=1, le=64)
    """Threads of one inference task; part of a map's fingerprint."""


class Settings(_Strict):
    """Everything one region's run needs to know."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 _.-]{0,63}$")
    outlines: str = Field(min_length=1)
    """Reference outlines: RGI 7, RGI 6, GLIMS or a national inventory."""
    outlines_id_field: str | None = None
    """Attribute that names a glacier, where it cannot be recognised."""
    catalog: CatalogSettings
    seasons: dict[Annotated[str, Field(pattern=_LABEL)], SeasonSettings] = Field(min_length=1)
    grid: GridSettings = GridSettings()
    model: ModelSettings = ModelSettings()
    inventory: InventorySettings = InventorySettings()
    publication: PublicationSettings = PublicationSettings()
    workspace: str = Field(min_length=1)
    """A folder or an object-store URL."""
    compute: ComputeSettings = ComputeSettings()
    coregistration: CoregistrationSettings = CoregistrationSettings()
    layers: dict[Literal["dhdt", "coherence"], LayerSettings] = Field(default_factory=dict)
    """Elevation change (m per year) and radar coherence (0 to 1)."""
    sensors: dict[str, UserSensor] = Field(default_factory=dict)
    """Collections that the user describes, see ``inventory_engine.sensor_settings``."""

    @model_validator(mode="after")
    def _sensors_in_place(self) -> Settings:
        require_kinds(self.sensors, self.catalog.collections.model_dump())
        return self

    @field_validator("seasons")
    @classmethod
    def _distinct_seasons(cls, seasons: dict[str, SeasonSettings]) -> dict[str, SeasonSettings]:
        taken = sorted(label for label in seasons if _TAKEN_LABELS.fullmatch(label))
        if taken:
            raise ValueError(f"expected a label that the store does not use itself: not {taken[0]}")
        windows = [(s.start, s.end) for s in seasons.values()]
        if len(set(windows)) != len(windows):
            raise ValueError("expected windows that differ, found the same one twice")
        return seasons

    @model_validator(mode="after")
    def _whole_multiples(self) -> Settings:
        for label, season in self.seasons.items():
            fine, coarse = self.grid.resolution_m, season.resolution_m
            if coarse is None:
                continue
            multiple = round(coarse / fine)
            if multiple < 1 or abs(multiple * fine - coarse) > 1e-9 * coarse:
                raise ValueError(
                    f"expected seasons.{label}.resolution_m to be a whole multiple of "
                    f"grid.resolution_m, found {coarse:g} and {fine:g}"
                )
            if self.grid.chunk_px % multiple:
                fit = self.grid.chunk_px // multiple * multiple or multiple
                per_shard = self.grid.shard_px // self.grid.chunk_px
                raise ValueError(
                    f"expected chunks that are a whole number of pixels of {coarse:g} m in season "
                    f"{label}: with chunk_px {fit} and shard_px {fit * per_shard} they are"
                )
        return self

    @model_validator(mode="after")
    def _known_reference(self) -> Settings:
        label = self.coregistration.reference
        if label is not None and label not in self.seasons:
            known = ", ".join(self.seasons)
            raise ValueError(
                f"expected coregistration.reference to be a season, found {label!r}; known are "
                f"{known}"
            )
        return self

    def multiple(self, label: str) -> int:
        """Edge of a season's pixel in pixels of the region's grid."""
        coarse = self.seasons[label].resolution_m
        return 1 if coarse is None else round(coarse / self.grid.resolution_m)

    @property
    def multiples(self) -> list[int]:
        """All pixel sizes of the region, in pixels of its grid; the grid's own is always there."""
        return sorted({1, *map(self.multiple, self.seasons)})

    def collections_of(self, label: str) -> CollectionSettings:
        """Collections a season is made of."""
        season, default = self.seasons[label], self.catalog.collections
        return CollectionSettings(
            optical=default.optical if season.optical is None else season.optical,
            sar=default.sar if season.sar is None else season.sar,
            dem=default.dem,
        )

    @property
    def season_labels(self) -> list[str]:
        """Labels in the order of time."""
        return sorted(self.seasons, key=lambda k: (self.seasons[k].start, self.seasons[k].end, k))

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Pairs whose change is reported: each with the next, and the first with the last."""
        labels = self.season_labels
        pairs = list(itertools.pairwise(labels))
        if len(labels) > 2:
            pairs.append((labels[0], labels[-1]))
        return pairs

    def public(self) -> dict[str, Any]:
        """JSON-ready settings that shape the result: no paths of this machine, no compute."""
        values = self.model_dump(mode="json", exclude={"workspace", "compute"})
        values["outlines"] = Path(self.outlines).name
        values["model"]["ensemble"] = Path(self.model.ensemble).name
        values["catalog"].pop("allowed")
        values["catalog"]["url"] = self.catalog.public_url
        for layer in values["layers"].values():
            layer["files"] = [PurePosixPath(public_href(file)).name for file in layer["files"]]
        return values


def set_process_environment(*, reuse_memory: bool = False) -> dict[str, str]:
    """Set what libraries read from the environment of this process and its workers.

    Parameters
    ----------
    reuse_memory
        Let worker processes that are started from now on keep the memory of large arrays for the
        next ones, instead of giving each back to the system and asking for it again.

    Returns
    -------
    dict
        The variables that were set here; what the user has set already is kept.
    """
    wanted = {
        "RAY_AUTH_MODE": "disabled",
        # ^ the local cluster binds to loopback only
        "RAY_DEDUP_LOGS_SKIP_REGEX": ".*",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DISABLE_DOCKER_CPU_WARNING": "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "OGR_CURRENT_DATE": "2000-01-01T00:00:00Z",
        # ^ GeoPackage writes the date of the run into the file otherwise
    }
    if reuse_memory:
        wanted |= {
            "MALLOC_ARENA_MAX": "1",
            "MALLOC_MMAP_THRESHOLD_": str(2**30),
            "MALLOC_TRIM_THRESHOLD_": str(2**32),
        }
        # ^ read by glibc: mapping one shard took 800,000 page faults without, and none with them
    new = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(new)
    return new


def environment_secrets() -> list[str]:
    """Values of environment variables whose names say that they are secret."""
    telling = re.compile(
        r"SECRET|TOKEN|PASSWORD|ACCESS_KEY|SUBSCRIPTION_KEY|CREDENTIAL|SAS_", re.IGNORECASE
    )
    return sorted(
        {v for k, v in os.environ.items() if telling.search(k) and len(v) >= 8},
        key=len,
        reverse=True,
    )


def settings_json(settings: Settings) -> str:
    """Write settings as sorted JSON, for logs and fingerprints."""
    return json.dumps(settings.model_dump(mode="json"), sort_keys=True)
