"""What an attempt is told to do: its message, what it was granted, and what it needs of the operator's options."""

from __future__ import annotations

from os import environ

from runner.machine.allocate import Allocation
from runner.options.settings import Settings
from runner.order import Options, Order
from runner.queues.base import Delivery
from runner.sandbox.environment import is_installers
from runner.secrets.masking import Secrets
from runner.supervisor.intake import Plan, Received


class Orders:
    """Writes orders by the operator's ``settings``."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def write(  # noqa: PLR0913 -- all that differs from one order to the next
        self,
        received: Received,
        plan: Plan,
        allocation: Allocation,
        delivery: Delivery,
        *,
        failures: int,
        reported: bool,
        own: Secrets,
        cache_size: int,
    ) -> Order:
        """Write one: see Order and Options. ``own`` are the runner's secrets, of which it gets fingerprints."""
        return Order(
            document=received.request.document,
            queue=delivery.queue,
            failures=failures,
            redeliveries=delivery.redeliveries,
            allowed=self._settings.max_attempts,
            python=str(plan.interpreter.path) if plan.interpreter else "",
            version=str(plan.interpreter or ""),
            reported=reported,
            options=options_of(self._settings, cache_size=cache_size),
            gpus=tuple(grant.uuid for grant in allocation.gpus),
            fingerprints=own.fingerprints(),
            variables={name: value for name, value in environ.items() if is_installers(name)},
        )


def options_of(given: Settings, *, cache_size: int) -> Options:
    """Return what an attempt needs of the operator's options; the cache may take so many bytes."""
    return Options(
        home=str(given.home),
        file_roots=given.file_root,
        s3_ca=given.s3_ca,
        s3_cert=given.s3_cert,
        s3_key=given.s3_key,
        google_credentials=given.google_credentials,
        google_metadata=given.google_metadata,
        google_endpoint=given.google_endpoint,
        store_patience=given.store_patience,
        index_patience=given.index_patience,
        uv=given.uv,
        environments_age=given.environments_age,
        environments_size=given.environments_size,
        env_allow=given.env_allow,
        allow_env_secrets=given.allow_env_secrets,
        link_local=given.allow_link_local,
        schema_logs=given.schema_logs,
        debug=given.debug,
        enforce_ram=given.enforce_ram,
        max_processes=given.max_processes,
        max_file_size=given.max_file_size,
        max_output=given.max_output,
        hang_timeout=given.hang_timeout,
        nice=given.nice,
        run_as=given.run_as,
        singularity=given.singularity,
        echo=given.echo_output,
        cache_dir=given.cache_dir,
        cache_size=cache_size,
    )
