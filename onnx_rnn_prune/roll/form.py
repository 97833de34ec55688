"""Normal form: a tensor as a sum of matrix products over atoms.

A float tensor is read as a matrix [rows, n], whose rows are usually sequences of the batch and
whose columns are features. A `Form` is `sum_k a_k M_k + b`: each atom `a_k` [rows, m] is a leaf
(entries of a tensor that is not analyzed further), an activation of a form, an entrywise product of
atoms, or a whole form that cannot be multiplied out within a product; `M_k` is a matrix [m, n] or a
diagonal; `b` [n] is constant. Affine operators and moves compose into this, so a cell gets the same
form however it is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from onnx_rnn_prune.model.runner import Array

Index = npt.NDArray[np.int64]

# A form with more terms, or an atom of more atoms, belongs to no cell.
_MOST_TERMS, _MOST_ATOMS = 12, 150
# Matrix products with more multiplications are not computed.
_MOST_WORK = 1 << 32


# The identity "activation", for a form that is a single factor since it mixes columns.
WHOLE = ""


class OpaqueError(Exception):
    """Raised if a node's output has no form; it becomes a leaf."""


def digest(*values: Array) -> bytes:
    """A digest of arrays; 0 and -0 are the same."""
    found = blake2b(digest_size=16)
    for value in values:
        found.update(repr(value.shape).encode())
        found.update(np.ascontiguousarray(value + 0).tobytes())
    return found.digest()


@dataclass(frozen=True, eq=False)
class Matrix:
    """A matrix [m, n], or its diagonal [n]; caches what is computed from it.

    Unrolled steps share their weights, so only the first one costs time.
    """

    values: Array
    _made: dict[object, Matrix] = field(default_factory=dict, repr=False)

    @property
    def diagonal(self) -> bool:
        """Whether it is stored as a diagonal."""
        return self.values.ndim == 1

    @cached_property
    def key(self) -> bytes:
        """Equal for equal contents."""
        return digest(self.values)

    @cached_property
    def full(self) -> Array:
        """All entries: [m, n]."""
        return np.diag(self.values) if self.diagonal else self.values

    def is_scaled_identity(self, scale: float) -> bool:
        """Whether it is the identity times this number."""
        return self.diagonal and bool(np.all(self.values == scale))

    def then(self, other: Matrix) -> Matrix:
        """The product of both."""
        if self.is_scaled_identity(1.0):
            return other
        if self.diagonal:
            return self._remembered(("then", id(other)), lambda: self.values[:, None] * other.full)
        if self.values.size * other.values.shape[-1] > _MOST_WORK:
            raise OpaqueError
        return self._remembered((other.key,), lambda: self.values @ other.full)

    def columns(self, columns: Index) -> Matrix:
        """Some columns of a full matrix."""
        return self._remembered(
            ("columns", columns.tobytes()), lambda: np.ascontiguousarray(self.values[:, columns])
        )

    def scaled(self, scale: Array) -> Matrix:
        """Each column times a number."""
        if np.all(scale == 1):
            return self
        return self._remembered(("scaled", scale.tobytes()), lambda: self.values * scale)

    def plus(self, other: Matrix) -> Matrix:
        """Their sum."""
        if self.diagonal and other.diagonal:
            return Matrix(self.values + other.values)
        return self._remembered(("plus", other.key), lambda: self.full + other.full)

    def _remembered(self, key: object, make: Callable[[], Array]) -> Matrix:
        if key not in self._made:
            self._made[key] = Matrix(make())
        return self._made[key]


@dataclass(frozen=True, eq=False)
class Leaf:
    """Entries of a tensor.

    Attributes:
        tensor: its name.
        index: for each row and column, which entry of the flattened tensor it is.
        boolean: whether they are booleans, 0 or 1.
    """

    tensor: str
    index: Index
    boolean: bool = False

    @cached_property
    def key(self) -> tuple[object, ...]:
        """Equal for the same entries."""
        return ("leaf", self.tensor, digest(self.index))

    @property
    def size(self) -> int:
        """The number of columns."""
        return int(self.index.shape[1])

    atoms = 1

    @property
    def rows(self) -> int:
        """The number of rows."""
        return int(self.index.shape[0])

    def select(self, rows: Index | None, columns: Index | None) -> Leaf:
        """Some rows and columns."""
        index = self.index if rows is None else self.index[rows]
        return Leaf(self.tensor, index if columns is None else index[:, columns], self.boolean)


@dataclass(frozen=True, eq=False)
class Activation:
    """An entrywise function of a form.

    Attributes:
        op: its operator.
        attributes: alpha and beta, if it has them.
        argument: the form.
        origin: the entries in the model that hold its values, if any.
    """

    op: str
    attributes: tuple[tuple[str, float], ...]
    argument: Form
    origin: Leaf | None = None

    @cached_property
    def key(self) -> tuple[object, ...]:
        """Equal for the same function of equal forms."""
        return ("activation", self.op, self.attributes, self.argument.key)

    @property
    def size(self) -> int:
        """The number of columns."""
        return self.argument.size

    @cached_property
    def atoms(self) -> int:
        """How many atoms are in it."""
        return _bounded(self.argument.atoms)

    @property
    def rows(self) -> int:
        """The number of rows."""
        return self.argument.rows

    def select(self, rows: Index | None, columns: Index | None) -> Activation:
        """Some rows and columns."""
        origin = self.origin and self.origin.select(rows, columns)
        return Activation(self.op, self.attributes, self.argument.select(rows, columns), origin)


@dataclass(frozen=True, eq=False)
class Product:
    """An entrywise product of atoms, in the order of their keys."""

    factors: tuple[Atom, ...]
    origin: Leaf | None = None

    @cached_property
    def key(self) -> tuple[object, ...]:
        """Equal for the same factors."""
        return ("product", *(factor.key for factor in self.factors))

    @property
    def size(self) -> int:
        """The number of columns."""
        return self.factors[0].size

    @cached_property
    def atoms(self) -> int:
        """How many atoms are in it."""
        return _bounded(sum(factor.atoms for factor in self.factors))

    @property
    def rows(self) -> int:
        """The number of rows."""
        return self.factors[0].rows

    def select(self, rows: Index | None, columns: Index | None) -> Atom:
        """Some rows and columns."""
        found = product([factor.select(rows, columns) for factor in self.factors])
        if self.origin is not None and isinstance(found, Product):
            return Product(found.factors, self.origin.select(rows, columns))
        return found


Atom = Leaf | Activation | Product
Terms = Mapping[tuple[object, ...], tuple[Atom, Matrix]]


@dataclass(frozen=True, eq=False)
class Form:
    """A sum of matrix products over atoms, and a constant.

    Attributes:
        terms: atoms with their matrices, by the atom's key.
        bias: the constant: [n].
    """

    terms: Terms
    bias: Array

    @staticmethod
    def of(atom: Atom) -> Form:
        """The form of a single atom."""
        return Form({atom.key: (atom, Matrix(np.ones(atom.size)))}, np.zeros(atom.size))

    @staticmethod
    def constant(bias: Array) -> Form:
        """The form of a constant row."""
        return Form({}, np.asarray(bias, np.float64))

    @property
    def size(self) -> int:
        """The number of columns."""
        return len(self.bias)

    @cached_property
    def key(self) -> bytes:
        """Equal for equal forms."""
        parts = sorted((repr(key), matrix.key) for key, (_, matrix) in self.terms.items())
        return blake2b(repr((digest(self.bias), parts)).encode(), digest_size=16).digest()

    @cached_property
    def atoms(self) -> int:
        """How many atoms are in it."""
        return sum(atom.atoms for atom, _ in self.terms.values())

    @cached_property
    def rows(self) -> int:
        """The number of rows; 0 for a constant, which fits any."""
        return next((atom.rows for atom, _ in self.terms.values()), 0)

    def atom(self) -> Atom | None:
        """The atom, if it is just one."""
        if len(self.terms) != 1 or self.bias.any():
            return None
        ((atom, matrix),) = self.terms.values()
        return atom if matrix.is_scaled_identity(1.0) else None

    def plus(self, other: Form, sign: float = 1.0) -> Form:
        """The sum, or difference; both have equally many columns."""
        terms = dict(self.terms)
        for key, (atom, matrix) in other.terms.items():
            signed = matrix if sign == 1 else matrix.scaled(np.full(other.size, sign))
            terms[key] = (atom, terms[key][1].plus(signed) if key in terms else signed)
        return _form(terms, self.bias + sign * other.bias)

    def scaled(self, factor: Array | float) -> Form:
        """Each column times a number."""
        scale = np.broadcast_to(np.asarray(factor, np.float64), (self.size,))
        terms = {key: (atom, matrix.scaled(scale)) for key, (atom, matrix) in self.terms.items()}
        return _form(terms, self.bias * scale)

    def then(self, matrix: Matrix) -> Form:
        """The product with a matrix [n, m]."""
        terms = {key: (atom, own.then(matrix)) for key, (atom, own) in self.terms.items()}
        bias = self.bias @ matrix.full if self.bias.any() else np.zeros(matrix.full.shape[1])
        return _form(terms, bias)

    def select(self, rows: Index | None, columns: Index | None) -> Form:
        """Some rows and columns; None for all as they are."""
        if rows is None and columns is None:
            return self
        result = Form.constant(self.bias if columns is None else self.bias[columns])
        for atom, matrix in self.terms.values():
            if matrix.diagonal:
                values = matrix.values if columns is None else matrix.values[columns]
                chosen, kept = atom.select(rows, columns), Matrix(values)
            else:
                chosen = atom.select(rows, None)
                kept = matrix if columns is None else matrix.columns(columns)
            result = result.plus(Form({chosen.key: (chosen, kept)}, np.zeros(result.size)))
        return result

    def times(self, other: Form) -> Form:
        """The entrywise product, multiplied out if only diagonals are involved."""
        for one, two in ((self, other), (other, self)):
            if not one.terms:
                return two.scaled(one.bias)
        left, right = _whole(self), _whole(other)
        result = Form.constant(left.bias * right.bias)
        zero = np.zeros(self.size)
        for atom, matrix in left.terms.values():
            result = result.plus(Form({atom.key: (atom, matrix)}, zero).scaled(right.bias))
            for second, its in right.terms.values():
                both = product([atom, second])
                scale = Matrix(matrix.values * its.values)
                result = result.plus(Form({both.key: (both, scale)}, zero))
        for atom, matrix in right.terms.values():
            result = result.plus(Form({atom.key: (atom, matrix)}, zero).scaled(left.bias))
        return result

    def masks(self) -> list[Leaf]:
        """The booleans that its terms are multiplied by."""
        atoms = [atom for atom, _ in self.terms.values()]
        parts = [
            p for atom in atoms for p in (atom.factors if isinstance(atom, Product) else [atom])
        ]
        found = {part.key: part for part in parts if isinstance(part, Leaf) and part.boolean}
        return list(found.values())

    def at(self, leaf: Leaf, value: int) -> Form:
        """The form if a boolean is 0 or 1."""
        result = Form.constant(self.bias)
        for atom, matrix in self.terms.values():
            factors = atom.factors if isinstance(atom, Product) else (atom,)
            others = [factor for factor in factors if factor.key != leaf.key]
            if len(others) == len(factors):
                part = Form({atom.key: (atom, matrix)}, np.zeros(self.size))
            elif not value:
                continue
            elif others:
                rest = product(others)
                part = Form({rest.key: (rest, matrix)}, np.zeros(self.size))
            else:
                part = Form.constant(matrix.full.sum(axis=0))
            result = result.plus(part)
        return result


def product(factors: Sequence[Atom]) -> Atom:
    """The product of atoms; a repeated boolean counts once."""
    flat: list[Atom] = []
    for factor in factors:
        flat += factor.factors if isinstance(factor, Product) else [factor]
    kept: list[Atom] = []
    for factor in flat:
        twice = isinstance(factor, Leaf) and factor.boolean
        if not twice or all(factor.key != other.key for other in kept):
            kept.append(factor)
    if len(kept) == 1:
        return kept[0]
    return Product(tuple(sorted(kept, key=lambda atom: repr(atom.key))))


def _whole(form: Form) -> Form:
    """The form if it can be multiplied out; one that mixes columns as a single atom."""
    if all(matrix.diagonal for _, matrix in form.terms.values()):
        return form
    return Form.of(Activation(WHOLE, (), form))


def _form(terms: Terms, bias: Array) -> Form:
    """A form without zero terms."""
    kept = {key: term for key, term in terms.items() if term[1].values.any()}
    if len(kept) > _MOST_TERMS or sum(atom.atoms for atom, _ in kept.values()) > _MOST_ATOMS:
        raise OpaqueError
    return Form(kept, bias)


def _bounded(atoms: int) -> int:
    if atoms >= _MOST_ATOMS:
        raise OpaqueError
    return atoms + 1
