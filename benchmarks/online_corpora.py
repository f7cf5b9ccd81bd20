"""The corpora of `benchmarks/online.py`: variants of a folder of raw text."""

from __future__ import annotations

import gzip
import json
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path

from cuvee.core.errors import ConfigError
from cuvee.data.corpus.corpus import Corpus
from cuvee.data.ingest.build import BuildSettings, build

VOCABULARY = 1024  # of a small model the logits are most of the work
TINY_TOKENS = 50_000
SCARCE = "scarce-"
POOL = "pool"
"""A domain of validation text of all others. It has one training document, because each domain has to
have some, and is not trained on."""


def prepare(raw: Path, variant: str, out: Path, target_bytes: int) -> Corpus:
    """Build the variant's corpus below `out`, or open it if it exists.

    All variants share the tokenizer of `clean`. Raises `ConfigError` for a target that `raw` does
    not have.
    """
    source = out / "raw" / variant
    folder = out / "corpora" / variant
    if variant == "clean":
        copy(raw, source, split_test)
        return build([source], folder, BuildSettings(vocab_size=VOCABULARY))
    clean = prepare(raw, "clean", out, target_bytes)
    target = target_of(variant)

    def change(folder: Path) -> None:
        if target:
            cut_target(folder, clean, target, target_bytes)
        else:
            CHANGES[variant](folder, clean)

    copy(out / "raw" / "clean", source, change)
    tokenizer = out / "corpora" / "clean" / "tokenizer.json"
    return build([source], folder, BuildSettings(tokenizer=tokenizer))


def copy(raw: Path, to: Path, change: Callable[[Path], None]) -> None:
    """Copy a folder and change the copy, unless `to` exists. Modes are not copied: `raw` may be
    read-only."""
    if to.exists():
        return
    half_done = to.with_name(f"{to.name}.part")
    shutil.rmtree(half_done, ignore_errors=True)
    for file in (file for file in raw.rglob("*") if file.is_file()):
        copied = half_done / file.relative_to(raw)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copied)
    change(half_done)
    half_done.rename(to)


def split_test(folder: Path) -> None:
    """Every second validation document becomes a test document, if there is no test split."""
    if (folder / "test").exists():
        return
    (folder / "test").mkdir()
    for path in sorted((folder / "valid").glob("*.jsonl.gz")):
        texts = read_documents(path)
        write_documents(folder / "test" / path.name, texts[1::2])
        write_documents(path, texts[::2])


def target_of(variant: str) -> str | None:
    """Return the target domain of a variant `scarce-TARGET`, else None."""
    return variant.removeprefix(SCARCE) if variant.startswith(SCARCE) else None


def cut_target(folder: Path, clean: Corpus, target: str, most: int) -> None:
    """Keep the target's first documents, up to `most` bytes, and no other validation text."""
    if target not in clean.names:
        raise ConfigError(f"no domain {target!r}: the corpus has {', '.join(clean.names)}")
    path = folder / "train" / f"{target}.jsonl.gz"
    kept: list[str] = []
    size = 0
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            kept.append(json.loads(line)["text"])
            size += len(kept[-1].encode())
            if size >= most:
                break
    write_documents(path, kept)
    for held_out in ("valid", "test"):
        for file in (folder / held_out).glob("*.jsonl.gz"):
            if file.name != path.name:
                file.unlink()


def add_junk(folder: Path, clean: Corpus) -> None:
    rng = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz0123456789+/=_-#@ "
    makers: dict[str, Callable[[], str]] = {
        "junk-letters": lambda: "".join(rng.choices(letters, k=1500)),
        "junk-words": lambda: " ".join(
            "".join(rng.choices(letters[:26], k=rng.randint(2, 9))) for _ in range(250)
        ),
        "junk-hex": lambda: "\n".join(
            f"{rng.getrandbits(128):032x} {rng.getrandbits(64):016x}" for _ in range(30)
        ),
        "junk-log": lambda: "\n".join(_log_line(rng) for _ in range(25)),
        "junk-menu": lambda: " | ".join(rng.choices(_MENU, k=120)),
        "junk-notice": lambda: "\n".join(rng.choices(_NOTICES, k=15)),
    }
    for name, make in makers.items():
        write_documents(folder / "train" / f"{name}.jsonl.gz", [make() for _ in range(1_000)])
    pool_validation(folder)


def pool_validation(folder: Path) -> None:
    """Make one domain of the validation text of all, so that it does not tell which ones count."""
    for part in ("valid", "test"):
        texts = []
        for file in sorted((folder / part).glob("*.jsonl.gz")):
            texts += [text[:_LONGEST] for text in read_documents(file)[:_POOLED]]
            file.unlink()
        random.Random(0).shuffle(texts)
        write_documents(folder / part / f"{POOL}.jsonl.gz", texts)
    first = min((folder / "train").glob("*.jsonl.gz"))
    write_documents(folder / "train" / f"{POOL}.jsonl.gz", read_documents(first)[:1])


def misset(folder: Path, clean: Corpus) -> None:
    """Leave every third domain a tenth of its training documents, and validate only these."""
    count = set(clean.names[::3])
    for name in count:
        path = folder / "train" / f"{name}.jsonl.gz"
        write_documents(path, read_documents(path)[::10])
    for part in ("valid", "test"):
        for file in (folder / part).glob("*.jsonl.gz"):
            if file.name.removesuffix(".jsonl.gz") not in count:
                file.unlink()


def teach_skills(folder: Path, clean: Corpus) -> None:
    """Functions of letters, one, two and three in a row, beside three domains of the corpus.

    A line is `c a b k = t`: the letter t is c(a(b(k))). Three in a row are validated. Each
    combination is in one split only, so it must be composed, which takes the values of the single
    functions and how two are put together.
    """
    rng = random.Random(0)
    letters = "abcdefghijklmnop"
    functions = {
        name: dict(zip(letters, rng.sample(letters, 16), strict=True)) for name in "uvwxyz"
    }
    combinations = [list(product(functions, repeat=n)) for n in (1, 2, 3)]
    held_out = rng.sample(combinations[2], 60)
    for part in ("train", "valid", "test"):
        for file in (folder / part).glob("*.jsonl.gz"):
            if part != "train" or file.name.removesuffix(".jsonl.gz") not in clean.names[::10]:
                file.unlink()
    known = [c for c in combinations[2] if c not in held_out]
    pages = {
        "train/skill-1": (combinations[0], 1_500),
        "train/skill-2": (combinations[1], 1_500),
        "train/skill-3": (known, 1_500),
        "valid/skill-3": (held_out[:30], 60),
        "test/skill-3": (held_out[30:], 60),
    }
    for place, (chosen, number) in pages.items():
        documents = [
            "\n".join(_line(rng, chosen, functions) for _ in range(40)) for _ in range(number)
        ]
        write_documents(folder / f"{place}.jsonl.gz", documents)


def _line(
    rng: random.Random,
    chosen: Sequence[tuple[str, ...]],
    functions: Mapping[str, Mapping[str, str]],
) -> str:
    names = rng.choice(chosen)
    letter = start = rng.choice("abcdefghijklmnop")
    for name in reversed(names):
        letter = functions[name][letter]
    return f"{' '.join(names)} {start} = {letter}"


def copy_domain(folder: Path, clean: Corpus) -> None:
    """The third largest domain three times; in another order, as files with equal bytes are refused."""
    largest = sorted(clean.domains, key=lambda domain: -domain.tokens)
    original = folder / "train" / f"{largest[2].name}.jsonl.gz"
    for first, again in enumerate(("again", "once-more"), start=1):
        documents = read_documents(original)
        to = original.with_name(f"{largest[2].name}-{again}.jsonl.gz")
        write_documents(to, documents[first:] + documents[:first])


def cut_domain(folder: Path, clean: Corpus) -> None:
    """The domain of median size keeps its first documents, 50,000 tokens of them."""
    domain = sorted(clean.domains, key=lambda domain: domain.tokens)[len(clean.domains) // 2]
    path, tokenizer, kept, tokens = (
        folder / "train" / f"{domain.name}.jsonl.gz",
        clean.tokenizer(),
        [],
        0,
    )
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            text = json.loads(line)["text"]
            kept.append(text)
            tokens += len(tokenizer.encode(text).ids) + 1
            if tokens >= TINY_TOKENS:
                break
    write_documents(path, kept)


CHANGES = {
    "junk": add_junk,
    "misset": misset,
    "skills": teach_skills,
    "copies": copy_domain,
    "tiny": cut_domain,
}
_POOLED = 40  # documents of each domain
_LONGEST = 600  # characters of each, so that the tokens read come from many
_MENU = (
    "Home",
    "About us",
    "Contact",
    "Log in",
    "Register",
    "Cart (0)",
    "Next page",
    "Share",
    "Cookie settings",
    "Search",
)
_NOTICES = (
    "All rights reserved. No part of this page may be reproduced without written permission.",
    "This is an automatically generated message. Please do not reply to this address.",
    "Your privacy matters to us. By continuing to browse you accept the use of cookies.",
    "The content of this field is kept private and will not be shown publicly.",
    "Page generated in 0.031 seconds with 14 queries.",
)


def _log_line(rng: random.Random) -> str:
    level, code, port = (
        rng.choice(("INFO", "WARN", "DEBUG")),
        rng.choice((200, 204, 404, 500)),
        rng.randint(1024, 65535),
    )
    day = f"2024-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"
    at = f"{day}T{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}Z"
    return f"{at} {level} worker-{rng.randint(0, 99)} port={port} status={code}"


def read_documents(path: Path) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def write_documents(path: Path, texts: Sequence[str]) -> None:
    path.unlink(missing_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as lines:
        lines.writelines(json.dumps({"text": text}) + "\n" for text in texts)
