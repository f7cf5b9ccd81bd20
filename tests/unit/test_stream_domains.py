"""Domains that join, leave, are renamed and run out, by name and in mid-run."""

import json
from typing import Any

import numpy as np
import pytest

from cuvee.core.errors import (
    CheckpointError,
    ConfigError,
    CorpusError,
    CorpusExhausted,
    FingerprintMismatch,
    MixtureError,
)
from cuvee.core.mixture import Mixture
from cuvee.data.stream.batch import Batch
from cuvee.data.stream.memory import MemoryCorpus
from cuvee.data.stream.stream import MixtureStream
from cuvee.testing.stream_measures import make_corpus

FIRST = make_corpus({"web": 6000, "code": 3000})
SECOND = make_corpus({"law": 1600, "web": 500}, seed=9)
EVEN = Mixture.of({"web": 0.5, "code": 0.5})


def stream(corpus: MemoryCorpus = FIRST, mixture: Mixture = EVEN, **settings: Any) -> MixtureStream:
    return MixtureStream(corpus, mixture, batch_size=12, sequence_length=16, seed=3, **settings)


def places(batches: list[Batch], name: str) -> list[tuple[int, int]]:
    """(pass, window) of each row of a domain, sorted within a step."""
    rows: list[tuple[int, int]] = []
    for batch in batches:
        mine = batch.domain_B == (batch.names.index(name) if name in batch.names else -1)
        rows += sorted(
            zip(
                batch.origin.epoch_B[mine].tolist(),
                batch.origin.window_B[mine].tolist(),
                strict=True,
            )
        )
    return rows


def draw(source: MixtureStream, steps: int) -> list[Batch]:
    return [next(source) for _ in range(steps)]


def test_a_domain_joins_without_loss_or_repetition_of_the_others() -> None:
    grown = stream()
    batches = draw(grown, 10)
    grown.add_domain("law", SECOND)
    assert grown.names == ("web", "code", "law")
    assert grown.mixture["law"] == 0
    batches += draw(grown, 5)
    grown.set_mixture(Mixture.of({"web": 0.25, "code": 0.25, "law": 0.5}))
    batches += draw(grown, 10)
    assert len(places(batches, "law")) == 60
    alone = draw(stream(), 40)
    for name in ("web", "code"):
        with_law, without = places(batches, name), places(alone, name)
        assert len(with_law) == 120
        assert sorted(with_law) == sorted(without[:120])
    law = SECOND.pool("law").tokens
    row = int(np.flatnonzero(batches[-1].domain_B == 2)[0])
    window = int(batches[-1].origin.window_B[row])
    assert (batches[-1].tokens_BL[row] == law[window * 16 : window * 16 + 16]).all()


@pytest.mark.parametrize("sampling", ["quota", "multinomial"])
def test_adding_a_domain_changes_no_row_and_no_log(sampling: str) -> None:
    plain, grown = (stream(sampling=sampling, epoch_caps={"code": 1.0}) for _ in range(2))
    for source in (plain, grown):
        draw(source, 5)
        source.set_mixture(Mixture.of({"web": 0.31, "code": 0.69}), at_step=9)
        source.seek(7)
    grown.add_domain("law", SECOND)
    resumed = stream(sampling=sampling, epoch_caps={"code": 1.0})
    resumed.load_state_dict(json.loads(json.dumps(grown.state_dict())), corpora=[SECOND])
    for a, b, c in zip(draw(plain, 30), draw(grown, 30), draw(resumed, 30), strict=True):
        assert a.log_digest == b.log_digest == c.log_digest
        assert (a.tokens_BL == b.tokens_BL).all()
        assert (a.tokens_BL == c.tokens_BL).all()
        assert b.names == ("web", "code", "law")


def test_a_domain_leaves_and_comes_back_where_it_stopped() -> None:
    coming = stream()
    batches = draw(coming, 6)
    coming.retire_domain("code")
    assert coming.names == ("web",)
    assert coming.mixture == Mixture.of({"web": 1.0})
    batches += draw(coming, 4)
    coming.add_domain("code", FIRST)
    coming.set_mixture(EVEN)
    batches += draw(coming, 6)
    assert sorted(places(batches, "code")) == sorted(places(draw(stream(), 12), "code"))
    web = places(batches, "web")
    assert len(set(web)) == len(web)


def test_a_rename_changes_the_name_only() -> None:
    renamed, same = stream(), stream()
    draw(renamed, 5), draw(same, 5)
    renamed.rename_domain("code", "programs")
    assert renamed.names == ("web", "programs")
    assert [domain.name for domain in renamed.domains] == ["web", "programs"]
    for a, b in zip(draw(renamed, 20), draw(same, 20), strict=True):
        assert (a.tokens_BL == b.tokens_BL).all()
        assert (a.domain_B == b.domain_B).all()


def test_all_of_it_survives_a_resume() -> None:
    changed = stream()
    draw(changed, 3)
    changed.add_domain("law", SECOND, epoch_cap=2.0)
    changed.set_mixture(Mixture.of({"web": 0.2, "code": 0.3, "law": 0.5}))
    draw(changed, 3)
    changed.rename_domain("web", "pages")
    changed.retire_domain("code")
    draw(changed, 3)
    state = json.loads(json.dumps(changed.state_dict()))
    resumed = stream(rank=1, world_size=3)
    with pytest.raises(FingerprintMismatch, match=SECOND.fingerprint):
        resumed.load_state_dict(state)
    resumed.load_state_dict(state, corpora=[SECOND])
    assert json.loads(json.dumps(resumed.state_dict())) == state
    resumed.add_domain("code", FIRST)
    changed.add_domain("code", FIRST)
    for whole, part in zip(draw(changed, 8), draw(resumed, 8), strict=True):
        assert (whole.tokens_BL[4:8] == part.tokens_BL).all()
        assert whole.log_digest == part.log_digest


def test_the_log_tells_runs_apart() -> None:
    one, other = stream(), stream()
    one.set_mixture(Mixture.of({"web": 0.4, "code": 0.6}))
    other.set_mixture(Mixture.of({"web": 0.6, "code": 0.4}))
    for source in (one, other):
        source.set_mixture(EVEN)
    a, b = next(one), next(other)
    assert a.version == b.version == 2
    assert a.mixture_digest == b.mixture_digest == EVEN.digest()
    assert a.log_digest != b.log_digest


def test_what_cannot_be_done_is_refused_by_name() -> None:
    source = stream()
    with pytest.raises(MixtureError, match="already has a domain 'web'"):
        source.add_domain("web", SECOND)
    with pytest.raises(CorpusError, match="no domain 'maths'"):
        source.add_domain("maths", SECOND)
    with pytest.raises(MixtureError, match="no domain 'maths' in the stream"):
        source.retire_domain("maths")
    source.set_mixture(Mixture.of({"web": 1.0}), at_step=5)
    with pytest.raises(MixtureError, match="logged for step 5"):
        source.retire_domain("code")
    with pytest.raises(MixtureError, match="already logged"):
        source.set_mixture(EVEN, at_step=4)
    source.seek(5)
    with pytest.raises(MixtureError, match="holds all the weight"):
        source.retire_domain("web")
    with pytest.raises(MixtureError, match="before the last change at step 5"):
        source.seek(4)
    with pytest.raises(ConfigError, match="epoch cap of web is 0"):
        stream(epoch_caps={"web": 0})
    with pytest.raises(ConfigError, match="unknown domain maths"):
        stream(epoch_caps={"maths": 1})
    for wrong in ({"world_size": 5}, {"rank": 2, "world_size": 2}, {"sampling": "random"}):
        with pytest.raises(ConfigError):
            stream(**wrong)


def test_forecast_is_when_a_domain_runs_out() -> None:
    corpus = make_corpus({"web": 16 * 600, "code": 16 * 100, "law": 16 * 50})
    mixture = Mixture.of({"web": 0.5, "code": 0.25, "law": 0.25})
    source = stream(corpus, mixture, epoch_caps={"code": 1.0, "law": 1.0})
    expected = source.forecast()
    assert expected["web"] is None
    ends: dict[str, int] = {}
    for step in range(60):
        next(source)
        for name in ("code", "law"):
            if source.rows_drawn()[name] == source.rows_per_epoch()[name]:
                ends.setdefault(name, step)
    assert all(abs(ends[name] - (expected[name] or 0)) <= 1 for name in ends)
    assert set(ends) == {"code", "law"}
    assert source.mixture == Mixture.of({"web": 1.0, "code": 0.0, "law": 0.0})


def test_surplus_goes_to_the_others_in_proportion() -> None:
    corpus = make_corpus({"web": 16 * 900, "code": 16 * 900, "law": 16 * 30})
    mixture = Mixture.of({"web": 0.4, "code": 0.2, "law": 0.4})
    source = stream(corpus, mixture, epoch_caps={"law": 1.0})
    draw(source, 50)
    assert source.rows_drawn()["law"] == 30
    assert source.mixture.weights_K == pytest.approx([2 / 3, 1 / 3, 0])
    others = source.rows_drawn()["web"], source.rows_drawn()["code"]
    assert others[0] / others[1] == pytest.approx(2, rel=0.02)


def test_the_end_of_all_caps_is_an_error_that_says_what_is_left() -> None:
    corpus = make_corpus({"web": 160, "code": 160})
    source = stream(corpus, Mixture.of({"web": 1.0, "code": 0.0}), epoch_caps={"web": 2.0})
    draw(source, 1)
    with pytest.raises(CorpusExhausted, match="code has rows left but weight 0"):
        next(source)
    source.set_mixture(EVEN)
    assert [source.rows_drawn()["code"] for _ in draw(source, 3)][-1] >= 18


def test_a_domain_is_known_by_where_it_is_from_and_not_by_its_name() -> None:
    coming = stream()
    batches = draw(coming, 4)
    coming.rename_domain("code", "programs")
    with pytest.raises(MixtureError, match="in the stream already, as 'programs'"):
        coming.add_domain("code", FIRST)
    coming.retire_domain("programs")
    coming.add_domain("code", FIRST)
    coming.set_mixture(EVEN)
    assert sorted(places(batches + draw(coming, 4), "code")) == sorted(
        places(draw(stream(), 8), "code")
    )


def test_a_damaged_state_is_refused() -> None:
    state = stream().state_dict()
    for key in ("schedule", "domains", "retired"):
        with pytest.raises(CheckpointError, match="damaged"):
            stream().load_state_dict({**state, key: [{}] if key != "schedule" else {}})
    for field, value in {"credit": [1, 2], "drawn": ["many", 0], "current": None}.items():
        with pytest.raises(CheckpointError, match="damaged"):
            stream().load_state_dict({**state, "schedule": {**state["schedule"], field: value}})
    with pytest.raises(CheckpointError, match="format 0"):
        stream().load_state_dict({**state, "format": 0})
    with pytest.raises(CheckpointError, match=r"epoch_caps.*'web': 2\.0"):
        stream(epoch_caps={"web": 2.0}).load_state_dict(state)


def test_a_state_does_not_repeat_what_the_corpus_says() -> None:
    state = stream(epoch_caps={"web": 9.0}).state_dict()
    assert state["domains"] is None
    assert "web" not in json.dumps(state["schedule"])
    changed = stream()
    changed.rename_domain("web", "internet")
    assert [row["name"] for row in changed.state_dict()["domains"]] == ["internet", "code"]
    assert [(row["name"], row["source"]) for row in changed.sources()] == [
        ("internet", "web"),
        ("code", "code"),
    ]


def test_a_state_of_format_1_is_read() -> None:
    source = stream(epoch_caps={"web": 9.0})
    draw(source, 3)
    source.set_mixture({"web": 0.2, "code": 0.8})
    state = json.loads(json.dumps(source.state_dict()))
    names = list(source.names)
    caps = {"web": 9.0, "code": None}

    def old(update: dict[str, Any]) -> dict[str, Any]:
        return {**update, "mixture": {"names": names, "weights": update["mixture"]}}

    schedule = {
        **state["schedule"],
        "current": old(state["schedule"]["current"]),
        "pending": [old(update) for update in state["schedule"]["pending"]],
    }
    rows = [
        {"name": name, "source": name, "fingerprint": FIRST.fingerprint, "cap": caps[name]}
        for name in names
    ]
    resumed = stream(epoch_caps={"web": 9.0})
    resumed.load_state_dict({**state, "format": 1, "domains": rows, "schedule": schedule})
    assert resumed.state_dict() == source.state_dict()
    assert (next(resumed).tokens_BL == next(source).tokens_BL).all()
