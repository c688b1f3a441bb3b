"""Synthetic audits for the page's tests: schematic chests, made-up maps and figures."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import cv2
import numpy as np
from conftest import draw_phantom

from cxr.page.build import map_uri, picture_uri, to_polygons

MEMBERS = ("bacterial", "viral")
SOURCES = ("kermany", "nih", "ieee8023")
LABELS = ("normal", "bacterial", "viral")
FLAGS = ("looks outside", "border", "text", "map empty", "field and box disagree")


@cache
def phantom(seed: int, height: int = 480, width: int = 400) -> tuple[np.ndarray, np.ndarray, Any]:
    """A schematic chest, its lung field (H, W) and its box."""
    film, box = draw_phantom(height, width, seed)
    field = np.zeros(film.shape, np.uint8)
    half = (box[2] - box[0]) / 4.6
    for x in (box[0] + half, box[2] - half):
        centre = (int(x), int((box[1] + box[3]) / 2))
        cv2.ellipse(field, centre, (int(half), int((box[3] - box[1]) / 2)), 0, 0, 360, 1, -1)
    blurred = cv2.GaussianBlur(film, (0, 0), 1.2)
    return blurred, field.astype(bool), box


@cache
def saliency(where: str, seed: int) -> str:
    """A blob "in" a lung, or at the "out"er corner, or nothing at all."""
    rng = np.random.default_rng(seed)
    plane = np.zeros((12, 12), np.float32)
    if where == "in":
        plane[rng.integers(3, 9), rng.choice([2, 3, 8, 9])] = 1
        plane[rng.integers(3, 9), rng.choice([2, 3, 8, 9])] = 0.7
    elif where == "out":
        plane[rng.choice([0, 11]), rng.choice([0, 11])] = 1
        plane[6, 6] = 0.4
    return map_uri(cv2.resize(cv2.GaussianBlur(plane, (0, 0), 1.3), (64, 64)))


@cache
def pictures(seed: int) -> dict[str, Any]:
    """A film's and its crop's picture, box, seen area and outlines."""
    pixels, field, box = phantom(seed)
    height, width = pixels.shape
    size = np.array([width, height, width, height])
    margin = 0.05 * (box[2] - box[0])
    seen = np.clip(box + np.array([-1, -1, 1, 1]) * margin, 0, size)
    x0, y0, x1, y1 = seen.astype(int)
    return {
        "size": [height, width],
        "picture": picture_uri(pixels),
        "crop": picture_uri(pixels[y0:y1, x0:x1]),
        "box": (box / size).tolist(),
        "seen": (seen / size).tolist(),
        "field": to_polygons(field),
    }


def film(number: int, **changes: Any) -> dict[str, Any]:
    """Film `number` of a made-up audit: every fifth looks outside, every seventh has more flags."""
    rng = np.random.default_rng(number)
    flags = [["looks outside"], ["border", "text"]][number % 2] if number % 5 == 0 else []
    if number % 35 == 7:
        flags = ["map empty"]
    where = "out" if "looks outside" in flags or "border" in flags else "in"
    members = []
    for name in MEMBERS:
        mine = flags if name == "bacterial" else []
        at = where if mine else "in"
        members.append(
            {
                "name": name,
                "probability": float(rng.uniform()),
                "lift": float(rng.uniform(0.3, 0.8) if at == "out" else rng.uniform(1.05, 1.6)),
                "inside": float(rng.uniform(0.3, 0.9)),
                "area": float(rng.uniform(0.5, 0.65)),
                "border": float(rng.uniform(0, 0.3)),
                "outside_box": float(rng.uniform(0, 0.1)),
                "text": float(rng.uniform(0, 0.02)),
                "pointing": at == "in",
                "finding_hit": None,
                "flags": mine,
                "map": saliency(at, number % 12),
            }
        )
        if "map empty" in mine:
            members[-1] |= {
                "lift": None,
                "inside": None,
                "pointing": None,
                "map": saliency("none", 0),
            }
    return {
        "film": f"films/{SOURCES[number % 3]}/film{number:04d}.png",
        "source": SOURCES[number % 3],
        "label": LABELS[number % 3 if number % 4 else 0],
        "patient": f"p{number // 2:04d}",
        "decision": "read" if number % 3 else "definitely_normal",
        "status": "ok",
        "reason": "",
        "flags": flags,
        "reasons": [f"{f}: 0.41 is below the threshold 0.82" for f in flags],
        "findings": [[0.3, 0.4, 0.45, 0.6]] if SOURCES[number % 3] == "nih" else [],
        "lung_by": "human" if number % 2 else "lungfield",
        "members": members,
        **pictures(number % 6),
        **changes,
    }


def films(count: int) -> Iterator[dict[str, Any]]:
    """A stream of films."""
    return (film(n) for n in range(count))


def summary() -> dict[str, Any]:
    """Every part a summary may have, with figures that look like an audit's."""
    rng = np.random.default_rng(0)
    metrics, spread = [], []
    means = {
        "lift": 1.24,
        "gaussian_lift": 1.12,
        "random_lift": 1.0,
        "inside_share": 0.71,
        "area_share": 0.58,
        "pointing_hit": 0.83,
        "border_share": 0.114,
        "border_area_share": 0.19,
        "outside_box_share": 0.052,
        "text_share": 0.004,
        "text_area_share": 0.003,
        "finding_share": 0.2,
        "finding_area_share": 0.12,
        "finding_lift": 1.9,
        "finding_hit": 0.34,
        "lift_z": 1.3,
        "below_chance": 0.21,
        "flagged": 0.17,
        "empty": 0.002,
        "random_sd": 0.2,
    }
    for name, mean in means.items():
        for member in MEMBERS:
            for source in ("nih",) if name.startswith("finding") else ("", *SOURCES):
                value = mean * rng.uniform(0.93, 1.07)
                half = 0.03 * mean if source == "" else 0.06 * mean
                metrics.append(
                    {
                        "member": member,
                        "source": source,
                        "name": name,
                        "value": value,
                        "low": value - half,
                        "high": value + half,
                        "n": 1000,
                    }
                )
    for metric, low, high, base in (
        ("lift", 0.2, 2.0, {"random": 1.0, "gaussian": 1.12}),
        ("border_share", 0, 0.5, {"even": 0.19}),
    ):
        for member in MEMBERS:
            edges = np.linspace(low, high, 25)
            middle = 0.55 if metric == "lift" else 0.25
            values = low + (high - low) * rng.beta(8 * middle, 8 * (1 - middle), 1000)
            spread.append(
                {
                    "member": member,
                    "metric": metric,
                    "bins": edges.tolist(),
                    "counts": {"films": np.histogram(values, edges)[0].tolist()},
                    "baseline": base,
                }
            )
    masked = [
        {
            "control": c,
            "member": m,
            "source": s,
            "auc": a,
            "low": a - 0.02,
            "high": a + 0.015,
            "n": 420,
            "difference": a - 0.962,
            "difference_low": a - 0.982,
            "difference_high": a - 0.947,
            "changed": None if m == "asked" else x,
            "changed_low": x,
            "changed_high": x + 0.04,
            "changed_n": 420,
        }
        for m in (*MEMBERS, "normal or pneumonia", "screener")
        for s in ("kermany", "nih", "all")
        for c, a, x in (
            ("as is", 0.962, 0.0),
            ("outside only", 0.871, 0.31),
            ("lungs only", 0.903, 0.22),
            ("shape only", 0.81, 0.4),
        )
    ]
    stages = ("fc", "neck", *(f"stage {n}" for n in range(7, 0, -1)), "stem")
    curve = [
        {
            "member": m,
            "stage": s,
            "rank_correlation": 0.1 + 0.8 / (1 + n),
            "pairs": 299 - n,
            "ssim": 0.3 + 0.5 / (1 + 0.4 * n),
            "empty": 1 + n,
        }
        for m in MEMBERS
        for n, s in enumerate(stages)
    ]
    curve += [
        {
            "member": m,
            "stage": "another film",
            "rank_correlation": 0.22,
            "ssim": 0.41,
            "pairs": 100,
            "empty": 0,
        }
        for m in MEMBERS
    ]
    road = [
        {
            "member": m,
            "percentile": p,
            "morf": 0.8 - 0.008 * p,
            "lerf": 0.8 - 0.002 * p,
            "random": 0.8 - 0.004 * p,
            "before": 0.8,
            "n": 100,
            "flat": 2,
        }
        for m in MEMBERS
        for p in (20, 40, 60, 80)
    ]
    swap, boot = "permutation: the arms swapped patient by patient", "paired bootstrap of patients"
    compare = [
        {
            "source": s,
            "member": m,
            "metric": k,
            "film": f,
            "crop": f + d,
            "difference": d,
            "low": d - w,
            "high": d + w,
            "p": p,
            "p_holm": min(1, 9 * p),
            "test": boot if k == "auc" else swap,
            "n": 420,
            "patients": 310,
        }
        for m in MEMBERS
        for s in ("all", *SOURCES)
        for k, f, d, w, p in (
            ("accuracy", 0.912, 0.004, 0.016, 0.62),
            ("auc", 0.951, 0.008, 0.007, 0.031),
            ("lift", 1.13, 0.11, 0.04, 0.0002),
            ("lift_z", 0.9, 0.3, 0.2, 0.004),
            ("inside_share", 0.5, 0.2, 0.03, 0.0002),
            ("border_share", 0.171, -0.057, 0.02, 0.0004),
            ("outside_box_share", 0.11, -0.06, 0.02, 0.0004),
            ("pointing_hit", 0.78, 0.05, 0.06, 0.21),
            ("finding_lift", 1.7, 0.2, 0.5, 0.44),
        )
    ]
    return {
        "title": "runs/audit_crops",
        "made": "2026-01-01 12:00",
        "method": "Grad-CAM",
        "question": "Did the networks look inside the lungs?",
        "answer": {
            "sentence": "Mostly, but not by much: lung gets 1.24 times the attention that its area "
            "would get by chance (95 % interval 1.21 to 1.27), and a blob in the middle of the "
            "film would reach 1.12.",
            "value": 1.24,
            "low": 1.21,
            "high": 1.27,
        },
        "members": list(MEMBERS),
        "metrics": metrics,
        "distributions": spread,
        "controls": {"masked": masked, "randomisation": curve, "road": road},
        "compare": compare,
        "thresholds": {
            "bacterial": {"lift below": 0.82, "border above": 0.31},
            "viral": {"lift below": 0.79, "border above": 0.29},
        },
        "cautions": ["The networks were trained on films of children aged 1 to 5."],
        "settings": {"seed": 0, "draws": 1000, "films": "held-out patients"},
    }
