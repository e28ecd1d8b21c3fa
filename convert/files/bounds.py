"""The largest size, in bytes, of anything that is read from outside."""

from __future__ import annotations

# Bytes. An agent has 7 to 27 MB; nothing that is read from outside, inflated, may be larger.
LARGEST = 128 * 2**20
