"""The table and the pictures of ranked scenes, and the command that makes them."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import Small
from PIL import Image
from rich.console import Console
from test_cli import call, told

from catalog.errors import UsageError
from catalog.ranking import rank
from inventory_engine.plan import open_region, search_scenes
from inventory_engine.scenes import (
    draw_candidates,
    rank_region,
    reasons,
    scene_table,
    show_scenes,
)
from inventory_engine.settings_file import load_settings

NAN = float("nan")
LOOKS = {
    "2024-09-10": {},
    "2024-07-02": {"snow_around": 0.64, "albedo": 0.6, "season_days": -74.0},
    "2024-09-20": {"cloud": 0.45, "hidden_around": 0.3},
    "2024-08-30": {"coverage": 0.3, "hidden_around": 0.7},
    "2024-09-05": {"coverage": 0.0, "cloud": NAN, "snow_around": NAN, "albedo": NAN},
}
WHY = {
    "2024-09-10": "best: 98 % seen, snow on 3 % beside it, albedo 0.31",
    "2024-07-02": "snow on 64 % beside it (\N{MINUS SIGN}0.30)",
    "2024-09-20": "cloud on 45 % (\N{MINUS SIGN}0.25)",
    "2024-08-30": "70 % outside the scenes (\N{MINUS SIGN}0.45)",
    "2024-09-05": "100 % outside the scenes (\N{MINUS SIGN}1.00)",
}


def season(ref_id: str = "A", **changes: float) -> pd.DataFrame:
    clear = {
        "coverage": 1.0,
        "cloud": 0.02,
        "hidden_around": 0.05,
        "snow_around": 0.03,
        "albedo": 0.31,
        "season_days": -4.0,
        "shadow": NAN,
        "sun_elevation": 44.0,
    }
    rows = [
        clear | look | changes | {"day": day, "scene_ids": [f"S2A_{day}"], "ref_id": ref_id}
        for day, look in LOOKS.items()
    ]
    return rank(pd.DataFrame(rows).assign(sensor="sentinel-2-msi", has_mask=True))


def text_of(frame: pd.DataFrame, **options: int) -> str:
    sink = io.StringIO()
    Console(file=sink, width=160, color_system=None).print(scene_table(frame, **options))
    return sink.getvalue()


def test_every_look_says_why_it_is_best_or_what_it_lost_by():
    frame = season()
    assert dict(zip(frame["day"], reasons(frame), strict=True)) == WHY


def test_reasons_are_those_of_a_looks_own_glacier_whatever_the_order_of_rows():
    both = pd.concat([season("A"), season("B", albedo=0.5)], ignore_index=True)
    shuffled = both.iloc[::-1]
    assert reasons(shuffled) == reasons(both)[::-1]
    assert "best: 98 % seen, snow on 3 % beside it, albedo 0.50" in reasons(both)


def test_a_glacier_that_no_look_shows_has_no_best_one():
    blind = season(coverage=0.0, cloud=NAN, snow_around=NAN, albedo=NAN)
    assert reasons(blind)[0] == "shows nothing of it"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shadow": 0.9, "sun_elevation": 20.0}, "90 % in shadow"),
        ({"sun_elevation": 12.0}, "sun at 12°"),
        ({"sun_elevation": NAN}, "shadow not known"),
        ({"season_days": 60.0}, "60 days after the end of ablation"),
        ({"hidden_around": 0.9}, "90 % hidden beside it"),
        ({"albedo": 0.8}, "albedo 0.80"),
        ({"snow_around": NAN}, "snow not known"),
    ],
)
def test_each_cause_has_its_words(changes: dict[str, float], words: str):
    frame = season()[["ref_id", "day", "sensor", "scene_ids", "has_mask"]].head(2)
    clear = {"coverage": 1.0, "cloud": 0.0, "hidden_around": 0.0, "snow_around": 0.0}
    clear |= {"albedo": 0.3, "season_days": 0.0, "shadow": NAN, "sun_elevation": 60.0}
    values = pd.DataFrame([clear, clear | changes])
    told = reasons(rank(pd.concat([frame, values], axis=1)))
    assert told[1].startswith(words)


def test_the_table_has_a_row_a_look_and_names_the_glacier_once():
    text = text_of(pd.concat([season("A-glacier"), season("B-glacier")], ignore_index=True))
    assert text.count("A-glacier") == text.count("B-glacier") == 1
    for day in LOOKS:
        assert text.count(day) == 2
    assert re.search(
        r"1 │ 2024-09-10 │ S2 +│ +0\.\d\d │ +98 % │ +5 % │ +3 % │ +0\.31 │ +-4 d", text
    )
    assert "sun 44°" in text
    assert "without a cloud mask" not in text


def test_the_table_shows_the_first_few_and_says_where_there_was_no_mask():
    text = text_of(season().assign(has_mask=False), top=2)
    assert sum(day in text for day in LOOKS) == 2
    assert "without a cloud mask" in text


@pytest.fixture(scope="module")
def ranked(small: Small, tmp_path_factory: pytest.TempPathFactory):
    region = open_region(load_settings(small.settings(tmp_path_factory.mktemp("ranked"))))
    scenes = search_scenes(region).optical["2024"]
    return region, scenes, rank_region(region, scenes).frame


def test_a_region_is_ranked_batch_by_batch_and_no_glacier_is_left_out(ranked):
    region, scenes, frame = ranked
    assert frame["ref_id"].unique().tolist() == sorted(region.reference.frame["ref_id"])
    assert set(frame["scene_ids"].explode()) == {scene.id for scene in scenes}
    one = frame["ref_id"].iloc[-1]
    alone = rank_region(region, scenes, ref_ids=[one]).frame
    expected = frame[frame["ref_id"] == one].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, expected)


def test_all_looks_of_a_glacier_are_drawn_in_the_order_of_their_rank(ranked, tmp_path: Path):
    region, scenes, frame = ranked
    glacier = region.reference.frame.iloc[[0]]
    looks = frame[frame["ref_id"] == glacier["ref_id"].item()]
    paths = []
    for order in (looks, looks.iloc[::-1]):
        figure = draw_candidates(
            order,
            region.reference.frame,
            grid=region.grid,
            scenes=scenes,
            policy=region.policy,
            bands=("swir1", "nir", "red"),
        )
        captions = [[t.get_text() for t in axes.texts] for axes in figure.axes]
        assert [c[0] if len(c) == 3 else c[1] for c in captions] == [
            f"{row['rank']}   {row['day']}" for _, row in looks.iterrows()
        ]
        for axes in figure.axes:
            image = axes.images[0].get_array()
            assert image.shape[0] == image.shape[1]
            assert np.ptp(image[..., 0]) > 0.5  # ice and rock differ
        paths.append(tmp_path / f"{len(paths)}.png")
        figure.savefig(paths[-1], metadata={"Software": None})
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_the_command_prints_the_table_and_draws_each_glacier(small: Small, tmp_path: Path):
    settings = small.settings(tmp_path)
    folder = tmp_path / "pictures"
    result = call("scenes", settings, "--season", "2018", "--top", "1", "--plot", folder)
    assert result.returncode == 0, told(result)
    frame = open_region(load_settings(settings)).reference.frame
    assert sorted(p.stem for p in folder.iterdir()) == sorted(frame["ref_id"])
    for path in folder.iterdir():
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert picture.width == 1440  # 7.2 inches, two columns of a journal
    assert told(result).count("best: ") == len(frame)


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"season": "1999"}, "there is no season '1999'; known are 2018, 2024"),
        ({"glacier": "nowhere"}, "there is no glacier 'nowhere'"),
        ({"plot": Path("all.png")}, "name one glacier with --glacier, or give a folder"),
    ],
)
def test_impossible_wishes_are_refused(
    small: Small, tmp_path: Path, wish: dict[str, Any], words: str
):
    settings = load_settings(small.settings(tmp_path))
    with pytest.raises(UsageError, match=re.escape(words)):
        show_scenes(settings, Console(file=io.StringIO()), **wish)


def test_one_glacier_is_drawn_into_one_file(small: Small, tmp_path: Path):
    settings = load_settings(small.settings(tmp_path))
    ref_id = open_region(settings).reference.frame["ref_id"].iloc[0]
    sink = io.StringIO()
    path = tmp_path / "one.png"
    show_scenes(settings, Console(file=sink, width=160), glacier=ref_id, top=1, plot=path)
    assert path.is_file()
    assert sink.getvalue().count(ref_id) == 1
