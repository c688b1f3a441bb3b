"""Controls on a run's films: sample, lungs blacked out, weights made random, pixels taken away."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from audit_world import LungNet, lungs_of, tiny_ensemble, tiny_net
from torch import nn

from classify.audit import controls
from classify.audit.controls import Masked, Randomised, Road, Sample, draw_sample
from classify.audit.films import AuditFilm, Prepared, RunFilm, Truth
from classify.predictions import PredictionRow
from cxr.boxes import Frame
from cxr.film import Film
from cxr.films_table import FilmRow

SIZE = (96, 96)


class PatchNet(nn.Module):
    """Says target where a bright patch is; its map shows just the bright pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.neck = nn.Sequential(nn.Conv2d(3, 1, 1), nn.ReLU())
        self.fc = nn.Linear(1, 3, bias=False)
        with torch.no_grad():
            self.neck[0].weight.fill_(1 / 3)
            self.neck[0].bias.fill_(-0.3)
            self.fc.weight.copy_(torch.tensor([[-9.0], [60.0], [0.0]]))

    @property
    def saliency_layer(self) -> nn.Module:
        return self.neck

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.neck(x).mean((2, 3)))


def audit_film(
    name: str,
    pixels: np.ndarray,
    label: str = "normal",
    sublabel: str = "",
    source: str | None = "kermany",
    lung: np.ndarray | None = None,
    crop: Frame | None = None,
) -> AuditFilm:
    row = source and FilmRow(name, "", source, f"p {name}", label, sublabel, "CC BY 4.0")
    listed = RunFilm(PredictionRow(name, "ok", "", np.zeros((2, 3))), Path(name), crop)
    lung = lungs_of(*pixels.shape) if lung is None else lung
    return AuditFilm(
        listed,
        Truth(row or None),
        Film(pixels, name, "0" * 64),
        "",
        crop.apply(pixels) if crop else pixels,
        lung,
        "lungfield",
    )


def lung_films(count: int = 12, source: str | None = "kermany") -> list[AuditFilm]:
    """Every other film has pneumonia: brighter lungs. All else is the same noise for both."""
    rng = np.random.default_rng(0)
    out = []
    for n in range(count):
        pixels = rng.uniform(0.4, 0.6, SIZE).astype(np.float32)
        pixels[lungs_of(*SIZE)] = 0.2 + 0.5 * (n % 2) + 0.01 * n
        label, sublabel = ("pneumonia", "bacterial") if n % 2 else ("normal", "")
        out.append(audit_film(f"{n}.png", pixels, label, sublabel, source))
    return out


def patch_films(count: int = 6) -> list[AuditFilm]:
    """Dark films with a bright patch, each elsewhere, all of them bacterial."""
    out = []
    for n in range(count):
        pixels = np.full(SIZE, 0.1, np.float32)
        pixels[10 + 8 * n : 30 + 8 * n, 20 + 4 * n : 45 + 4 * n] = 0.95
        out.append(audit_film(f"{n}.png", pixels, "pneumonia", "bacterial"))
    return out


def aucs(rows: Sequence[dict], member: str = "bacterial", source: str = "kermany") -> dict:
    return {r["control"]: r["auc"] for r in rows if (r["member"], r["source"]) == (member, source)}


def shown_to(control: Any, *groups: Sequence[AuditFilm]) -> Any:
    """The control, after the films were shown to it in these batches."""
    for group in groups:
        if prepared := Prepared.of(group, control.members):
            control.take(prepared)
    return control


def masked(films: Sequence[AuditFilm], screener: Any = None) -> tuple[list[dict], int]:
    members = tiny_ensemble(LungNet(), LungNet(5.0))
    names = [film.listed.name for film in films]
    control = shown_to(Masked(members, names, screener, 0, 50), films[:5], films[5:])
    return tuple(control.results().values())


def sampled(kind: Any, members: Any, films: Sequence[AuditFilm], *more: Any) -> Any:
    names = {film.listed.name for film in films}
    return shown_to(kind(members, names, "grad_cam", *more), films[:2], films[2:])


NAMES = [f"images/{n}.png" for n in range(50)]


def test_a_sample_does_not_depend_on_the_order() -> None:
    assert set(draw_sample(NAMES, 10, 0)) == set(draw_sample(NAMES[::-1], 10, 0))


def test_a_sample_keeps_the_order_of_the_films() -> None:
    found = draw_sample(NAMES[::-1], 10, 0)
    assert len(found) == 10 and found == [n for n in NAMES[::-1] if n in found]


def test_a_sample_of_fewer_films_is_part_of_one_of_more() -> None:
    assert set(draw_sample(NAMES, 5, 0)) < set(draw_sample(NAMES, 10, 0))


def test_a_film_more_moves_at_most_one_other_out() -> None:
    one, more = draw_sample(NAMES, 10, 0), draw_sample([*NAMES, "new.png"], 10, 0)
    assert len(set(one) - set(more)) <= 1


def test_another_seed_draws_another_sample() -> None:
    assert draw_sample(NAMES, 10, 0) != draw_sample(NAMES, 10, 1)


@pytest.mark.parametrize("count", [0, 50, 99])
def test_all_films_are_taken_when_so_many_are_wanted(count: int) -> None:
    assert draw_sample(NAMES, count, 0) == NAMES


def test_a_member_that_looks_at_lungs_alone_loses_its_auc_without_them() -> None:
    rows, blind = masked(lung_films())
    found = aucs(rows)
    assert blind == 0 and found["as is"] == 1.0 and found["lungs only"] == 1.0
    assert found["outside only"] == pytest.approx(0.5) == found["shape only"]
    assert found["swapped"] == 1.0


def test_a_member_that_looks_around_the_lungs_loses_its_auc_in_other_surroundings() -> None:
    around = LungNet()
    around.lungs = 1 - around.lungs
    films = lung_films(24)
    for n, film in enumerate(films):  # the answer stands in the corner
        film.pixels[:12] = 0.1 + 0.6 * (n % 2)
    names = [film.listed.name for film in films]
    control = Masked(tiny_ensemble(around, around), names, None, 0, 50)
    found = aucs(shown_to(control, films[:9], films[9:]).results()["masked"])
    assert found["as is"] == 1.0 and found["swapped"] <= 0.75


def test_a_question_to_both_members_is_asked_where_films_hold_both_answers() -> None:
    rows, _ = masked(lung_films())
    assert aucs(rows, "normal / pneumonia, kermany")["as is"] == 1.0
    assert not aucs(rows, "bacterial / viral, kermany")  # no viral film
    assert not aucs(rows, "normal / pneumonia, nih adults", "nih")


def test_lungs_of_the_film_are_hidden_on_its_crop() -> None:
    crop = Frame.cut((0, 0, 96, 96))
    whole = masked(lung_films())[0]
    cut = masked(
        [
            audit_film(
                s.listed.name,
                s.film.pixels,
                s.truth.row.label,
                s.truth.row.sublabel,  # type: ignore[union-attr]
                crop=crop,
            )
            for s in lung_films()
        ]
    )[0]
    assert aucs(cut) == aucs(whole)


def test_films_without_a_lung_field_are_counted_and_refused_ones_are_not() -> None:
    films = lung_films()
    films[3] = audit_film("b.png", np.ones(SIZE, np.float32), lung=np.zeros(SIZE, bool))
    films[7] = AuditFilm(films[7].listed, Truth(), reason="not_found: There is no such file.")
    rows, blind = masked(films)
    assert blind == 1 and next(r["n"] for r in rows if r["control"] == "as is") == 10


def test_without_any_lung_field_there_is_no_row() -> None:
    nothing = np.zeros(SIZE, bool)
    films = [audit_film(f"{n}.png", np.ones(SIZE, np.float32), lung=nothing) for n in range(6)]
    assert masked(films) == ([], 6)


def test_films_of_no_table_are_a_source_of_their_own() -> None:
    rows, _ = masked([*lung_films(8), *lung_films(4, None)])
    assert {r["source"] for r in rows} == {"all", "kermany", "unknown"}


def test_without_any_table_all_films_stand_together() -> None:
    rows, _ = masked(lung_films(8, None))
    assert {r["source"] for r in rows} == {"all"} and {r["auc"] for r in rows} == {None}


def test_the_screeners_decisions_are_compared() -> None:
    def decide(logits: np.ndarray) -> tuple[np.ndarray, list[str], str]:
        scores = logits[:, 0, 1]
        return scores, ["read" if s > middle else "definitely_normal" for s in scores], "id"

    members = tiny_ensemble(LungNet())
    middle = float(np.median(members.predict([s.pixels for s in lung_films()])[:, 0, 1]))
    screener = SimpleNamespace(decide=decide)
    rows, _ = masked(lung_films(), screener=screener)
    changed = {r["control"]: r["changed"] for r in rows if r["member"] == "screener"}
    assert changed["as is"] == 0 and 0 < changed["outside only"] <= 1


def test_a_sample_holds_what_the_members_saw_and_who_it_was() -> None:
    films = lung_films(5)
    films[1] = AuditFilm(films[1].listed, Truth(), reason="gone")
    members = tiny_ensemble()
    sample = Sample(members, {f"{n}.png" for n in range(4)}, "grad_cam")
    shown_to(sample, films[:2], films[2:])
    assert [known.name for known in sample.known] == ["0.png", "2.png", "3.png"]
    assert [known.patient for known in sample.known] == ["p 0.png", "p 2.png", "p 3.png"]
    wanted = members.prepare([f.pixels for f in films[:4] if f.pixels is not None])[0]
    torch.testing.assert_close(sample.batch, wanted)


def test_a_sample_of_nothing_is_refused() -> None:
    gone = AuditFilm(lung_films(1)[0].listed, Truth(), reason="gone")
    with pytest.raises(ValueError, match="at least one film that the members saw"):
        sampled(Randomised, tiny_ensemble(), [gone]).results()


def test_looking_at_a_sample_some_films_at_a_time_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    members = tiny_ensemble()
    sample = sampled(Sample, members, lung_films(7))
    (whole,) = sample.maps(members.member("viral"))
    monkeypatch.setattr(controls, "_AT_A_TIME", 3)
    (parts,) = sample.maps(members.member("viral"))
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_randomised_stages_go_from_the_head_down_to_another_film() -> None:
    members = tiny_ensemble(tiny_net(0), tiny_net(1))
    before = [p.clone() for p in members.member("viral").parameters()]
    rows = sampled(Randomised, members, lung_films(4)).results()["randomised"]
    stages = [r["stage"] for r in rows if r["member"] == "viral"]
    assert stages == ["head", "neck", "body", "another film"]
    assert {r["member"] for r in rows} == {"bacterial", "viral"}
    json.dumps(rows, allow_nan=False)
    for one, other in zip(before, members.member("viral").parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0)


@pytest.fixture(scope="module")
def patched() -> dict[str, list[dict]]:
    """Both members on bacterial films, whose maps show just the bright patch."""
    return sampled(Road, tiny_ensemble(PatchNet(), PatchNet()), patch_films(), 0, 50).results()


def test_a_faithful_map_has_an_area_above_nothing(patched: dict[str, list[dict]]) -> None:
    own = {a["name"]: a for a in patched["areas"] if a["member"] == "bacterial"}
    assert own["road_area"]["value"] > 0.2 and own["road_area"]["low"] > 0
    assert own["road_over_random"]["value"] > 0
    curve = [p for p in patched["road"] if p["member"] == "bacterial"]
    assert [p["percentile"] for p in curve] == [20, 40, 60, 80]
    assert all(p["morf"] < p["lerf"] for p in curve[:2]) and curve[0]["n"] == 6


@pytest.mark.parametrize("by_lungs", [True, False])
def test_an_answer_that_hangs_on_lungs_falls_faster_without_them(by_lungs: bool) -> None:
    """Bright is where the member looks; what is taken away is filled in from what is left."""
    net = LungNet(4.0)
    net.lungs = net.lungs if by_lungs else 1 - net.lungs
    bright = lungs_of(*SIZE) == by_lungs
    pixels = np.where(bright, 0.9, 0.1).astype(np.float32)
    films = [audit_film(f"{n}.png", pixels, "pneumonia", "bacterial") for n in range(3)]
    areas = sampled(Road, tiny_ensemble(net, net), films, 0, 50).results()["areas"]
    (value,) = [a["value"] for a in areas if a["name"] == "road_lungs"]
    assert value > 0.05 if by_lungs else value < -0.05, value


def test_a_member_is_asked_of_its_own_targets_films(patched: dict[str, list[dict]]) -> None:
    assert {a["member"] for a in patched["areas"]} == {"bacterial"}  # no film is viral


def test_without_truth_a_member_is_asked_of_what_it_says_is_its_target() -> None:
    films = [audit_film(f.listed.name, f.film.pixels, source=None) for f in patch_films(3)]  # type: ignore[union-attr]
    films.append(audit_film("dark.png", np.full(SIZE, 0.05, np.float32), source=None))
    members = tiny_ensemble(PatchNet(), PatchNet())
    points = sampled(Road, members, films, 0, 50).results()["road"]
    assert {p["member"]: p["n"] for p in points} == {"bacterial": 3, "viral": 3}
