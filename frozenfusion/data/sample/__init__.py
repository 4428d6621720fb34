"""The built-in sample: drawn pairs to try things on."""

from typing import TYPE_CHECKING

from frozenfusion.utils.lazy import face

if TYPE_CHECKING:
    from frozenfusion.data.sample.build import make_sample as make_sample
    from frozenfusion.data.sample.texts import make_text_encoder as make_text_encoder

face(
    __name__,
    {
        "make_sample": "frozenfusion.data.sample.build",
        "make_text_encoder": "frozenfusion.data.sample.texts",
    },
)
