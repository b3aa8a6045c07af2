"""Settings: one file, every fault named with its line, before any work."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from catalog.assets import AssetPolicy
from catalog.errors import UsageError
from inventory_engine.logs import redact
from inventory_engine.sensor_settings import sensor_specs
from inventory_engine.settings import environment_secrets
from inventory_engine.settings_file import EXAMPLE, load_settings

GOOD = """\
name: alps
outlines: outlines.gpkg
catalog:
  url: https://earth-search.aws.element84.com/v1
  collections:
    optical: [sentinel-2-l2a]
    dem: [cop-dem-glo-30]
seasons:
  2018: {start: 2018-08-01, end: 2018-09-30}
  2024: {start: 2024-08-01, end: 2024-09-30}
grid:
  resolution_m: 10
inventory:
  growth_m: 150
workspace: work
compute:
  dask: {address: local, workers: 2}
"""

# What is replaced, by what, the line that must be named, and words that must be told.
MUTATIONS = [
    ("name: alps", "nam: alps", 1, ["unknown key", "'name'"]),
    ("name: alps", "name: ''", 1, ["name", "string"]),
    ("name: alps", "name: [1, 2]", 1, ["name", "string"]),
    ("name: alps", "name: a\nname: b", 2, ["the same key twice"]),
    ("name: alps", "name: alps\ncolour: red", 2, ["colour", "unknown key"]),
    ("outlines: outlines.gpkg", "outlnes: outlines.gpkg", 2, ["'outlines'"]),
    ("outlines: outlines.gpkg", "outlines: nowhere.gpkg", 2, ["found none at nowhere.gpkg"]),
    ("outlines: outlines.gpkg", "outlines: 7", 2, ["outlines", "string"]),
    ("catalog:", "catalogue:", 3, ["'catalog'"]),
    ("  url: https://earth-search.aws.element84.com/v1", "  ulr: x", 4, ["'url'"]),
    ("https://earth-search.aws.element84.com/v1", "ftp://x.org/y", 4, ["http(s)"]),
    ("https://earth-search.aws.element84.com/v1", "https://me:pw@x.org/", 4, ["without user name"]),
    ("https://earth-search.aws.element84.com/v1", "https://x.org/?key=pw", 4, ["query string"]),
    ("https://earth-search.aws.element84.com/v1", "no/such/items.json", 4, ["found neither"]),
    ("https://earth-search.aws.element84.com/v1", "''", 4, ["catalog.url"]),
    ("  collections:", "  colections:", 5, ["'collections'"]),
    ("    optical: [sentinel-2-l2a]", "    optical: []", 6, ["optical", "at least 1"]),
    ("    optical: [sentinel-2-l2a]", "    optical: sentinel-2-l2a", 6, ["optical", "list"]),
    ("    optical: [sentinel-2-l2a]", "    optic: [sentinel-2-l2a]", 6, ["'optical'"]),
    ("    dem: [cop-dem-glo-30]", "    dem: [3]", 7, ["dem", "string"]),
    ("    dem: [cop-dem-glo-30]", "    radar: [x]", 7, ["radar", "unknown key"]),
    ("  2018: {start: 2018-08-01", "  2018: {strat: 2018-08-01", 9, ["'start'"]),
    ("start: 2018-08-01, end: 2018-09-30", "start: 2018-08-01", 9, ["end", "missing"]),
    ("start: 2018-08-01", "start: 2018-13-01", 9, ["start"]),
    ("start: 2018-08-01", "start: summer", 9, ["start", "date"]),
    ("end: 2018-09-30", "end: 2017-09-30", 9, ["end after start"]),
    ("  2018: {start", "  20/18: {start", 9, ["pattern"]),
    ("  2018: {start", "  2024: {start", 10, ["the same key twice"]),
    ("  2018: {start", "  terrain: {start", 8, ["label", "terrain"]),
    ("2024: {start: 2024-08-01, end: 2024-09-30}", "2024: late", 10, ["2024"]),
    ("start: 2024-08-01, end: 2024-09-30", "start: 2018-08-01, end: 2018-09-30", 8, ["twice"]),
    ("  resolution_m: 10", "  resolution_m: -10", 12, ["resolution_m", "greater"]),
    ("  resolution_m: 10", "  resolution_m: ten", 12, ["resolution_m", "number"]),
    ("  resolution_m: 10", "  resolution_m: .nan", 12, ["resolution_m", "finite"]),
    ("  resolution_m: 10", "  resolution: 10", 12, ["'resolution_m'"]),
    ("  resolution_m: 10", "  shard_px: 1000", 11, ["multiple of chunk_px"]),
    ("  resolution_m: 10", "  chunk_px: 3", 12, ["chunk_px"]),
    ("  resolution_m: 10", "  margin_m: -1", 12, ["margin_m"]),
    ("  growth_m: 150", "  growth_m: -1", 14, ["growth_m"]),
    ("  growth_m: 150", "  grow_m: 150", 14, ["'growth_m'"]),
    ("  growth_m: 150", "  min_area_km2: 11", 14, ["min_area_km2"]),
    ("workspace: work", "workspce: work", 15, ["'workspace'"]),
    ("workspace: work", "workspace:", 15, ["workspace", "string"]),
    ("workspace: work", "", 1, ["workspace", "missing"]),
    ("workers: 2", "workers: 0", 17, ["workers"]),
    ("workers: 2", "workers: many", 17, ["workers"]),
    ("workers: 2", "worker: 2", 17, ["'workers'"]),
    ("compute:", "compute:\n  threads_per_task: 0", 17, ["threads_per_task"]),
    ("compute:", "model: {ensemble: nowhere}\ncompute:", 16, ["'default' or a folder"]),
    ("name: alps", "name: [", 3, ["not valid YAML"]),
    ("name: alps", "name: &a alps\noutlines_id_field: *a", 2, ["alias"]),
    ("name: alps", "name: !!python/object/apply:os.system ['true']", 1, ["name"]),
]


SENSOR = """\
sensors:
  my-sensor-sr:
    kind: optical
    bands:
      blue: {asset: B1, scale: 1e-4, nodata: -9999}
      green: {asset: B2}
      red: {asset: B3, slope: 1.02, intercept: -0.001}
      nir: {asset: B4}
      swir1: {asset: B5}
      swir2: {asset: B6}
    mask: {asset: classes, kind: values, clear: [1, 4], spreading: [2, 3]}
compute:
"""
# ^ a section of its own, before `compute`
MUTATIONS += [
    ("compute:\n", SENSOR.replace(old, new), 17, ["sensors.my-sensor-sr", *words])
    for old, new, words in (
        ("kind: optical", "kind: optic", ["kind", "did you mean 'optical'?"]),
        ("blue: {asset", "blau: {asset", ["bands.blau", "did you mean 'blue'?", "bands.blue"]),
        ("scale: 1e-4", "scale: one", ["bands.blue.scale", "finite number"]),
        ("{asset: B2}", "{key: B2}", ["bands.green.key", "bands.green.asset: missing"]),
        ("clear: [1, 4]", "clear: 1", ["mask.clear", "whole numbers"]),
    )
]


def write(folder: Path, text: str) -> Path:
    (folder / "outlines.gpkg").write_bytes(b"")
    path = folder / "region.yaml"
    path.write_text(text)
    return path


def test_a_users_sensor_becomes_what_the_catalogue_needs_and_part_of_the_result(
    tmp_path: Path,
):
    plain = load_settings(write(tmp_path, GOOD))
    assert sensor_specs(plain.sensors) == {}
    settings = load_settings(write(tmp_path, GOOD.replace("compute:\n", SENSOR)))
    (spec,) = sensor_specs(settings.sensors).values()
    assert (spec.collection, spec.kind) == ("my-sensor-sr", "optical")
    assert (spec.bands["blue"].scale, spec.bands["blue"].nodata) == (1e-4, -9999)
    assert spec.bands["red"].slope == 1.02
    assert spec.mask is not None
    assert spec.mask.rule is not None
    assert spec.mask.rule.clear == (1, 4)
    assert settings.public()["sensors"].keys() == {"my-sensor-sr"}


def test_a_users_sensor_is_not_used_for_what_it_is_not(tmp_path: Path):
    text = GOOD.replace("compute:\n", SENSOR).replace("[cop-dem-glo-30]", "[my-sensor-sr]")
    with pytest.raises(UsageError, match=r"my-sensor-sr to be of the kind dem.*found optical"):
        load_settings(write(tmp_path, text))


@pytest.mark.parametrize(("old", "new", "line", "words"), MUTATIONS)
def test_a_broken_file_names_key_line_and_what_was_expected(
    tmp_path: Path, old: str, new: str, line: int, words: list[str]
):
    assert old in GOOD
    path = write(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(UsageError) as caught:
        load_settings(path)
    told = str(caught.value)
    assert caught.value.kind == "settings"
    assert f"region.yaml:{line}: " in told, told
    for word in words:
        assert word in told, told
    assert "pw" not in told


def test_all_faults_are_told_at_once_in_the_order_of_lines(tmp_path: Path):
    text = GOOD.replace("name:", "nmae:").replace("growth_m: 150", "growth_m: x")
    text = text.replace("workers: 2", "workers: -1")
    with pytest.raises(UsageError) as caught:
        load_settings(write(tmp_path, text))
    lines = [int(part.split(":")[1]) for part in str(caught.value).splitlines()[1:]]
    assert lines == sorted(lines)
    assert {1, 14, 17} <= set(lines)


def test_a_good_file_is_read_with_paths_relative_to_itself(tmp_path: Path):
    settings = load_settings(write(tmp_path, GOOD))
    assert settings.outlines == str(tmp_path / "outlines.gpkg")
    assert settings.workspace == str(tmp_path / "work")
    assert settings.season_labels == ["2018", "2024"]
    assert settings.pairs == [("2018", "2024")]
    assert "sentinel-cogs.s3.us-west-2.amazonaws.com" in settings.catalog.policy_allowed


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://stac.example.org/v1", "stac.example.org"),
        ("https://stac.example.org:8443/v1", "stac.example.org:8443"),
        ("http://127.0.0.1:8080", "127.0.0.1:8080"),
        ("http://stac.example.org", "stac.example.org:80"),
    ],
)
def test_by_default_files_may_lie_where_the_catalogue_is(tmp_path: Path, url: str, host: str):
    address = "https://earth-search.aws.element84.com/v1"
    assert address in GOOD
    settings = load_settings(write(tmp_path, GOOD.replace(address, url)))
    assert settings.catalog.policy_allowed == (host,)


def test_links_of_the_planetary_computer_are_signed_and_no_others(tmp_path: Path):
    address = "https://earth-search.aws.element84.com/v1"
    assert not load_settings(write(tmp_path, GOOD)).catalog.token_url
    text = GOOD.replace(address, "https://planetarycomputer.microsoft.com/api/stac/v1")
    catalog = load_settings(write(tmp_path, text)).catalog
    assert catalog.token_url == "https://planetarycomputer.microsoft.com/api/sas/v1/token"
    policy = AssetPolicy(catalog.policy_allowed, catalog.token_url)
    blob = "https://landsateuwest.blob.core.windows.net/landsat-c2/level-2/red.tif"
    assert policy.check(blob) == f"/vsicurl/{blob}"
    assert policy.signs(blob)
    assert not policy.signs("https://planetarycomputer.microsoft.com/red.tif")
    assert not policy.signs("https://blob.core.windows.net.evil.example/a/red.tif")


def test_a_subscription_key_counts_as_a_secret(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PC_SDK_SUBSCRIPTION_KEY", "canary-0123456789")
    assert "canary-0123456789" in environment_secrets()


def test_environment_variables_are_not_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SECRET_FOLDER", "hidden")
    text = GOOD.replace("workspace: work", "workspace: ${SECRET_FOLDER}/x")
    settings = load_settings(write(tmp_path, text))
    assert settings.workspace.endswith("${SECRET_FOLDER}/x")


def test_three_seasons_give_consecutive_pairs_and_first_to_last(tmp_path: Path):
    text = GOOD.replace("grid:", "  2021: {start: 2021-08-01, end: 2021-09-30}\ngrid:")
    settings = load_settings(write(tmp_path, text))
    assert settings.pairs == [("2018", "2021"), ("2021", "2024"), ("2018", "2024")]


def test_the_example_validates_and_shows_every_section(tmp_path: Path):
    path = write(tmp_path, EXAMPLE.format(outlines="outlines.gpkg"))
    settings = load_settings(path)
    shown = yaml.safe_load(path.read_text())
    assert set(shown) == set(type(settings).model_fields) - {
        "outlines_id_field",
        "sensors",
        "coregistration",
        "layers",
    }
    for hidden in ("coregistration", "layers"):
        assert f"# {hidden}:" in EXAMPLE


def test_public_settings_hold_no_path_of_this_machine(tmp_path: Path):
    public = load_settings(write(tmp_path, GOOD)).public()
    assert str(tmp_path) not in str(public)
    assert "compute" not in public


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("GET https://x.org/a.tif?sig=abc failed", "GET https://x.org/a.tif failed"),
        ("'/vsicurl/https://u:p@x.org/a.tif?sig=abc'", "'https://x.org/a.tif'"),
        ("no address here", "no address here"),
    ],
)
def test_no_query_string_leaves_the_redactor(text: str, expected: str):
    assert redact(text) == expected


def test_a_secret_of_the_environment_never_leaves_the_redactor(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-123456")
    assert redact("denied for canary-123456") == "denied for ***"
