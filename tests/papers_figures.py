"""What the five sources print, typed from them by hand: no figure here comes from configs/.

A block is one table of a source: `row | column | figures`, in the order of the measures named in
its head; – stands where the source prints none.
"""

from __future__ import annotations

# The two-stage report (method 1), its Table 2
FUSION = """
accuracy f1.pneumonia
affine, SGD | 1fc | 0.965 0.970
affine, Adam | 1fc | 0.960 0.963
rotate, Adam | 1fc | 0.956 0.960
none, Adam | 1fc | 0.967 0.970
affine, Adam | 2fc | 0.962 0.966
none, Adam | 2fc | 0.973 0.975
"""
# the same (method 2), its Table 3
DETECT = """
accuracy f1.pneumonia
ResNet50, none | | 0.936 0.956
MobileNet, none | | 0.941 0.960
ResNet50, affine | | 0.928 0.951
MobileNet, affine | | 0.933 0.954
"""
# The Keras report: its tables are pictures; one figure stands in its text
KERAS_FC = """
accuracy
A radiologist | | 0.69
"""
# The dataset deck: words, no table
BACKBONES = """
accuracy
ResNet50 | | above_0.96
MobileNetV2 | | above_0.96
Inception-ResNet-V2 | | above_0.96
"""
# The COVID deck: N, P, C each with accuracy, specificity, sensitivity, AUC; then the average
_OF_CLASS = " ".join(
    f"{m}.{c}"
    for c in ("normal", "pneumonia", "covid")
    for m in ("accuracy", "specificity", "sensitivity", "auc")
)
COVID = f"""
{_OF_CLASS} mean_class_accuracy
Lee et al. 2020 | | .980 .992 .982 .981 .981 .992 .982 .970 .975 .996 .992 .934 .978
MobileNet | | .975 .988 .973 .979 .974 .987 .973 .976 .994 1 1 .956 .972
MobileNetV2 | | .945 .936 .847 .917 .945 .982 .969 .950 .994 1 1 .986 .961
ResNet50 | | .983 .984 .964 .917 .978 .975 .953 .950 .994 1 1 .976 .975
DenseNet121 | | .972 .984 .964 .970 .972 .974 .952 .967 .994 .995 .992 .974 .975
UNet + CBAM, pretrained | | .984 .996 .991 .980 .978 .975 .953 .988 .995 .996 .992 .994 .986
"""
# Kim's thesis. Table 2: normal films called normal, abnormal ones called normal; its text's rates
DATASETS = """
cleared.normal cleared.abnormal screen.specificity screen.sensitivity
Internal | | 109/162 4/1329 .67 .99
Temporal validation | | 121/225 1/300 .54 .99
External 1 | | 66/106 1/128 .63 .99
External 2 | | 47/71 17/645 .66 .97
"""
# Tables 3 and 8: critical, urgent, non-urgent, cardiomegaly; each normal, target, others of all
_TIERS = " ".join(
    f"{g}.{t}"
    for t in ("critical", "urgent", "non_urgent", "untiered")
    for g in ("normal", "target", "others")
)
_INTERNAL = "0/107 82/107 25/107 3/946 564/946 379/946 1/213 186/213 26/213 0/63 60/63 3/63"
TIERS = f"""
{_TIERS}
Internal | | {_INTERNAL}
Temporal validation | | 0/34 22/34 12/34 1/88 28/88 59/88 0/91 47/91 44/91 0/17 6/17 11/17
"""
# Tables 7 and 8
_TWO = "43/107 64/107 none 218/946 728/946 none 98/213 115/213 none 22/63 41/63 none"
CLASSES = f"""
cleared.normal cleared.abnormal {_TIERS}
2 classes | | 78/162 381/1359 {_TWO}
3 classes | | 109/162 4/1329 {_INTERNAL}
"""
_SCREEN = "screen.accuracy screen.auc screen.specificity screen.sensitivity"
# Table 4
ENCODERS = f"""
{_SCREEN}
VGG16 | | 0.7655 0.726 0.709 0.822
ResNet50 | | 0.828 0.780 0.723 0.933
GoogLeNet | | 0.786 0.757 0.692 0.880
DenseNet121 | | 0.865 0.904 0.758 0.971
DenseNet169 | | 0.841 0.881 0.730 0.952
EfficientNet-B2 | | 0.821 0.878 0.729 0.913
"""
# Table 5
LAMBDA = f"""
{_SCREEN}
1.0 | | 0.786 0.745 0.629 0.944
0.8 | | 0.865 0.904 0.758 0.971
0.6 | | 0.762 0.777 0.652 0.872
0.5 | | 0.759 0.789 0.624 0.895
0.4 | | 0.716 0.752 0.581 0.852
0.2 | | 0.668 0.802 0.533 0.803
"""
# Table 6
PREPROCESS = f"""
{_SCREEN}
Equalisation, as drawn: only classification | | 0.608 0.748 0.608 0.766
Equalisation, as drawn: segmentation | | 0.621 0.784 0.621 0.785
Equalisation, as drawn: reconstruction | | 0.651 0.801 0.651 0.806
CLAHE, as drawn: reconstruction | | 0.720 0.874 0.720 0.857
CLAHE, dilated: reconstruction | | 0.865 0.904 0.758 0.971
"""
# Table 9: thirteen members, three diseases, three answers
UNSEEN = """
goes.normal goes.target goes.others
Pneumothorax | pneumonia | 0.103 0.103 0.793
Pneumothorax | edema | 0.000 0.143 0.857
Pneumothorax | fracture | 0.000 0.279 0.721
Pneumoperitoneum | pneumonia | 0.000 0.100 0.900
Pneumoperitoneum | edema | 0.000 0.143 0.857
Pneumoperitoneum | fracture | 0.140 0.140 0.721
Mediastinal widening | pneumonia | 0.000 0.100 0.900
Mediastinal widening | edema | 0.000 0.429 0.571
Mediastinal widening | fracture | 0.140 0.140 0.721
Pleural effusion | pneumonia | 0.100 0.233 0.667
Pleural effusion | edema | 0.143 0.000 0.857
Pleural effusion | fracture | 0.140 0.140 0.721
Nodule | pneumonia | 0.233 0.100 0.667
Nodule | edema | 0.143 0.429 0.429
Nodule | fracture | 0.000 0.279 0.721
Consolidation | pneumonia | 0.000 0.100 0.355
Consolidation | edema | 0.143 0.000 0.122
Consolidation | fracture | 0.000 0.000 1.000
Active tuberculosis | pneumonia | 0.233 0.000 0.767
Active tuberculosis | edema | 0.143 0.429 0.429
Active tuberculosis | fracture | 0.250 0.250 0.500
Advanced tuberculosis | pneumonia | 0.000 0.333 0.667
Advanced tuberculosis | edema | 0.000 0.143 0.857
Advanced tuberculosis | fracture | 0.000 0.140 0.860
Atelectasis | pneumonia | 0.000 0.300 0.700
Atelectasis | edema | 0.143 0.429 0.429
Atelectasis | fracture | 0.279 0.140 0.581
Support device | pneumonia | 0.100 0.333 0.567
Support device | edema | 0.429 0.143 0.429
Support device | fracture | 0.286 0.286 0.429
Pleural calcification | pneumonia | 0.100 0.233 0.667
Pleural calcification | edema | 0.000 0.429 0.571
Pleural calcification | fracture | 0.000 0.279 0.721
Interstitial opacity | pneumonia | 0.000 0.100 0.900
Interstitial opacity | edema | 0.000 0.000 1.000
Interstitial opacity | fracture | 0.000 0.140 0.860
Cardiomegaly | pneumonia | 0.000 0.100 0.900
Cardiomegaly | edema | 0.000 0.143 0.857
Cardiomegaly | fracture | 0.000 0.140 0.860
"""
FIGURES = {
    "twostage_fusion": FUSION,
    "twostage_detect": DETECT,
    "keras_fc": KERAS_FC,
    "deck_backbones": BACKBONES,
    "covid_unet_cbam": COVID,
    "scxnn_datasets": DATASETS,
    "scxnn_tiers": TIERS,
    "scxnn_classes": CLASSES,
    "scxnn_backbone": ENCODERS,
    "scxnn_lambda": LAMBDA,
    "scxnn_preprocess": PREPROCESS,
    "scxnn_unseen": UNSEEN,
}

# Films that the sources count: table → (row, column) → films
FILMS = {
    "twostage_fusion": """
        train val test
        pneumonia 3673 300 300
        normal 1083 250 250
        all 4756 550 550""",
    "deck_backbones": """
        train test
        normal 1349 234
        pneumonia 3883 390
        bacterial 2538 –
        viral 1345 –
        all 5232 624""",
    "covid_unet_cbam": """
        nih ieee8023 figure1 actualmed covid_radiography total train val test
        normal 607 – – – – 607 – – –
        pneumonia 607 – – – – 607 – – –
        covid – 468 35 58 46 607 – – –
        all – – – – – – 1160 290 363""",
    "twostage_detect": """
        train val test
        all 320 80 5456""",
    "keras_cases": """
        total
        all 5684""",
    "scxnn_tiers": """
        hard weak total
        pneumothorax 331 1669 2000
        pneumoperitoneum 100 3959 4059
        mediastinal_widening 98 223 321
        pleural_effusion 1364 636 2000
        nodule 914 1546 2460
        consolidation 1540 0 1540
        active_tuberculosis 582 0 582
        advanced_tuberculosis 324 0 324
        atelectasis 98 4175 4273
        support_device 585 0 585
        pleural_calcification 100 4146 4246
        interstitial_opacity 280 1732 2012
        cardiomegaly 312 0 312
        normal – – 10137""",
}

# What the sources state of the trainings: table → row, column ("" for the first) → setting → value
_THESIS = {
    "preprocess.low_percentile": 0.5,
    "preprocess.high_percentile": 99.5,
    "preprocess.contrast": "clahe",
    "preprocess.side": 1024,
    "member.encoder": "densenet121",
    "member.weights": "imagenet",
    "decoder": "reconstruction",
    "classes": "three",
    "restore_weight": 0.8,
    "batch": 4,
    "phases": ["hard", "weak"],
    "phases.films": ["with_region", "all"],
    "phases.optim.optimizer": ["adam"] * 2,
    "phases.optim.rate": [1e-3] * 2,
    "phases.optim.weight_decay": [5e-4] * 2,
    "phases.optim.epochs": [300] * 2,
    "phases.optim.schedule": ["plateau"] * 2,
    "phases.optim.patience": [50] * 2,
    "phases.optim.factor": [0.5] * 2,
    "phases.optim.floor_rate": [1e-4] * 2,
}
_REPORT = {
    "fusion.nets": ["resnet18", "densenet121", "inception_v3"],
    "fusion.weights": "imagenet",
    "preprocess.side": 299,
    "preprocess.clip": False,
    "preprocess.contrast": "none",
    "optim.epochs": 30,
    "choose": "val_loss",
    "protocol.parts.train": 0.8,
    "protocol.parts.val": 0.1,
    "protocol.parts.test": 0.1,
}
_KERAS = {
    "backbone.name": "resnet50",
    "backbone.weights": "imagenet",
    "protocol.folds": 10,
    "classes": ["normal", "bacterial", "viral"],
}
_KERAS_144 = {**_KERAS, "backbone.freeze_to": "layer3", "batch": 32, "optim.rate": 1e-4}
_BOXED = {
    "data.per_label.normal": 200,
    "data.per_label.pneumonia": 200,
    "data.parts.train": 0.8,
    "data.parts.val": 0.2,
    "data.rest": "test",
    "model.weights": "coco",
}
_DECK = {
    "start": "pretrained",
    "classes": ["normal", "pneumonia", "covid"],
    "pretraining.sources": ["nih"],
    "pretraining.net.attention": True,
    "preprocess.low_percentile": 0.0,
    "preprocess.high_percentile": 100.0,
    "preprocess.contrast": "none",
}
STATED: dict[str, dict[tuple[str, str], dict[str, object]]] = {
    "twostage_fusion": {
        ("affine, SGD", "1fc"): {
            **_REPORT,
            "augment": "affine",
            "optim.optimizer": "sgd",
            "fusion.head": "1fc",
        },
        ("rotate, Adam", "1fc"): {**_REPORT, "augment": "rotate", "optim.optimizer": "adam"},
        ("none, Adam", "2fc"): {
            **_REPORT,
            "augment": "none",
            "optim.optimizer": "adam",
            "fusion.head": "2fc",
        },
    },
    "twostage_detect": {
        ("MobileNet, none", ""): {**_BOXED, "augment": "none", "model.backbone": "mobilenet_v3"},
        ("ResNet50, affine", ""): {**_BOXED, "augment": "affine", "model.backbone": "resnet50"},
    },
    "keras_cases": {("raw", ""): _KERAS_144, ("balanced", ""): _KERAS_144},
    "keras_fc": {("none", ""): _KERAS_144},
    "keras_grid": {("32", "rate 0.0001"): _KERAS_144},
    "keras_depth": {
        ("stage 3 of 4", ""): {**_KERAS, "backbone.freeze_to": "layer3", "copies": 4},
        ("half of stage 3 (the report's 114th layer)", ""): {
            **_KERAS,
            "backbone.freeze_to": "layer3_half",
            "copies": 4,
        },
    },
    "deck_backbones": {
        ("VGG16", ""): {
            "classes": ["normal", "pneumonia"],
            "preprocess.contrast": "clahe",
            "preprocess.low_percentile": 0.0,
            "preprocess.high_percentile": 100.0,
            "augment": "geometric",
            "backbone.weights": "imagenet",
        }
    },
    "covid_unet_cbam": {("UNet + CBAM, pretrained", ""): _DECK},
    "scxnn_datasets": {
        ("Internal", ""): {**_THESIS, "tested": []},
        ("External 1", ""): {**_THESIS, "tested": ["mimic"]},
        ("External 2", ""): {**_THESIS, "tested": ["chexpert"]},
    },
    "scxnn_tiers": {("Internal", ""): _THESIS},
    "scxnn_backbone": {
        ("DenseNet121", ""): _THESIS,
        ("VGG16", ""): {**_THESIS, "member.encoder": "vgg16"},
    },
    "scxnn_lambda": {
        ("0.8", ""): _THESIS,
        ("0.2", ""): {**_THESIS, "restore_weight": 0.2},
    },
    "scxnn_preprocess": {
        ("CLAHE, dilated: reconstruction", ""): _THESIS,
        ("Equalisation, as drawn: segmentation", ""): {
            **_THESIS,
            "preprocess.contrast": "hist-equalization",
            "decoder": "segmentation",
            "region.dilation": 0,
        },
    },
    "scxnn_classes": {("3 classes", ""): _THESIS},
    "scxnn_unseen": {("Nodule", "pneumonia"): {**_THESIS, "asked": "nodule"}},
}

# Figures of the sources that are no cell of a table: they must stand in the tables' files or docs
TOLD = {
    "configs/experiments/twostage_fusion.yaml": ["5,856", "4,273", "1,583", "0.8 / 0.1 / 0.1"],
    "configs/experiments/twostage_detect.yaml": ["clavicles", "ribs", "5,456", "0.8 / 0.2"],
    "configs/experiments/keras_cases.yaml": ["5,684", "8:1:1", "144th"],
    "configs/experiments/keras_depth.yaml": ["18,894,595", "3,338,240", "144th", "114th"],
    "configs/experiments/keras_fc.yaml": ["69 %", "18,894,595"],
    "configs/experiments/keras_grid.yaml": ["batches of 8 to 16", "batch of 32", "0.0001"],
    "configs/experiments/deck_backbones.yaml": ["5,232", "624", "1,346", "5,865"],
    "configs/experiments/covid_unet_cbam.yaml": ["111,120", "1,000", "1,160 / 290 / 363"],
    "configs/experiments/scxnn_tiers.yaml": ["34,851", "6,628", "18,086", "5,400", "19,314"],
    "configs/experiments/scxnn_datasets.yaml": [
        "1325 of 1326",
        "355 films",
        "MIMIC-CXR",
        "CheXpert",
    ],
    "docs/data_sets.md": ["0.86", "0.99", "0.124"],
}
