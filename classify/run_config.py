"""What the main job can be told, and the folders that it takes by default."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DEFAULT_CROPS = Path("runs/crops")  # where detect.crop puts them
DEFAULT_TIERS = Path("configs/classify/tiers.yaml")


@dataclass(frozen=True)
class RunConfig:
    """Box, crop, classify and screen chest films; writes predictions.csv and report.html.

    Args:
        films: files and folders of films (DICOM, PNG, JPEG, TIFF).
        crops: with FILMS, crop them first, into this folder (without a value, into OUT/crops).
            Without FILMS, start from the crops in this folder (without a value, runs/crops).
            Left out: the members see whole films.
        out: folder of the run; a stopped run goes on there. Empty takes runs/classify_crops, or
            runs/classify_films for whole films.
        ensemble: folder of the members and their screener, or of a single network (python -m
            classify.single), whose classes but normal are the members then. Empty takes
            weights/ensemble_crops, or weights/ensemble_films for whole films.
        detector: bundle of the thorax detector; empty takes the one that comes with lungfirst.
        tiers: YAML file that says which target is in which risk tier.
        tier_threshold: a member finds its target from this probability on; left out, when target
            is the largest of its three logits.
        saliency: draw a Grad-CAM of each film's strongest member.
        margin: added to the thorax box on each side, as a fraction of the box's side.
        device: auto, cpu or cuda.
        batch: films that the members see at a time.
        jobs: processes that read films; -1 takes up to four, and none for a few films.
        restart: forget an earlier run in this folder.
    """

    films: tuple[str, ...] = ()
    crops: str | None = None
    out: str = ""
    ensemble: str = ""
    detector: str = ""
    tiers: Path = DEFAULT_TIERS
    tier_threshold: float | None = None
    saliency: bool = True
    margin: float = 0.05
    device: str = "auto"
    batch: int = 8
    jobs: int = -1
    restart: bool = False

    def __post_init__(self) -> None:
        if not self.films and self.crops is None:
            raise ValueError(
                "there is nothing to work on. Give films (python -m classify.run FILMS --crops), "
                "or start from crops made earlier (python -m classify.run --crops DIR)."
            )
        for name, low, high in (("margin", 0, 1), ("batch", 1, 1024), ("jobs", -1, 256)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(
                    f"--{name} must lie between {low} and {high}. "
                    f"Got {getattr(self, name)} instead."
                )

    @property
    def cropped(self) -> bool:
        """Do the members see crops?"""
        return self.crops is not None

    @property
    def out_path(self) -> Path:
        """The run's folder."""
        return Path(self.out or ("runs/classify_crops" if self.cropped else "runs/classify_films"))

    @property
    def ensemble_path(self) -> Path:
        """The members' folder."""
        return Path(self.ensemble or f"weights/ensemble_{'crops' if self.cropped else 'films'}")
