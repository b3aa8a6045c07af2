"""What a glaciologist writes: one YAML file, checked completely before any work.

Every finding names the key, its line in the file, what was expected and the nearest valid name; all
findings are reported at once. This is also the one module that sets the process environment.
"""

from __future__ import annotations

import difflib
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from catalog.errors import UsageError

__all__ = [
    "EXAMPLE",
    "CatalogSettings",
    "CollectionSettings",
    "ComputeSettings",
    "DaskSettings",
    "GridSettings",
    "InventorySettings",
    "ModelSettings",
    "RaySettings",
    "SeasonSettings",
    "Settings",
    "environment_secrets",
    "load_settings",
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
    ),
}
# ^ where the assets of a large public catalogue lie
_SIGNED_ONLY = {"planetarycomputer.microsoft.com"}
# ^ catalogues whose files cannot be read without a signed link, which the engine does not make

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

    @field_validator("url")
    @classmethod
    def _no_secret(cls, url: str) -> str:
        if "://" in url:
            parts = urlsplit(url)
            if parts.scheme not in {"http", "https"} or not parts.hostname:
                raise ValueError("expected an http(s) URL or a path")
            if parts.username or parts.query:
                raise ValueError("expected a URL without user name, password or query string")
            if parts.hostname in _SIGNED_ONLY:
                raise ValueError(
                    "expected a catalogue whose files are open to read: the files of "
                    f"{parts.hostname} need signed links, which this version does not make"
                )
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


class InventorySettings(_Strict):
    """How outlines are drawn."""

    growth_m: float = Field(default=150.0, ge=0, le=5000)
    """How far ice may be found beyond the reference outline."""
    min_area_km2: float = Field(default=0.01, ge=0, le=10)
    """Smaller polygons are not published (RGI: 0.01)."""


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
    workspace: str = Field(min_length=1)
    """A folder or an object-store URL."""
    compute: ComputeSettings = ComputeSettings()

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

    def multiple(self, label: str) -> int:
        """Edge of a season's pixel in pixels of the region's grid."""
        coarse = self.seasons[label].resolution_m
        return 1 if coarse is None else round(coarse / self.grid.resolution_m)

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
        return values


# --- reading -------------------------------------------------------------------------------------


def load_settings(path: Path | str) -> Settings:
    """Read and check a settings file.

    Parameters
    ----------
    path
        The YAML file. Relative paths inside it are relative to its folder; nothing in it is
        expanded or executed.

    Raises
    ------
    UsageError
        ``settings``: naming every fault of the file at once.
    """
    path = Path(path).expanduser().absolute()
    node = _compose(path)
    lines: dict[tuple[str, ...], int] = {}
    findings: list[tuple[int, str]] = []
    values = _plain(node, (), lines, findings)
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        findings += [_finding(dict(entry), lines) for entry in error.errors()]
        raise _refusal(path, findings) from None
    settings = _resolve(settings, path.parent)
    if not Path(settings.outlines).is_file():
        where = lines[("outlines",)]
        findings.append(
            (where, f"outlines: expected a vector file, found none at {values['outlines']}")
        )
    if not settings.catalog.is_api and not Path(settings.catalog.url).exists():
        where = lines[("catalog", "url")]
        findings.append((where, "catalog.url: expected a URL or an existing file, found neither"))
    ensemble = settings.model.ensemble
    if ensemble != "default" and not Path(ensemble).is_dir():
        where = lines[("model", "ensemble")]
        findings.append((where, "model.ensemble: expected 'default' or a folder, found neither"))
    if findings:
        raise _refusal(path, findings)
    return settings


def _refusal(path: Path, findings: list[tuple[int, str]]) -> UsageError:
    told = "\n".join(f"  {path.name}:{line}: {text}" for line, text in sorted(set(findings)))
    return UsageError(f"{path.name} cannot be used:\n{told}", kind="settings")


def _compose(path: Path) -> yaml.Node:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UsageError(
            f"cannot read the settings {path}: {reason}; `inventory-engine init` writes an example",
            kind="settings",
        ) from error
    try:
        events = list(yaml.parse(text, Loader=yaml.SafeLoader))
        alias = next((e for e in events if isinstance(e, yaml.AliasEvent)), None)
        if alias is not None:
            line = alias.start_mark.line + 1 if alias.start_mark else 1
            raise _refusal(
                path, [(line, f"*{alias.anchor}: expected plain values, found an alias")]
            )
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        problem = getattr(error, "problem", None) or "not valid YAML"
        raise _refusal(path, [(line, f"not valid YAML: {problem}")]) from error
    if not isinstance(node, yaml.MappingNode):
        raise _refusal(path, [(1, "expected keys and values, found something else")])
    return node


def _plain(
    node: yaml.Node,
    where: tuple[str, ...],
    lines: dict[tuple[str, ...], int],
    findings: list[tuple[int, str]],
) -> Any:
    """Turn a YAML node into plain values, noting the line of every key and repeated keys."""
    lines.setdefault(where, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        return [_plain(v, (*where, str(i)), lines, findings) for i, v in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            # ^ the text as written: a season called 2024 is not a number
            line = key_node.start_mark.line + 1
            if key in values:
                findings.append((line, f"{'.'.join((*where, key))}: the same key twice"))
            lines[(*where, key)] = line
            values[key] = _plain(value_node, (*where, key), lines, findings)
        return values
    try:
        return yaml.SafeLoader("").construct_object(node)
    except (yaml.YAMLError, ValueError):
        findings.append((node.start_mark.line + 1, f"{'.'.join(where)}: not a plain value"))
        return None


def _finding(entry: Mapping[str, Any], lines: Mapping[tuple[str, ...], int]) -> tuple[int, str]:
    """One fault as line and sentence; a value is never repeated, it may be a secret."""
    loc = tuple(str(part) for part in entry["loc"] if str(part) != "[key]")
    known = loc
    while known and known not in lines:
        known = known[:-1]
    line = lines.get(known, 1)
    dotted = ".".join(known if entry["type"] != "missing" else loc) or "the file"
    if entry["type"] == "extra_forbidden":
        names = _field_names(loc[:-1])
        near = difflib.get_close_matches(loc[-1], names, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(names)}"
        return line, f"{dotted}: unknown key; {hint}"
    if entry["type"] == "missing":
        return line, f"{dotted}: missing; {_expectation(loc)}"
    message = str(entry["msg"]).removeprefix("Value error, ")
    return line, f"{dotted}: {message[:1].lower()}{message[1:]}"


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (dict, list, Union, UnionType, Annotated):
        for part in get_args(annotation):
            yield from _models(part)


def _model_at(loc: tuple[str, ...]) -> type[BaseModel]:
    model: type[BaseModel] = Settings
    for part in loc:
        field = model.model_fields.get(part)
        inner = list(_models(field.annotation)) if field else []
        model = inner[0] if inner else model
    return model


def _field_names(loc: tuple[str, ...]) -> list[str]:
    return list(_model_at(loc).model_fields)


def _expectation(loc: tuple[str, ...]) -> str:
    field = _model_at(loc[:-1]).model_fields.get(loc[-1])
    inner = list(_models(field.annotation)) if field else []
    if inner:
        return f"expected a section with {', '.join(inner[0].model_fields)}"
    return "expected a value here"


def _resolve(settings: Settings, folder: Path) -> Settings:
    """Make every path absolute, from the folder of the settings file."""

    def absolute(path: str) -> str:
        return path if "://" in path else str((folder / Path(path).expanduser()).resolve())

    catalog = settings.catalog
    allowed = [
        absolute(a) if a.startswith((".", "/", "~")) or (folder / a).exists() else a
        for a in catalog.allowed
    ]
    ensemble = settings.model.ensemble
    return settings.model_copy(
        update={
            "outlines": absolute(settings.outlines),
            "workspace": absolute(settings.workspace),
            "catalog": catalog.model_copy(
                update={"url": absolute(catalog.url), "allowed": allowed}
            ),
            "model": settings.model.model_copy(
                update={"ensemble": ensemble if ensemble == "default" else absolute(ensemble)}
            ),
        }
    )


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
    telling = re.compile(r"SECRET|TOKEN|PASSWORD|ACCESS_KEY|CREDENTIAL|SAS_", re.IGNORECASE)
    return sorted(
        {v for k, v in os.environ.items() if telling.search(k) and len(v) >= 8},
        key=len,
        reverse=True,
    )


def settings_json(settings: Settings) -> str:
    """Write settings as sorted JSON, for logs and fingerprints."""
    return json.dumps(settings.model_dump(mode="json"), sort_keys=True)


EXAMPLE = """\
# One region. Paths are relative to this file; a URL stays as it is.
name: my-region

# Reference outlines: RGI 7, RGI 6, GLIMS or a national inventory (any vector file).
outlines: {outlines}
# outlines_id_field: GLACIER_ID     # only where the id column is not recognised

catalog:
  # A STAC API, or the path of a static catalogue or item collection.
  url: https://earth-search.aws.element84.com/v1
  collections:
    optical: [sentinel-2-l2a]
    # sar: [sentinel-1-rtc]         # terrain-corrected radar only
    dem: [cop-dem-glo-30]
  # allowed: [my-host.org, /data]   # hosts and folders files may be read from
  max_cloud_percent: 80

# Late summer, before the first snow. Change is reported from each season to the next.
seasons:
  2018: {{start: 2018-08-01, end: 2018-09-30}}
  2024: {{start: 2024-08-01, end: 2024-09-30}}
  # 1990:                           # a season may have other collections, pixels and looks
  #   start: 1990-08-01
  #   end: 1990-09-30
  #   optical: [landsat-c2-l2]
  #   sar: []
  #   resolution_m: 30              # a multiple of the grid's; shard_px 1920, chunk_px 480 fit
  #   composite: best_scene         # least_snow (default), best_scene, median, medoid

grid:
  resolution_m: 10
  margin_m: 1000                    # mapped around the outlines
  shard_px: 2048                    # the unit of work
  chunk_px: 512

model:
  ensemble: default                 # or a folder made by `inventory-engine train`
  # runtime: openvino               # auto, fused, torch, onnx, openvino, cuda; see `doctor`
  # precision: bfloat16             # with openvino or cuda only

inventory:
  growth_m: 150                     # how far ice may be found beyond the reference outline
  min_area_km2: 0.01

workspace: my-region                # a folder, or s3://bucket/prefix

compute:
  dask: {{address: local, workers: auto, threads_per_worker: 1}}
  ray: {{address: local, workers: auto}}
  threads_per_task: 1
"""
"""The commented example that ``inventory-engine init`` writes."""
