"""Pretrains a U-Net without labels, by restoring films that were distorted (Models Genesis).

python -m classify.pretrain --config configs/classify/pretrain_unet_cbam.yaml
"""

from functools import partial

from classify.train import run_task

main = partial(run_task, "pretrain")

if __name__ == "__main__":
    raise SystemExit(main())
