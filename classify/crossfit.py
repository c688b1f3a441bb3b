"""Cross-fits an ensemble: logits of every patient from members that never saw the patient.

python -m classify.crossfit --config configs/classify/kermany_crops.yaml --crops runs/crops_data
"""

from classify.train import crossfit as main

if __name__ == "__main__":
    raise SystemExit(main())
