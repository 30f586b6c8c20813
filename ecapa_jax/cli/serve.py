"""`ecapa-jax serve`."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import tyro

from ecapa_jax.cli.common import AnySound, Flag, Model, ModelOptions, Output, OutputOptions


@dataclasses.dataclass(frozen=True)
class Serve:
    """Serve the page and the HTTP API; stop it with Ctrl-C or SIGTERM."""

    host: str = "127.0.0.1"
    """Address to listen on. By default only this machine can connect."""
    port: int = 8000
    """Port to listen on; 0 chooses a free one."""
    store: Annotated[str | None, tyro.conf.arg(metavar="STORE", help_behavior_hint="")] = None
    """File that holds the enrolled speakers; it is made if it does not exist. Without it nobody can be enrolled."""
    token: Annotated[str | None, tyro.conf.arg(metavar="TOKEN", help_behavior_hint="(default: ECAPA_JAX_TOKEN)")] = None
    """Token that each request must send, as in Authorization: Bearer TOKEN."""
    allow_urls: Flag = False
    """Also accept recordings by http(s) address, from public hosts only."""
    any_sound: AnySound = False
    max_mb: float = 20.0
    """Largest size of a request, in megabytes."""
    max_seconds: float = 60.0
    """Longest duration of a recording, in seconds."""
    max_requests: int = 32
    """Number of requests that are handled at the same time; further ones are answered with 429."""
    body_seconds: float = 30.0
    """Longest time for a client to send a request or to receive the answer, in seconds."""
    stop_seconds: float = 30.0
    """Longest time for unfinished requests after a stop, in seconds."""
    warm_up: Annotated[float, tyro.conf.arg(metavar="SECONDS")] = 0.0
    """Compile for recordings up to this length before the service starts, so that the first requests are fast."""
    model: ModelOptions = Model()
    output: OutputOptions = Output()

    def run(self) -> None:
        """Serves until it is stopped."""
        from ecapa_jax import api
        from ecapa_jax.bundle.bundle import read_operating_points
        from ecapa_jax.errors import EcapaError
        from ecapa_jax.identify.store import SpeakerStore
        from ecapa_jax.runtime import machine

        try:
            from ecapa_jax.serve.app import create_app
            from ecapa_jax.serve.run import format_address, listen, make_server
            from ecapa_jax.serve.service import Service
            from ecapa_jax.serve.settings import Settings
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("ecapa_jax"):
                raise
            raise EcapaError(f"serve needs {error.name}: pip install 'ecapa-jax[serve]'") from error
        if self.store == "":
            raise EcapaError("--store is empty (an unset variable?); name a file, or leave the option out")
        settings = Settings(
            host=self.host,
            max_bytes=round(self.max_mb * 1e6),
            max_seconds=self.max_seconds,
            max_requests=self.max_requests,
            body_seconds=self.body_seconds,
            token=machine.token() if self.token is None else self.token,
            allow_urls=self.allow_urls,
            any_sound=self.any_sound,
        )
        with listen(self.host, self.port) as sock:
            encoder = self.model.load(quiet=self.output.quiet)
            service = Service(
                encoder,
                settings,
                name=self.model.name,
                points=read_operating_points(api.resolve(self.model.model, progress=False)),
                store=SpeakerStore.open(self.store, encoder) if self.store is not None else None,
            )
            if not settings.loopback and settings.token is None:
                self.output.note(
                    "anyone who can reach this address can use the service: set --token, or listen on 127.0.0.1"
                )
            if self.warm_up:
                self.output.note(f"compiling for recordings up to {self.warm_up:g} s")
            app = create_app(service, warm_up=self.warm_up)
            self.output.note(f"{format_address(sock)}   API: {format_address(sock)}docs   stop: Ctrl-C")
            make_server(app, stop_seconds=self.stop_seconds).run(sockets=[sock])
