"""What `verify` finds, and that the next run repairs this and nothing else."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import COMMAND, Small

from catalog.cube import Workspace
from inventory_engine.pipeline import run_pipeline
from inventory_engine.receipts import stored_name
from inventory_engine.settings import Settings
from inventory_engine.settings_file import load_settings
from inventory_engine.verify import Finding, Verdict, verify

pytestmark = pytest.mark.slow

Fault = tuple[str, str]
"""Stored object, and what is done to it: ``flip``, ``delete``, ``truncate`` or ``empty``."""


@pytest.fixture
def region(small: Small, finished: Path, tmp_path: Path) -> Settings:
    """Settings of a finished run whose workspace is the test's own."""
    settings = load_settings(small.settings(tmp_path))
    shutil.copytree(finished / "work", settings.workspace)
    return settings


def files(region: Settings) -> list[str]:
    return Workspace(region.workspace).names("")


def products(region: Settings) -> dict[str, bytes]:
    """Every product, receipt and metadata file."""
    workspace = Workspace(region.workspace)
    return {
        name: workspace.get(name) or b""
        for name in files(region)
        if not name.startswith(("runs/", "run.lock"))
    }


def times(region: Settings) -> dict[str, int]:
    root = Path(region.workspace)
    return {name: (root / name).stat().st_mtime_ns for name in files(region)}


def spoil(path: Path, how: str, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    if how == "delete":
        path.unlink()
    elif how == "truncate":
        path.write_bytes(data[: chance.randrange(1, len(data))])
    elif how == "empty":
        path.write_bytes(b"")
    else:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data)


def shards(region: Settings) -> list[str]:
    return [
        name for name in files(region) if ".zarr/" in name and "/c/" in name and _is_shard(name)
    ]


def _is_shard(name: str) -> bool:
    return name.split("/c/", maxsplit=1)[0].rsplit("/", 1)[-1] not in ("x", "y")


def output_of(file: str) -> str:
    """Name under which a receipt promises a shard."""
    array, _, key = file.partition("/c/")
    row, col = key.split("/")[-2:]
    return f"{array}/r{int(row):03d}c{int(col):03d}"


def found(verdict: Verdict, name: str) -> Finding:
    (finding,) = [f for f in verdict.findings if f.name == name]
    return finding


def test_a_finished_run_is_as_promised_and_is_not_touched(region: Settings) -> None:
    before = times(region)
    verdict = verify(region)
    records = len(Workspace(region.workspace).names("records"))
    assert verdict.findings == []
    assert (verdict.receipts, verdict.failed, verdict.running) == (records, 0, None)
    assert verdict.objects + verdict.receipts + 4 == len(files(region))
    # ^ everything but the identity, the lock and the log of the run
    assert times(region) == before


def repair_and_compare(
    region: Settings, victims: dict[str, str], expected: dict[str, bytes], chance: random.Random
) -> int:
    """Spoil objects, and hold that all are found, all repaired, and no other unit touched."""
    for file, how in victims.items():
        spoil(Path(region.workspace) / file, how, chance)
    before = times(region)
    verdict = verify(region)
    named = {output_of(file) if ".zarr/" in file else file for file in victims}
    assert {f.name for f in verdict.findings} == named
    for file, how in victims.items():
        if ".zarr/" in file:
            finding = found(verdict, output_of(file))
            fault = {"flip": "altered", "truncate": "truncated"}.get(how, "missing")
            assert finding.chunks
            assert {told.split(": ")[1] for told in finding.chunks} == {fault}
    units = {f.unit for f in verdict.findings}
    summary = run_pipeline(region)
    assert summary.done == len(units)
    assert products(region) == expected
    assert verify(region).findings == []
    own = {name for unit in units for name in _names_of(region, unit)}
    after = times(region)
    moved = {name for name in before if after[name] != before[name]}
    assert moved - own <= {"run.lock"}
    return len(verdict.findings)


def _names_of(region: Settings, unit: str) -> set[str]:
    """Receipt and stored objects of one unit."""
    record = f"records/{unit}.json"
    item = json.loads(Workspace(region.workspace).get(record) or b"")
    return {record, *map(stored_name, item["assets"])}


def test_z1_forty_faults_are_found_located_and_repaired_and_nothing_else_is_written(
    region: Settings,
) -> None:
    chance = random.Random(40)
    near = [s for s in shards(region) if output_of(s).endswith(("r000c000", "r001c001"))]
    # ^ the units of the other two shards must stay as they are
    victims = [*chance.sample(near, 38), "inventory/2018/outlines.gpkg", "report/index.html"]
    hows = ["flip"] * 26 + ["delete", "truncate"] * 5 + ["empty"] * 2 + ["delete", "flip"]
    faults = dict(zip(victims, hows, strict=True))
    assert repair_and_compare(region, faults, products(region), chance) == 40


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_z1_428_faults_in_chunks_are_found_and_repaired(
    region: Settings, record_property: Callable[[str, object], None]
) -> None:
    chance = random.Random(428)
    hows = ["flip"] * 300 + ["delete"] * 64 + ["truncate"] * 64
    chance.shuffle(hows)
    expected, detected = products(region), 0
    while hows:
        part = [hows.pop() for _ in range(min(len(hows), 54))]
        victims = chance.sample(shards(region), len(part))
        detected += repair_and_compare(
            region, dict(zip(victims, part, strict=True)), expected, chance
        )
    record_property(
        "faults in chunks", f"{detected} of 428 detected and repaired, others untouched"
    )
    assert detected == 428


def test_a_flipped_bit_is_located_to_its_chunk(region: Settings) -> None:
    root = Path(region.workspace)
    file = "cube.zarr/2024/optical/c/0/1/0"
    data = bytearray((root / file).read_bytes())
    data[10] ^= 4
    (root / file).write_bytes(data)
    (finding,) = verify(region).findings
    assert finding.name == "cube.zarr/2024/optical/r001c000"
    assert (finding.kind, finding.unit) == ("output-damaged", "cube/2024/r001c000")
    (chunk,) = finding.chunks
    band, row, col = map(int, chunk.removesuffix(": altered").split("/"))
    assert band == 0
    assert row in (2, 3)  # the shard's chunks, counted in the whole array
    assert col in (0, 1)


def test_a_sound_shard_with_other_values_is_not_what_was_promised(region: Settings) -> None:
    root = Path(region.workspace)
    shutil.copy(root / "map.zarr/2024/votes/c/0/0", root / "map.zarr/2024/votes/c/0/1")
    (finding,) = verify(region).findings
    assert (finding.kind, finding.chunks) == ("output-changed", ())


def test_what_no_receipt_promises_is_an_orphan(region: Settings) -> None:
    root = Path(region.workspace)
    (root / "inventory" / "1999").mkdir()
    (root / "inventory" / "1999" / "outlines.gpkg").write_bytes(b"left over")
    (root / "cube.zarr/2024/optical/c/0/9").mkdir()
    shutil.copy(root / "cube.zarr/2024/optical/c/0/1/0", root / "cube.zarr/2024/optical/c/0/9/0")
    verdict = verify(region)
    assert [(f.name, f.kind) for f in verdict.findings] == [
        ("cube.zarr/2024/optical/c/0/9/0", "orphan"),
        ("inventory/1999/outlines.gpkg", "orphan"),
    ]


@pytest.mark.parametrize("how", ["empty", "truncate", "delete", "rename", "array renamed"])
def test_a_receipt_that_tells_nothing_is_named_and_its_unit_done_again(
    region: Settings, how: str
) -> None:
    root, expected = Path(region.workspace), products(region)
    record = root / "records/outlines/2024"
    (path,) = record.iterdir()
    if how == "rename":
        path.rename(record / "another.json")
    elif how == "array renamed":
        path = root / "records/map/2024/r000c000.json"
        path.write_text(path.read_text().replace("map.zarr/2024/votes", "map.zarr/2024/voles"))
    else:
        spoil(path, how, random.Random(1))
    kinds = {f.kind for f in verify(region).findings}
    if how == "array renamed":
        assert kinds == {"output-missing", "orphan"}
    elif how == "delete":
        assert kinds == {"orphan"}
    else:
        assert kinds == {"receipt-unreadable", "orphan"}
    assert run_pipeline(region).done == 1
    if how == "rename":
        (record / "another.json").unlink()
    assert products(region) == expected
    assert verify(region).findings == []


METADATA = (
    "cube.zarr/zarr.json",
    "cube.zarr/2018/zarr.json",
    "cube.zarr/2018/optical/zarr.json",
    "cube.zarr/2018/x/c/0",
    "cube.zarr/2024/spatial_ref/zarr.json",
    "cube.zarr/terrain/zarr.json",
    "map.zarr/2024/y/zarr.json",
    "map.zarr/2024/probability/zarr.json",
)


def test_damaged_metadata_is_found_and_mended_and_no_shard_is_lost(region: Settings) -> None:
    root, expected, before = Path(region.workspace), products(region), times(region)
    chance = random.Random(5)
    for number, name in enumerate(METADATA):
        spoil(root / name, ("delete", "truncate", "empty")[number % 3], chance)
    attributes = root / "cube.zarr/2024/sar/zarr.json"
    attributes.write_text(attributes.read_text().replace("gamma0", "sigma0"))
    verdict = verify(region)
    wanted = sorted((*METADATA, "cube.zarr/2024/sar/zarr.json"))
    assert [f.name for f in verdict.findings] == wanted
    assert {f.kind for f in verdict.findings} == {"metadata-damaged"}
    assert run_pipeline(region).done == 0
    assert products(region) == expected
    after = times(region)
    assert {name for name in before if before[name] != after[name]} <= {*wanted, "run.lock"}


def test_metadata_indented_in_another_way_is_no_damage(region: Settings) -> None:
    path = Path(region.workspace) / "cube.zarr/terrain/zarr.json"
    path.write_text(json.dumps(json.loads(path.read_text()), sort_keys=True))
    assert verify(region).findings == []


def test_kept_searches_are_held_against_their_checksum(region: Settings) -> None:
    root, expected = Path(region.workspace) / "search", products(region)
    spoil(root / "2018-optical.parquet", "flip", random.Random(2))
    spoil(root / "2024-sar.parquet", "delete", random.Random(2))
    spoil(root / "region-dem.json", "truncate", random.Random(2))
    findings = verify(region).findings
    assert [f.name for f in findings] == [
        "search/2018-optical.parquet",
        "search/2024-sar.parquet",
        "search/region-dem.json",
    ]
    assert {f.kind for f in findings} == {"search-damaged"}
    assert run_pipeline(region).done == 0
    assert products(region) == expected


def test_the_command_needs_neither_catalogue_nor_ensemble_and_ends_with_3(
    small: Small, region: Settings, tmp_path: Path
) -> None:
    (tmp_path / "none").mkdir()
    path = small.settings(
        tmp_path, url="http://127.0.0.1:9", model={"ensemble": str(tmp_path / "none")}
    )

    def command(*options: str) -> tuple[int, str]:
        done = subprocess.run(
            [*COMMAND, "verify", str(path), *options],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout

    code, told = command()
    assert code == 0
    assert "all as promised" in told
    spoil(tmp_path / "work/map.zarr/2018/votes/c/0/0", "truncate", random.Random(3))
    code, told = command()
    assert code == 3
    assert "map/2018/r000c000" in told
    assert "1 output-damaged" in told
    code, told = command("--json")
    values = json.loads(told)
    assert code == 3
    assert values["kinds"] == {"output-damaged": 1}
    assert len(values["findings"][0]["chunks"]) == 4
