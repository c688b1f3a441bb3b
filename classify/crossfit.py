"""Cross-fits an ensemble: logits of every patient from members that never saw the patient.

python -m classify.crossfit --config configs/classify/kermany_crops.yaml --crops runs/crops_data
"""

from functools import partial

from classify.train import run_task

main = partial(run_task, "crossfit")

if __name__ == "__main__":
    raise SystemExit(main())
