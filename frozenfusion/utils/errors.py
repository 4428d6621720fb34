"""Failures that a user can mend, told in one line."""

from __future__ import annotations


class UserError(Exception):
    """A failure outside the program: the message says what, where and what to do, in one line."""

    exit_status = 1


class UsageError(UserError):
    """A command line that cannot be carried out as it was typed."""

    exit_status = 2
