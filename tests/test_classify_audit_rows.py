"""classify/audit/rows.py: written film by film, read back in full, continued after a kill."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from classify.audit.metrics import METRICS
from classify.audit.rows import AUDIT_COLUMNS, HITS, AuditRow, AuditWriter, read_audit

NUMBERS = {name: (n + 1) / 7 for n, name in enumerate(METRICS)}  # none of them a short decimal
FULL = AuditRow(
    film="kermany/a.png",
    status="fallback",
    reason="the box is uncertain",
    source="kermany",
    label="pneumonia",
    sublabel="bacterial",
    patient="p1",
    member="bacterial",
    method="grad_cam",
    lung_by="human",
    truth=1,
    probabilities=(1 / 3, 2 / 3 - 1e-9, 1e-9),
    field_disagreement=0.1 + 0.2,
    metrics={**NUMBERS, "pointing_hit": True, "finding_hit": False},
    empty=True,
    cut_edges=("left", "top"),
    flags=("border", "text"),
    flag_reasons=("0.9 is above 0.3", "so, too"),
)
MEMBERS = ("bacterial", "viral")


def film(name: str, members: tuple[str, ...] = MEMBERS, **parts: Any) -> list[AuditRow]:
    return [replace(FULL, film=name, member=member, **parts) for member in members]


def refused(name: str) -> AuditRow:
    return AuditRow(name, "no_thorax", "a leg", patient=name)


def write_audit(path: Path, rows: list[AuditRow]) -> Path:
    """All these rows, a film or none that is added at a time."""
    path.unlink(missing_ok=True)
    with AuditWriter(path, 2) as table:
        for row in rows:
            table.done.clear()
            table.add([row])
    return path


def cut(path: Path, keep: int) -> None:
    """Leave so many bytes of the file, as a kill does."""
    path.write_bytes(path.read_bytes()[:keep])


# --- there and back


def test_every_field_comes_back_as_it_was(tmp_path: Path) -> None:
    empty = AuditRow("")
    missing = [f.name for f in fields(AuditRow) if getattr(FULL, f.name) == getattr(empty, f.name)]
    assert not missing  # the row above tests all fields
    assert read_audit(write_audit(tmp_path / "audit.csv", [FULL])) == [FULL]


def test_what_is_missing_stays_missing(tmp_path: Path) -> None:
    (row,) = read_audit(write_audit(tmp_path / "audit.csv", [refused("a.png")]))
    assert row == replace(refused("a.png"), metrics=dict.fromkeys(METRICS))


def test_zero_and_no_hit_are_not_missing(tmp_path: Path) -> None:
    zero = replace(FULL, metrics=dict.fromkeys(METRICS, 0.0), field_disagreement=0.0)
    (row,) = read_audit(write_audit(tmp_path / "audit.csv", [zero]))
    assert all(row.metrics[name] is False for name in HITS)
    assert all(row.value(name) == 0.0 for name in (*METRICS, "field_disagreement"))


def test_rows_keep_their_order(tmp_path: Path) -> None:
    rows = [*film("b.png"), refused("c.png"), *film("a.png")]
    assert [(r.film, r.member) for r in read_audit(write_audit(tmp_path / "a.csv", rows))] == [
        ("b.png", "bacterial"),
        ("b.png", "viral"),
        ("c.png", ""),
        ("a.png", "bacterial"),
        ("a.png", "viral"),
    ]


def test_the_first_line_names_the_columns(tmp_path: Path) -> None:
    text = write_audit(tmp_path / "audit.csv", []).read_text()
    assert text == ",".join(AUDIT_COLUMNS) + "\n"
    assert set(METRICS) < set(AUDIT_COLUMNS) and len(set(AUDIT_COLUMNS)) == len(AUDIT_COLUMNS)


@pytest.mark.parametrize(
    "name",
    [
        "a,b.png",
        'say "ah".png',
        " ends with a space ",
        "=1+1|x.png",
        "a\u2028b\x85c\x0b.png",
        "'; drop table.png",
        "röntgen 胸.png",
        "no utf-8 \udcff.png",
        "tab\tbed.png",
    ],
)
def test_hostile_names_come_back(tmp_path: Path, name: str) -> None:
    path = tmp_path / "audit.csv"
    write_audit(path, film("first.png"))
    with AuditWriter(path, 2) as table:
        table.add(film(name))
    with AuditWriter(path, 2) as table:
        assert list(table.done) == ["first.png", name] and table.done[name] == film(name)


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n", "\n\n"])
def test_a_line_break_in_a_reason_becomes_a_space(tmp_path: Path, end: str) -> None:
    row = replace(refused("a.png"), reason=f'a leg, "left"{end}not a chest')
    path = write_audit(tmp_path / "audit.csv", [row])
    assert path.read_bytes().count(b"\n") == 2 and b"\r" not in path.read_bytes()
    assert read_audit(path)[0].reason == 'a leg, "left" not a chest'


@pytest.mark.parametrize("part", ["", "a | b"])
def test_a_flag_that_could_not_be_read_back_is_refused(tmp_path: Path, part: str) -> None:
    with pytest.raises(ValueError, match=r"flags .* of a.png must hold words without ' \| '"):
        write_audit(tmp_path / "audit.csv", [replace(FULL, film="a.png", flags=(part,))])


def test_a_number_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    wrong = replace(FULL, metrics={**NUMBERS, "lift": float("nan")})
    with pytest.raises(ValueError, match="lift must be finite"):
        write_audit(tmp_path / "audit.csv", [wrong])


# --- film by film


def test_films_are_on_disk_as_soon_as_they_are_added(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "audit.csv"
    with AuditWriter(path, 2) as table:
        table.add(film("a.png"))
        assert read_audit(path) == film("a.png")
        table.add([refused("b.png")])
        assert [r.film for r in read_audit(path)] == ["a.png", "a.png", "b.png"]
        assert list(table.done) == ["a.png", "b.png"]


def test_a_finished_audit_is_continued(tmp_path: Path) -> None:
    path = tmp_path / "audit.csv"
    for name in ("a.png", "b.png"):
        with AuditWriter(path, 2) as table:
            table.add(film(name))
    assert read_audit(path) == [*film("a.png"), *film("b.png")]


def test_a_refused_film_is_done(tmp_path: Path) -> None:
    path = write_audit(tmp_path / "audit.csv", [refused("a.png")])
    with AuditWriter(path, 2) as table:
        assert list(table.done) == ["a.png"]


def test_a_torn_last_line_is_dropped(tmp_path: Path) -> None:
    path = write_audit(tmp_path / "audit.csv", [*film("a.png"), refused("b.png")])
    cut(path, -3)
    with AuditWriter(path, 2) as table:
        assert list(table.done) == ["a.png"]
        table.add([refused("b.png")])
    assert [r.film for r in read_audit(path)] == ["a.png", "a.png", "b.png"]


def test_a_film_cut_off_between_its_members_is_done_again(tmp_path: Path) -> None:
    path = write_audit(tmp_path / "audit.csv", [*film("a.png"), film("b.png")[0]])
    with AuditWriter(path, 2) as table:
        assert list(table.done) == ["a.png"]
        assert read_audit(path) == film("a.png")  # nothing is left of it
        table.add(film("b.png"))
    assert read_audit(path) == [*film("a.png"), *film("b.png")]


def test_a_film_cut_off_within_its_second_member_is_done_again(tmp_path: Path) -> None:
    path = write_audit(tmp_path / "audit.csv", [*film("a.png"), *film("b.png")])
    cut(path, -40)
    with AuditWriter(path, 2) as table:
        assert list(table.done) == ["a.png"]


@pytest.mark.parametrize("keep", [0, 20])
def test_a_torn_header_is_written_anew(tmp_path: Path, keep: int) -> None:
    path = write_audit(tmp_path / "audit.csv", [])
    cut(path, keep)
    with AuditWriter(path, 2) as table:
        table.add(film("a.png"))
    assert read_audit(path) == film("a.png")


def test_a_film_is_added_once(tmp_path: Path) -> None:
    path = write_audit(tmp_path / "audit.csv", film("a.png"))
    with AuditWriter(path, 2) as table, pytest.raises(ValueError, match=r"a.png stands in .* alr"):
        table.add(film("a.png"))
    assert read_audit(path) == film("a.png")


def test_an_audit_of_more_members_is_not_continued(tmp_path: Path) -> None:
    path = write_audit(tmp_path / "audit.csv", film("a.png"))
    with pytest.raises(ValueError, match=r"a.png has 2 rows, and there are 1 members"):
        AuditWriter(path, 1)


def test_a_row_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "audit.csv"
    good, bad = film("a.png")
    with AuditWriter(path, 2) as table, pytest.raises(ValueError, match="must hold words"):
        table.add([good, replace(bad, flags=("",))])
    assert read_audit(path) == []


# --- files that are none


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("film,status\n", "Missing or unknown: .*reason"),
        (",".join([*AUDIT_COLUMNS, "more"]) + "\n", "Missing or unknown: more"),
        (",".join(reversed(AUDIT_COLUMNS)) + "\n", "none, but in another order"),
        ("", "must have the columns"),
    ],
)
def test_wrong_columns_are_named(tmp_path: Path, header: str, message: str) -> None:
    (tmp_path / "audit.csv").write_text(header)
    with pytest.raises(ValueError, match=message):
        read_audit(tmp_path / "audit.csv")


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist: make one with"):
        read_audit(tmp_path / "audit.csv")


def test_a_film_that_stands_there_twice_is_named(tmp_path: Path) -> None:
    path = write_audit(tmp_path / "audit.csv", [*film("a.png"), *film("a.png")])
    with pytest.raises(ValueError, match=r"line 4: a.png stands there twice under 'bacterial'"):
        read_audit(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",1,0.333", ",one,0.333", "line 2: invalid literal"),
        ("kermany/a.png", "kermany/a.png,", r"line 2: a row must have \d+ cells. Got \d+ instead"),
        (",0.3333333333333333,", ",nan,", "line 2: p_normal must be finite"),
        (",0.3333333333333333,", ",third,", "line 2: could not convert"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = write_audit(tmp_path / "audit.csv", [FULL])
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        read_audit(path)


# --- one row's answers


@pytest.mark.parametrize(
    ("probabilities", "truth", "right"),
    [
        ((0.2, 0.5, 0.3), 1, True),
        ((0.2, 0.3, 0.5), 1, False),
        ((0.2, 0.3, 0.5), 2, True),
        ((0.5, 0.5, 0.0), 0, True),  # of equal ones the first
        ((0.2, 0.5, 0.3), -1, None),
        (None, 1, None),
    ],
)
def test_a_member_is_right_where_its_largest_probability_is(
    probabilities: tuple[float, float, float] | None, truth: int, right: bool | None
) -> None:
    assert AuditRow("a", probabilities=probabilities, truth=truth).right is right


def test_probabilities_close_to_each_other_keep_their_order(tmp_path: Path) -> None:
    row = replace(FULL, probabilities=(0.4, 0.4 + 1e-12, 0.2), truth=1)
    assert row.right is True
    assert read_audit(write_audit(tmp_path / "audit.csv", [row]))[0].right is True


def test_values_are_numbers() -> None:
    assert FULL.value("p_normal") == 1 / 3 and FULL.value("p_others") == 1e-9
    assert FULL.value("p_target") == 2 / 3 - 1e-9
    assert FULL.value("field_disagreement") == 0.1 + 0.2
    assert FULL.value("lift") == NUMBERS["lift"]
    assert (FULL.value("pointing_hit"), FULL.value("finding_hit")) == (1.0, 0.0)


def test_what_is_not_defined_has_no_value() -> None:
    names = ("p_target", "field_disagreement", "lift", "pointing_hit")
    assert [AuditRow("a").value(name) for name in names] == [None] * 4


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"name must be one of .*Got 'lfit'"):
        FULL.value("lfit")
