"""The parts of python -m classify.audit: regions and measures, controls, flags, page. Here what the
audit can be told, and where it puts things."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from classify.members import check_model
from classify.saliency import check_method
from cxr.cli import Several
from cxr.engines import ENGINES, PRECISIONS
from cxr.rules import require, require_between, require_one_of
from cxr.stream import LOCAL, check_workers

CONTROLS = ("masked", "randomised", "road")
NAMES = {
    "grad_cam": "Grad-CAM",
    "grad_cam_pp": "Grad-CAM++",
    "hirescam": "HiResCAM",
    "layercam": "LayerCAM",
    "eigen_cam": "Eigen-CAM",
    "score_cam": "Score-CAM",
    "cam": "CAM",
    "occlusion": "occlusion",
    "rise": "RISE",
    "explanation": "the network's own map",
    "explanation_class": "the network's own map, weighed by the class",
}
THRESHOLDS = "audit.json"  # beside the members


@dataclass(frozen=True)
class AuditConfig:
    """Did the model look inside the lungs? Writes audit.csv, audit.json and report.html.

    RUN is a folder of classify.run; its films must still lie where they were. First store what is
    usual on training films (--data DATA --part train --fit), then audit the others (--data DATA
    --part test --controls all). Without --data there are no labels and no human masks, and lung
    fields are the network's.

    Args:
        run: folder of classify.run, with crops or on whole films.
        out: folder of the audit; a stopped audit goes on there. Empty takes RUN/audit, or
            RUN/audit_PART.
        method: grad_cam, grad_cam_pp, hirescam, layercam, eigen_cam, score_cam or cam; occlusion
            or rise, which hide parts of the film and need only answers, and so occlusion takes the
            place of grad_cam for a model without layers, such as an ONNX file; of a network that
            draws its own map (CXRNet) also explanation, the map as it is drawn, or
            explanation_class, that map weighed by the gradient of the member's target.
        controls: masked (lungs, or all else, blacked out; or all else another film's), randomised
            (weights made random layer by layer), road (pixels taken away by relevance), with
            commas between; without a value, or with all, the three. Left out: none.
        data: folder with films.csv, and with masks/ and finding_boxes.csv where there are any:
            labels, patients, human lung masks and radiologists' boxes; or several of them (the
            flag again for each). Empty goes without.
        split: split of the patients, as python -m cxr.split saves it.
        part: audit only this part of the split; empty audits every film of the run.
        trained_on: sources to which `part` applies; of others every film is held out.
        human_masks: take people's lung masks where there are any, and not the network's.
        fit: store the thresholds of the flags from these films, beside the members.
        thresholds: file of the flags' thresholds; empty takes audit.json beside the members.
        tail: share of the films that each threshold leaves on the worse side, with --fit.
        against: folder of the audit of whole films, to compare an audit of crops with; or of an
            audit of this RUN by another method, to compare the maps of both.
        crops: folder of detect.crop with the thorax boxes of these films; empty takes the run's
            own, and finds the boxes of whole films anew.
        control_films: films, drawn by seed, for randomised, and for road of those that show a
            member's target; 0 takes all.
        ensemble: folder of the members, or of a single network; empty takes the one that RUN was
            made with.
        model: a classifier of your own, as python -m classify.run --model takes it, where RUN's
            own is not to be taken as run.json names it.
        model_settings: its YAML file, likewise.
        detector: bundle of the thorax detector; empty takes the one that comes with lungfirst.
        field: bundle of the lung-field network; empty takes the one that comes with lungfirst.
        draws: bootstrap draws of patients.
        seed: of all random numbers.
        device: auto, cpu or cuda.
        engine: what runs the detector and the lung field, and what answers for the members and
            draws their Grad-CAM: auto, onnx, openvino or torch. auto is torch on a GPU, else ONNX
            Runtime where an exported network lies beside each bundle (tools/export.py). What needs
            gradients or other weights is torch's in any case.
        precision: fp32, or bf16 (openvino and torch): faster, and answers differ, also some
            decisions (docs/speed.md).
        batch: films at a time.
        jobs: processes that read films; -1 takes up to four, and none for a few films.
        workers: local; or ray:N, ray:HOST:PORT or ray://HOST:PORT: workers of a Ray cluster, one a
            processor, that read and measure; controls are done here (see docs/speed.md).
        pdf: write report.pdf too, where Chromium is found.
        restart: forget an earlier audit in this folder.
    """

    run: tuple[str, ...] = ()
    out: str = ""
    method: str = "grad_cam"
    controls: str | None = None
    data: Several = ""
    split: str = "configs/split_seed0.json"
    part: str = ""
    trained_on: tuple[str, ...] = ("kermany",)
    human_masks: bool = True
    fit: bool = False
    thresholds: str = ""
    tail: float = 0.05
    against: str = ""
    crops: str = ""
    control_films: int = 96
    ensemble: str = ""
    model: str = ""
    model_settings: str = ""
    detector: str = ""
    field: str = ""
    draws: int = 2000
    seed: int = 0
    device: str = "auto"
    engine: str = "auto"
    precision: str = "fp32"
    batch: int = 8
    jobs: int = -1
    workers: str = LOCAL
    pdf: bool = True
    restart: bool = False

    def __post_init__(self) -> None:
        if len(self.run) != 1:
            raise ValueError(
                "RUN must name one folder of classify.run. Got "
                f"{' '.join(self.run) or 'none'}: python -m classify.run FILMS "
                "--crops makes one."
            )
        check_method(self.method, "--method")
        for control in self._named:
            rule = f"--controls must be of {', '.join(CONTROLS)}, or all"
            require(control in (*CONTROLS, "all"), rule, control)
        rule = f"--part {self.part} needs --data, whose films.csv says which patient a film is of"
        require(not self.part or bool(self.data), rule, self.data)
        require_between(
            self,
            batch=(1, 1024),
            jobs=(-1, 256),
            draws=(1, 100_000),
            tail=(0.001, 0.5),
            control_films=(0, 10**9),
        )
        require_one_of(self, engine=ENGINES, precision=PRECISIONS)
        check_model(self.model, self.model_settings)
        check_workers(self.workers)

    @property
    def wanted_controls(self) -> tuple[str, ...]:
        """The controls asked for, in the order in which they are done."""
        return tuple(c for c in CONTROLS if c in self._named or "all" in self._named)

    @property
    def _named(self) -> list[str]:
        return [c.strip() for c in (self.controls or "").split(",") if c.strip()]

    @property
    def run_path(self) -> Path:
        """The folder of classify.run."""
        return Path(self.run[0])

    @property
    def out_path(self) -> Path:
        """The audit's folder."""
        return Path(self.out or self.run_path / (f"audit_{self.part}" if self.part else "audit"))
