"""The settings file: read completely, every fault of it named at once, with its line."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from catalog.errors import UsageError
from inventory_engine.settings import Settings

__all__ = ["EXAMPLE", "load_settings"]


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
    layers = {
        name: layer.model_copy(update={"files": [absolute(file) for file in layer.files]})
        for name, layer in settings.layers.items()
    }
    return settings.model_copy(
        update={
            "outlines": absolute(settings.outlines),
            "workspace": absolute(settings.workspace),
            "layers": layers,
            "catalog": catalog.model_copy(
                update={"url": absolute(catalog.url), "allowed": allowed}
            ),
            "model": settings.model.model_copy(
                update={"ensemble": ensemble if ensemble == "default" else absolute(ensemble)}
            ),
        }
    )


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
  # sar_orbit: ascending            # both (default), ascending or descending passes

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

# coregistration:
#   reference: 2024                 # season the others are laid on; the last by default
#   measure: true                   # false leaves scenes where they are
# layers:                           # rasters of your own, brought onto the grid
#   dhdt: {{files: [dhdt.tif]}}     # elevation change, m per year; coherence: 0 to 1

inventory:
  growth_m: 150                     # how far ice may be found beyond the reference outline
  min_area_km2: 0.01

publication:                        # who stands behind it; told in the RGI-7 package
  affiliation: ""
  submitters: ""
  analysts: ""

workspace: my-region                # a folder, or s3://bucket/prefix

compute:
  dask: {{address: local, workers: auto, threads_per_worker: 1}}
  ray: {{address: local, workers: auto}}
  threads_per_task: 1
"""
"""The commented example that ``inventory-engine init`` writes."""
