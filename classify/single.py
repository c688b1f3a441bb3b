"""Trains one network for K classes, as the papers do: a backbone, or the fusion of three.

python -m classify.single --config configs/classify/fusion.yaml
python -m classify.single --config configs/classify/backbone.yaml --max_films 60 --optim.epochs 1
"""

from functools import partial

from classify.train import run_task

main = partial(run_task, "single")

if __name__ == "__main__":
    raise SystemExit(main())
