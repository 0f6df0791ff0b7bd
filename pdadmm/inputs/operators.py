"""Operators ψ of the augmentation X = [ψ_1(A)H, ..., ψ_K(A)H]: what they are called, and their power series.

An operator is Σ c_k Pᵏ with weights c_k of at least 0, P the normalised adjacency with self-loops: symmetric,
Ã = D^(-1/2) (A + I) D^(-1/2) (Kipf and Welling), or of a random walk, D^(-1) (A + I). GA-MLP (Chen et al.,
2019) takes any; personalised PageRank and the heat kernel are those of Gasteiger et al. (Diffusion improves
graph learning, NeurIPS 2019).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pdadmm.errors import InputError

__all__ = ["TOLERANCE", "Operator", "parse_operators", "powers"]

#: a series is cut where the weights that are left sum to less; all of them sum to 1
TOLERANCE = 1e-6
#: most products of an operator, and most operators: more than any graph has a use for
_MOST_POWERS = 10_000
_MOST_OPERATORS = 10_000
_FORMS = "x, power:K, powers:K, ppr:α and heat:t, each with :rw for a random walk's normalisation"


@dataclass(frozen=True)
class Operator:
    """One operator, a block of columns of X.

    Attributes
    ----------
    kind : {"power", "ppr", "heat"}
        Pᵏ; Σ α(1-α)ᵏ Pᵏ; Σ e^(-t) tᵏ/k! Pᵏ.
    value : float
        k, α or t.
    walk : bool
        P is the random walk's D^(-1) (A + I), not the symmetric Ã.
    """

    kind: str
    value: float
    walk: bool = False

    def weights(self) -> np.ndarray:
        """Weights c_0 to c_K of the powers, (K + 1,) float64; without the rest, less than `TOLERANCE`."""
        if self.kind == "power":
            weights = np.zeros(int(self.value) + 1)
            weights[-1] = 1
            return weights
        if self.kind == "ppr":
            alpha = self.value
            if alpha == 1:
                return np.ones(1)
            # the rest after c_0 to c_K is (1 - α)^(K + 1)
            count = math.floor(math.log(TOLERANCE) / math.log1p(-alpha)) + 1
            return np.asarray(alpha * (1 - alpha) ** np.arange(count))
        # of Poisson's distribution; beyond ten standard deviations nothing is left to speak of
        count = math.ceil(self.value + 10 * math.sqrt(self.value) + 20)
        logarithms = [k * math.log(self.value) - self.value - math.lgamma(k + 1) for k in range(count)]
        weights = np.exp(logarithms)
        rest = np.cumsum(weights[::-1])[::-1] - weights
        return np.asarray(weights[: int(np.argmax(rest < TOLERANCE)) + 1])


def powers(hops: int) -> str:
    """The list I, Ã, ..., Ã^K, which --hops K asks for.

    Raises
    ------
    InputError
        When K is negative.
    """
    if hops < 0:
        raise InputError(f"hops {hops} is negative; give 0 or more")
    return f"powers:{hops}"


def parse_operators(text: str, option: str = "--operators") -> tuple[str, tuple[Operator, ...]]:
    """Read a list of operators, separated by commas.

    Parameters
    ----------
    text : str
        Of ``x``, ``power:K``, ``powers:K``, ``ppr:α``, ``heat:t``, each with ``:rw`` for the random walk.
    option : str
        What messages call it.

    Returns
    -------
    text : str
        The same list in the form in which files keep it.
    operators : tuple of Operator
        One a block of columns of X: ``powers:K`` is K + 1.

    Raises
    ------
    InputError
        When the list is empty, or an item is unknown, out of range or of too many products.
    """
    if not text.strip():
        raise InputError(f"{option} is an empty list; give some of {_FORMS}")
    names: list[str] = []
    found: list[Operator] = []
    for item in text.split(","):
        name, operators = _parse(item.strip(), option, _MOST_OPERATORS - len(found))
        names.append(name)
        found += operators
    return ",".join(names), tuple(found)


def _parse(item: str, option: str, room: int) -> tuple[str, list[Operator]]:
    head, *rest = item.split(":")
    walk = bool(rest) and rest[-1] == "rw"
    if walk:
        rest.pop()
    ending = ":rw" if walk else ""
    if room < 1:
        raise InputError(f"{option}: more than {_MOST_OPERATORS} operators; give fewer")
    if head == "x" and not rest:
        return "x", [Operator("power", 0)]  # of which both normalisations are the same
    if head not in ("power", "powers", "ppr", "heat") or len(rest) != 1:
        raise InputError(f"{option}: {item!r} is no operator; choose of {_FORMS}")
    if head in ("power", "powers"):
        try:
            power = int(rest[0])
        except ValueError:
            raise InputError(f"{option} {item}: {rest[0]!r} is no whole number; give 0 or more") from None
        if power < 0:
            raise InputError(f"{option} {item}: the power {power} is negative; give 0 or more")
        most = _MOST_POWERS if head == "power" else min(_MOST_POWERS, room - 1)
        if power > most:
            raise InputError(f"{option} {item}: the power is more than {most}; give a smaller one")
        of = range(power + 1) if head == "powers" else [power]
        return f"{head}:{power}{ending}", [Operator("power", k, walk) for k in of]
    try:
        value = float(rest[0])
    except ValueError:
        value = math.nan
    if head == "ppr" and not 0 < value <= 1:
        raise InputError(f"{option} {item}: α is outside (0, 1]; give one like 0.2")
    if head == "heat" and not 0 < value < math.inf:
        raise InputError(f"{option} {item}: t is not more than 0; give one like 2")
    products = math.log(TOLERANCE) / math.log1p(-value) if head == "ppr" and value < 1 else value
    if head == "heat":
        products = value + 10 * math.sqrt(value)
    if products > _MOST_POWERS:
        better = "larger α" if head == "ppr" else "smaller t"
        raise InputError(f"{option} {item} takes more than {_MOST_POWERS} products; give a {better}")
    return f"{head}:{repr(value).removesuffix('.0')}{ending}", [Operator(head, value, walk)]
