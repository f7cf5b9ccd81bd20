"""What `benchmarks/agent.py` prepares is what the product itself would make."""

from __future__ import annotations

from pathlib import Path

from agent_parts import VOCABULARY, Material
from online_corpora import write_documents

from cuvee.data.ingest.build import BuildSettings, build


def test_the_tokenizer_is_that_of_a_corpus_of_all_domains(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    for part in ("train", "valid"):
        (raw / part).mkdir(parents=True)
        for name in ("code", "maths", "web"):
            texts = [f"{part} {name} number {i}, " + f"{name}{i % 7} " * 40 for i in range(30)]
            write_documents(raw / part / f"{name}.jsonl.gz", texts)
    material = Material(raw, tmp_path / "out", [], "code", kept_away=0.0)
    whole = build([raw], tmp_path / "whole", BuildSettings(vocab_size=VOCABULARY), workers=1)
    kept = material._tokenizer()
    assert kept.read_bytes() == (tmp_path / "whole" / "tokenizer.json").read_bytes()
    assert len(whole.domains) == 3
    assert not (tmp_path / "out" / "corpora" / "all").exists(), "no text was encoded"
