"""Charts and words of the audit page: places and figures worked out by hand."""

from __future__ import annotations

import re
from typing import Any

import pytest

from classify.audit.sections import answer_chart, flatten, sections
from cxr.page import in_unit, interval, p_value
from cxr.page.charts import Row, cascade, curves, forest, histogram, nice_ticks

HOSTILE = '</text><script>alert(1)</script>&"'


def test_figures_are_read_with_their_unit() -> None:
    assert in_unit(0.4567, "share") == "46 %" and in_unit(0.034, "share") == "3.4 %"
    assert in_unit(0.0044, "share") == "0.44 %" and in_unit(0.0, "share") == "0.0 %"
    assert in_unit(1.237, "ratio") == "1.24 ×" and in_unit(None, "ratio") == "–"


def test_an_interval_is_read_with_its_ends() -> None:
    assert interval(1.2, 1.1, 1.3, "ratio") == "1.20 × [1.10, 1.30]"
    assert interval(0.5, 0.4, 0.6, "share") == "50.0 % [40.0, 60.0]"
    assert interval(-0.05, -0.1, 0.01, "score", signed=True) == "−0.050 [−0.100, +0.010]"
    assert interval(None, None, None, "ratio") == "undefined"


def test_p_is_never_zero() -> None:
    assert (p_value(0.0), p_value(0.0314), p_value(None)) == ("< 0.001", "0.031", "–")


def test_ticks_are_round_numbers_inside_the_range() -> None:
    assert nice_ticks(0, 1, 5) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert nice_ticks(0.97, 1.31, 4) == [1.0, 1.1, 1.2, 1.3]
    assert nice_ticks(2, 2) == [2]


def test_a_value_stands_between_the_ends_of_its_interval() -> None:
    svg = forest([Row("a", 1.0, 0.5, 1.5, "1.0")], "about", "score")
    ends = re.search(r'class="bar s-a" d="M([\d.]+) [\d.]+H([\d.]+)"', svg)
    middle = re.search(r'<circle class="dot s-a" cx="([\d.]+)"', svg)
    assert ends and middle
    low, high = map(float, ends.groups())
    assert float(middle.group(1)) == pytest.approx((low + high) / 2, abs=0.1)


def test_a_row_without_a_value_is_written_but_not_drawn() -> None:
    svg = forest([Row("a", None, None, None, "undefined")], "about", "score")
    assert "undefined" in svg and "<circle" not in svg


def test_bars_are_as_high_as_their_counts() -> None:
    svg = histogram([0, 1, 2], {"films": [10, 5]}, [], "about", "score")
    tops = [float(v) for v in re.findall(r'class="fill s-a" d="M[\d.]+ 156V([\d.]+)H', svg)]
    assert tops == [26, 91]  # 130 px and 65 px above the base at 156


def test_counts_that_do_not_fit_their_bins_are_refused() -> None:
    with pytest.raises(ValueError, match="one for each bin"):
        histogram([0, 1, 2], {"films": [1]}, [], "about", "score")


def test_baselines_are_named_on_the_chart() -> None:
    svg = histogram([0, 2], {"films": [3]}, [(1.0, "random map"), (1.1, "blob")], "x", "ratio")
    assert "random map: 1.00 ×" in svg and "blob: 1.10 ×" in svg
    assert len(re.findall('class="ref', svg)) == 2


def test_lines_differ_by_marker_and_dash_and_miss_what_is_undefined() -> None:
    svg = curves([10, 50], {"one": [1, 0], "two": [1, None]}, "x", "y", "about")
    assert svg.count("<circle") == 3 and svg.count("<rect") == 2  # one more each in the legend
    assert 'class="line s-b"' in cascade(["a"], {"one": [1], "two": [0.5]}, "about")


def test_hostile_names_stay_text_in_every_chart() -> None:
    made = (
        forest([Row(HOSTILE, 1, 0, 2, HOSTILE, group=HOSTILE)], HOSTILE, "score", (1, HOSTILE)),
        histogram([0, 1], {HOSTILE: [1]}, [(0.5, HOSTILE)], HOSTILE, "score"),
        cascade([HOSTILE], {HOSTILE: [1]}, HOSTILE),
        curves([1], {HOSTILE: [1]}, HOSTILE, HOSTILE, HOSTILE),
    )
    for svg in made:
        assert "<script" not in svg and svg.count("</text>") == svg.count("<text ")


def test_all_sources_come_first_and_a_members_rows_stand_under_their_source() -> None:
    metrics = [
        {"member": m, "source": s, "name": "lift", "value": 1, "low": 1, "high": 1, "n": 3}
        for m in ("a", "b")
        for s in ("nih", "all")
    ]
    (section,) = sections({"metrics": metrics})
    assert [r[:2] for r in section.charts[0].table.rows] == [
        ("all sources", "a"),
        ("all sources", "b"),
        ("nih", "a"),
        ("nih", "b"),
    ]


def test_chance_is_drawn_beside_what_it_is_chance_for() -> None:
    metrics = [
        {"member": "a", "source": "", "name": name, "value": value, "low": None, "high": None}
        for name, value in (("inside_share", 0.7), ("area_share", 0.6))
    ]
    (section,) = sections({"metrics": metrics})
    assert [c.title for c in section.charts] == ["Attention on lung"]
    assert 'class="chance"' in section.charts[0].svg
    assert section.charts[0].table.rows == [("all sources", "a", "70 %", "60 %", "–")]


def test_a_difference_of_shares_is_in_points_and_a_trap_of_cropping_is_named() -> None:
    row = {
        "source": "",
        "member": "viral",
        "metric": "border_share",
        "film": 0.2,
        "crop": 0.15,
        "difference": -0.05,
        "low": -0.08,
        "high": -0.02,
        "p": 0.0004,
        "n": 1200,
        "patients": 1100,
    }
    (section,) = sections({"compare": [row]})
    assert section.table is not None
    assert section.table.rows == [
        (
            "Attention on the border",
            "all sources",
            "viral",
            "20 %",
            "15 %",
            "−5.0 points [−8.0, −2.0]",
            "< 0.001",
            "1,200",
            "1,100",
        )
    ]
    assert "what each network saw" in section.charts[0].means


def compared(key: str, **more: Any) -> dict[str, Any]:
    return {
        "source": "nih",
        "member": "viral",
        "metric": key,
        "film": 0.5,
        "crop": 0.6,
        "difference": 0.1,
        "low": 0.05,
        "high": 0.15,
        "p": 0.01,
        "n": 9,
        "patients": 9,
        "left_out": {},
    } | more


def test_accuracy_auc_lift_and_border_come_first_and_the_rest_is_folded() -> None:
    keys = ("pointing_hit", "border_share", "lift", "auc", "lift_z", "accuracy")
    (section,) = sections({"compare": [compared(key) for key in keys]})
    assert [c.title.split(":")[0] for c in section.charts] == [
        "Accuracy",
        "AUC",
        "Lift",
        "Attention on the border",
    ]
    assert section.fold is not None and section.fold.table is not None
    assert [name for name, _ in section.fold.table.groups] == ["Lift against luck", "Pointing game"]
    assert section.fold.title == "More differences: lift against luck and pointing game"


def test_corrected_p_and_films_left_out_have_columns_where_they_are_given() -> None:
    rows = [
        compared("lift", member=m, p_holm=0.09, patients=7, left_out={"map empty": 2}, test=t)
        for m, t in (("viral", "swapped"), ("bacterial", "swapped"))
    ]
    rows += [compared("auc", member="viral", test="bootstrap")]
    (section,) = sections({"compare": rows})
    assert section.table is not None
    assert section.table.head[2:] == (
        "Member",
        "Whole film",
        "Crop",
        "Crop − film [95 % interval]",
        "p",
        "p, corrected",
        "Films",
        "Patients",
        "Left out",
    )
    assert section.table.rows[1][2:] == (
        "viral",
        "0.50 ×",
        "0.60 ×",
        "+0.10 × [+0.05, +0.15]",
        "0.010",
        "0.090",
        "9",
        "7",
        "2",
    )
    assert len({len(row) for row in section.table.rows}) == 1
    (note,) = section.notes
    assert "Holm" in note and "Test: swapped. Test of AUC: bootstrap." in note


def test_two_methods_are_named_in_title_charts_and_table() -> None:
    arms = ["Grad-CAM", "the network's own map"]
    (section,) = sections({"compare": [compared("lift")], "compare_arms": arms})
    assert section.title == "The network's own map beside Grad-CAM"
    assert section.table is not None
    assert section.table.head[3:6] == (
        "Grad-CAM",
        "The network's own map",
        "Difference [95 % interval]",
    )
    (chart,) = section.charts
    assert chart.title == "Lift: the network's own map − Grad-CAM"
    assert chart.means.endswith("To the right of 0 the network's own map is better.")


def test_a_difference_that_is_not_defined_is_left_out() -> None:
    rows = [compared("lift"), compared("auc", difference=None, low=None, high=None)]
    (section,) = sections({"compare": rows})
    assert [c.title for c in section.charts] == ["Lift: crop − whole film"]


def test_controls_by_masking_are_told_in_words_with_what_changed() -> None:
    more = {"member": "viral", "source": "all", "n": 9, "low": 0.8, "high": 0.9}
    rows = [
        {"control": "as is", "auc": 0.9, "changed": 0.0, "difference": 0.0, **more},
        {
            "control": "outside only",
            "auc": 0.85,
            "changed": 0.31,
            "changed_low": 0.2,
            "changed_high": 0.4,
            "difference": -0.05,
            "difference_low": -0.1,
            "difference_high": 0.01,
            **more,
        },
    ]
    (section,) = sections({"controls": {"masked": rows}})
    table = section.charts[0].table
    assert table is not None and table.grouped
    assert table.groups == [
        (
            "all sources",
            [
                ("as it is", "0.900 [0.800, 0.900]", "–", "–", "9"),
                (
                    "lungs blacked out",
                    "0.850 [0.800, 0.900]",
                    "−0.050 [−0.100, +0.010]",
                    "31.0 % [20.0, 40.0]",
                    "9",
                ),
            ],
        )
    ]


def test_maps_of_two_other_films_are_the_floor_and_no_stage() -> None:
    rows = [
        {"member": "viral", "stage": s, "rank_correlation": r, "ssim": 0.5, "pairs": 9, "empty": e}
        for s, r, e in (("fc", 0.8, 0), ("stem", 0.1, 3), ("another film", 0.2, 0))
    ]
    (section,) = sections({"controls": {"randomisation": rows}})
    (chart,) = section.charts
    assert chart.svg.count('class="floor') == 2 * 2  # two series, in the wide and the narrow chart
    assert ">as trained<" in chart.svg and ">another film<" not in chart.svg
    assert "3 of 21 pairs of maps are left out" in chart.means
    assert chart.table is not None
    assert chart.table.rows[-1] == ("two other films", "0.200", "0.500", "9", "0")


def test_road_begins_with_the_film_as_it_is() -> None:
    rows = [
        {
            "member": "viral",
            "percentile": p,
            "morf": 0.5,
            "lerf": 0.7,
            "random": None,
            "before": 0.8,
            "n": 4,
        }
        for p in (40, 20)
    ]
    (section,) = sections({"controls": {"road": rows}})
    table = section.charts[0].table
    assert table is not None
    assert table.head == ("Taken away", "most attended first", "least attended first", "Films")
    assert table.rows[:2] == [("0 %", "0.800", "0.800", "4"), ("20 %", "0.500", "0.700", "4")]


def test_road_without_films_has_no_chart() -> None:
    row = {
        "member": "viral",
        "percentile": 20,
        "morf": None,
        "lerf": None,
        "random": None,
        "before": None,
        "n": 0,
        "flat": 3,
    }
    assert sections({"controls": {"road": [row]}}) == []


def test_a_source_without_a_figure_is_named_and_minor_figures_are_folded() -> None:
    rows = [
        {"member": "viral", "source": s, "name": n, "value": v}
        for s, n, v in (
            ("nih", "lift", 1.2),
            ("kermany", "lift", 1.1),
            ("nih", "flagged", 0.1),
            ("nih", "finding_lift", 1.9),
            ("kermany", "finding_lift", None),
        )
    ]
    (section,) = sections({"metrics": rows})
    assert [c.title for c in section.charts] == ["Lift", "Lift on the finding"]
    assert section.charts[1].means.endswith("No figure for kermany.")
    assert section.fold is not None and section.fold.title == "More figures: flagged films"


def test_a_narrow_chart_has_its_words_above_the_bars() -> None:
    rows = [Row("a", 1.0, 0.5, 1.5, "1.0", group="nih")]
    wide, narrow = (forest(rows, "about", "score", (1, "chance"), width=w) for w in (540, 330))
    height = r'class="dot s-a" cx="[\d.]+" cy="([\d.]+)"'
    words = r'<text class="" x="12" y="([\d.]+)">a<'
    for svg, gap in ((wide, (-6, 0)), (narrow, (8, 16))):
        (dot,), (text,) = re.findall(height, svg), re.findall(words, svg)
        assert gap[0] < float(dot) - float(text) < gap[1]
    assert 'class="chart narrow"' in narrow and 'class="chart"' in wide


def test_a_legend_that_is_too_long_goes_on_below() -> None:
    series = {name: [1.0, 0.5] for name in ("most attended first", "least attended first")}
    svg = curves([10, 50], series, "x", "y", "about", width=330)
    assert len(set(re.findall(r'y="([\d.]+)">(?:most|least) attended', svg))) == 2


def test_a_summary_without_figures_has_no_sections_and_no_answer_chart() -> None:
    assert sections({}) == [] and answer_chart({}) is None
    assert sections({"controls": {"road": []}, "compare": None}) == []


def test_nested_settings_become_named_rows() -> None:
    assert flatten({"a": {"b": 1.23456, "c": [1, 2]}, "d": None}) == [
        ("a · b", "1.235"),
        ("a · c", "1, 2"),
        ("d", "–"),
    ]
