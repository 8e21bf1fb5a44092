"""The file of tags, as JSON lines, CSV or Parquet: what it was made with, then a row per image.

A row is `{"file", "tags": [{"name", "score"}]}`, with `"error"` for an image that cannot be read.
In CSV the tags are `name;name` and the scores `0.91;0.4` in a column of their own. What the file
was made with (artifact, options, images) is the first line of JSON lines (`{"made_with": {…}}`), a
comment in the first line of CSV, and metadata of the schema in Parquet. The same rows give the same
bytes.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prompt_tuning.label_formats.tag_row import Row
from prompt_tuning.plain_text import plain, printable
from prompt_tuning.storage import canonical_json
from prompt_tuning.tagging.tag_stream import Tagged

SUFFIXES = (".jsonl", ".csv", ".parquet")
_KEY = "made_with"
_COLUMNS = ("file", "tags", "scores", "error")


def row_of(file: Path, tagged: Tagged) -> Row:
    """An image's row."""
    tags = [{"name": tag.name, "score": round(tag.score, 4)} for tag in tagged.tags]
    row: Row = {"file": plain(str(file)), "tags": tags}
    return row if tagged.error is None else {**row, "error": plain(tagged.error)}


def line_of(row: Row) -> str:
    """A row as a line for people: file, tab, tags with scores; control characters are escaped."""
    tags = ", ".join(f"{tag['name']} {tag['score']:.2f}" for tag in row["tags"])
    result = f"error: {row['error']}" if "error" in row else tags
    return "\t".join(map(printable, (row["file"], result)))


def json_line(value: Any) -> str:
    """A value as a line of JSON lines."""
    return json.dumps(value, ensure_ascii=False) + "\n"


@contextmanager
def tags_writer(
    path: Path, made_with: dict[str, Any], suffix: str
) -> Iterator[Callable[[Row], object]]:
    """Give a function that adds a row to a new file, in the format that `suffix` names."""
    if suffix == ".parquet":
        import pyarrow as pa

        from prompt_tuning.parquet_rows import RowWriter

        tag = pa.struct([("name", pa.string()), ("score", pa.float64())])
        columns = [("file", pa.string()), ("tags", pa.list_(tag)), ("error", pa.string())]
        schema = pa.schema(columns, metadata={_KEY: canonical_json(made_with)})
        with RowWriter(path, schema) as parquet:
            yield lambda row: parquet.write(**row)
        return
    with path.open("w", encoding="utf-8", newline="") as stream:
        if suffix == ".jsonl":
            stream.write(json_line({_KEY: made_with}))
            yield lambda row: stream.write(json_line(row))
        else:
            stream.write(f"# {canonical_json({_KEY: made_with})}\n")
            table = csv.writer(stream, lineterminator="\n")
            # Default quoting leaves a carriage return bare, and every reader ends the row there.
            quoting = csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_ALL)
            table.writerow(_COLUMNS)

            def write(row: Row) -> None:
                cells = _csv_row(row)
                (quoting if "\r" in "".join(cells) else table).writerow(cells)

            yield write


def read_made_with(path: Path) -> dict[str, Any] | None:
    """What a file of tags was made with; None for any other file."""
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            metadata = pq.read_schema(path).metadata or {}
            return dict(json.loads(metadata[_KEY.encode()]))
        with path.open(encoding="utf-8") as stream:
            return dict(json.loads(stream.readline().removeprefix("# "))[_KEY])
    # pyarrow's errors are ValueErrors, and what nests too deeply is not ours.
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def read_tags(path: Path) -> Iterator[Row]:
    """The rows of a file of tags."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        for batch in pq.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                yield {k: value for k, value in row.items() if value is not None}
        return
    with path.open(encoding="utf-8", newline="") as stream:
        stream.readline()
        if path.suffix == ".jsonl":
            yield from map(json.loads, stream)
        else:
            yield from map(_row_of_csv, csv.DictReader(stream))


def _csv_row(row: Row) -> list[str]:
    names, scores = ([str(tag[k]) for tag in row["tags"]] for k in ("name", "score"))
    return [row["file"], ";".join(names), ";".join(scores), row.get("error", "")]


def _row_of_csv(columns: dict[str, str]) -> Row:
    names, scores = (columns[k].split(";") if columns[k] else [] for k in ("tags", "scores"))
    tags = [{"name": n, "score": float(s)} for n, s in zip(names, scores, strict=True)]
    error = {"error": columns["error"]} if columns["error"] else {}
    return {"file": columns["file"], "tags": tags, **error}
