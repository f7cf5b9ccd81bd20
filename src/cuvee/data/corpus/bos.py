"""The token at the start of documents: which one a tokenizer has, and whether it puts it there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuvee.core.errors import CorpusError
from cuvee.core.files import read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CONFIG = "tokenizer_config.json"
_KNOWN_STARTS = ("<|begin_of_text|>", "<s>", "<bos>", "[BOS]", "<|bos|>", "<｜begin▁of▁sentence｜>")


def find_bos(tokenizer: Tokenizer, place: Path, wanted: bool | None) -> int | None:
    """Return the id of the token that begins every document, or None if there shall be none.

    `place` is the path of the tokenizer.json. If `wanted` is None, the tokenizer decides: by
    `add_bos_token` in the tokenizer_config.json beside it, else by whether its post-processor
    begins a text with a special token. Raises `CorpusError` if that file cannot be read, or if a
    wanted token is not known.

    The token is `bos_token` of tokenizer_config.json, else that of the post-processor, else a
    well-known one.

    Example:

        find_bos(tokenizer, Path("llama/tokenizer.json"), None)  # 128000
    """
    config = _read_config(place.with_name(CONFIG))
    template = _template_start(tokenizer)
    if wanted is None:
        added = config.get("add_bos_token")
        wanted = added if isinstance(added, bool) else template is not None
    if not wanted:
        return None
    named = config.get("bos_token")
    if isinstance(named, dict):
        named = named.get("content")
    if isinstance(named, str):
        return _id_of(tokenizer, named, place)
    if template is not None:
        return template
    ids = (tokenizer.token_to_id(token) for token in _KNOWN_STARTS)
    found = next((i for i in ids if i is not None), None)
    if found is None:
        raise CorpusError(
            f"{place} has no token for the start of documents: name it as bos_token in "
            f"{CONFIG} beside it, or use --no-bos"
        )
    return found


def _id_of(tokenizer: Tokenizer, token: str, place: Path) -> int:
    found: int | None = tokenizer.token_to_id(token)
    if found is None:
        raise CorpusError(
            f"{place} has no token {token!r}, which {CONFIG} names as bos_token: restore the "
            "files of one tokenizer, or use --no-bos"
        )
    return found


def _template_start(tokenizer: Tokenizer) -> int | None:
    """The special token that the post-processor puts before a text, if there is one."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a", add_special_tokens=True).ids
    return int(whole[0]) if len(whole) > len(plain) and whole[1 : len(plain) + 1] == plain else None


def _read_config(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise CorpusError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CorpusError(f"{path} cannot be read: it holds no JSON object")
    return content
