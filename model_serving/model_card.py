"""The card of an ensemble in words, under the headings of Mitchell et al. (2019).

One law: nothing stands here that the card does not hold. What was not measured is called so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from model_serving.glacier_seg import GlacierSeg, GlacierSegConfig

__all__ = ["MODEL_CARD", "group_tables", "model_card", "score_table"]

MODEL_CARD = "MODEL_CARD.md"
_SCORES = {
    "ice_iou_mean": "IoU of glacier against not, mean over maps",
    "ice_iou_worst": "the same, worst map",
    "ice_iou_single_member": "the same, mean over single members",
    "band_ratio_iou_mean": "the same of Red/SWIR1 with its threshold tuned on the truth, mean",
    "ice_iou": "IoU of glacier against not, all pixels together",
    "ice_iou_glaciers": "the same, mean over glaciers",
    "ice_iou_area": "the same, mean over glaciers weighted by their area",
    "ice_precision": "precision of glacier against not, all pixels together",
    "ice_recall": "recall of glacier against not, all pixels together",
    "ice_mcc": "Matthews' correlation of glacier against not",
    "mcc": "correlation over all classes (Gorodkin's R_K)",
    "area_bias_percent": "mapped glacier area too large (+) or too small (-) by, %",
    "boundary_m": "distance of mapped from true outlines, mean over maps, m",
    "boundary_hausdorff95_m": "the same, 95 % Hausdorff distance, m",
    "ice_calibration_error": "expected calibration error of glacier against not",
    "ice_calibration_error_at_1": "the same before temperatures",
    "calibration_error": "expected calibration error of the most probable class",
    "calibration_error_at_1": "the same before temperatures",
}

_SPREAD = "IoU of single members, mean ± standard deviation (number)"
_GROUPS = {
    "fold": "Fold",
    "size_km2": "Area of the glacier, km²",
    "debris_share": "Share of its ice under debris",
}
_GROUP_SCORES = {
    "ice_iou": "IoU, pixels",
    "ice_iou_glaciers": "IoU, mean over glaciers",
    "ice_iou_area": "the same, weighted by area",
    "area_bias_percent": "area bias, %",
}

Card = Mapping[str, Any]
Table = tuple[list[str], list[list[str]]]


def model_card(card: Card) -> str:
    """Put a card in words.

    Parameters
    ----------
    card
        What ``card.json`` holds.

    Returns
    -------
    str
        Markdown: model details, intended use, factors, metrics, training data, evaluation data,
        quantitative analyses, caveats (Mitchell et al. 2019, "Model cards for model reporting").
    """
    parts = (
        ("Model details", _details(card)),
        ("Intended use", _use(card)),
        ("Factors", _factors(card)),
        ("Metrics", _metrics(card)),
        ("Training data", _training_data(card)),
        ("Evaluation data", _evaluation_data(card)),
        ("Quantitative analyses", _analyses(card)),
        ("Caveats and recommendations", _caveats(card)),
    )
    lines = [f"# Model card: ensemble {card['name']}", ""]
    for heading, body in parts:
        lines += [f"## {heading}", "", *body, ""]
    return "\n".join(lines).rstrip() + "\n"


def _details(card: Card) -> Iterator[str]:
    members = card["members"]
    yield card.get("summary", "The card has no summary.")
    yield ""
    yield f"- Members: {len(members)}{_of_folds(members)}"
    if "network" in card:
        config = GlacierSegConfig.from_dict(card["network"])
        with torch.device("meta"):
            count = sum(p.numel() for p in GlacierSeg(config).parameters())
        yield f"- Network: Glacier-Seg, {count:,} parameters a member"
    yield f"- Inputs: {', '.join(card['channels'])}"
    if "channel_transform" in card:
        yield f"- Made of them: {card['channel_transform']}"
    yield f"- Classes: {', '.join(card['classes'])}"
    if "trained_with" in card:
        yield f"- Trained with: {_listed(card['trained_with'])}"
    if "recipe" in card:
        yield f"- Recipe: {_listed(card['recipe'])}"
    if "command" in card:
        yield f"- Made by: `{card['command']}`"
    if "parent" in card:
        yield (
            f"- Fine-tuned from: ensemble {card['parent']['name']}, fingerprint "
            f"{card['parent']['fingerprint']}; the checksum of each parent stands in its "
            "member's entry"
        )
        yield f"- Tuning: {_listed(card['fine_tuning']['tuning'])}"


def _use(card: Card) -> Iterator[str]:
    yield (
        "Mapping glaciers, clean and debris-covered, in seasonal composites of optical satellite "
        f"images{_pixels(card)}. The mean of the members is the map; their spread, times the "
        "factors below, is its uncertainty."
    )
    yield ""
    yield (
        "Inside a region it was trained on only those members vote that hold the place out. "
        "Not meant for images without the six optical bands, nor for glaciers whose area decides "
        "about safety without a look at the map."
    )


def _factors(card: Card) -> Iterator[str]:
    if "missing_inputs" in card:
        yield f"- Missing inputs: {card['missing_inputs']}"
    yield f"- Windows it is served with: {card['window_px']} pixels"
    turned = {m.get("orientation", 0) for m in card["members"]}
    yield f"- Ways in which members look at a window: {len(turned)}"
    offsets = sorted({m["ice_offset"] for m in card["members"] if "ice_offset" in m})
    if offsets:
        yield (
            f"- Offsets on the logits of ice: {', '.join(map(str, offsets))}, each chosen on "
            "regions of other folds"
        )
    yield "- Sensors, seasons and mountain ranges beyond the training data: not measured"


def _metrics(card: Card) -> Iterator[str]:
    yield (
        "Intersection over union (IoU) of what is mapped and what is labelled, over pixels that "
        "were seen and whose label is known."
    )
    calibration = card["area_calibration"]
    yield ""
    yield (
        f"Factors on the members' spread of a change of area: {calibration['scale']} for a "
        f"glacier, {calibration['regional_scale']} for what a region has in common. Source: "
        f"{calibration.get('source', 'not told')}."
    )
    if calibration.get("coverage"):
        yield f"Coverage: {_listed(calibration['coverage'])}."


def _training_data(card: Card) -> Iterator[str]:
    yield from _region_table(card["regions"])
    sources = {m["name"]: m.get("trained_on") for m in card["members"]}
    if all(sources.values()):
        seen = sorted({name for names in sources.values() for name in names or ()})
        yield ""
        yield f"Each member was trained on those it does not hold out of: {', '.join(seen)}."
    aside = sorted({n for m in card["members"] for n in m.get("validated_on", ())})
    yield ""
    yield (
        f"Training was stopped by: {', '.join(aside)}; of the training side of each member."
        if aside
        else "No training was stopped by a validation: all went to their last step."
    )
    if "fine_tuning" in card:
        tuned = card["fine_tuning"]
        yield ""
        yield (
            f"Fine-tuned on {tuned['region']}, seasons {', '.join(tuned['seasons'])} "
            f"(fingerprint {tuned['fingerprint']}), each member without the glaciers of its fold "
            f"and without ground nearer than {tuned['tuning']['buffer_m']:g} m to them."
        )


def _evaluation_data(card: Card) -> Iterator[str]:
    told = False
    if "metrics" in card:
        yield "- Out of fold: each training region, mapped by the members that hold it out."
        told = True
    names = [r["name"] for r in card.get("calibration_regions", ())]
    if names:
        yield f"- Unseen: {', '.join(names)}, which no member was trained on."
        told = True
    if "before" in card.get("fine_tuning", {}):
        yield (
            f"- Glaciers of {card['fine_tuning']['region']}, each mapped by the members that hold "
            "it out, before and after fine-tuning."
        )
        told = True
    if not told:
        yield "Nothing was measured."


def score_table(card: Card) -> Table:
    """What was measured: names of the columns, and rows that each begin with what they tell."""
    columns = {
        "out of fold": card.get("metrics"),
        "unseen": card.get("calibration_metrics"),
        "before": card.get("fine_tuning", {}).get("before"),
        "after fine-tuning": card.get("fine_tuning", {}).get("after"),
    }
    there = {name: scores for name, scores in columns.items() if scores}
    told = [(words, [s.get(key) for s in there.values()]) for key, words in _SCORES.items()]
    told += [
        (f"IoU of {name}", [s.get("class_iou", {}).get(name) for s in there.values()])
        for name in card["classes"]
    ]
    rows = [
        [words, *map(_number, values)]
        for words, values in told
        if any(value is not None for value in values)
    ]
    return list(there), rows


def group_tables(card: Card) -> dict[str, Table]:
    """Scores of groups of glaciers, by a title that names the maps and the groups.

    Columns and rows as of :func:`score_table`. The last columns of the folds tell how far single
    members differ, from one seed to another.
    """
    out = {}
    for maps, key in (("out of fold", "metrics"), ("unseen", "calibration_metrics")):
        scores = card.get(key, {})
        for scope, words in _GROUPS.items():
            groups = scores.get("groups", {}).get(scope, {})
            if scope == "fold":
                groups = {f: g for f, g in groups.items() if int(f) >= 0}
            members = scores.get("members", {}) if scope == "fold" else {}
            columns = [*_GROUP_SCORES.values(), "glaciers", *([_SPREAD] if members else [])]
            rows = [
                [
                    group,
                    *(_number(values.get(name)) for name in _GROUP_SCORES),
                    str(values["glaciers"]),
                    *([_spread(members[group])] if group in members else []),
                ]
                for group, values in groups.items()
            ]
            if rows:
                out[f"{words}, {maps}"] = columns, rows
    return out


def _spread(members: Card) -> str:
    mean, deviation = members["ice_iou_mean"], members["ice_iou_deviation"]
    return f"{_number(mean)} ± {_number(deviation)} ({members['members']})"


def _analyses(card: Card) -> Iterator[str]:
    columns, rows = score_table(card)
    if not rows:
        yield "Nothing was measured."
        return
    yield from _table("", columns, rows)
    every = card.get("calibration_metrics", {}).get("members", {}).get("all")
    if every:
        yield ""
        yield f"On unseen regions, {_SPREAD}: {_spread(every)}."
    for title, (names, lines) in group_tables(card).items():
        yield ""
        yield from _table(title, names, lines)
    if "maps" in card.get("metrics", {}):
        yield ""
        yield f"Single maps: {len(card['metrics']['maps'])} out of fold, all in `card.json`."


def _caveats(card: Card) -> Iterator[str]:
    source = card.get("region_source")
    if source == "simulated":
        yield (
            "- All regions it was trained and measured on are simulated. On real images nothing "
            "was measured here."
        )
    elif source is not None:
        yield "- Labels are the inventory's, with its errors and of its date."
    yield "- Factors on the spread hold where they were measured; elsewhere they are a guess."
    if "parent" in card:
        yield "- What was measured of the parent does not hold for the fine-tuned members."
    yield "- Look at the map before you use its numbers."


def _table(corner: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {corner} | {' | '.join(columns)} |"
    yield f"|---|{'---|' * len(columns)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _region_table(regions: Sequence[Card]) -> Iterator[str]:
    if not regions:
        yield "The card names no region."
        return
    yield "| region | held out by fold | glaciers | ice, km² | west, south, east, north |"
    yield "|---|---|---|---|---|"
    for r in regions:
        box = ", ".join(f"{v:g}" for v in r["bbox"])
        yield f"| {r['name']} | {r['fold']} | {r['glaciers']} | {r['ice_km2']:g} | {box} |"


def _of_folds(members: Sequence[Card]) -> str:
    folds = {m["fold"] for m in members if isinstance(m["fold"], int)}
    return f", of {len(folds)} folds" if len(folds) > 1 else ""


def _pixels(card: Card) -> str:
    if "resolution_m" not in card:
        return ""
    finest, coarsest = card["resolution_m"]
    return f", in pixels of {finest:g} to {coarsest:g} m"


def _listed(values: Card) -> str:
    return ", ".join(f"{k} {_word(v)}" for k, v in values.items() if v not in ({}, None, ""))


def _word(value: Any) -> str:
    return _listed(value) if isinstance(value, dict) else str(value)


def _number(value: float | None) -> str:
    if value is None:
        return "not measured"
    return f"{value:.3f}" if abs(value) < 2 else f"{value:.1f}"
