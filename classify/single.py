"""Trains one network for K classes, as the papers do: a backbone, or the fusion of three.

python -m classify.single --config configs/classify/fusion.yaml
"""

from classify.train import single as main

if __name__ == "__main__":
    raise SystemExit(main())
