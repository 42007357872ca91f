"""Demonstrations, prompts and preferences in the formats that people already have them in (docs/formats.md).

    reading         from a file to rows: recognise, convert, settle, report; the three `read_` functions
    vocabulary      what the name of a column, or of a message's key, is known to mean
    columns         one row: its columns by canonical name, and which of them were read
    settling        what becomes of the columns that no converter reads
    rendered        text that a chat template has rendered, as its turns
    turns           conversations and prompts, however a row holds them
    verdicts        which of two answers is better, by all the columns of a row that say so
    criteria        the same by single criteria, beside the overall choice
    format          a format, and what becomes of a preference
    demonstrations, preferences, published, oasst   the converters, and the tables of formats, tried in their order

To add a format, write a converter and give it a line in a table: it takes a row (`Columns`) and the file's path, gives
the fields of our own row as plain values, raises ValueError for a broken row, and gives `Skipped` for what is sound but
of no use. A file is read whole or not at all, unless it is said that bad rows are to be dropped.
"""

from trueup.data.formats.demonstrations import DEMONSTRATIONS, PROMPTS
from trueup.data.formats.format import Format, ImportedRanking
from trueup.data.formats.preferences import PREFERENCES
from trueup.data.formats.reading import SHOWN_PROBLEMS, read_demonstrations, read_preferences, read_prompts

__all__ = [
    "DEMONSTRATIONS",
    "PREFERENCES",
    "PROMPTS",
    "SHOWN_PROBLEMS",
    "Format",
    "ImportedRanking",
    "read_demonstrations",
    "read_preferences",
    "read_prompts",
]
