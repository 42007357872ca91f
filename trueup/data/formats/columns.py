"""One row of somebody's file: its columns by canonical name, and which of them were read.

A converter reads columns by name, whatever their case; what it left unread is settled afterwards (`settling`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from trueup.data.formats.vocabulary import (
    GIVEN,
    IGNORE,
    LOSS,
    NO_INPUT,
    NOT_TRAINED,
    canonical,
    is_choice,
    is_empty,
    is_text,
    is_unclear_weight,
    is_unsupported,
    masks_the_user,
    says_nothing,
    truth,
)
from trueup.data.jsonl import cut, excerpt
from trueup.files import Json

Values = Json
T = TypeVar("T")


class Ledger:
    """The objects of one row, and what became of their columns."""

    def __init__(self, ignore: Collection[str] = (), with_tools: bool = False) -> None:
        """
        ignore      canonical names of columns, wherever they stand in the row, that mean nothing to the user
        with_tools  whether tools, calls of them and their results are read; else they are refused
        """
        self.objects: list[Columns] = []
        self.with_tools = with_tools
        self.ignore = ignore
        self.ignored: set[str] = set()
        self.format = ""
        """What the row was read as, with the columns that decided it."""


class Columns:
    """An object of a row: its values by canonical name, which it remembers as read."""

    def __init__(self, values: Values, ledger: Ledger, within: str = "", group: str = ""):
        self.values: Values = {}
        self.within, self.group, self.ledger = within, group, ledger
        self.names_read: set[str] = set()
        self.answers: list[str] = []
        """Columns that a verdict is of: nobody is asked to choose from them."""
        self._spellings: dict[str, str] = {}
        for spelling, value in values.items():
            name = canonical(spelling)
            if name in ledger.ignore:
                if value not in (None, "", [], {}):
                    ledger.ignored.add(cut(group + name, 60))
            elif name not in self.values or says_nothing(self.values[name]):
                self.values[name], self._spellings[name] = value, spelling
            elif not says_nothing(value) and value != self.values[name]:
                raise ValueError(
                    f"{within}{cut(spelling, 40)}: the row has a column {cut(self._spellings[name], 40)} too, and they "
                    "say different things; take one of them out"
                )
        ledger.objects.append(self)

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def at(self, name: str) -> str:
        """A column as an error names it: where it is, as the row spells it."""
        return self.within + cut(self._spellings.get(name, name), 40)

    def holds(self, name: str) -> bool:
        """Whether a column says something. "[]" or "None" is an input like any other, and elsewhere says nothing; 0 and
        false are an input, or a choice, like any other number."""
        if name not in self.values:
            return False
        value = self.values[name]
        if isinstance(value, int | float) and (name == "input" or is_choice(name)):
            return True
        if isinstance(value, str) and is_text(name):
            return bool(value.strip()) and not (name in GIVEN and value.strip() in NO_INPUT)
        return not is_empty(value)

    def held(self, names: Iterable[str]) -> list[str]:
        """Those of these columns that say something: of all known names, of which a row has a few."""
        return [name for name in names if name in self.values and self.holds(name)]

    def there(self, name: str) -> bool:
        """Whether a column has a value, be it false, 0 or blanks."""
        return self.values.get(name) is not None and self.values[name] not in ("", [], {})

    def first(self, names: Iterable[str]) -> str | None:
        """The first of these columns that holds something, else the first that is there."""
        empty = None
        for name in names:
            if name in self.values:
                if self.holds(name):
                    return name
                empty = empty or name
        return empty

    def first_there(self, names: Sequence[str]) -> str | None:
        """As `first`, of columns in which 0 and false say something: verdicts, ranks, scores."""
        return next(filter(self.there, names), None) or self.first(names)

    def get(self, name: str) -> Any:
        self.names_read.add(name)
        return self.values.get(name)

    def take(self, name: str, kind: type[T]) -> T:
        """A value of the kind that the format says; a list or object that is empty is taken for a broken one."""
        value = self.get(name)
        if not isinstance(value, kind) or value in ([], {}):
            kind_name = "text" if kind is str else "a list" if kind is list else "an object"
            problem = f"expected {kind_name}, found {excerpt(value)}" if name in self.values else "missing"
            raise ValueError(f"{self.at(name)}: {problem}")
        return value

    def items(self, name: str, kind: type[T]) -> list[T]:
        """A list whose every item is of the kind."""
        values = self.take(name, list)
        for i, value in enumerate(values):
            if not isinstance(value, kind) or (kind is not str and not value):
                kind_name = "text" if kind is str else "a list" if kind is list else "an object"
                raise ValueError(f"{self.at(name)}.{i}: expected {kind_name}, found {excerpt(value)}")
        return values

    def objects(self, name: str) -> list[Columns]:
        """The objects of a list, as columns of their own."""
        return [self._inner(value, name, f".{i}", "[]") for i, value in enumerate(self.items(name, dict))]

    def object(self, name: str) -> Columns:
        return self._inner(self.take(name, dict), name)

    def _inner(self, values: Values, name: str, index: str = "", group: str = "") -> Columns:
        return Columns(values, self.ledger, f"{self.at(name)}{index}.", f"{self.group}{name}{group}.")

    def read_all(self) -> None:
        """Mark every column as read: of rows that Trueup wrote."""
        self.names_read |= self.values.keys()

    def unread(self) -> Iterator[tuple[str, Any]]:
        return (
            (name, value) for name, value in self.values.items() if name not in self.names_read and not is_empty(value)
        )

    # ---- Known meanings

    def refuse_unsupported(self, but: Collection[str] = ()) -> None:
        """Raise for a column that Trueup cannot honour and that holds something.

        but  names of columns that are still to be read, where tools are
        """
        for name, value in self.values.items():
            if name in self.names_read or is_empty(value) or masks_the_user(name, value):
                continue
            if name in but and self.ledger.with_tools:
                continue
            if is_unsupported(name):
                raise ValueError(
                    f"{self.at(name)}: holds {excerpt(value, 40)}, which Trueup cannot give to a model; take the row "
                    f"out, or {IGNORE} if the row means the same without it"
                )

    def refuse_unclear_weights(self, of_a_row: bool = False) -> None:
        """Raise for a yes or no, or of a message a number, whose name says that it may be of the loss."""
        kinds = bool if of_a_row else bool | int | float
        for name, value in self.values.items():
            if name not in self.names_read and isinstance(value, kinds) and is_unclear_weight(name):
                raise ValueError(
                    f"{self.at(name)}: {excerpt(value)} may say that this carries no loss; name the column `weight` "
                    f"and write 0 or 1, or {IGNORE}"
                )

    def carries_loss(self, of_a_row: bool = False) -> bool | None:
        """Whether what this object holds is to be trained on; None where it does not say.

        of_a_row: a number in `loss` is then a measured one, and says nothing of the kind
        """
        claims: list[bool] = []
        for name in self.values:
            if name not in LOSS or not self.there(name):
                continue
            if of_a_row and name == "loss" and not isinstance(self.values[name], bool):
                continue
            yes = truth(value := self.get(name))
            if yes is None:
                expectation = "expected 0 or 1, true or false (no other weight is supported)"
                raise ValueError(f"{self.at(name)}: {expectation}, found {excerpt(value)}")
            claims.append(yes != (name in NOT_TRAINED))
        return all(claims) if claims else None
