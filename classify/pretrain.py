"""Pretrains a U-Net without labels, by restoring films that were distorted (Models Genesis).

python -m classify.pretrain --config configs/classify/pretrain_unet_cbam.yaml
"""

from classify.train import pretrain as main

if __name__ == "__main__":
    raise SystemExit(main())
