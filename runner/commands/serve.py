"""Putting the runner together: from its options to a working supervisor."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

from runner import __version__
from runner.artifacts.cache_entries import Entries
from runner.commands.only_message import OnlyMessage
from runner.crypto.keys import KeyDirectory
from runner.crypto.private_keys import PrivateKeys
from runner.errors import ConfigError
from runner.lifecycle import Signals
from runner.log import mask
from runner.loop import Loop
from runner.machine import delegated, inventory, nvml, visible
from runner.machine.allocate import Allocator
from runner.machine.disk import Disk
from runner.machine.gpu_watch import GpuWatch
from runner.machine.gpus import Gpus
from runner.machine.hoard import Hoard
from runner.message.envelope import Envelopes
from runner.monitoring.board import Board
from runner.monitoring.journal import Journal
from runner.monitoring.metrics import Metrics
from runner.options.settings import Settings
from runner.place import make_home, sweep
from runner.queues.servers import open_servers, work_queues
from runner.reporting.reports import Reports
from runner.reporting.slack import Slack
from runner.sandbox import interpreters
from runner.sandbox.environments import Environments
from runner.secrets import concealment
from runner.supervisor.reasons import Reasons
from runner.supervisor.replays import Replays
from runner.supervisor.supervisor import Parts, Supervisor

log = logging.getLogger(__name__)

# How long the start may wait for NVIDIA's driver, in seconds: it may have to wake up its cards first.
_GPU_PATIENCE = 20.0


def serve(settings: Settings, *, clock: Callable[[], float], only: OnlyMessage | None = None) -> int:
    """Run experiments until told to stop, or ``only`` one; return the exit status. Raises ConfigError."""
    own = partial(concealment.own_secrets, settings, os.environ)
    concealment.close_memory()
    secrets = own()
    concealment.hide(secrets)
    mask("the runner's own", secrets)
    envelopes = _envelopes(settings, clock)
    make_home(settings.home, shared=bool(settings.run_as))
    unlimited = delegated.prepare()
    sweep(settings.home, keep=settings.debug)
    hoards, elsewhere = _hoards(settings)
    allocator = _allocator(settings, hoards)
    _introduce(settings, allocator, unlimited)
    with ExitStack() as stack:
        signals = stack.enter_context(Signals())
        loop = stack.enter_context(closing(Loop()))
        board = Board(loop, clock)
        address = _shown(settings, board)
        gpus = GpuWatch(loop, allocator.gpus, None if allocator.gpus.absent else _open_nvml, clock)
        gpus.begin(_GPU_PATIENCE)
        log.info("GPUs: %s", allocator.gpus.offered())
        servers = [only] if only else open_servers(settings, loop, work_queues(settings), settings.queue)
        which = {"names": settings.queue, "match": settings.queue_match, "mismatch": settings.queue_mismatch}
        about = {"servers": [server.kind for server in servers], "address": address, **which}
        parts = Parts(
            servers=servers,
            loop=loop,
            signals=signals,
            allocator=allocator,
            disk=Disk(settings.home, allocator.total.hdd, hoards, clock, elsewhere=elsewhere),
            gpus=gpus,
            reports=Reports(KeyDirectory(settings.report_readers, clock=clock), clock),
            reasons=Reasons(settings.home, about),
            slack=Slack(settings.slack_hook, settings.slack_room, clock=clock),
            envelopes=envelopes,
            replays=Replays(settings.home / "completed"),
            journal=Journal(Metrics(clock), clock),
            board=board,
            suspended=(lambda: False) if only else _suspension(settings, loop, stack),
            own=own,
            clock=clock,
        )
        Supervisor(settings, parts).run(over=only.settled if only else None)
        if only and parts.journal.outcomes:
            only.outcome = parts.journal.outcomes[0].outcome
    return 0


def _envelopes(settings: Settings, clock: Callable[[], float]) -> Envelopes:
    """Return what opens encrypted messages; say what can be opened at all. Raises ConfigError."""
    private = PrivateKeys(settings.private_keys, clock=clock)
    keys, signers = private.check(), KeyDirectory(settings.signers, clock=clock)
    if keys and not signers.names():
        log.warning("no encrypted message is run until there are signers' public keys in %s", signers.path)
    elif keys and settings.clear_text_messages:
        log.warning("messages that are neither encrypted nor signed are run, too: --clear-text-messages is set")
    elif not (keys or settings.clear_text_messages):
        log.warning("nothing can be run until there are keys in %s: or set --clear-text-messages", private.path)
    return Envelopes(signers, private)


def _allocator(settings: Settings, hoards: dict[str, Hoard]) -> Allocator:
    stock = inventory.take_stock(
        settings.home,
        max_cores=settings.max_cores,
        max_mem=settings.max_mem,
        max_disk=settings.max_disk,
        kept=sum(hoard.used() for hoard in hoards.values()),
    )
    return Allocator(stock, Gpus(absent=_gpus_forbidden(settings)))


def _introduce(settings: Settings, allocator: Allocator, unlimited: str) -> None:
    """Say what this runner has to give; ``unlimited``: why it cannot limit memory."""
    pythons = ", ".join(map(str, interpreters.there(more=settings.python_dirs))) or "none"
    log.info("studio-runner %s: %s to give; Pythons for experiments: %s", __version__, allocator.total, pythons)
    if unlimited:
        log.info("memory is measured here, and not limited by control groups: %s", unlimited)
    else:
        log.info("memory is limited by control groups below %s", delegated.base())


def _gpus_forbidden(settings: Settings) -> str:
    """Say what keeps this runner from using GPUs, "" when nothing does."""
    if settings.cpu_only:
        return "--cpu-only is set"
    name = visible.forbidden(os.environ)
    return f"{name} hides all" if name else ""


def _open_nvml() -> nvml.Nvml:
    return nvml.Nvml(nvml.load())


def _shown(settings: Settings, board: Board) -> str:
    """Serve metrics and what else there is to see, as long as the process lives; return where, "" for nowhere.

    Raises ConfigError.
    """
    if settings.prom_address == "":
        return ""
    from runner.monitoring.web import DEFAULT, Web  # noqa: PLC0415 -- with a web server

    try:
        web = Web(settings.prom_address or DEFAULT, board, page=settings.status_page)
    except ConfigError as error:
        if settings.prom_address is not None:
            raise
        log.warning("there are no metrics: %s; name another --prom-address, or none: --prom-address=", error)
        return ""
    what = "metrics, health and status page" if web.page else "metrics and health"
    log.info("%s: http://%s/", what, web.address)
    return web.address


def _hoards(settings: Settings) -> tuple[dict[str, Hoard], dict[str, Hoard]]:
    """Return what is kept to save time: on the disk of the work directories, and elsewhere.

    The first gives way to work first.
    """
    hoards: dict[str, Hoard] = {}
    elsewhere: dict[str, Hoard] = {}
    if settings.cache_dir:
        cache = Entries(Path(settings.cache_dir), settings.cache_size)
        cache.create()
        cache.shrink(settings.cache_size)
        if cache.root.stat().st_dev == settings.home.stat().st_dev:
            hoards["cache"] = cache
        else:
            elsewhere["cache"] = cache
    for kind in ("images", "environments"):
        kept = Environments(settings.home, kind)
        kept.tidy(age=settings.environments_age, size=settings.environments_size)
        hoards[kind] = kept
    return hoards, elsewhere


def _suspension(settings: Settings, loop: Loop, stack: ExitStack) -> Callable[[], bool]:
    """Return what tells whether Kubernetes wants no work to be taken; outside a pod it has no say."""
    if not os.environ.get("KUBERNETES_SERVICE_HOST"):
        return lambda: False
    from runner.supervisor import kubernetes  # noqa: PLC0415 -- with an HTTP client, which not everybody needs so early

    state = stack.enter_context(closing(kubernetes.watch(loop, settings.k8s_namespace, settings.k8s_configmap)))
    return lambda: state.suspended
