"""Kills, full disks, failing disks and flipped bits, one at a time, at every place where they can happen."""
