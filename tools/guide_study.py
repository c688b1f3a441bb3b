"""What does each means of guidance bring, and what does it cost? One training an arm, all alike.

    python tools/guide_study.py configs/classify/kermany_crops.yaml --crops runs/crops_data

Every arm is trained on part train, by the recipe's first phase, and measured on part val; nothing
here sees part test. The rule that chooses, fixed before the first training: of the arms that lose
at most 0.015 of the plain arm's AUC, as it is, in every question, that with the highest mean over
the questions of (AUC with another film's surroundings) − |AUC with the lungs blacked out − 0.5|.
Writes study.json and table.md; an arm that is finished is not trained again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from classify.augment import GuideConfig
from classify.tasks.settings import TrainConfig
from cxr.cli import Several, as_command, from_plain, parse_config, to_plain
from cxr.rules import refusing, require
from cxr.stats import Figure, in_words
from cxr.stream import batched
from cxr.workdir import Workdir, console, read_json, write_atomic, write_json
from detect.metrics import to_markdown

ARMS = {
    "plain": GuideConfig(),
    "surroundings": GuideConfig(swap=0.6),
    "maps": GuideConfig(maps=1.0),
    "blanks": GuideConfig(blank=0.3),
    "gradient": GuideConfig(gradient=1.0),
    "surroundings + maps": GuideConfig(swap=0.6, maps=1.0),
    "surroundings + maps + blanks": GuideConfig(swap=0.6, maps=1.0, blank=0.3),
    "surroundings + maps + silence": GuideConfig(swap=0.6, maps=1.0, silence=1.0),
    "all but the gradient": GuideConfig(swap=0.6, maps=1.0, blank=0.3, silence=1.0),
    "surroundings + gradient": GuideConfig(swap=0.6, gradient=1.0),
}
SHOWN = {
    "as is": "as it is",
    "outside only": "lungs blacked out",
    "lungs only": "lungs alone",
    "swapped": "another film around",
}
MAY_LOSE = 0.015


@dataclass(frozen=True)
class GuideStudyConfig:
    """Train one network for all targets of RECIPE with each means of guidance, and measure.

    Args:
        recipe: a configuration of python -m classify.train.
        data: folders of the films.
        crops: folders of detect.crop over them; empty trains on whole films.
        arms: of the study's arms; empty takes all.
        epochs: at most so many for each arm.
        max_films: at most so many films of each part; 0 takes all.
        draws: bootstrap draws of patients.
        out: folder of the study.
    """

    recipe: tuple[str, ...] = ()
    data: Several = "../shared/data"
    crops: Several = ""
    arms: tuple[str, ...] = ()
    epochs: int = 5
    max_films: int = 0
    draws: int = 1000
    out: str = "runs/guide_study"

    def __post_init__(self) -> None:
        require(len(self.recipe) == 1, "RECIPE must name one file", " ".join(self.recipe))
        odd = [arm for arm in self.arms if arm not in ARMS]
        require(not odd, f"arms must be of {', '.join(ARMS)}", ", ".join(odd))


@as_command
def main(argv: Sequence[str] | None = None) -> int:
    """The command; 2 for data that are missing."""
    import yaml

    example = (
        "python tools/guide_study.py configs/classify/kermany_crops.yaml --crops runs/crops_data"
    )
    config = parse_config(GuideStudyConfig, argv, example, ("recipe",))
    workdir = Workdir(config.out)
    with refusing():
        recipe = from_plain(TrainConfig, yaml.safe_load(Path(config.recipe[0]).read_text()))
    recipe = replace(
        recipe,
        data=config.data,
        crops=config.crops,
        shared=True,
        phases=recipe.phases[:1],
        max_epochs=config.epochs,
        max_films=config.max_films,
        evaluate=("val",),
        draws=config.draws,
        cache=str(workdir / "cache"),
    )
    workdir.start(to_plain(config), recipe.seed)
    found: dict[str, dict[str, Any]] = {}
    for arm in config.arms or ARMS:
        place = workdir / arm.replace(" + ", "_")
        done = place / "measured.json"
        if not done.exists():
            with refusing():
                measured = run(replace(recipe, guide=ARMS[arm], out=str(place)))
            write_json(done, measured)
        found[arm] = read_json(done)
    best = choose(found)
    write_json(workdir / "study.json", {"config": to_plain(config), "arms": found, "chosen": best})
    lines = [*table(found), "", f"Chosen by the rule: {best or 'none'}."]
    write_atomic(workdir / "table.md", "\n".join(lines) + "\n")
    console.print("\n".join(lines), markup=False, highlight=False)
    return 0


def run(recipe: TrainConfig) -> dict[str, Any]:
    """Train one arm and measure it on the validation films: `questions`, name → what was shown →
    AUC with its interval; `lift` and `blob`; `films` and `patients`."""
    from classify.ensemble import Ensemble
    from classify.tasks.member import load_cases, member_job, train_ensemble

    train_ensemble(recipe)
    seen = replace(recipe, guide=ARMS["maps"])  # every arm's films are shown with their lungs
    cases, parts = load_cases(seen)
    ((name, targets),) = seen.networks.items()
    job = member_job(seen, cases, parts, name, targets, 0)
    films = job.parts["val"]
    images, lungs = (np.asarray(a)[films] for a in (job.exact.images, job.exact.lungs))
    labels = np.array([job.labels[i] for i in films])
    patients = [job.cases[i].patient for i in films]
    members = Ensemble.load(recipe.out, recipe.device)
    logits, lifts = answer(members, images, lungs, patients, recipe.seed)
    return {
        **figures_of(recipe, members.targets, labels, patients, logits, lifts),
        "films": len(films),
        "patients": len(set(patients)),
    }


def answer(
    members: Any, images: np.ndarray, lungs: np.ndarray, patients: Sequence[str], seed: int
) -> tuple[dict[str, np.ndarray], list[tuple[int, float | None, float]]]:
    """Logits (N, M, 3) of the films (N, S, S) as each control shows them; and of the films as they
    are each map's film, its lift, None for an empty map, and a blob's."""
    from classify.audit.controls import draw_donors, hide
    from classify.audit.metrics import Regions, measure
    from classify.augment import swap_surroundings
    from classify.members import TARGET
    from classify.saliency.maps import look

    rng = np.random.default_rng(seed)
    donors = draw_donors(patients, rng)

    def shown(control: str, n: int) -> np.ndarray:
        if control == "swapped":
            picture = (images[n], lungs[n], images[donors[n]], lungs[donors[n]])
            return swap_surroundings(*picture, rng).astype(np.float32) / 255
        pixels = images[n].astype(np.float32) / 255
        hidden = control.replace(" ", "_")
        return pixels if control == "as is" else hide(pixels, lungs[n] > 127, hidden)

    nets, lifts = [members.member(t) for t in members.targets], []
    logits: dict[str, np.ndarray] = {}
    for control in SHOWN:
        parts = []
        for group in batched(range(len(images)), 32):
            batch, _ = members.prepare([shown(control, n) for n in group])
            if control != "as is":
                parts.append(members.predict_prepared(batch))
                continue
            looks = look(nets, batch, TARGET)  # the maps come with the answers
            parts.append(np.stack([z for z, _ in looks], axis=1))
            for _, planes in looks:
                assert planes is not None
                for n, plane in zip(group, planes, strict=True):
                    large = cv2.resize(plane, images[n].shape, interpolation=cv2.INTER_LINEAR)
                    found = measure(large, Regions(lungs[n] > 127), draws=2)
                    lifts.append((n, found["lift"], found["gaussian_lift"]))
        logits[control] = np.concatenate(parts)
    return logits, lifts


def figures_of(
    recipe: TrainConfig,
    targets: Sequence[str],
    labels: np.ndarray,
    patients: Sequence[str],
    logits: dict[str, np.ndarray],
    lifts: Sequence[tuple[int, float | None, float]],
) -> dict[str, Any]:
    """The figures of `run`, with intervals by patient; `labels` (N, M) as members have them."""
    from classify.evaluate import ANY, Question, ensemble_score
    from classify.members import NORMAL, TARGET
    from cxr.stats import figure_of, weighted_auc, weighted_mean, with_draws

    ill = (labels != NORMAL).any(1)
    asked = [(Question("normal / abnormal", "", ANY, "normal"), ill.astype(float))]
    for m, target in enumerate(targets):
        truth = np.where(ill, labels[:, m] == TARGET, np.nan)
        asked.append((Question(f"{target} / others", "", target, "others"), truth))
    weights = with_draws(patients, recipe.draws, recipe.seed)
    questions: dict[str, Any] = {}
    for question, truth in asked:
        known = ~np.isnan(truth)
        drawn, count = (truth[known] == 1, weights[:, known]), int(known.sum())
        scores = {c: ensemble_score(z[known], targets, question) for c, z in logits.items()}
        questions[question.name] = {
            control: asdict(figure_of(weighted_auc(score, *drawn), count))
            for control, score in scores.items()
        }
    kept = [row for row in lifts if row[1] is not None]
    films = weights[:, [row[0] for row in kept]]
    figures = {
        key: asdict(
            figure_of(weighted_mean(np.array([row[column] for row in kept]), films), len(kept))
        )
        for key, column in (("lift", 1), ("blob", 2))
    }
    return {"questions": questions, **figures, "empty": len(lifts) - len(kept)}


def choose(arms: dict[str, dict[str, Any]]) -> str:
    """The arm that the rule takes; "" without a plain one."""
    if "plain" not in arms:
        return ""

    def auc(arm: str, question: str, control: str) -> float:
        return float(arms[arm]["questions"][question][control]["value"])

    questions = list(arms["plain"]["questions"])
    fit = [
        arm
        for arm in arms
        if all(auc("plain", q, "as is") - auc(arm, q, "as is") <= MAY_LOSE for q in questions)
    ]

    def worth(arm: str) -> float:
        blind = [abs(auc(arm, q, "outside only") - 0.5) for q in questions]
        return float(np.mean([auc(arm, q, "swapped") for q in questions]) - np.mean(blind))

    return max(fit, key=worth)


def table(arms: dict[str, dict[str, Any]]) -> list[str]:
    """The lines of a table: an arm and question a row."""
    lines = []
    for arm, found in arms.items():
        lift, blob = (in_words(Figure(**found[key]), missing="–") for key in ("lift", "blob"))
        for question, shown in found["questions"].items():
            aucs = [in_words(Figure(**shown[control]), missing="–") for control in SHOWN]
            lines.append([arm, question, *aucs, lift, blob])
    head = ["guided by", "question", *(f"AUC {v}" for v in SHOWN.values()), "lift", "a blob's"]
    return to_markdown(head, lines)


if __name__ == "__main__":
    sys.exit(main())
