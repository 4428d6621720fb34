"""Text encoders, their tokens, and the cache of what frozen ones say."""

from typing import TYPE_CHECKING

from frozenfusion.utils.lazy import face

if TYPE_CHECKING:
    from frozenfusion.text.encoder import load_text_encoder as load_text_encoder
    from frozenfusion.text.tokens import load_tokenizer as load_tokenizer

face(
    __name__,
    {
        "load_text_encoder": "frozenfusion.text.encoder",
        "load_tokenizer": "frozenfusion.text.tokens",
    },
)
