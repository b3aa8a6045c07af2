from __future__ import annotations

import json
from pathlib import Path

import pytest
from catalogues import HERE, NOWHERE, bare_item, find, ids
from rasters import write_items
from servers import Answer, Request, api, json_answer, page, paged, scripted_server

from catalog.assets import AssetPolicy
from catalog.errors import DataError, SourceError, UsageError
from catalog.search import open_source

SECRET = "hunter2"


def test_of_a_reprocessed_granule_the_newest_baseline_is_kept(tmp_path: Path) -> None:
    def processing(name: str, baseline: str, tile: str) -> dict:
        return bare_item(
            name,
            **{
                "s2:processing_baseline": baseline,
                "s2:datatake_id": f"GS2B_20240812T101019_035759_N{baseline}",
                "s2:mgrs_tile": tile,
            },
        )

    items = [
        processing("old", "02.12", "32TPS"),
        processing("new", "05.00", "32TPS"),
        processing("neighbour", "02.12", "32TPT"),
    ]
    for order in (items, items[::-1]):
        result = find(write_items(tmp_path / "items.json", order))
        assert ids(result) == ["neighbour", "new"]
        assert [(f.what, f.kind) for f in result.set_aside] == [("old", "superseded")]
        assert "05.00" in result.set_aside[0].reason


def test_relative_hrefs_are_resolved_against_their_file(tmp_path: Path) -> None:
    result = find(write_items(tmp_path / "items.json", [bare_item("one")]))
    assert result.scenes[0].bands[0].href == str(tmp_path / "one" / "blue.tif")


def test_a_static_catalogue_does_not_lead_out_of_its_folder(tmp_path: Path) -> None:
    outside = tmp_path / "outside.json"
    outside.write_text(json.dumps(bare_item("one")))
    inside = tmp_path / "in" / "catalog.json"
    inside.parent.mkdir()
    for href in (str(outside), "../outside.json"):
        links = [{"rel": "item", "href": href}]
        inside.write_text(json.dumps({"type": "Catalog", "id": "x", "links": links}))
        with pytest.raises(DataError) as caught:
            find(inside)
        assert caught.value.kind == "href-refused"
        allowed = open_source(str(inside), policy=AssetPolicy((str(tmp_path),)))
        found = allowed.search(collections=["sentinel-2-l2a"], boxes=HERE, start=None, end=None)
        assert ids(found) == ["one"]


def test_a_static_catalogue_that_goes_in_circles_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "item.json").write_text(json.dumps(bare_item("one")))
    links = [{"rel": "child", "href": "./catalog.json"}, {"rel": "item", "href": "./item.json"}] * 2
    path = tmp_path / "catalog.json"
    path.write_text(json.dumps({"type": "Catalog", "id": "x", "links": links}))
    assert ids(find(path)) == ["one"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("<html>", SourceError),
        ("[1, 2]", SourceError),
        ("[" * 100_000, SourceError),
        ("{}", UsageError),
        ('{"type": "Topology"}', UsageError),
    ],
)
def test_what_is_no_catalogue_is_said_to_be_none(
    tmp_path: Path, text: str, error: type[Exception]
) -> None:
    path = tmp_path / "items.json"
    path.write_text(text)
    with pytest.raises(error, match=r"items\.json"):
        find(path)
    with pytest.raises(UsageError, match="no catalogue can be read"):
        find(tmp_path / "none.json")


def test_a_season_that_ends_before_it_begins_is_a_bad_setting(tmp_path: Path) -> None:
    path = write_items(tmp_path / "items.json", [])
    with pytest.raises(UsageError, match="ends before it begins"):
        find(path, start="2024-09-01", end="2024-07-01")
    with pytest.raises(UsageError, match="neither a day"):
        find(path, start="summer")


def test_an_empty_page_in_between_loses_nothing() -> None:
    pages = [[bare_item("a")], [], [bare_item("b")]]
    with scripted_server(api(paged(pages, numberMatched=2))) as server:
        assert ids(find(server.url)) == ["a", "b"]


def test_items_repeated_across_pages_count_once() -> None:
    pages = [[bare_item("b"), bare_item("a")], [bare_item("a"), bare_item("b")]]
    with scripted_server(api(paged(pages, numberMatched=2))) as server:
        assert ids(find(server.url)) == ["a", "b"]


@pytest.mark.parametrize("extra", [{"numberMatched": 3}, {"context": {"matched": 3}}])
def test_fewer_items_than_announced_are_an_error(extra: dict) -> None:
    pages = [[bare_item("a")], [bare_item("b"), bare_item("a")]]
    with (
        scripted_server(api(paged(pages, **extra))) as server,
        pytest.raises(SourceError, match="announced 3 items and delivered 2") as caught,
    ):
        find(server.url)
    assert caught.value.kind == "catalog-incomplete"


def test_pages_that_go_in_circles_stop_at_once() -> None:
    def circle(request: Request, root: str) -> Answer:
        body = json.loads(request.body)
        token = (body.get("token", 0) + 1) % 3
        following = {"href": f"{root}/search", "method": "POST", "body": body | {"token": token}}
        return page([bare_item("a")], following)

    with scripted_server(api(circle)) as server:
        with pytest.raises(SourceError, match="in circles") as caught:
            find(server.url)
        assert len(server.requests) < 10
    assert caught.value.kind == "catalog-incomplete"


@pytest.mark.parametrize("how", ["next", "redirect"])
def test_a_catalogue_that_leads_to_another_host_is_not_followed(how: str) -> None:
    with scripted_server(lambda _: page([bare_item("b")])) as other:

        def lead_away(request: Request, root: str) -> Answer:
            if how == "redirect":
                return Answer(307, headers={"location": f"{other.url}/search"})
            return page([bare_item("a")], {"href": f"{other.url}/search", "method": "POST"})

        with scripted_server(api(lead_away)) as server, pytest.raises(DataError) as caught:
            find(server.url)
        assert caught.value.kind == "href-refused"
        assert other.requests == []


@pytest.mark.parametrize("status", [500, 502, 503, 504, 429])
def test_a_burst_of_bad_answers_does_not_show(status: int) -> None:
    failures = iter([True, True, True])

    def flaky(request: Request, root: str) -> Answer:
        if next(failures, False):
            return Answer(status)
        return page([bare_item("a")])

    with scripted_server(api(flaky)) as server:
        assert ids(find(server.url)) == ["a"]
        assert len([r for r in server.requests if r.path == "/search"]) == 4


def test_a_catalogue_that_stays_down_is_unreachable() -> None:
    with scripted_server(api(lambda *_: Answer(503))) as server:
        with pytest.raises(SourceError, match="503") as caught:
            find(server.url)
        assert len([r for r in server.requests if r.path == "/search"]) == 6
    assert caught.value.kind == "catalog-unreachable"
    with pytest.raises(SourceError) as caught:
        find(server.url)  # it is gone by now
    assert caught.value.kind == "catalog-unreachable"


def test_a_question_the_catalogue_refuses_is_a_bad_setting() -> None:
    refusal = json_answer({"description": "no such collection"}, status=400)
    with scripted_server(api(lambda *_: refusal)) as server:
        with pytest.raises(UsageError, match=r"HTTP 400.*no such collection") as caught:
            find(server.url)
        assert len([r for r in server.requests if r.path == "/search"]) == 1
    assert caught.value.kind == "catalog-refused"


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, b"<html>maintenance</html>"),
        Answer(200, b'{"features": '),
        Answer(200, b"[]"),
        Answer(200, b"\xff\xfe\x00"),
        json_answer({"type": "FeatureCollection", "features": 7}),
        json_answer({"type": "FeatureCollection", "features": [], "links": 7}),
        json_answer({"type": "FeatureCollection", "features": [], "links": [{"rel": "next"}]}),
        json_answer({"type": "FeatureCollection", "features": [], "links": ["next"]}),
        Answer(200, b"{}", headers={}, cut=True),
    ],
)
def test_an_answer_that_makes_no_sense_is_a_typed_error(answer: Answer) -> None:
    with scripted_server(api(lambda *_: answer)) as server, pytest.raises(SourceError):
        find(server.url)


def test_a_page_that_is_too_large_is_not_read() -> None:
    huge = Answer(200, b" " * (64 * 2**20 + 1))
    with (
        scripted_server(api(lambda *_: huge)) as server,
        pytest.raises(SourceError, match="more than") as caught,
    ):
        find(server.url)
    assert caught.value.kind == "catalog-bad-answer"


def test_features_that_are_no_items_are_set_aside() -> None:
    odd = [7, None, "x", {}, {"id": "y"}, bare_item("a")]
    with scripted_server(api(lambda *_: page(odd))) as server:
        result = find(server.url)
    assert ids(result) == ["a"]
    assert {fault.kind for fault in result.set_aside} == {"bad-item"}


def test_cloud_and_sorting_are_not_left_to_the_server() -> None:
    with scripted_server(api(lambda *_: page([bare_item("a")]))) as server:
        find(server.url, max_cloud_percent=10)
        asked = json.loads(next(r for r in server.requests if r.path == "/search").body)
    assert sorted(asked) == ["bbox", "collections", "datetime", "limit"]
    assert asked["datetime"] == "2024-07-01T00:00:00Z/2024-09-30T23:59:59Z"


def test_errors_never_carry_a_query_string() -> None:
    with scripted_server(lambda _: Answer(503)) as server, pytest.raises(SourceError) as caught:
        open_source(f"{server.url}/catalog?token={SECRET}", policy=NOWHERE, backoff_s=0)
    assert SECRET not in str(caught.value)


def test_every_request_has_a_deadline() -> None:
    with scripted_server(api(lambda *_: page([]))) as server:
        source = open_source(server.url, policy=NOWHERE)
        assert source._items._client._stac_io.timeout == (5.0, 60.0)
