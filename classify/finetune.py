"""Pretrains a network without labels (classify.pretrain, once for all networks that start from it),
then trains it for K classes (classify.single). `--start own` trains it from scratch instead.

python -m classify.finetune --config configs/classify/unet_cbam.yaml
"""

from functools import partial

from classify.train import run_task

main = partial(run_task, "finetune")

if __name__ == "__main__":
    raise SystemExit(main())
