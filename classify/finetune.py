"""Pretrains a network without labels, then trains it for K classes: one file, one command.

python -m classify.finetune --config configs/classify/unet_cbam.yaml
python -m classify.finetune --config configs/classify/unet_cbam.yaml --start own  # from scratch

The pretraining (classify.pretrain) is done in `pretraining.out`, once for all networks that start
from it; what follows is classify.single with the pretrained encoder as its first weights.
"""

from functools import partial

from classify.train import run_task

main = partial(run_task, "finetune")

if __name__ == "__main__":
    raise SystemExit(main())
