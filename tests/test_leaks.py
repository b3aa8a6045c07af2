"""The leak audit: every seeded leak is caught with its evidence, and clean training gives none."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import shapely
from ensembles import write_ensemble
from made_inventories import grid_of, inventory, owners_of
from scipy.ndimage import binary_dilation, binary_erosion, distance_transform_edt

from catalog.errors import UsageError
from model_serving.ensemble import CARD, load_ensemble
from model_serving.features import CHANNELS, Normalisation
from model_serving.fold_pixels import HELD_OUT, TRAIN, owner_roles, window_corners
from model_serving.folds import TrainingRegion
from model_serving.glacier_folds import divide_glaciers
from model_serving.leak_pixels import content_keys, label_like_name, pooled, shared_keys
from model_serving.leaks import KINDS, Leak, audit, audit_ensemble, refuse_leaks
from model_serving.training_record import GLACIERS, Ground, Training, Window

RESOLUTION = 25.0
SIZE = 12
FOLD = 0
LATTICE = [
    (x * 1000.0, y * 1000.0, x * 1000.0 + 450 + 50 * (y % 3), y * 1000.0 + 400)
    for x in range(8)
    for y in range(5)
]


def made_ground(seed: int, frame) -> Ground:
    """Two seasons over an inventory: clean ice, debris at its foot, water, and noise as a band."""
    rng = np.random.default_rng(seed)
    grid = grid_of(frame, resolution_m=RESOLUTION)
    owners = owners_of(frame, grid)
    labels = np.zeros((2, *grid.shape), np.uint8)
    labels[0, owners > 0] = 1
    labels[1, binary_erosion(owners > 0, iterations=2)] = 1  # the ice retreats
    foot = (np.arange(grid.shape[0]) % 20 < 8)[:, None]
    labels[(labels == 1) & foot] = 2
    labels[:, 5:9] = 3
    labels[:, :2] = 255
    # Bands that tell ice from the rest as well as real ones do: most of it, and not all.
    level = np.array([0.3, 0.8, 0.4, 0.05])[np.minimum(labels, 3)]
    features = level[:, None] + rng.normal(0, 0.2, (2, len(CHANNELS), *grid.shape))
    return Ground(
        f"GROUND{seed}",
        features.astype(np.float16),
        labels,
        owners,
        tuple(frame["ref_id"]),
        RESOLUTION,
    )


FRAME = inventory(LATTICE)
FOLDS = divide_glaciers(FRAME, folds=4, window_m=SIZE * RESOLUTION, buffer_m=50.0)
GROUND = made_ground(1, FRAME)
ROLES = owner_roles(
    FOLDS, GROUND.owners, fold=FOLD, ref_ids=GROUND.glaciers, resolution_m=RESOLUTION
)


def statistics(mask: np.ndarray) -> dict[str, tuple[float, ...]]:
    """What training measures on some pixels."""
    thin = GROUND.features[:, :, ::7, ::7].astype(np.float32).swapaxes(0, 1)
    found = Normalisation.measured(thin[:, :, mask[::7, ::7]].reshape(len(CHANNELS), -1))
    return {"mean": found.mean, "std": found.std}


def counts(mask: np.ndarray) -> tuple[int, ...]:
    inside = GROUND.labels[:, mask]
    return tuple(np.bincount(inside[inside < 4], minlength=4).tolist())


def windows(where: np.ndarray, count: int = 40) -> tuple[Window, ...]:
    """Windows wholly inside some pixels."""
    corners = np.argwhere(window_corners(where, SIZE))
    chosen = np.random.default_rng(0).choice(len(corners), count)
    return tuple(
        Window(GROUND.name, i % 2, int(row), int(col), SIZE)
        for i, (row, col) in enumerate(corners[chosen])
    )


def clean() -> Training:
    """A member of fold 0 that was made as it should be."""
    usable = ROLES == TRAIN
    trained = FOLDS.fold_of.keys() - FOLDS.held_out(FOLD) - FOLDS.validating(FOLD)
    return Training(
        member="member",
        folds=(FOLD,),
        regions=(GROUND.name,),
        glaciers=frozenset(trained),
        windows=windows(usable),
        class_counts=counts(usable),
        validated_on=tuple(sorted(FOLDS.validating(FOLD))),
        tuned_on={"ice_offset": tuple(sorted(trained))},
        **statistics(usable),
    )


def seen_by(training: Training, ground: Ground = GROUND, *more: Ground, **how) -> list[Leak]:
    return audit([training], glacier_folds=FOLDS, grounds=[ground, *more], **how)


def with_channel(values: np.ndarray, name: str = "swir3") -> list[Leak]:
    """Leaks where a channel is added to the inputs, under a harmless name."""
    extra = np.broadcast_to(values, GROUND.labels.shape)[:, None]
    features = np.concatenate([GROUND.features, extra.astype(np.float16)], axis=1)
    training = replace(clean(), channels=(*CHANNELS, name), mean=None, std=None)
    return seen_by(training, replace(GROUND, features=features))


def held_patch_copied(turn: Callable[[np.ndarray], np.ndarray]) -> list[Leak]:
    """A piece of held-out ground lies once more on ground that is trained on."""
    square = window_corners(ROLES == HELD_OUT, SIZE), window_corners(ROLES == TRAIN, SIZE)
    (r, c), (r2, c2) = (np.argwhere(corners)[-1] for corners in square)
    features = GROUND.features.copy()
    copy = features[0, :, r : r + SIZE, c : c + SIZE]
    features[1, :, r2 : r2 + SIZE, c2 : c2 + SIZE] = turn(copy)
    return seen_by(replace(clean(), mean=None, std=None), replace(GROUND, features=features))


NEIGHBOUR_FRAME = inventory(
    [*LATTICE, (450.0, 0.0, 900.0, 300.0)], names=[*FRAME["ref_id"], "NEAR"]
)


def neighbour_trained_on() -> list[Leak]:
    folds = divide_glaciers(NEIGHBOUR_FRAME, folds=4, window_m=SIZE * RESOLUTION, buffer_m=50.0)
    fold = folds.fold_of["NEAR"]
    assert "G000" in folds.held_out(fold)
    training = Training("member", (fold,), (), glaciers=frozenset({"NEAR"}))
    slabs = replace(
        folds,
        method="slabs",
        glaciers=tuple(
            replace(g, fold=(fold + 1) % 4) if g.ref_id == "NEAR" else g for g in folds.glaciers
        ),
        validation=((),) * 4,
    )
    return audit([training], glacier_folds=slabs)


def near_window() -> Window:
    """A window on training ground, moved to the edge of held-out ground."""
    held = np.argwhere(ROLES == HELD_OUT)
    row, col = held[held[:, 1].argmax()]
    return Window(GROUND.name, 0, int(row) - SIZE // 2, int(col) + 1, SIZE)


EVERYTHING = np.ones(ROLES.shape, bool)
HELD = tuple(sorted(FOLDS.held_out(FOLD)))
SEEDED: dict[str, tuple[str, Callable[[], list[Leak]]]] = {
    "the labels as a channel": ("label-like-channel", lambda: with_channel(GROUND.labels)),
    "a held-out pixel in a window": (
        "held-out-pixels",
        lambda: seen_by(replace(clean(), windows=windows(ROLES == HELD_OUT, 1))),
    ),
    "a neighbour of a held-out glacier": ("held-out-neighbour", neighbour_trained_on),
    "a window nearer than the barrier": (
        "barrier",
        lambda: seen_by(replace(clean(), windows=(near_window(),))),
    ),
    "normalisation over everything": (
        "normalisation",
        lambda: seen_by(replace(clean(), **statistics(EVERYTHING))),
    ),
    "class weights over everything": (
        "class-weights",
        lambda: seen_by(replace(clean(), class_counts=counts(EVERYTHING))),
    ),
    "a copy in two folds": ("duplicate", lambda: held_patch_copied(lambda patch: patch)),
    "validation on held-out glaciers": (
        "validation",
        lambda: seen_by(replace(clean(), validated_on=HELD[:1])),
    ),
    "a card that claims too much": (
        "trained-on-held-out",
        lambda: audit(
            [Training("member", (1,), ("A", "B"))],
            regions=[
                TrainingRegion("A", 1, 0, (10.0, 46.0, 10.1, 46.1), 1, 1.0),
                TrainingRegion("B", 1, 1, (20.0, 46.0, 20.1, 46.1), 1, 1.0),
            ],
        ),
    ),
    "an offset chosen on held-out ground": (
        "tuned-on-held-out",
        lambda: seen_by(replace(clean(), tuned_on={"ice_offset": HELD[:1]})),
    ),
}


def test_clean_training_has_no_leak():
    assert seen_by(clean()) == []
    refuse_leaks(seen_by(clean()))


def test_the_seeds_are_of_every_kind_that_the_audit_knows():
    assert {kind for kind, _ in SEEDED.values()} == KINDS.keys()


@pytest.mark.parametrize("seed", SEEDED)
def test_a_seeded_leak_is_caught_named_and_the_only_one(seed: str):
    kind, make = SEEDED[seed]
    leaks = make()
    assert {leak.kind for leak in leaks} == {kind}
    assert all(leak.member == "member" and leak.where and leak.evidence for leak in leaks)
    with pytest.raises(UsageError, match="held-out ground takes part in training") as found:
        refuse_leaks(leaks)
    assert found.value.kind == "fold-leak"


def square_dilation(px: int) -> np.ndarray:
    return binary_dilation(GROUND.owners > 0, np.ones((3, 3)), iterations=px)


def distance_to_outline() -> np.ndarray:
    inside = GROUND.owners > 0
    return distance_transform_edt(inside) - distance_transform_edt(~inside)


CHANNELS_OF_LABELS: dict[str, tuple[str, Callable[[], np.ndarray]]] = {
    "ice and no ice": ("ice", lambda: np.isin(GROUND.labels, (1, 2))),
    "debris": ("debris-covered ice", lambda: GROUND.labels == 2),
    "labels turned round and scaled": ("ice", lambda: 0.3 - 0.1 * np.isin(GROUND.labels, (1, 2))),
    "a probability map": (
        "ice",
        lambda: (
            np.isin(GROUND.labels, (1, 2))
            + np.random.default_rng(3).normal(0, 0.2, GROUND.labels.shape)
        ),
    ),
    "missing outside the outlines": (
        "the outlines",
        lambda: np.where(
            GROUND.owners > 0, np.random.default_rng(4).normal(size=ROLES.shape), np.nan
        ),
    ),
    "the outlines": ("the outlines", lambda: GROUND.owners > 0),
    "the outlines grown": ("the outlines grown by 3 px", lambda: square_dilation(3)),
    "a line along the outlines": (
        "lines of 2 px",
        lambda: (
            square_dilation(1)
            & ~(~binary_dilation(GROUND.owners == 0, np.ones((3, 3))) & (GROUND.owners > 0))
        ),
    ),
    "the distance to the outlines": ("the outlines", distance_to_outline),
}


@pytest.mark.parametrize("what", CHANNELS_OF_LABELS)
def test_a_channel_that_holds_labels_is_known_by_its_values(what: str):
    target, values = CHANNELS_OF_LABELS[what]
    (leak,) = with_channel(values())
    assert (leak.kind, leak.where) == ("label-like-channel", "swir3")
    assert target in leak.evidence
    assert "held-out pixels" in leak.evidence


def test_a_channel_that_tells_ice_well_but_not_perfectly_is_no_leak():
    noise = np.random.default_rng(5).random(GROUND.labels.shape) < 0.03
    assert with_channel(np.isin(GROUND.labels, (1, 2)) ^ noise) == []


def test_on_an_ice_cap_no_channel_is_suspected_for_saying_ice_everywhere():
    labels = np.ones_like(GROUND.labels)
    labels[:, ::25, ::5] = 0  # nunataks, less than 1 % of the ground
    (found,) = {len(seen_by(replace(clean(), class_counts=None), replace(GROUND, labels=labels)))}
    assert found == 0


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("bright_dark_outlines", "outlines"),
        ("RGI-mask", "rgi"),
        ("debris_mask", "debris"),
        ("ground truth", "truth"),
        ("label2", "label"),
        ("cloud_mask", ""),
        ("coherence", ""),
        *((name, "") for name in CHANNELS),
    ],
)
def test_names_that_speak_of_labels_are_known(name: str, word: str):
    assert label_like_name(name) == word


def test_a_label_like_name_is_a_leak_without_any_pixels():
    training = Training("member", (0,), (), channels=(*CHANNELS, "bright_dark_outlines"))
    (leak,) = audit([training])
    assert (leak.kind, leak.where) == ("label-like-channel", "bright_dark_outlines")


TURNS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "turned by a quarter": lambda a: np.rot90(a, 1, (1, 2)),
    "turned by half": lambda a: np.rot90(a, 2, (1, 2)),
    "mirrored": lambda a: a[:, :, ::-1],
    "upside down": lambda a: a[:, ::-1],
    "transposed": lambda a: a.swapaxes(1, 2),
}


@pytest.mark.parametrize("turn", TURNS)
def test_copies_are_known_whichever_way_they_are_turned(turn: str):
    (leak,) = held_patch_copied(TURNS[turn])
    assert leak.kind == "duplicate"
    assert GROUND.name in leak.where


def test_a_copy_of_a_scene_under_another_name_is_found_wherever_it_is_cut():
    other = made_ground(7, FRAME)
    shifted = replace(
        GROUND,
        name="AGAIN",
        features=np.roll(GROUND.features[..., ::-1, :], (3, -5), (2, 3)),
        owners=np.zeros_like(GROUND.owners),
    )
    one = TrainingRegion("GROUND1", 1, 0, (10.0, 46.0, 10.1, 46.1), 1, 1.0)
    regions = [one, replace(one, name="AGAIN", fold=1, bbox=(20.0, 46.0, 20.1, 46.1))]
    training = Training("member", (0,), ("AGAIN",))
    (leak,) = audit([training], regions=regions, grounds=[GROUND, shifted])
    assert (leak.kind, leak.where) == ("duplicate", "AGAIN and GROUND1")
    elsewhere = tuple(f"AGAIN/{g}" for g in other.glaciers)
    unlike = replace(other, name="AGAIN", glaciers=elsewhere)
    assert audit([training], regions=regions, grounds=[GROUND, unlike]) == []
    (leak,) = audit(
        [training], regions=regions, grounds=[GROUND, replace(unlike, glaciers=GROUND.glaciers)]
    )
    assert (leak.kind, leak.where) == ("held-out-neighbour", "AGAIN and GROUND1")
    assert "both hold G000 and 39 more" in leak.evidence


def test_even_ground_is_no_copy_of_other_even_ground():
    even = np.full((1, 11, 60, 60), 0.3, np.float16)
    assert len(content_keys(even)) == 0
    rough = np.random.default_rng(0).random((1, 11, 60, 60)).astype(np.float16)
    keys = content_keys(rough)
    assert len(shared_keys(pooled([keys]), keys)) == len(keys) > 500
    assert shared_keys(pooled([]), keys) is None


def test_windows_in_a_region_that_is_held_out_whole_are_leaks():
    region = TrainingRegion("A", 1, 0, (10.0, 46.0, 10.1, 46.1), 1, 1.0)
    training = Training("member", (0,), (), windows=(Window("A", 0, 3, 4, 16),))
    (leak,) = audit([training], regions=[region])
    assert (leak.kind, leak.where) == ("held-out-pixels", "A row 3 column 4, 16 px")


def test_where_windows_are_not_told_all_of_a_region_counts_as_one():
    one = TrainingRegion("A", 1, 0, (10.0, 46.0, 10.1, 46.1), 1, 1.0)
    over = replace(one, name="B", fold=1, bbox=(10.05, 46.0, 10.2, 46.1))
    training = Training("member", (0,), ("B",))
    told = {
        leak.kind: leak.where for leak in audit([training], regions=[one, over], barrier_m=-1.0)
    }
    assert told == {"held-out-pixels": "B and A", "held-out-neighbour": "B and A"}
    beside = replace(over, bbox=(10.1005, 46.0, 10.2, 46.1))  # 39 m
    (leak,) = audit([training], regions=[one, beside], barrier_m=-1.0)
    assert leak.kind == "held-out-neighbour" and "39 m" in leak.evidence
    apart = replace(over, bbox=(10.102, 46.0, 10.2, 46.1))
    assert audit([training], regions=[one, apart], barrier_m=-1.0) == []


def test_folds_that_share_out_one_region_are_no_regions_too_near(tmp_path: Path):
    box = (10.0, 46.0, 10.2, 46.1)
    parts = tuple(
        TrainingRegion(
            f"own/fold{fold}", 1, fold, box, 1, 1.0, area=shapely.box(*half, 46.1).__geo_interface__
        )
        for fold, half in enumerate(((10.0, 46.0, 10.1), (10.1, 46.0, 10.2)))
    )
    folder = write_ensemble(tmp_path, folds=2, seeds=1, regions=parts)
    card = json.loads((folder / CARD).read_text())
    for member in card["members"]:
        member["trained_on"] = [f"own/fold{1 - member['fold']}"]
    (folder / CARD).write_text(json.dumps(card))
    found = audit_ensemble(folder)
    assert found.leaks == ()
    for kind in ("barrier", "held-out-pixels"):
        assert found.unseen[kind].endswith("windows in own/fold0, own/fold1")
    card["fine_tuning"] = {"region": "own", "held_out": {"0": ["own/1"], "1": ["own/2", "own/3"]}}
    first, second = card["members"]
    first |= {"tuned_glaciers": [3], "validated_on": ["own/2"]}
    second |= {"tuned_glaciers": [1], "validated_on": []}
    (folder / CARD).write_text(json.dumps(card))
    assert audit_ensemble(folder).leaks == ()
    first |= {"tuned_glaciers": [1, 3]}
    second |= {"validated_on": ["own/3"]}
    (folder / CARD).write_text(json.dumps(card))
    assert [(x.kind, x.member, x.where) for x in audit_ensemble(folder).leaks] == [
        ("trained-on-held-out", first["name"], "own/1"),
        ("validation", second["name"], "own/3"),
    ]


def test_regions_of_different_folds_that_lie_too_near_are_told():
    one = TrainingRegion("A", 1, 0, (10.0, 46.0, 10.1, 46.1), 1, 1.0)
    near = replace(one, name="B", fold=1, bbox=(10.12, 46.0, 10.2, 46.1))
    (leak,) = audit([], regions=[one, near])
    assert leak.kind == "barrier" and "A and B" in leak.where and "15" in leak.evidence
    assert audit([], regions=[one, replace(near, fold=0)]) == []


def test_a_region_that_was_to_be_fresh_must_not_have_been_seen():
    (leak,) = audit([Training("member", (0,), ("CALIB",))], fresh=["CALIB"])
    assert leak.kind == "tuned-on-held-out" and "no member has seen" in leak.evidence


def test_a_member_that_holds_nothing_out_has_nothing_to_leak():
    everything = replace(
        clean(), folds=(), class_counts=counts(EVERYTHING), **statistics(EVERYTHING)
    )
    assert seen_by(everything) == []


def test_a_finished_ensemble_is_audited_by_its_card_and_its_folds(tmp_path: Path):
    box = (10.0, 46.0, 10.1, 46.1)
    regions = (
        TrainingRegion("A", 1, 0, box, 1, 1.0),
        TrainingRegion("B", 2, 1, (20.0, 46.0, 20.1, 46.1), 1, 1.0),
    )
    folder = write_ensemble(tmp_path, folds=2, seeds=3, regions=regions)
    card = json.loads((folder / CARD).read_text())
    for member in card["members"]:
        member["trained_on"] = ["B" if member["fold"] == 0 else "A"]
    (folder / CARD).write_text(json.dumps(card))
    found = audit_ensemble(folder)
    assert found.leaks == ()
    assert "no pixels of A, B" in found.unseen["normalisation"]
    assert found.unseen.keys() >= {"held-out-neighbour", "tuned-on-held-out", "class-weights"}
    assert not found.unseen.keys() & {"held-out-pixels", "barrier"}  # the card alone tells them
    card["members"][0] |= {
        "trained_on": ["A", "B"],
        "validated_on": ["A"],
        "tuned_on": {"ice_offset": ["A"]},
        "windows": [["A", 0, 1, 2, 64]],
    }
    (folder / CARD).write_text(json.dumps(card))
    kinds = {leak.kind for leak in audit_ensemble(folder).leaks}
    assert kinds == {"trained-on-held-out", "validation", "tuned-on-held-out", "held-out-pixels"}


def test_what_is_no_ensemble_is_named(tmp_path: Path):
    with pytest.raises(UsageError, match="no ensemble"):
        audit_ensemble(tmp_path)
    folder = write_ensemble(tmp_path / "one")
    with pytest.raises(UsageError, match="no prepared region"):
        audit_ensemble(folder, work=tmp_path)
    card = json.loads((folder / CARD).read_text())
    card["members"][0].pop("fold")
    (folder / CARD).write_text(json.dumps(card))
    with pytest.raises(UsageError, match="does not tell what its members were trained on"):
        audit_ensemble(folder)


def test_the_default_ensemble_has_no_leak_that_its_card_could_tell():
    found = audit_ensemble(load_ensemble("default").folder)
    assert found.leaks == ()


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """An ensemble with its prepared regions: two members, each of which holds one region out."""
    from test_training import RECIPE

    from model_serving.training import WindowSampler

    work = tmp_path / "work"
    prepared = {
        name: prepare(work / "regions" / name, name, seed) for seed, name in enumerate("AB")
    }
    boxes = {name: region.bbox for name, region in prepared.items()}
    regions = tuple(
        TrainingRegion(name, 1, fold, boxes[name], 1, 1.0) for fold, name in enumerate("AB")
    )
    folder = write_ensemble(tmp_path / "ensemble", folds=2, seeds=1, regions=regions)
    card = json.loads((folder / CARD).read_text())
    for member, seen in zip(card["members"], "BA", strict=True):
        drawn = WindowSampler([prepared[seen]], RECIPE, np.random.default_rng(0))
        member |= {
            "trained_on": [seen],
            "mean": list(drawn.normalisation.mean),
            "std": list(drawn.normalisation.std),
        }
    (folder / CARD).write_text(json.dumps(card))
    return tmp_path


def prepare(folder: Path, name: str, seed: int):
    """A prepared region as training leaves it, with made-up content."""
    from dataclasses import asdict

    from model_serving.regions import PreparedRegion

    folder.mkdir(parents=True)
    ground = made_ground(seed + 10, FRAME)
    for key in ("features", "labels", "owners"):
        np.save(folder / f"{key}.npy", getattr(ground, key))
    grid = grid_of(FRAME, resolution_m=RESOLUTION)
    digest = hashlib.sha256(ground.features.tobytes()).hexdigest()
    west = 10.0 + 5 * seed
    region = PreparedRegion(
        name, seed, folder, grid, (west, 46.0, west + 0.1, 46.1), ("1", "2"), 40, 1.0, digest
    )
    note = asdict(region) | {"identity": "made", "grid": grid.to_dict()}
    note.pop("folder")
    (folder / "prepared.json").write_text(json.dumps(note))
    return region


def test_an_ensemble_with_folds_of_glaciers_is_audited_on_the_ground(tmp_path: Path):
    region = prepare(tmp_path / "work" / "regions" / "A", "A", -9)  # the content of GROUND
    (region.folder / GLACIERS).write_text(json.dumps(list(GROUND.glaciers)))
    folder = write_ensemble(tmp_path / "ensemble", folds=1, seeds=1)
    FOLDS.save(folder)
    card = json.loads((folder / CARD).read_text())
    member = card["members"][0]
    usable, (window,) = ROLES == TRAIN, windows(ROLES == TRAIN, 1)
    member |= {"trained_on": ["A"], "class_counts": counts(usable), **statistics(usable)}
    member["windows"] = [["A", 0, window.row, window.col, SIZE]]
    (folder / CARD).write_text(json.dumps(card))
    found = audit_ensemble(folder, work=tmp_path / "work")
    assert found.leaks == ()
    assert found.unseen.keys() == {"validation", "tuned-on-held-out"}
    near = near_window()
    member |= {"class_counts": counts(EVERYTHING), **statistics(EVERYTHING)}
    member["windows"] = [["A", 0, near.row, near.col, SIZE]]
    (folder / CARD).write_text(json.dumps(card))
    kinds = {leak.kind for leak in audit_ensemble(folder, work=tmp_path / "work").leaks}
    assert kinds == {"normalisation", "class-weights", "barrier"}


def test_the_statistics_of_a_card_are_those_that_training_took(trained: Path):
    found = audit_ensemble(trained / "ensemble", work=trained / "work")
    assert found.leaks == ()
    assert "normalisation" not in found.unseen and "duplicate" not in found.unseen
    card = json.loads((trained / "ensemble" / CARD).read_text())
    card["members"][0]["mean"] = card["members"][1]["mean"]
    (trained / "ensemble" / CARD).write_text(json.dumps(card))
    (leak,) = audit_ensemble(trained / "ensemble", work=trained / "work").leaks
    assert (leak.kind, leak.member) == ("normalisation", card["members"][0]["name"])
