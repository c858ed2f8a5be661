"""Whether Slack's hook takes notices."""

from __future__ import annotations

from collections.abc import Iterator

from runner.commands.doctor.base import Finding, Subject, fail, ok, warn
from runner.reporting.slack import post


def slack(subject: Subject) -> Iterator[Finding]:
    """Post nothing: a hook that is good says that there is no text."""
    if not subject.settings.slack_hook:
        return
    answer = post(subject.settings.slack_hook, {})
    if answer.status in (200, 400):
        yield ok("Slack's hook answers, and refuses a post without text, as it should")
    elif answer.status in (401, 403, 404, 410):
        yield fail(f"Slack refuses this hook: {answer.status} {answer.word}", "make a new one, and set --slack-hook")
    else:
        yield warn(f"Slack's hook answers {answer.status} {answer.word}", "try again in a while")
