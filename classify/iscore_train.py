"""Trains a network, keeps its convolution features by the I-score, and answers the tested films.

python -m classify.iscore_train --config configs/classify/iscore.yaml --keep all --out runs/all
"""

from classify.train import iscore_train as main

if __name__ == "__main__":
    raise SystemExit(main())
