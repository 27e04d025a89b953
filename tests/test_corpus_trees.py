"""Any folder of files is either read in full and counted, or refused in a sentence, and no file in it is changed."""

import gzip
import json
import os
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tinystories_lab.data.stories import StoryTexts, load_stories

ENDINGS = {
    ".txt": (".txt", ".TXT", ".txt.gz", ".Txt.GZ"),
    ".jsonl": (".jsonl", ".JSONL", ".jsonl.gz"),
    ".parquet": (".parquet", ".PARQUET", ".parquet.gz"),
}
OTHERS = (".md", ".csv", "", ".gz", ".txt.zip")
WORDS = (
    "a",
    "B b",
    "train",
    "train",
    "val-1",
    "test",
    "сказки",
    "x.y",
    "train",
    "Validation",
    "test-1",
    "dev 2",
    "trains",
    "été",
    "README",
    "_",
)
ENCODINGS = ("utf-8",) * 20 + ("utf-8-sig", "utf-8-sig", "utf-16", "latin-1")
TEXTS = ("One fox.", "Two dogs ran.", "Été.", "Лиса.", "It ended.\nThey slept.", "long " * 9_000)
KINDS = {"train": ("train", "training"), "validation": ("validation", "valid", "val", "dev")}
KINDS |= {"test": ("test", "testing", "eval", "evaluation")}

names = st.builds("".join, st.tuples(st.sampled_from([""] * 9 + ["."]), st.sampled_from(WORDS)))
folders = st.lists(names, max_size=2).map("/".join)
stories = st.lists(st.sampled_from(TEXTS), max_size=4)


@st.composite
def trees(draw):
    """A list of (path, texts, encoding) for files and (path, target) for links, where target is another path."""
    kind = draw(st.sampled_from(sorted(ENDINGS)))
    endings = st.sampled_from(ENDINGS[kind] * 3 + OTHERS)
    if draw(st.integers(0, 9)) == 0:
        endings |= st.sampled_from(sum(ENDINGS.values(), ()))
    names_of_files = st.builds(lambda folder, name, end: os.path.join(folder, name + end), folders, names, endings)
    files = draw(st.lists(st.tuples(names_of_files, stories, st.sampled_from(ENCODINGS)), min_size=2, max_size=8))
    paths = [path for path, *_ in files]
    targets = paths + [os.path.dirname(path) for path in paths] + [".", "..", "/", "nowhere", "nowhere.txt"]
    links = draw(st.lists(st.tuples(folders, names, st.sampled_from(targets)), max_size=4))
    return files + [(os.path.join(folder, name + Path(target).suffix), target) for folder, name, target in links]


def type_of(path):
    name = re.sub(r"\.gz$", "", os.path.basename(path).lower())
    return next((kind for kind in ENDINGS if name.endswith(kind) and name != kind), None)


def write(path, texts, encoding):
    """Write a file of the type that its name says; of another type, text."""
    if type_of(path) == ".parquet":
        pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), sink := pa.BufferOutputStream())
        data = sink.getvalue().to_pybytes()
    elif type_of(path) == ".jsonl":
        lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
        data = "".join(lines).encode(encoding)
    else:
        data = "\n\n".join(texts).encode(encoding)
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix.lower() == ".gz" else data)


def build(tree, top):
    """Write a tree, without what collides with an earlier part of it. Return the texts of each file."""
    contents = {}
    for path, *content in tree:
        place = top / path
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            continue
        if os.path.lexists(place):
            continue
        if len(content) == 2:
            texts, encoding = content
            texts = [text for text in texts if encoding != "latin-1" or text.isascii() or text == "Été."]
            write(place, texts, encoding)
            contents[os.path.realpath(place)] = texts
        else:
            place.symlink_to(os.path.relpath(top / content[0], place.parent) if content[0][:1] != "/" else "/")
    return contents


def entries_of(top):
    """Every entry of a tree that is no folder, or a link to one that is reached already: (path, whether it is hidden)."""
    seen, todo, found = set(os.path.realpath(top / up) for up in ("..", "../..", "/")), [top], []
    seen |= {str(parent) for parent in Path(os.path.realpath(top)).parents}
    while todo:  # real folders first
        todo.sort(key=lambda path: (path.is_symlink(), path.as_posix().count("/"), path))
        folder = todo.pop(0)
        if os.path.realpath(folder) in seen:
            found.append((folder, False))
            continue
        seen.add(os.path.realpath(folder))
        for path in folder.iterdir():
            if path.name.startswith("."):
                inside = (
                    []
                    if path.is_symlink()
                    else [file for file in path.rglob("*") if file.is_file() or file.is_symlink()]
                )
                inside = [file for file in inside if not (file.is_symlink() and file.is_dir())]
                is_file = path.is_symlink() or path.is_file()
                found += [(path, True)] if is_file else [(file, True) for file in inside]
            elif path.is_dir():
                todo.append(path)
            else:
                found.append((path, False))
    return found


def splits_of(paths):
    """The split of each path, or none."""

    def kind(text):
        words = re.findall(r"[^\W\d_]+", str(text).lower())
        return next((kind for word in words[::-1] for kind, known in KINDS.items() if word in known), None)

    for part in (lambda path: path.parent, lambda path: path.name, str):
        kinds = [kind(part(path)) for path in paths]
        if None not in kinds and "train" in kinds and len(set(kinds)) > 1:
            return kinds
    return None


def state_of(top):
    return {
        path: (os.lstat(path).st_mtime_ns, os.path.islink(path) and os.readlink(path)) for path in top.rglob("*")
    } | {str(path): path.read_bytes() for path in top.rglob("*") if path.is_file()}


@settings(max_examples=60)
@given(trees())
@example([("train.txt", ["One fox.", "Two dogs ran."], "utf-8"), ("val.txt", [], "utf-8"), ("test.txt", [], "utf-8")])
@example(
    [("a/x.txt", ["One fox."], "utf-8"), ("b", "a"), ("a/up", ".."), ("c.txt", "a/x.txt"), ("a/y.txt", [], "utf-8")]
)
def test_any_tree_is_read_in_full_and_counted_or_refused_in_a_sentence_and_never_changed(tmp_path_factory, tree):
    top = tmp_path_factory.mktemp("tree", numbered=True) / "mine"
    top.mkdir()
    contents = build(tree, top)
    before = state_of(top)
    try:
        splits, report = load_stories(top, top.parent / "data")
    except (ValueError, FileNotFoundError) as error:
        assert "\n" not in str(error) and len(str(error)) > 20
        assert not (top.parent / "data" / "stories" / "report.json").exists()
    else:
        entries = entries_of(top)
        files = [path for path, hidden in entries if not hidden and type_of(path) and path.is_file()]
        kinds = splits_of([path.relative_to(top) for path in files])
        unread = [kind == "test" and "validation" in kinds for kind in kinds] if kinds else [False] * len(files)
        one_story = not kinds and type_of(files[0]) == ".txt"
        read = [contents[os.path.realpath(path)] for path, skip in zip(files, unread, strict=True) if not skip]
        assert report.rows == sum(1 if one_story else max(1, len(texts)) for texts in read)
        assert len(read) + sum(report.skipped.values()) == len(entries)
        whole = {"\n\n".join(texts) for texts in read} if one_story else {text for texts in read for text in texts}
        assert {text for split in splits.values() for text in StoryTexts(split)} == {text.strip() for text in whole} - {
            ""
        }
        assert report.rows == report.train + report.validation + report.empty + report.duplicates + report.in_train
    assert state_of(top) == before
    shutil.rmtree(top.parent)
