"""Predictions for other shares of the classes than those of the nodes that train."""

from __future__ import annotations

import numpy as np

from pdadmm.inputs import Floats, Ids

__all__ = ["CLASS_PRIORS", "logit_shift"]

#: of --class-prior: the split whose shares of the classes predictions are for
CLASS_PRIORS = ("train", "val")


def logit_shift(train: Ids, target: Ids) -> Floats:
    """What to add to the logits of a network for the shares of the classes among other nodes.

    Softmax outputs are posteriors under the shares that the network was trained on; those under others are
    proportional to them times the ratio of the shares (Saerens, Latinne and Decaestecker, Neural
    Computation 14(1), 2002; of logits after training also Menon et al., arXiv 2007.07314).

    Parameters
    ----------
    train, target : integer (classes,)
        Nodes of every class among those that train, and those whose shares are to count. One is added to
        each, so that no class has no share.

    Returns
    -------
    float32 (classes,)
        ln of the ratio of the shares; zeros where they are equal.
    """
    shares = [(counts + 1) / (counts + 1).sum() for counts in (target, train)]
    return np.log(shares[0] / shares[1]).astype(np.float32)
