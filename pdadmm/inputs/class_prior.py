"""Label shift: predictions for another class distribution than that of the nodes that train."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pdadmm.files import Record
from pdadmm.inputs import Floats, Ids

if TYPE_CHECKING:
    from pdadmm.files.hdf5 import PlainFile

__all__ = [
    "CLASS_PRIORS",
    "apart",
    "crossed",
    "logit_shift",
    "noted",
    "read_shift",
    "rows_of_results",
    "shift_of",
]

#: of --class-prior: the split whose shares of the classes predictions are for
CLASS_PRIORS = ("train", "val")
_SHIFT = "class_shift"  # of a model's attributes in memory a tuple of numbers, in its file an array


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


def noted(class_prior: str, shift: Floats | None) -> Record:
    """Attributes of a model: the split whose shares it predicts for, and what its logits have for them."""
    found: Record = {"class_prior": class_prior}
    return found if shift is None else {**found, _SHIFT: tuple(shift.tolist())}


def shift_of(attributes: Record) -> Floats | None:
    """What the logits of a model with these attributes have more than in training, float32 (classes,)."""
    return np.array(attributes[_SHIFT], np.float32) if _SHIFT in attributes else None


def apart(attributes: Record) -> tuple[Record, dict[str, np.ndarray]]:
    """Attributes as a file has them: those that are attributes there, and those that are arrays."""
    shift = shift_of(attributes)
    plain = {name: value for name, value in attributes.items() if name != _SHIFT}
    return plain, {} if shift is None else {_SHIFT: shift}


def read_shift(file: PlainFile, attributes: Record, classes: int) -> Record:
    """Attributes with what a file has as an array.

    Raises
    ------
    InputError
        When that is missing or wrong.
    """
    if attributes.get("class_prior", "train") == "train":
        return attributes
    found = file.array(_SHIFT)
    if found.shape != (classes,):
        raise file.wrong(f"/{_SHIFT} is {found.shape}, not {(classes,)}")
    return {**attributes, **noted(attributes["class_prior"], file.weights(found))}


def rows_of_results(class_prior: str) -> list[tuple[str, str]]:
    """What a run's final table says of it: nothing where predictions are for the training nodes' shares."""
    if class_prior == "train":
        return []
    return [("class prior", "val: corrected to the class frequencies of the validation nodes")]


def crossed(logits: Floats, y: Ids, train: Ids, halvings: int = 10) -> tuple[float, float]:
    """What the shares of the classes among these nodes make of them, without those that they are measured on.

    One half of the nodes is measured with the shares of the other, both ways, of as many random halvings.

    Parameters
    ----------
    logits : (V, classes)
        Without a shift.
    y : integer (V,)
        Classes of the nodes, two at least.
    train : integer (classes,)
        As in `logit_shift`.
    halvings

    Returns
    -------
    accuracy, loss
        Means over the halves; the loss is the cross entropy of a node.
    """
    accuracies, losses = [], []
    for halving in range(halvings):
        order = np.random.default_rng(halving).permutation(len(y))
        halves = order[: len(y) // 2], order[len(y) // 2 :]
        for counted, measured in (halves, halves[::-1]):
            z = logits[measured] + logit_shift(train, np.bincount(y[counted], minlength=len(train)))
            z -= z.max(axis=1, keepdims=True)
            own = z[np.arange(len(measured)), y[measured]]
            accuracies.append(np.mean(z.argmax(axis=1) == y[measured]))
            losses.append(np.mean(np.log(np.exp(z).sum(axis=1)) - own))
    return float(np.mean(accuracies)), float(np.mean(losses))
