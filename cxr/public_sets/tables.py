"""Sets with a table of their films: what each line says of one."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

from cxr.films_table import NIH_TERMS
from cxr.public_sets.records import (
    NO_FINDING,
    OWN,
    FindingBox,
    Item,
    LeftOut,
    Loader,
    Problem,
    PublicFilm,
    Row,
    Uncertain,
    frontal_view,
    index_pictures,
    is_known_view,
    label_of_finding,
    label_of_findings,
    label_of_values,
    list_folders,
    read_columns,
    read_lines,
    read_values,
    sex_of,
    unlisted,
    years_of,
)


def _aged(where: str, name: str, age: str) -> tuple[str, list[Problem]]:
    """Whole years, or "" with a problem where the age cannot be one."""
    years = years_of(age)
    text = f"{name}: age '{age}' is left empty."
    return years or "", [Problem("odd_value", where, text)] if years is None else []


# --- NIH ChestX-ray14: adults, findings mined from reports, 984 boxes by radiologists ---

BOX_TABLE = "BBox_List_2017.csv"
_BOXES_DRAWN_ON = 1024  # px, side of the published films


def _entry_tables(folder: Path) -> list[Path]:
    """Tables of the films; the newest last."""
    return sorted(folder.glob("Data_Entry_2017*.csv"))


def _nih(root: Path, _: Uncertain) -> Iterator[Item]:
    tables = _entry_tables(root)
    if len(tables) > 1:
        yield Problem("two_tables", ", ".join(t.name for t in tables), f"{tables[-1].name} counts.")
    tops = [f for f in list_folders(root) if f.name.lower().startswith("images")]
    index = index_pictures(root, [*tops, *(child for top in tops for child in list_folders(top))])
    listed = set()

    def film(where: str, row: Row) -> Iterator[Item]:
        listed.add(row["image index"])
        return _nih_film(where, row, index)

    yield from read_lines(tables[-1], "image index", film)
    yield from unlisted(set(index) - listed, tables[-1].name)
    if (root / BOX_TABLE).exists():
        yield from read_lines(root / BOX_TABLE, "image index", partial(_nih_box, index))


def _nih_film(where: str, row: Row, index: dict[str, str]) -> Iterator[Item]:
    name, findings = row["image index"], row.get("finding labels", "")
    label, odd = label_of_findings(findings)
    if odd or not findings:
        what = f"{', '.join(odd) or 'no label'} is no finding of this set"
        yield Problem("unknown_label", where, f"{name}: {what}; taken for {label}.")
    elif NO_FINDING in findings and label != "normal":
        text = f"{name}: 'No Finding' beside findings; taken for {label}."
        yield Problem("unknown_label", where, text)
    in_name, stated = name.split("_")[0].lstrip("0"), row.get("patient id", "").lstrip("0")
    if not stated or (in_name.isdigit() and stated != in_name):
        kind = "odd_name" if stated else "no_patient"
        yield Problem(kind, where, f"{name} does not go with patient '{stated}'; the name counts.")
    patient = in_name if in_name.isdigit() else stated or Path(name).stem
    view, _ = frontal_view(row.get("view position", ""))
    if view not in {"PA", "AP"}:
        yield Problem("odd_value", where, f"{name}: view '{row.get('view position', '')}'.")
    age, problems = _aged(where, name, row.get("patient age", ""))
    yield from problems
    sex = sex_of(row.get("patient gender", "") or row.get("patient sex", ""))
    who = ("nih", f"nih-{patient.zfill(5)}")
    terms = (NIH_TERMS, view or "unknown")  # by which `FilmRow.publishable` knows it
    yield PublicFilm(index.get(name, name), "", *who, label, findings, *terms, age=age, sex=sex)


def _nih_box(index: dict[str, str], where: str, row: Row) -> Iterator[Item]:
    name = row["image index"]
    try:
        x, y, w, h = (float(row.get(c, "")) for c in ("bbox [x", "y", "w", "h]"))
    except ValueError:
        x = y = w = h = math.nan
    if all(map(math.isfinite, (x, y, w, h))):
        finding = row.get("finding label", "")
        yield FindingBox(index.get(name, name), finding, x, y, w, h, of_width=_BOXES_DRAWN_ON)
    else:
        yield Problem("bad_box", where, f"{name}: the box is no four numbers.")


# --- CheXpert, adults of Stanford: labels that CheXpert's labeler mined from reports ---

TABLES = ("train.csv", "valid.csv")
_STANFORD = "Stanford University Dataset Research Use Agreement (research only)"
_PATIENT = re.compile(r"^patient\d+$")


def _is_chexpert(folder: Path) -> bool:
    return any({"path", "frontal/lateral"} <= read_columns(folder / name) for name in TABLES)


def _chexpert(root: Path, uncertain: Uncertain) -> Iterator[Item]:
    """See `label_of_values` for what uncertain labels become."""
    # the full set is handed out as `CheXpert-v1.0 batch 2 (train 1)/patient00001/…`, whatever the
    # table's paths say
    batches = [f.name for f in list_folders(root) if "batch" in f.name.lower()]
    for table in TABLES:
        if (root / table).exists():
            film = partial(_chexpert_film, root, batches, uncertain)
            yield from read_lines(root / table, "path", film)
        else:
            yield Problem("missing_file", table, "The table is not there.")


def _place(path: str, root: Path, batches: Sequence[str]) -> str:
    """The table's path relative to `root`: its first part is the published folder's name."""
    parts = PurePosixPath(path).parts
    tail = parts[1:] if len(parts) > 1 and parts[0].lower().startswith("chexpert") else parts
    image = "/".join(tail)
    if batches and not (root / image).exists():
        patient = next((i for i, part in enumerate(tail) if _PATIENT.match(part)), 0)
        inside = "/".join(tail[patient:])
        return next((f"{b}/{inside}" for b in batches if (root / b / inside).exists()), image)
    return image


def _chexpert_film(
    root: Path, batches: Sequence[str], uncertain: Uncertain, where: str, row: Row
) -> Iterator[Item]:
    path = row["path"]
    side = row.get("frontal/lateral", "").lower() or PurePosixPath(path).stem
    if "lateral" in side:
        yield LeftOut("view lateral")
        return
    if "frontal" not in side:
        yield Problem("odd_value", where, f"{path}: neither frontal nor lateral; left out.")
        return
    patient = next((p for p in PurePosixPath(path).parts if _PATIENT.match(p)), "")
    if not patient:
        text = f"{path} has no folder patientNNNNN; the film {OWN}."
        yield Problem("odd_name", where, text)
    values, odd = read_values(row)
    if odd:
        yield Problem("unknown_label", where, f"{path}: {', '.join(odd)} is taken for not stated.")
    age, problems = _aged(where, path, row.get("age", ""))
    yield from problems
    view = row.get("ap/pa", "").upper()
    yield PublicFilm(
        _place(path, root, batches),
        "",
        "chexpert",
        f"chexpert-{patient or PurePosixPath(path).as_posix()}",
        *label_of_values(values, uncertain),
        _STANFORD,
        view if view in {"AP", "PA"} else "unknown",
        age=age,
        sex=sex_of(row.get("sex", "")),
    )


# --- MIMIC-CXR-JPG, adults of Boston: the same labels, by study ---

_PHYSIONET = "PhysioNet Credentialed Health Data License 1.5.0"
_Labels = dict[str, tuple[str, str]]  # study → label, sublabel


def _mimic_table(folder: Path, kind: str) -> Path | None:
    """`mimic-cxr-2.0.0-KIND.csv` or its .gz; the newest."""
    names = (f"mimic-cxr-*-{kind}.csv", f"mimic-cxr-*-{kind}.csv.gz")
    return max((path for name in names for path in folder.glob(name)), default=None)


def _mimic(root: Path, uncertain: Uncertain) -> Iterator[Item]:
    labels: _Labels = {}
    table, films = _mimic_table(root, "chexpert"), _mimic_table(root, "metadata")
    if table is None:
        text = "The table of the labels is not there: all labels are unknown."
        yield Problem("missing_file", "mimic-cxr-2.0.0-chexpert.csv.gz", text)
    else:
        yield from read_lines(table, "study_id", partial(_mimic_study, labels, uncertain))
    assert films is not None, "the folder was not looked at before"
    yield from read_lines(films, "dicom_id", partial(_mimic_film, labels, table is not None))


def _mimic_study(labels: _Labels, uncertain: Uncertain, where: str, row: Row) -> Iterator[Problem]:
    values, odd = read_values(row)
    if odd:
        text = f"study {row['study_id']}: {', '.join(odd)} is taken for not stated."
        yield Problem("unknown_label", where, text)
    labels[row["study_id"]] = label_of_values(values, uncertain)


def _mimic_film(labels: _Labels, labelled: bool, where: str, row: Row) -> Iterator[Item]:
    view = row.get("viewposition", "").upper()
    if view not in ("PA", "AP"):
        yield LeftOut(f"view {view or 'not stated'}")
        return
    patient, study = row.get("subject_id", ""), row.get("study_id", "")
    if not (patient.isdigit() and study.isdigit()):
        text = f"{row['dicom_id']} names no patient or no study; left out."
        yield Problem("bad_line", where, text)
        return
    if labelled and study not in labels:
        yield Problem("unknown_label", where, f"study {study} has no line among the labels.")
    found = labels.get(study, ("unknown", "no label"))
    image = f"files/p{patient[:2]}/p{patient}/s{study}/{row['dicom_id']}.jpg"
    yield PublicFilm(image, "", "mimic", f"mimic-p{patient}", *found, _PHYSIONET, view)


# --- COVID-19 collections with a `metadata.csv`: Cohen's, Actualmed's and Figure 1's ---

_RESEARCH = "not stated; README: research purposes only"
_XRAY = {"x-ray", "xray", "cr", "dx"}


def _covid(
    name: str,
    key: str,  # the column that names a film
    patient_of: Callable[[str], str],  # from the column patientid
    licence_of: Callable[[Row], str],
    suffixes: Sequence[str],  # that the film's name lacks in the table
    root: Path,
    _: Uncertain,
) -> Iterator[Item]:
    """Frontal radiographs of the table; other modalities and views are counted and left out."""
    index = index_pictures(root, [root / "images"])
    listed = set()

    def film(where: str, row: Row) -> Iterator[Item]:
        film = row[key]
        image = next((index[film + s] for s in suffixes if film + s in index), "")
        listed.add(image)
        modality, view = row.get("modality", ""), row.get("view", "")
        if modality and modality.lower().replace(" ", "-") not in _XRAY:
            yield LeftOut(f"modality {modality}")
            return
        if reason := frontal_view(view)[1]:
            yield LeftOut(f"view {view} ({reason})")
            return
        finding, patient = row.get("finding", ""), patient_of(row.get("patientid", ""))
        found = label_of_finding(finding)
        if found is None:
            text = f"{film}: '{finding}' is no known finding; taken for unknown."
            yield Problem("unknown_label", where, text)
        if not is_known_view(view):
            yield Problem("odd_value", where, f"{film}: view '{view}' is taken for unknown.")
        if not patient:
            yield Problem("no_patient", where, f"{film} names no patient; the film {OWN}.")
        label, sublabel = found or ("unknown", finding)
        if label == "unknown" and "inconclusive" in row.get("notes", "").lower()[:20]:
            sublabel = "inconclusive"  # Actualmed says so in the notes
        yield PublicFilm(
            image or f"images/{film}",
            "",
            name,
            f"{name}-{patient or f'film-{Path(film).stem}'}",
            label,
            sublabel,
            licence_of(row),
            frontal_view(view)[0],
            age=row.get("age", ""),
            sex=sex_of(row.get("sex", "")),
        )

    yield from read_lines(root / "metadata.csv", key, film)
    yield from unlisted(set(index.values()) - listed, "metadata.csv")


def _has(columns: str, none_of: str = "") -> Callable[[Path], bool]:
    """Whether a folder's metadata.csv has these columns and none of the others."""

    def is_root(folder: Path) -> bool:
        found = read_columns(folder / "metadata.csv")
        return set(columns.split()) <= found and not found & set(none_of.split())

    return is_root


_WANG = "Wang, Lin, Wong: COVID-Net, doi 10.1038/s41598-020-76550-z"
LOADERS = (
    Loader(
        "nih",
        "NIH ChestX-ray14",
        "a folder with Data_Entry_2017.csv (or Data_Entry_2017_v2020.csv) and images_001/images/ "
        "to images_012/images/ (or images/) of .png files; BBox_List_2017.csv beside",
        NIH_TERMS,
        "Wang et al.: ChestX-ray8: Hospital-scale Chest X-ray Database and Benchmarks. CVPR 2017, "
        "arXiv 1705.02315; the NIH Clinical Center is to be named as the provider",
        lambda folder: bool(_entry_tables(folder)),
        _nih,
    ),
    Loader(
        "ieee8023",
        "COVID-19 image data collection",
        "covid-chestxray-dataset/ with metadata.csv (columns patientid, finding, view, modality, "
        "filename, license) and images/",
        "by film, in the column license of its metadata.csv",
        "Cohen et al.: COVID-19 Image Data Collection: Prospective Predictions Are the Future. "
        "arXiv 2006.11988; first version arXiv 2003.11597",
        _has("patientid finding filename", "imagename"),
        partial(
            _covid,
            "ieee8023",
            "filename",
            lambda patient: patient.removesuffix(".0"),
            lambda row: row.get("license", "") or row.get("licence", "") or "not stated",
            ("",),
        ),
    ),
    Loader(
        "actualmed",
        "Actualmed COVID-19 chest X-ray dataset",
        "Actualmed-COVID-chestxray-dataset/ with metadata.csv (columns patientid, finding, view, "
        "imagename) and images/",
        _RESEARCH,
        "Actualmed COVID-19 Chest X-ray Dataset Initiative, "
        f"github.com/agchung/Actualmed-COVID-chestxray-dataset; {_WANG}",
        _has("patientid finding imagename"),
        partial(_covid, "actualmed", "imagename", str, lambda _: _RESEARCH, ("",)),
    ),
    Loader(
        "figure1",
        "Figure 1 COVID-19 chest X-ray dataset",
        "Figure1-COVID-chestxray-dataset/ with metadata.csv (columns patientid, finding, view; the "
        "patientid is the film's name) and images/",
        _RESEARCH,
        "Figure 1 COVID-19 Chest X-ray Dataset Initiative, "
        f"github.com/agchung/Figure1-COVID-chestxray-dataset; {_WANG}",
        _has("patientid finding view", "filename imagename"),
        partial(
            _covid,
            "figure1",
            "patientid",  # it names the film, and `a`, `b` are films of one patient
            lambda name: re.sub(r"(?<=\d)[a-z]$", "", name),
            lambda _: _RESEARCH,
            (".jpg", ".png", ".jpeg"),
        ),
    ),
    Loader(
        "chexpert",
        "CheXpert",
        "CheXpert-v1.0/ or CheXpert-v1.0-small/ with train.csv and valid.csv (columns Path, "
        "Frontal/Lateral, …) and train/ and valid/ of patient00001/study1/view1_frontal.jpg",
        _STANFORD,
        "Irvin et al.: CheXpert: A Large Chest Radiograph Dataset with Uncertainty Labels and "
        "Expert Comparison. AAAI 2019, arXiv 1901.07031",
        _is_chexpert,
        _chexpert,
    ),
    Loader(
        "mimic",
        "MIMIC-CXR-JPG",
        "a folder with mimic-cxr-2.0.0-metadata.csv(.gz), mimic-cxr-2.0.0-chexpert.csv(.gz) and "
        "files/p10/p10000032/s50414267/DICOM_ID.jpg",
        _PHYSIONET,
        "Johnson et al.: MIMIC-CXR-JPG, a large publicly available database of labeled chest "
        "radiographs. arXiv 1901.07042; PhysioNet",
        lambda folder: _mimic_table(folder, "metadata") is not None,
        _mimic,
    ),
)
