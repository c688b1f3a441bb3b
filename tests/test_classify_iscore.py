"""The I-score against values worked out by hand and a plain program that follows the formula."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from classify.tasks.iscore import (
    draw_subsets,
    drop_backwards,
    fit_cuts,
    i_score,
    modules_of,
    one_hot,
    single_scores,
    to_bits,
)

XOR = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=bool)


def by_the_formula(columns: list[list[int]], labels: list[int]) -> float:
    """Σ n_j² |Ȳ_j − Ȳ|² / Σ |Y_i − Ȳ|² film by film, in plain Python."""
    kinds, n = sorted(set(labels)), len(labels)
    cells: dict[tuple[int, ...], list[int]] = {}
    for film in range(n):
        cells.setdefault(tuple(c[film] for c in columns), []).append(labels[film])
    over = under = 0.0
    for kind in kinds:
        mean = labels.count(kind) / n
        over += sum(len(c) ** 2 * (c.count(kind) / len(c) - mean) ** 2 for c in cells.values())
        under += sum(((y == kind) - mean) ** 2 for y in labels)
    return over / under


def by_trying_all(
    bits: np.ndarray, labels: list[int], start: list[int]
) -> tuple[list[int], list[float]]:
    """Order of dropping and scores on the way, each set's score made anew."""

    def score(features: list[int]) -> float:
        return by_the_formula([bits[:, f].astype(int).tolist() for f in features], labels)

    left, order, scores = list(start), [], [score(list(start))]
    while len(left) > 1:
        worth = [score([g for g in left if g != f]) for f in left]
        best = next(i for i, w in enumerate(worth) if w >= max(worth) - 1e-9)
        scores.append(worth[best])
        order.append(left.pop(best))
    return order + left, scores


def films(number: int, features: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    values, labels = rng.normal(size=(number, features)), rng.integers(0, classes, number)
    values[:, 0] += labels
    return values, labels


def test_one_feature_that_tells_two_films_from_two() -> None:
    # cells of 2 films, means 0 and 1, mean of all ½: (4 · ¼ + 4 · ¼) / (4 · ¼) = 2
    assert i_score([[0], [0], [1], [1]], [0, 0, 1, 1]) == 2.0


def test_a_feature_without_influence_scores_0_and_two_that_interact_score_together() -> None:
    labels = [0, 1, 1, 0]
    assert i_score(XOR[:, :1], labels) == i_score(XOR[:, 1:], labels) == 0.0
    assert i_score(XOR, labels) == 1.0  # four cells of one film: (4 · ¼) / 1
    assert single_scores(XOR, labels).tolist() == [0.0, 0.0]


def test_no_features_leave_one_cell_and_score_0() -> None:
    assert i_score(np.zeros((4, 0)), [0, 1, 1, 0]) == 0.0


def test_three_classes_by_hand() -> None:
    # Y of 4 films: a a b c. Means ½ ¼ ¼; cells {a a} and {b c}.
    # |(1,0,0) − mean|² = ¼ + 2/16 = ⅜, |(0,½,½) − mean|² = ⅜; 4 · ⅜ · 2 = 3
    # Σ |Y − Ȳ|² = 2 · ⅜ + 2 · (¼ + 9/16 + 1/16) = 2.5
    assert i_score([[0], [0], [1], [1]], one_hot([0, 0, 1, 2], 3)) == pytest.approx(3 / 2.5)


def test_two_classes_score_alike_as_numbers_and_as_vectors() -> None:
    values, labels = films(40, 5, 2, 3)
    bits = to_bits(values, fit_cuts(values))
    both = np.eye(2)[labels]
    assert i_score(bits[:, :3], labels) == pytest.approx(i_score(bits[:, :3], both), abs=1e-12)


def test_the_mean_over_all_ways_to_deal_labels_out_is_as_stated() -> None:
    bits = np.array([[0, 0], [0, 0], [0, 1], [1, 1], [1, 1], [1, 1]], dtype=bool)  # cells 2, 1, 3
    dealt = set(itertools.permutations([0, 0, 0, 0, 1, 1]))
    mean = np.mean([i_score(bits, y) for y in dealt])
    assert mean == pytest.approx((36 - (4 + 1 + 9)) / (6 * 5))


@pytest.mark.parametrize("classes", [2, 3])
def test_scores_agree_with_the_formula(classes: int) -> None:
    values, labels = films(60, 12, classes, 0)
    bits = to_bits(values, fit_cuts(values))
    for size in (1, 4, 12):
        plain = by_the_formula(
            [bits[:, f].astype(int).tolist() for f in range(size)], labels.tolist()
        )
        assert i_score(bits[:, :size], one_hot(labels, classes)) == pytest.approx(plain, rel=1e-9)
    alone = [i_score(bits[:, [f]], one_hot(labels, classes)) for f in range(12)]
    assert single_scores(bits, one_hot(labels, classes)) == pytest.approx(alone)


@pytest.mark.parametrize("classes", [2, 3])
def test_dropping_agrees_with_trying_every_set(classes: int) -> None:
    values, labels = films(50, 9, classes, 1)
    bits = to_bits(values, fit_cuts(values))
    subsets = draw_subsets(bits, size=6, draws=12, seed=2)
    found = drop_backwards(bits, one_hot(labels, classes), subsets)
    for draw, start in enumerate(subsets.tolist()):
        order, scores = by_trying_all(bits, labels.tolist(), start)
        assert found.order[draw].tolist() == order
        assert found.scores[draw] == pytest.approx(scores, rel=1e-9)
        best = len(scores) - 1 - scores[::-1].index(max(scores))
        assert set(found.return_set(draw)) == set(order[best:])
        assert found.best_scores[draw] == pytest.approx(max(scores))


def test_of_equal_scores_the_first_feature_is_dropped_and_the_smaller_set_kept() -> None:
    bits = np.array([[0, 0, 0], [0, 0, 0], [1, 1, 1], [1, 1, 1]], dtype=bool)  # three copies
    found = drop_backwards(bits, [0, 0, 1, 1], [[2, 0, 1]])
    assert found.order.tolist() == [[2, 0, 1]]
    assert found.scores.tolist() == [[2.0, 2.0, 2.0]]
    assert found.return_set(0) == (1,)


def test_dropping_finds_the_pair_that_only_matters_together() -> None:
    rng = np.random.default_rng(4)
    bits = rng.random((200, 30)) > 0.5
    labels = bits[:, 7] ^ bits[:, 21]
    subsets = [[7, 21, 1, 2, 3, 4], [0, 5, 6, 8, 9, 10]]
    best = modules_of(drop_backwards(bits, labels, subsets))[0]
    assert set(best.features) == {7, 21} and best.score > 40
    assert max(single_scores(bits, labels)[[7, 21]]) < 5


def test_different_sets_come_out_once_and_highest_first() -> None:
    values, labels = films(60, 6, 2, 5)
    bits = to_bits(values, fit_cuts(values))
    found = modules_of(drop_backwards(bits, labels, draw_subsets(bits, 4, 100)))
    scores = [m.score for m in found]
    assert scores == sorted(scores, reverse=True)
    assert len({frozenset(m.features) for m in found}) == len(found) < 100
    for module in found[:5]:
        assert i_score(bits[:, module.features], labels) == pytest.approx(module.score)


def test_many_draws_and_few_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    values, labels = films(40, 8, 2, 6)
    bits = to_bits(values, fit_cuts(values))
    subsets = draw_subsets(bits, 5, 20)
    whole = drop_backwards(bits, labels, subsets)
    monkeypatch.setattr("classify.tasks.iscore._CELLS", 3 << 5)
    parts = drop_backwards(bits, labels, subsets)
    assert np.array_equal(whole.order, parts.order) and np.array_equal(whole.scores, parts.scores)


def test_the_median_cuts_at_the_middle_of_the_training_films() -> None:
    cuts = fit_cuts(np.array([[1.0, 0.0], [2.0, 0.0], [30.0, 0.0], [40.0, 9.0]]))
    assert cuts.tolist() == [16.0, 0.0]
    assert to_bits([[16.0, 0.5], [17.0, 0.0]], cuts).tolist() == [[False, True], [True, False]]


def test_two_means_agree_with_trying_every_cut() -> None:
    rng = np.random.default_rng(7)
    values = np.concatenate([rng.normal(0, 1, (9, 4)), rng.normal(4, 2, (6, 4))])
    for column, cut in zip(values.T, fit_cuts(values, "kmeans"), strict=True):
        line = np.sort(column)
        inner = [
            sum(((p - p.mean()) ** 2).sum() for p in (line[:i], line[i:])) for i in range(1, 15)
        ]
        best = 1 + int(np.argmin(inner))
        assert cut == pytest.approx((line[best - 1] + line[best]) / 2)


def test_a_feature_that_is_alike_on_all_films_is_never_drawn() -> None:
    bits = np.random.default_rng(8).random((30, 5)) > 0.5
    bits[:, [1, 3]] = True
    assert set(draw_subsets(bits, 4, 50).ravel().tolist()) == {0, 2, 4}
    with pytest.raises(ValueError, match="differ between films"):
        draw_subsets(bits[:, [1, 3]], 2, 5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: i_score([[0], [1]], [1, 1]), "outcomes must differ"),
        (lambda: i_score([[0], [1]], [0, 1, 1]), "outcomes must be"),
        (lambda: fit_cuts([[0.0], [np.nan]]), "finite"),
    ],
)
def test_what_cannot_be_scored_is_refused(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()
