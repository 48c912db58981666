"""Index expressions: integers that depend on loop variables, in normal form by construction.

`Affine = const + sum(coeff * atom)`, where an atom is a variable, a floor division, a remainder or
an index read from data. Constructors fold by bounds, so equal expressions are (nearly always) equal
objects by structure, and the digits that reshapes make meet again: `q*(e//q) + e%q` is `e`.

Two promises that code generators rely on: the operand of every `//` and `%` is never negative
(truncating division is floor division there), and terms stand in an order that depends on nothing
but the order in which variables were made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from math import gcd
from typing import Any, ClassVar, Union
from weakref import WeakValueDictionary

_serial = count()
Env = Mapping[Any, int]  # the value of every variable and of every data index


class Var:
    """A loop variable, 0 <= v < extent. A variable equals only itself, whatever its name."""

    __slots__ = ("extent", "hi", "key", "lo", "name", "serial")

    def __init__(self, name: str, extent: int) -> None:
        self.name = name
        self.extent = extent
        self.serial = next(_serial)
        self.key: tuple[Any, ...] = (0, self.serial)
        self.lo = 0
        self.hi = max(extent - 1, 0)

    def __hash__(self) -> int:
        return self.serial

    def __repr__(self) -> str:
        return self.name

    def free_vars(self) -> frozenset[Var]:
        """The variable itself."""
        return frozenset((self,))

    def evaluate(self, env: Env) -> int:
        """Its value in `env`."""
        return env[self]


class Data:
    """An index that is read from data: 0 <= value < bound, `expr` says how it is computed.

    `expr` is opaque and hashable. `vars` are the loop variables that it depends on; substitution
    renames them here, and it is for the owner of `expr` to rewrite its inside (`map_data`).
    """

    __slots__ = ("__weakref__", "bound", "expr", "hi", "key", "lo", "serial", "vars")
    _made: ClassVar[WeakValueDictionary[tuple[Any, ...], Data]] = WeakValueDictionary()
    expr: Any
    bound: int
    vars: frozenset[Var]
    serial: int
    key: tuple[Any, ...]
    lo: int
    hi: int

    def __new__(cls, expr: Any, bound: int, vars: frozenset[Var] = frozenset()) -> Data:
        """The one object of these arguments."""
        identity = (expr, bound, vars)
        self = cls._made.get(identity)
        if self is None:
            self = cls._made[identity] = object.__new__(cls)
            self.expr, self.bound, self.vars = identity
            self.serial = next(_serial)
            self.key = (3, self.serial)
            self.lo, self.hi = 0, max(bound - 1, 0)
        return self

    def __hash__(self) -> int:
        return self.serial

    def __repr__(self) -> str:
        from tinyc.ir.plan_text import data_text  # which knows the expressions that this does not

        return f"[{data_text(self.expr)}]"

    def free_vars(self) -> frozenset[Var]:
        """The loop variables that the value depends on."""
        return self.vars

    def evaluate(self, env: Env) -> int:
        """Its value in `env`."""
        return env[self]


class _Quotient:
    """What `//` and `%` share: 0 <= min(operand) < n, 1 < n; equality is by structure."""

    __slots__ = ("_hash", "hi", "key", "lo", "n", "operand")
    _rank = 0

    def __init__(self, operand: Affine, n: int) -> None:
        self.operand = operand
        self.n = n
        terms = tuple((a.key, c) for a, c in operand.terms)
        self.key: tuple[Any, ...] = (self._rank, n, operand.const, terms)
        self._hash = hash(self.key)
        self.lo, self.hi = 0, self._highest()

    def _highest(self) -> int:
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.key == self.key  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return self._hash

    def free_vars(self) -> frozenset[Var]:
        """The variables of the operand."""
        return self.operand.free_vars()


class FloorDiv(_Quotient):
    """operand // n. Made by `Affine // int`, which folds what it can."""

    __slots__ = ()
    _rank = 1

    def _highest(self) -> int:
        return self.operand.bounds()[1] // self.n

    def __repr__(self) -> str:
        return f"{_grouped(self.operand)}//{self.n}"

    def evaluate(self, env: Env) -> int:
        """The value in `env`."""
        return self.operand.evaluate(env) // self.n


class Mod(_Quotient):
    """operand % n. Made by `Affine % int`, which folds what it can."""

    __slots__ = ("_upper",)
    _rank = 2

    def __init__(self, operand: Affine, n: int) -> None:
        super().__init__(operand, n)
        self._upper: Affine | None = None

    def upper(self) -> Affine:
        """operand // n: the digits above this one."""
        found = self._upper
        if found is None:
            found = self._upper = self.operand // self.n
        return found

    def _highest(self) -> int:
        return self.n - 1

    def __repr__(self) -> str:
        return f"{_grouped(self.operand)}%{self.n}"

    def evaluate(self, env: Env) -> int:
        """The value in `env`."""
        return self.operand.evaluate(env) % self.n


Atom = Var | FloorDiv | Mod | Data
Term = tuple[Atom, int]
Index = Union["Affine", Var, Data, int]


class Affine:
    """const + sum(coeff * atom), immutable. Terms are ordered by the atoms' keys, coeffs not 0."""

    __slots__ = ("_bounds", "_data", "_free", "_hash", "const", "terms")

    def __init__(self, const: int, terms: tuple[Term, ...] = ()) -> None:
        self.const = const
        self.terms = terms
        self._bounds: tuple[int, int] | None = None
        self._hash: int | None = None
        self._free: frozenset[Var] | None = None
        self._data: tuple[Any, ...] | None = None

    @staticmethod
    def const_of(value: int) -> Affine:
        """The constant `value`."""
        return Affine(value)

    @staticmethod
    def of(value: Index) -> Affine:
        """The expression of an int, a variable (0 if it has one value only) or a data index.

        A data index with one value stays: its computation may check that value.
        """
        if type(value) is Affine:
            return value
        if type(value) is Var:
            return Affine(0, ((value, 1),)) if value.extent > 1 else Affine(0)
        if type(value) is Data:
            return Affine(0, ((value, 1),))
        return Affine(int(value))  # type: ignore[arg-type]

    # -- arithmetic ------------------------------------------------------------------------------

    def __add__(self, other: Index) -> Affine:
        if type(other) is not Affine:
            if type(other) is int:
                return Affine(self.const + other, self.terms) if other else self
            other = Affine.of(other)
        if not other.terms:
            return Affine(self.const + other.const, self.terms)
        if not self.terms:
            return Affine(self.const + other.const, other.terms)
        return _sum(self.const + other.const, self.terms, other.terms)

    __radd__ = __add__

    def __mul__(self, factor: int) -> Affine:
        if factor == 1:
            return self
        if factor == 0:
            return Affine(0)
        return Affine(self.const * factor, tuple([(a, c * factor) for a, c in self.terms]))

    __rmul__ = __mul__

    def __neg__(self) -> Affine:
        return self * -1

    def __sub__(self, other: Index) -> Affine:
        return self + Affine.of(other) * -1

    def __rsub__(self, other: Index) -> Affine:
        return self * -1 + other

    def __floordiv__(self, n: int) -> Affine:
        if n < 1:
            raise ValueError(f"index // {n}: the divisor must be positive")
        if n == 1 or not self.terms:
            return self if n == 1 else Affine(self.const // n)
        lo, hi = self.bounds()
        if lo // n == hi // n:
            return Affine(lo // n)
        whole, rest = _reduce(self, n)
        return whole + _divide(rest, n)

    def __mod__(self, n: int) -> Affine:
        if n < 1:
            raise ValueError(f"index % {n}: the divisor must be positive")
        if n == 1 or not self.terms:
            return Affine(self.const % n)
        lo, hi = self.bounds()
        if lo // n == hi // n:
            return self - (lo // n) * n
        return _remainder(_reduce(self, n)[1], n)

    # -- questions -------------------------------------------------------------------------------

    def bounds(self) -> tuple[int, int]:
        """(lo, hi), both inclusive, over all values of the variables."""
        found = self._bounds
        if found is None:
            lo = hi = self.const
            for a, c in self.terms:
                if c > 0:
                    lo += c * a.lo
                    hi += c * a.hi
                else:
                    lo += c * a.hi
                    hi += c * a.lo
            found = self._bounds = (lo, hi)
        return found

    @property
    def is_const(self) -> bool:
        """Whether no variable is left."""
        return not self.terms

    def free_vars(self) -> frozenset[Var]:
        """All variables, also those inside `//`, `%` and of data."""
        found = self._free
        if found is None:
            found = self._free = frozenset().union(*[a.free_vars() for a, _ in self.terms])
        return found

    def coeff(self, var: Var) -> int:
        """The coefficient of a variable, 0 if it is absent or only inside other atoms."""
        for a, c in self.terms:
            if a is var:
                return c
        return 0

    def is_linear(self) -> bool:
        """True if every atom is a plain loop variable."""
        return all(isinstance(a, Var) for a, _ in self.terms)

    def as_var(self) -> Var | None:
        """The loop variable that this index is, if it is just one; else None."""
        if self.const == 0 and len(self.terms) == 1:
            atom, coeff = self.terms[0]
            if coeff == 1 and isinstance(atom, Var):
                return atom
        return None

    def is_linear_in(self, var: Var) -> bool:
        """Whether a step of `var` always adds `coeff(var)`: it stands in no other atom."""
        return not any(type(a) is not Var and var in a.free_vars() for a, _ in self.terms)

    def evaluate(self, env: Env) -> int:
        """The value where `env` gives every variable (and data index) of it."""
        total = self.const
        for a, c in self.terms:
            total += c * a.evaluate(env)
        return total

    # -- rewriting -------------------------------------------------------------------------------

    def substitute(self, mapping: Mapping[Var, Index]) -> Affine:
        """Replace variables; the result is in normal form again."""
        if self.free_vars().isdisjoint(mapping):
            return self
        return self._map(lambda atom: _substitute_atom(atom, mapping))

    def data(self) -> tuple[Any, ...]:
        """The distinct expressions of data indices, those inside `//` and `%` included."""
        if self._data is None:
            found: dict[int, Any] = {}
            stack = [self]
            while stack:
                for a, _ in stack.pop().terms:
                    if isinstance(a, _Quotient):
                        stack.append(a.operand)
                    elif type(a) is Data:
                        found.setdefault(a.serial, a.expr)
            self._data = tuple(found.values())
        return self._data

    def divisions(self) -> Iterator[tuple[int, Affine]]:
        """(divisor, operand) of every `//` and `%`, outer ones first."""
        stack = [self]
        while stack:
            for a, _ in stack.pop().terms:
                if isinstance(a, _Quotient):
                    yield a.n, a.operand
                    stack.append(a.operand)

    def map_data(self, fn: Callable[[Any], Any]) -> Affine:
        """Replace the expression of every data index by `fn` of it."""
        if all(type(a) is Var for a, _ in self.terms):
            return self
        return self._map(lambda atom: _map_data_atom(atom, fn))

    def _map(self, fn: Callable[[Atom], Affine]) -> Affine:
        total = Affine(self.const)
        for a, c in self.terms:
            total = total + fn(a) * c
        return total

    # -- identity and text -----------------------------------------------------------------------

    def __eq__(self, other: object) -> bool:
        if type(other) is not Affine:
            return NotImplemented
        return self.const == other.const and self.terms == other.terms

    def __hash__(self) -> int:
        found = self._hash
        if found is None:
            found = self._hash = hash((self.const, self.terms))
        return found

    def __repr__(self) -> str:
        text = ""
        for a, c in self.terms:
            size = "" if abs(c) == 1 else f"{abs(c)}*"
            name = f"({a!r})" if size and type(a) in (FloorDiv, Mod) else f"{a!r}"
            text += f" {'-' if c < 0 else '+'} {size}{name}"
        if self.const or not text:
            text += f" {'-' if self.const < 0 else '+'} {abs(self.const)}"
        return text[3:] if text[1] == "+" else "-" + text[3:]


def ravel(index: Sequence[Affine], shape: Sequence[int]) -> Affine:
    """The row-major position of `index` in an array of `shape`."""
    flat, stride = Affine(0), 1
    for i, n in zip(reversed(index), reversed(shape)):
        flat = flat + i * stride
        stride *= n
    return flat


def unravel(flat: Affine, shape: Sequence[int]) -> tuple[Affine, ...]:
    """The index into an array of `shape` of the row-major position `flat`, which is within it."""
    digits: list[Affine] = []
    stride = 1
    for n in reversed(shape[1:]):
        digits.append(flat // stride % n)
        stride *= n
    if shape:
        digits.append(flat // stride)
    return tuple(reversed(digits))


# -- sums ----------------------------------------------------------------------------------------


def _sum(const: int, left: tuple[Term, ...], right: tuple[Term, ...]) -> Affine:
    """Merge two ordered lists of terms; both are not empty."""
    out: list[Term] = []
    i = j = 0
    n, m = len(left), len(right)
    while i < n and j < m:
        a, b = left[i], right[j]
        ka, kb = a[0].key, b[0].key
        if ka == kb:
            c = a[1] + b[1]
            if c:
                out.append((a[0], c))
            i += 1
            j += 1
        elif ka < kb:
            out.append(a)
            i += 1
        else:
            out.append(b)
            j += 1
    out.extend(left[i:])
    out.extend(right[j:])
    total = Affine(const, tuple(out))
    for atom, _ in reversed(out):  # variables stand first, remainders near the end
        if type(atom) is Mod:
            return _recombine(total)
        if type(atom) is Var:
            break
    return total


def _recombine(total: Affine) -> Affine:
    """q*(e//q) + e%q -> e   and   e%q + q*((e//q + y)%p) -> (e + q*y)%(q*p), at any common factor.
    """
    coeffs = dict(total.terms)
    for atom, c in total.terms:
        if type(atom) is not Mod:
            continue
        quotient = atom.upper()
        if len(quotient.terms) != 1 or quotient.terms[0][1] != 1:
            continue
        upper = quotient.terms[0][0]
        if coeffs.get(upper) == c * atom.n:
            rest = Affine(total.const, _without(total, atom, upper))
            return rest + (atom.operand - quotient.const * atom.n) * c
        for other, c2 in total.terms:
            if type(other) is Mod and c2 == c * atom.n and (upper, 1) in other.operand.terms:
                rest = Affine(total.const, _without(total, atom, other))
                more = (other.operand - quotient) * atom.n
                return rest + ((atom.operand + more) % (atom.n * other.n)) * c
    return total


def _without(total: Affine, *atoms: Atom) -> tuple[Term, ...]:
    return tuple([t for t in total.terms if t[0] not in atoms])


# -- division ------------------------------------------------------------------------------------


def _reduce(e: Affine, n: int) -> tuple[Affine, Affine]:
    """e = n * whole + rest: rest has coefficients below n and a lowest value in 0..n-1."""
    whole: list[Term] = []
    rest: list[Term] = []
    lo = e.const
    for a, c in e.terms:
        q = c // n if c > 0 else -(-c // n)
        r = c - q * n
        if q:
            whole.append((a, q))
        if r:
            rest.append((a, r))
            lo += r * (a.lo if r > 0 else a.hi)
    shift = lo // n
    return Affine(shift, tuple(whole)), Affine(e.const - shift * n, tuple(rest))


def _split(rest: Affine, n: int) -> tuple[Affine, Affine, int] | None:
    """rest = g * upper + lower with 0 <= lower < g, where g > 1 divides n: (upper, lower, g)."""
    order = sorted(rest.terms, key=lambda t: -abs(t[1]))
    g = n
    for k, (_, c) in enumerate(order, 1):
        g = gcd(g, c)
        if g == 1:
            return None
        tail = {a for a, _ in order[k:]}
        lower = Affine(rest.const, tuple([t for t in rest.terms if t[0] in tail]))
        lo, hi = lower.bounds()
        shift = lo // g
        if shift == hi // g:
            upper = tuple([(a, c // g) for a, c in rest.terms if a not in tail])
            return Affine(shift, upper), lower - shift * g, g
    return None


def _divide(rest: Affine, n: int) -> Affine:
    """rest // n for a reduced rest."""
    if rest.bounds()[1] < n:
        return Affine(0)
    parts = _split(rest, n)
    if parts is not None:
        upper, _, g = parts
        return upper // (n // g)
    inner = [a for a, c in rest.terms if type(a) is FloorDiv and c == 1]
    if len(inner) == 1:  # (e//a + y)//b -> (e + a*y)//(a*b)
        quotient = inner[0]
        others = Affine(rest.const, _without(rest, quotient))
        return (others * quotient.n + quotient.operand) // (quotient.n * n)
    if len(rest.terms) == 1 and not rest.const:
        atom, c = rest.terms[0]
        if type(atom) is Mod and c == 1 and atom.n % n == 0:  # (e%(a*b))//b -> (e//b)%a
            return atom.operand // n % (atom.n // n)
    return Affine(0, ((FloorDiv(rest, n), 1),))


def _remainder(rest: Affine, n: int) -> Affine:
    """rest % n for a reduced rest."""
    if rest.bounds()[1] < n:
        return rest
    parts = _split(rest, n)
    if parts is not None:
        upper, lower, g = parts
        return upper % (n // g) * g + lower
    for atom, c in rest.terms:
        if type(atom) is Mod and atom.n % n == 0:  # (e%(a*b) + y)%b -> (e + y)%b
            return (Affine(rest.const, _without(rest, atom)) + atom.operand * c) % n
    return Affine(0, ((Mod(rest, n), 1),))


def _substitute_atom(atom: Atom, mapping: Mapping[Var, Index]) -> Affine:
    if type(atom) is Var:
        return Affine.of(mapping.get(atom, atom))
    if type(atom) is FloorDiv:
        return atom.operand.substitute(mapping) // atom.n
    if type(atom) is Mod:
        return atom.operand.substitute(mapping) % atom.n
    assert type(atom) is Data
    left = [Affine.of(mapping.get(v, v)).free_vars() for v in atom.vars]
    return Affine(0, ((Data(atom.expr, atom.bound, frozenset().union(*left)), 1),))


def _map_data_atom(atom: Atom, fn: Callable[[Any], Any]) -> Affine:
    if type(atom) is FloorDiv:
        return atom.operand.map_data(fn) // atom.n
    if type(atom) is Mod:
        return atom.operand.map_data(fn) % atom.n
    if type(atom) is Data:
        return Affine(0, ((Data(fn(atom.expr), atom.bound, atom.vars), 1),))
    return Affine(0, ((atom, 1),))


def _grouped(e: Affine) -> str:
    text = repr(e)
    return f"({text})" if " " in text or "*" in text or text.startswith("-") else text
