"""Pretrains a network without labels (classify.pretrain, once for all networks that start from it),
then trains it for K classes (classify.single). `--start own` trains it from scratch instead.

python -m classify.finetune --config configs/classify/unet_cbam.yaml
"""

from classify.train import finetune as main

if __name__ == "__main__":
    raise SystemExit(main())
