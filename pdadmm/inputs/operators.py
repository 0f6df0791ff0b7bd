"""Operators ψ of the augmentation X = [ψ_1(A)H, ..., ψ_K(A)H]: what they are called, and their expansions.

An operator is a function of P, the normalised adjacency with self-loops: symmetric,
Ã = D^(-1/2) (A + I) D^(-1/2) (Kipf and Welling), or of a random walk, D^(-1) (A + I). GA-MLP (Chen, Chen,
Bruna: On graph neural networks versus graph-augmented MLPs, ICLR 2021) takes any; personalised PageRank
and the heat kernel are those of Gasteiger et al. (Diffusion improves graph learning, NeurIPS 2019). These
two are infinite series of powers; in Chebyshev polynomials of P, whose eigenvalues lie in [-1, 1], they
take a third of the products at α = 0.2 and fewer the smaller α is (Hammond, Vandergheynst, Gribonval:
Wavelets on graphs via spectral graph theory, 2011).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pdadmm.errors import InputError

__all__ = ["TOLERANCE", "Operator", "parse_operators", "powers"]

#: an expansion is cut where the coefficients that are left sum to less: no eigenvalue of the operator is
#: further off; none is above 1
TOLERANCE = 1e-6
#: most products of an operator, and most operators: more than any graph has a use for
_MOST_POWERS = 10_000
_MOST_OPERATORS = 10_000
#: of the list, which files keep as an attribute: HDF5 has 64 KiB for it
_MOST_LETTERS = 60_000
_FORMS = "x, power:K, powers:K, ppr:α and heat:t, each with :rw for a random walk's normalisation"


@dataclass(frozen=True)
class Operator:
    """One operator, a block of columns of X.

    Attributes
    ----------
    kind : {"power", "ppr", "heat"}
        Pᵏ; Σ α(1-α)ᵏ Pᵏ = α (I - (1-α)P)⁻¹; Σ e^(-t) tᵏ/k! Pᵏ = exp(t (P - I)).
    value : float
        k, α or t.
    walk : bool
        P is the random walk's D^(-1) (A + I), not the symmetric Ã.
    """

    kind: str
    value: float
    walk: bool = False

    @property
    def chebyshev(self) -> bool:
        """Whether `coefficients` are of Chebyshev polynomials T_k(P), not of powers Pᵏ."""
        return self.kind != "power"

    def coefficients(self) -> np.ndarray:
        """Coefficients c_0 to c_K of the expansion, (K + 1,) float64, without the rest below `TOLERANCE`."""
        if self.kind == "power":
            return np.eye(1, int(self.value) + 1, int(self.value))[0]
        if self.kind == "ppr":
            alpha = self.value
            if alpha == 1:
                return np.ones(1)
            # 1/(z - x) is 2/√(z² - 1) Σ rᵏ T_k(x), the first halved, with r = z - √(z² - 1);
            # here z = 1/(1 - α)
            root = math.sqrt(alpha * (2 - alpha))
            ratio, scale = (1 - alpha) / (1 + root), 2 * alpha / root
            # the rest after c_0 to c_K is scale ratio^(K + 1) / (1 - ratio)
            count = math.floor(math.log(TOLERANCE * (1 - ratio) / scale) / math.log(ratio)) + 1
            coefficients = scale * ratio ** np.arange(count)
        else:
            from scipy.special import ive  # a tenth of a second, for few lists

            # exp(t (x - 1)) is e^(-t) (I_0(t) + 2 Σ I_k(t) T_k(x)), I_k the modified Bessel
            # functions, which fall like exp(-k²/2t): K is at most 5√t + 5, and nothing is left after 8√t + 30
            many = np.arange(math.ceil(8 * math.sqrt(self.value)) + 30)
            coefficients = 2 * ive(many, self.value)
            rest = np.cumsum(coefficients[::-1])[::-1] - coefficients
            coefficients = coefficients[: int(np.argmax(rest < TOLERANCE)) + 1]
        coefficients[0] /= 2
        return np.asarray(coefficients)


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
        When the list is empty or too long, or an item is unknown, out of range or of too many products.
    """
    if not text.strip():
        raise InputError(f"{option} is an empty list; give some of {_FORMS}")
    names: list[str] = []
    found: list[Operator] = []
    for item in text.split(","):
        name, operators = _parse(item.strip(), option, _MOST_OPERATORS - len(found))
        names.append(name)
        found += operators
    listed = ",".join(names)
    if len(listed) > _MOST_LETTERS:
        raise InputError(
            f"{option}: {len(listed)} characters, of which files keep {_MOST_LETTERS}; give fewer"
        )
    return listed, tuple(found)


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
    # of the expansions, rounded up
    products = 10 / math.sqrt(value) if head == "ppr" else 5 * math.sqrt(value) + 5
    if products > _MOST_POWERS:
        better = "larger α" if head == "ppr" else "smaller t"
        raise InputError(f"{option} {item} takes more than {_MOST_POWERS} products; give a {better}")
    return f"{head}:{repr(value).removesuffix('.0')}{ending}", [Operator(head, value, walk)]
