"""Tiny folders laid out as the public sets are published."""

from __future__ import annotations

import gzip
from pathlib import Path

from PIL import Image

from cxr.public_sets.records import LoadedSet
from cxr.public_sets.registry import load_set

NIH_HEAD = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,"
    "View Position,OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
)
OBSERVATIONS = (
    "No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,"
    "Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,"
    "Support Devices"
)
CHEXPERT_HEAD = f"Path,Sex,Age,Frontal/Lateral,AP/PA,{OBSERVATIONS}"
IEEE_HEAD = "patientid,offset,sex,age,finding,survival,view,modality,filename,license,other_notes"
ACTUALMED_HEAD = "patientid,offset,sex,age,finding,view,modality,imagename,notes"
FIGURE1_HEAD = "patientid,offset,sex,age,finding,view,modality,originalfile,notes"
MIMIC_HEAD = "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition"


def film(path: Path, width: int = 4, height: int = 6) -> Path:
    """A tiny grey picture; JPEG or PNG by its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (width, height), 90).save(path)
    return path


def table(path: Path, *lines: str) -> Path:
    """A CSV file of these lines, packed where its name ends in .gz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def load(name: str, path: Path, **options: object) -> LoadedSet:
    """The set without a bar."""
    return load_set(name, path, progress=False, **options)  # type: ignore[arg-type]


def kinds(loaded: LoadedSet) -> list[str]:
    """What went wrong, a word each."""
    return [problem.kind for problem in loaded.problems]


def observed(**values: str) -> str:
    """The cells of the fourteen observations, `Pleural_Effusion="1.0"`; the rest not mentioned."""
    return ",".join(values.get(name.replace(" ", "_"), "") for name in OBSERVATIONS.split(","))


def kermany(top: Path) -> Path:
    """`chest_xray/` with a film in each class of each part."""
    root = top / "chest_xray"
    for number, part in enumerate(("train", "val", "test"), start=1):
        film(root / part / "NORMAL" / f"IM-000{number}-0001.jpeg")
        film(root / part / "PNEUMONIA" / f"person{number}_bacteria_{number}.jpeg")
    return root


def nih(top: Path, *lines: str) -> Path:
    """ChestX-ray14 with two films, in images_001 and images_002; `lines` replace its table's."""
    film(top / "images_001" / "images" / "00000001_000.png", 8, 8)
    film(top / "images_002" / "images" / "00000013_005.png", 8, 8)
    rows = lines or (
        "00000001_000.png,No Finding,0,1,58,M,PA,2682,2749,0.143,0.143,",
        "00000013_005.png,Infiltration|Pneumonia,5,13,61,F,AP,2500,2048,0.168,0.168,",
    )
    table(top / "Data_Entry_2017.csv", NIH_HEAD, *rows)
    return top


def ieee8023(top: Path, *lines: str) -> Path:
    """The image data collection with the films a.jpg and b.png."""
    film(top / "images" / "a.jpg")
    film(top / "images" / "b.png")
    rows = lines or (
        "2,0,M,65.0,Pneumonia/Viral/COVID-19,Y,PA,X-ray,a.jpg,CC BY-NC-SA,",
        "3,0,F,40.0,Pneumonia/Bacterial/Streptococcus,Y,AP Supine,X-ray,b.png,,",
    )
    table(top / "metadata.csv", IEEE_HEAD, *rows)
    return top


def actualmed(top: Path, *lines: str) -> Path:
    """Actualmed with the films a.png and b.png."""
    film(top / "images" / "a.png")
    film(top / "images" / "b.png")
    rows = lines or (
        'ANON1,,,,COVID-19,AP,X-ray,a.png,", date taken (YYYYMMDD): 20200318"',
        'ANON1,,,,No finding,PA,X-ray,b.png,"Negative, date taken (YYYYMMDD): 20200401"',
    )
    table(top / "metadata.csv", ACTUALMED_HEAD, *rows)
    return top


def figure1(top: Path, *lines: str) -> Path:
    """Figure 1 with the films COVID-00003a.jpg, COVID-00003b.jpg and COVID-00004.png."""
    for name in ("COVID-00003a.jpg", "COVID-00003b.jpg", "COVID-00004.png"):
        film(top / "images" / name)
    rows = lines or (
        "COVID-00003a,8,M,28,,AP erect,X-ray,COVID-0024.jpeg,",
        "COVID-00003b,8,M,28,,AP erect,X-ray,COVID-0025.jpeg,",
        "COVID-00004,2,M,50+,COVID-19,,X-ray,COVID-0033.jpeg,",
    )
    table(top / "metadata.csv", FIGURE1_HEAD, *rows)
    return top


def radiography(top: Path) -> Path:
    """The Radiography Database with a film and a mask in each class."""
    for name in ("COVID", "Normal", "Lung_Opacity", "Viral Pneumonia"):
        film(top / name / "images" / f"{name}-1.png")
        film(top / name / "masks" / f"{name}-1.png", 2, 2)
        (top / f"{name}.metadata.xlsx").write_bytes(b"PK")
    return top


def chexpert(top: Path, *lines: str) -> Path:
    """CheXpert-small with two studies; `lines` replace those of train.csv."""
    for place in (
        "train/patient00001/study1",
        "train/patient00002/study1",
        "valid/patient64541/study1",
    ):
        film(top / place / "view1_frontal.jpg")
    name = "CheXpert-v1.0-small/train"
    rows = lines or (
        f"{name}/patient00001/study1/view1_frontal.jpg,Female,68,Frontal,AP,"
        + observed(No_Finding="1.0", Support_Devices="1.0"),
        f"{name}/patient00002/study1/view1_frontal.jpg,Male,87,Frontal,PA,"
        + observed(Pneumonia="1.0", Edema="-1.0"),
    )
    table(top / "train.csv", CHEXPERT_HEAD, *rows)
    table(
        top / "valid.csv",
        CHEXPERT_HEAD,
        "CheXpert-v1.0-small/valid/patient64541/study1/view1_frontal.jpg,Male,73,Frontal,AP,"
        + observed(Cardiomegaly="1.0", Pneumonia="0.0"),
    )
    return top


def mimic(top: Path, ending: str = ".csv.gz") -> Path:
    """MIMIC-CXR-JPG with a PA film, an AP film and a lateral one of two patients."""
    film(top / "files/p10/p10000032/s50414267/aa-01.jpg", 8, 6)
    film(top / "files/p11/p11000011/s50000001/bb-01.jpg", 8, 6)
    table(
        top / f"mimic-cxr-2.0.0-metadata{ending}",
        MIMIC_HEAD,
        "aa-01,10000032,50414267,CHEST (PA AND LAT),PA",
        "aa-02,10000032,50414267,CHEST (PA AND LAT),LATERAL",
        "bb-01,11000011,50000001,CHEST (PORTABLE AP),AP",
    )
    table(
        top / f"mimic-cxr-2.0.0-chexpert{ending}",
        f"subject_id,study_id,{OBSERVATIONS}",
        "10000032,50414267," + observed(No_Finding="1.0"),
        "11000011,50000001," + observed(Pneumonia="-1.0", Edema="1.0"),
    )
    return top


WORLDS = {
    f.__name__: f
    for f in (kermany, nih, ieee8023, radiography, actualmed, figure1, chexpert, mimic)
}
