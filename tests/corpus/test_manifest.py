"""Tests of manifests: every format gives the same rows, and errors name the line."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ecapa_jax.corpus.manifest import read_manifest, shard_bounds
from ecapa_jax.errors import CorpusError

IDS = ["a", "ünï", 'quo"te, comma', "4"]
PATHS = ["/data/a.wav", "rel/ü b.flac", "with,comma.wav", "d.wav"]


def quoted(cells: list[str], delimiter: str) -> str:
    return delimiter.join('"' + cell.replace('"', '""') + '"' for cell in cells)


def write(path: Path, with_ids: bool) -> Path:
    kind = path.suffix
    rows = list(zip(IDS, PATHS, strict=True))
    if kind == ".parquet":
        columns = {"speaker": [1, 2, 3, 4], "path": PATHS, **({"id": IDS} if with_ids else {})}
        pq.write_table(pa.table(columns), path)
    elif kind in (".csv", ".tsv"):
        delimiter = "," if kind == ".csv" else "\t"
        names = ["path", "n"] + ["id"] * with_ids
        lines = [quoted([p, "7"] + [i] * with_ids, delimiter) for i, p in rows]
        path.write_text("\ufeff" + "\r\n".join([delimiter.join(names), *lines, ""]), newline="")
    elif kind == ".jsonl":
        path.write_text("\n\n".join(json.dumps({"path": p, **({"id": i} if with_ids else {})}) for i, p in rows))
    elif kind == ".scp":
        path.write_text("".join(f"{i.replace(' ', '_')}  {p}\n" for i, p in rows))
    else:
        path.write_text("\n".join(["", *PATHS, "  "]))
    return path


@pytest.mark.parametrize("with_ids", [True, False])
@pytest.mark.parametrize("kind", [".parquet", ".csv", ".tsv", ".jsonl", ".scp", ".txt", ""])
def test_every_format_gives_the_same_rows(tmp_path: Path, kind: str, with_ids: bool) -> None:
    manifest = read_manifest(write(tmp_path / f"m{kind}", with_ids))
    ids, paths = manifest.rows(0, 99)
    assert paths == PATHS
    if kind == ".scp":
        assert ids == [name.replace(" ", "_") for name in IDS]
    else:
        assert ids == (IDS if with_ids and kind not in (".txt", "") else PATHS)
    assert manifest.rows(1, 3) == (ids[1:3], paths[1:3])


def test_fingerprint_depends_on_the_rows_only(tmp_path: Path) -> None:
    same = {read_manifest(write(tmp_path / f"m{kind}", True)).fingerprint for kind in (".csv", ".jsonl", ".parquet")}
    assert len(same) == 1
    (tmp_path / "a.txt").write_text("\n".join(PATHS))
    (tmp_path / "b.txt").write_text("\n".join(reversed(PATHS)))
    (tmp_path / "c.txt").write_text("\n".join(PATHS[:3]))
    others = {read_manifest(tmp_path / name).fingerprint for name in ("a.txt", "b.txt", "c.txt")}
    assert len(others | same) == 4


def test_numeric_ids_become_text(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"id": 7, "path": "a"}\n{"id": "8", "path": "b"}')
    assert read_manifest(tmp_path / "m.jsonl").rows(0, 2)[0] == ["7", "8"]
    pq.write_table(pa.table({"id": [7, 8], "path": ["a", "b"]}), tmp_path / "m.parquet")
    assert read_manifest(tmp_path / "m.parquet").rows(0, 2)[0] == ["7", "8"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("m.txt", "a.wav\nb.wav\na.wav\na.wav\n", "'a.wav' comes 3 times"),
        ("m.csv", "id,path\nx,a\nx,b\n", "'x' comes 2 times"),
        ("m.txt", "", "names no recordings"),
        ("m.csv", "id,path\n", "names no recordings"),
        ("m.csv", "", "must name the columns"),
        ("m.csv", "id,file\nx,a\n", "one of them 'path'; it is ['id', 'file']"),
        ("m.csv", "id,path\nx\n", "m.csv:2: its path is missing"),
        ("m.csv", "id,path\nx,\n", "m.csv:2: its path is missing"),
        ("m.csv", 'id,path\nx,"a\n', "m.csv:2: is damaged"),
        ("m.tsv", "id\tpath\n\ta\n", "m.tsv:2: its id is missing"),
        ("m.jsonl", '{"path": "a"}\n{"path": 3}\n', "m.jsonl:2: its path is 3"),
        ("m.jsonl", '{"path": "a"}\nnonsense\n', "m.jsonl:2: is not JSON"),
        ("m.jsonl", '["a"]\n', "m.jsonl:1: is not an object"),
        ("m.jsonl", '{"id": true, "path": "a"}\n', "m.jsonl:1: its id is True"),
        ("wav.scp", "u1 a.wav\nu2 sph2pipe -f wav b.sph |\n", "wav.scp:2: is a command (a pipe)"),
        ("wav.scp", "u1\n", "wav.scp:1: has no path"),
        ("wav.scp", "u1 all.ark:1234\n", "wav.scp:1: points into an archive"),
        ("m.txt", b"a.wav\n\xff\xfe.wav\n", "m.txt:2: is not UTF-8"),
        ("m.csv", b"path\n\xff\xfe.wav\n", "can't be read as a manifest"),
        ("m.parquet", "path\na\n", "can't be read as a manifest"),
    ],
)
def test_error_names_the_invalid_line(tmp_path: Path, name: str, content: str | bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CorpusError) as caught:
        read_manifest(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"file": ["a"]}, "has no column 'path'; it has ['file']"),
        ({"path": ["a", None]}, "row 2: its path is missing"),
        ({"path": [["a"]]}, "can't be read as a manifest"),
        ({"path": ["a", "b"], "id": ["x", None]}, "row 2: its id is missing"),
    ],
)
def test_parquet_file_with_invalid_columns_is_refused(tmp_path: Path, columns: dict, words: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "m.parquet")
    with pytest.raises(CorpusError) as caught:
        read_manifest(tmp_path / "m.parquet")
    assert words in str(caught.value)


@pytest.mark.parametrize("path", ["nothing.txt", "."])
def test_path_that_is_not_a_file_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(CorpusError, match="can't be read as a manifest"):
        read_manifest(tmp_path / path)


def test_manifest_with_more_rows_than_a_block(tmp_path: Path) -> None:
    names = [f"{index}.wav" for index in range(150_000)]
    (tmp_path / "m.txt").write_text("\n".join(names))
    manifest = read_manifest(tmp_path / "m.txt")
    bounds = shard_bounds(len(manifest), 7000)
    assert [name for first, last in bounds for name in manifest.rows(first, last)[1]] == names
