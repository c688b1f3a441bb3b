"""Trains one network for K classes, as the papers do: a backbone, or the fusion of three.

python -m classify.single --config configs/classify/fusion.yaml
"""

from functools import partial

from classify.train import run_task

main = partial(run_task, "single")

if __name__ == "__main__":
    raise SystemExit(main())
