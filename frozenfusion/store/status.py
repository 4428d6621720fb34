"""What becomes of an image or a text: the codes that feature files store."""

from __future__ import annotations

PENDING, OK, MISSING, UNREADABLE, REFUSED, CRASHED = range(6)
STATUS_NAMES = {
    PENDING: "pending",
    OK: "ok",
    MISSING: "missing",
    UNREADABLE: "unreadable",
    REFUSED: "refused",
    CRASHED: "crashed",  # of its computation the process died
}

DIGEST_BYTES = 16  # of the BLAKE2b of a file's content
