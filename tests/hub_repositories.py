"""Writes small folders in the layouts of dataset repositories on the hub, for mteb's loader to read."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from retbench.cards.task import SourceSpec
from retbench.corpora.hub_snapshots import DatasetSnapshot
from retbench.system.user_config import encode_path_part

REVISION = "a" * 40


def write_repository(folder: Path, configs: Mapping[str, tuple[str, Iterable[dict[str, Any]]]]) -> Path:
    """Write a repository; each configuration has one split, given as (split, rows)."""
    return write_splits(folder, {name: {split: rows} for name, (split, rows) in configs.items()})


def write_splits(folder: Path, configs: Mapping[str, Mapping[str, Iterable[dict[str, Any]]]]) -> Path:
    """Write a repository: rows by configuration and split."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["---", "configs:"]
    for name, splits in configs.items():
        lines += [f"- config_name: {name}", "  data_files:"]
        for split, rows in splits.items():
            file = f"{name}.jsonl" if len(splits) == 1 else f"{name}.{split}.jsonl"
            (folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
            lines += [f"  - split: {split}", f"    path: {file}"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    return folder


def write_fetched_repository(
    repo: str, revision: str, configs: Mapping[str, tuple[str, Iterable[dict[str, Any]]]]
) -> Path:
    """Write a repository into the cache, as a finished fetch does."""
    folder = write_repository(DatasetSnapshot(repo, revision).folder, configs)
    assert folder.name == encode_path_part(revision)
    folder.with_name(f"{folder.name}.json").write_text('{"files": {}, "fingerprint": ""}')
    return folder


def build_retrieval_configs(
    documents: Iterable[tuple[str, str, str]],
    queries: Iterable[tuple[str, str]],
    judgments: Iterable[tuple[str, str, int]],
    split: str = "test",
    prefix: str = "",
) -> dict[str, tuple[str, list[dict[str, Any]]]]:
    """The most common layout: corpus, queries, and judgments in the default configuration."""
    return {
        f"{prefix}corpus": ("corpus", [{"_id": i, "title": t, "text": x} for i, t, x in documents]),
        f"{prefix}queries": ("queries", [{"_id": i, "text": x} for i, x in queries]),
        f"{prefix}qrels" if prefix else "default": (
            split,
            [{"query-id": q, "corpus-id": d, "score": grade} for q, d, grade in judgments],
        ),
    }


def list_hub_files(folder: Path) -> dict[str, tuple[int, str]]:
    """File names with sizes and git checksums, as the hub lists them."""
    listed = {}
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        content = file.read_bytes()
        digest = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        listed[file.relative_to(folder).as_posix()] = (len(content), digest)
    return listed


def build_source(**fields: Any) -> SourceSpec:
    """Build a hub source at the pinned revision of these tests."""
    return SourceSpec("hub", revision=REVISION, **fields)
