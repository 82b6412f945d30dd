"""The embedded suite: properties that hold for any Python, checked on this one, and the rules on tiny inputs."""

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from retbench.cards import catalog
from retbench.corpora import stdlib_definitions, stdlib_suite
from retbench.corpora.rows import Judgment, RawCollection, TextRow
from retbench.corpora.stdlib_definitions import Definition
from retbench.errors import MissingError, UsageError

KINDS = ("stdlib-code", "stdlib-doc", "stdlib-text")
DIGEST = """
import hashlib
from retbench.corpora import stdlib_suite
for kind in ("stdlib-code", "stdlib-doc", "stdlib-text"):
    print(hashlib.sha256(repr(stdlib_suite.generate_collection(kind)).encode()).hexdigest())
print(stdlib_suite.compute_stamp())
"""


@dataclass(frozen=True)
class Collection:
    documents: dict[str, TextRow]
    queries: dict[str, TextRow]
    splits: dict[str, list[Judgment]]
    digest: str


def collect(raw: RawCollection) -> Collection:
    documents, queries = list(raw.documents), list(raw.queries)
    assert len({row.id for row in documents}) == len(documents)
    assert len({row.id for row in queries}) == len(queries)
    splits = {name: list(judgments) for name, judgments in raw.splits.items()}
    digest = hashlib.sha256(repr(raw).encode()).hexdigest()
    return Collection({row.id: row for row in documents}, {row.id: row for row in queries}, splits, digest)


@pytest.fixture(scope="module")
def collections() -> dict[str, Collection]:
    return {kind: collect(stdlib_suite.generate_collection(kind)) for kind in KINDS}


@pytest.fixture(params=KINDS)
def collection(request: pytest.FixtureRequest, collections: dict[str, Collection]) -> Collection:
    return collections[request.param]


def flatten(text: str) -> str:
    return " ".join(text.split())


def texts(collection: Collection, split: str) -> tuple[set[str], set[str]]:
    judged = collection.splits[split]
    queries = {flatten(collection.queries[j.query].text) for j in judged}
    return queries, {flatten(collection.documents[j.document].text) for j in judged}


def build_tiny_collection(monkeypatch: pytest.MonkeyPatch, kind: str, *definitions: Definition) -> Collection:
    monkeypatch.setattr(stdlib_suite, "iterate_definitions", lambda: iter(definitions))
    return collect(stdlib_suite.generate_collection(kind))


def build_function(name: str, docstring: str, body: str) -> Definition:
    return Definition(f"m:{name}", name, docstring, f"def {name}(self):", body, "m.py")


def list_judged_pairs(collection: Collection) -> set[tuple[str, str]]:
    return {(j.query, j.document) for judgments in collection.splits.values() for j in judgments}


def test_another_process_with_another_hash_seed_generates_the_same(collections: dict[str, Collection]) -> None:
    root = str(Path(stdlib_suite.__file__).parents[2])
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": root}
    command = [sys.executable, "-c", DIGEST]
    fingerprints = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
    assert fingerprints == [*(collections[kind].digest for kind in KINDS), stdlib_suite.compute_stamp()]


def test_no_text_is_shared_between_train_and_test(collection: Collection) -> None:
    (train_queries, train_documents), (test_queries, test_documents) = (texts(collection, s) for s in ("train", "test"))
    assert not train_queries & test_queries
    assert not train_documents & test_documents


def test_every_text_is_unique_and_judged(collection: Collection) -> None:
    for rows, side in ((collection.queries, "query"), (collection.documents, "document")):
        assert len({flatten(row.text) for row in rows.values()}) == len(rows)
        assert {getattr(j, side) for judgments in collection.splits.values() for j in judgments} == set(rows)
        assert all(row.text.strip() and row.title == "" and not re.search(r"\s", row.id) for row in rows.values())


def test_queries_that_share_a_document_share_all_documents(collection: Collection) -> None:
    relevant: dict[str, set[str]] = {}
    documents_by_query: dict[str, set[str]] = {}
    for query, document in list_judged_pairs(collection):
        relevant.setdefault(query, set()).add(document)
        documents_by_query.setdefault(document, set()).add(query)
    assert all(len({frozenset(relevant[query]) for query in queries}) == 1 for queries in documents_by_query.values())
    assert any(len(documents) > 1 for documents in relevant.values())


def test_collections_have_a_useful_size(collections: dict[str, Collection]) -> None:
    code, doc, text = (collections[kind] for kind in KINDS)
    assert 3000 <= len(code.documents) <= 6000
    assert len({j.query for j in text.splits["test"]}) >= 300
    assert 0.15 <= len(code.splits["test"]) / len(list_judged_pairs(code)) <= 0.25
    assert (len(doc.documents), len(doc.queries)) == (len(code.queries), len(code.documents))


def test_stdlib_doc_swaps_queries_and_documents_of_stdlib_code(collections: dict[str, Collection]) -> None:
    code, doc = collections["stdlib-code"], collections["stdlib-doc"]
    for split in ("train", "test"):
        assert texts(code, split) == texts(doc, split)[::-1]


def test_a_function_cannot_be_found_by_its_own_name(collections: dict[str, Collection]) -> None:
    for row in collections["stdlib-code"].documents.values():
        name = re.split(r"[.:]", row.id.partition("#")[0])[-1]
        assert name == stdlib_suite.NEUTRAL_NAME or not re.search(rf"\b{name}\b", row.text), row.id


def test_documents_are_code_without_docstring(collections: dict[str, Collection]) -> None:
    documents = collections["stdlib-code"].documents
    start = re.compile(r"(async )?def +function *[\[(]")  # from Python 3.12 on a function may have type parameters
    assert all(start.match(row.text) for row in documents.values())
    decode = documents["json.decoder:JSONDecoder.decode"].text
    assert decode.splitlines()[1] == "    obj, end = self.raw_decode(s, idx=_w(s, 0).end())"


def test_stdlib_text_uses_classes_and_modules(collections: dict[str, Collection]) -> None:
    ids = collections["stdlib-text"].documents
    assert any(":" not in name for name in ids)
    assert any(re.search(r":[A-Z]\w*$", name) for name in ids)


def test_no_text_comes_from_tests_or_installed_packages() -> None:
    folders = {
        part
        for path in stdlib_definitions.list_source_files()
        for part in path.relative_to(stdlib_definitions.get_stdlib_folder()).parts
    }
    assert not folders & {"test", "tests", "idlelib", "turtledemo", "lib2to3", "site-packages", "ensurepip"}


def test_equal_texts_are_pooled(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (
        "    return open(self.path, mode, encoding, errors)",
        "    with lock: notify(waiting, threads, woken)",
    )
    pooled = build_tiny_collection(
        monkeypatch,
        "stdlib-code",
        build_function("first", "Open the file again.", first),
        build_function("second", "Open  the file\nagain.", second),
        build_function("third", "Wake the sleeping threads.", second),
    )
    queries, documents = {"q:m:first", "q:m:third"}, {"m:first", "m:second"}
    assert list_judged_pairs(pooled) == {(query, document) for query in queries for document in documents}
    assert min(map(len, pooled.splits.values())) == 0


def test_trivial_and_ambiguous_pairs_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    def emitters() -> Iterator[Definition]:
        for number, words in enumerate(("alpha beta", "gamma delta", "epsilon zeta", "eta theta")):
            yield build_function(f"emit{number}", "Emit the given record.", f"    send(record, '{words}', target)")

    body = "    return open(self.path, mode, encoding, errors)"
    pairs = build_tiny_collection(
        monkeypatch,
        "stdlib-code",
        build_function("kept", "Open the file again.", body),
        build_function("short", "Internal function.", body + "1"),
        build_function("signature", "signature(path, mode) -> file object", body + "2"),
        build_function(
            "stub", "Open the file in subclasses.", "    raise NotImplementedError('to be done by subclasses')"
        ),
        build_function("getter", "Return the path of the file.", "    return self.path"),
        build_function("__enter__", "Open the file on entering.", body + "3"),
        *emitters(),
    )
    assert list_judged_pairs(pairs) == {("q:m:kept", "m:kept")}


def test_names_are_replaced_as_whole_words(monkeypatch: pytest.MonkeyPatch) -> None:
    body = "    # reopen opens\n    return self.other.reopen(path, reopen_all, 'reopen()')"
    document = build_tiny_collection(
        monkeypatch, "stdlib-code", build_function("reopen", "Open and reopen the file.", body)
    )
    assert document.queries["q:m:reopen"].text == "Open and reopen the file."
    assert document.documents["m:reopen"].text == (
        "def function(self):\n    # function opens\n    return self.other.function(path, reopen_all, 'function()')"
    )


def test_an_unknown_kind_gets_a_suggestion() -> None:
    with pytest.raises(UsageError) as caught:
        stdlib_suite.generate_collection("stdlib-cod")
    assert "stdlib-code" in caught.value.next_step


def test_a_python_without_source_files_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(stdlib_definitions, "get_stdlib_folder", lambda: tmp_path)
    with pytest.raises(MissingError):
        stdlib_suite.compute_stamp()


def test_the_stamp_follows_the_content(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(stdlib_definitions, "get_stdlib_folder", lambda: tmp_path)
    (tmp_path / "json").mkdir()
    stamps = set()
    for name in ("json/__init__.py", "ast.py", "site.py"):
        (tmp_path / name).write_text("x = 1\n", encoding="utf-8")
        stamps.add(stdlib_suite.compute_stamp())
    (tmp_path / "ast.py").write_text("x = 2\n", encoding="utf-8")
    (tmp_path / "json" / "tests").mkdir()
    stamps.add(stdlib_suite.compute_stamp())
    (tmp_path / "json" / "tests" / "test_json.py").write_text("x = 1\n", encoding="utf-8")
    stamps.add(stdlib_suite.compute_stamp())
    assert len(stamps) == 4
    assert not any(re.search(r"\s", stamp) for stamp in stamps)


def test_ids_stay_unique_and_nested_definitions_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(stdlib_definitions, "get_stdlib_folder", lambda: tmp_path)
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "__init__.py").write_text(
        '"""Module."""\n'
        "try:\n    def f():\n        '''One.'''\n        def g():\n            '''Inner.'''\n"
        "except E:\n    def f():\n        '''Two.'''\n"
        "class C:\n    class D:\n        async def h(self,\n                    x):\n"
        "            '''Three\n            lines.'''\n            # why\n\n            return x\n",
        encoding="utf-8",
    )
    definitions = {definition.id: definition for definition in stdlib_definitions.iterate_definitions()}
    assert list(definitions) == ["json", "json:f", "json:f#2", "json:C.D.h"]
    assert definitions["json:C.D.h"].above == "async def h(self,\n            x):"
    assert definitions["json:C.D.h"].below == "    # why\n    return x"


@pytest.mark.parametrize("kind", KINDS)
def test_the_stdlib_cards_load(kind: str) -> None:
    card = catalog.find_task_card(kind)
    assert (card.suite, card.fields) == ("stdlib", ("text",))
    assert (card.source.kind, card.source.generator) == ("generator", kind)
    assert kind in catalog.load_suites().find("stdlib").expand_tasks()
