"""Origins at run time: the policy's row, its HTTP rules, its upstream client. Clients outlive reloads of the policy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from accelerator import clock
from accelerator.dataplane import DataPlane, HeadError, parse_response
from accelerator.io.credentials import CredentialError, Credentials, check_authorities
from accelerator.io.health import UpstreamHealth
from accelerator.io.origin import (
    GATEWAY_STATUSES,
    ClientCertificate,
    OriginSettings,
    ParentProxy,
    Upstream,
    UpstreamEvent,
)
from accelerator.io.upstream import UpstreamClient
from accelerator.policy.compile import max_offline_of
from accelerator.policy.model import Origin as OriginPolicy
from accelerator.policy.model import Policy
from accelerator.protocols.origin_rules import OriginRules
from accelerator.services.objects.heads import NS
from accelerator.services.origins.credential_rule import CredentialRule, rule_of

# A head that is awaited for longer is a long poll's: its viewer waits, and no other must wait for its connection.
LONG_POLL_S = 5.0
# That an origin knows one range a request only is asked again after so long.
ONE_RANGE_S = 3600.0


@dataclass
class Origin:
    """One origin. `id` is its row in the data plane; `class_index` counts from 1, 0: none."""

    id: int
    name: str
    policy: OriginPolicy
    rules: OriginRules
    client: UpstreamClient
    class_index: int
    judge: CredentialRule | None = None
    answered: int = 0
    refused: int = 0  # of them: answers 4xx and 5xx
    errors: int = 0
    bytes_from_origin: int = 0
    one_range_until_ns: int = 0

    def knows_one_range_only(self) -> bool:
        """Whether it has sent a whole body where several ranges were asked for, as object stores do."""
        return clock.monotonic_ns() < self.one_range_until_ns

    def note_one_range_only(self) -> None:
        self.one_range_until_ns = clock.monotonic_ns() + int(ONE_RANGE_S * NS)


@dataclass(frozen=True)
class Secrets:
    """What an origin's credentials were when they were read."""

    proxy: ParentProxy | None = None
    certificate: ClientCertificate | None = None
    judge: CredentialRule | None = None


class Origins:
    """All origins of the running policy, by data-plane row and by name. `note_event` gets an origin's name too."""

    def __init__(
        self,
        dataplane: DataPlane,
        loop: asyncio.AbstractEventLoop,
        credentials: Credentials,
        note_event: Callable[[str, UpstreamEvent], None],
    ) -> None:
        self._dataplane = dataplane
        self._loop = loop
        self._credentials = credentials
        self._note_event = note_event
        self.by_id: dict[int, Origin] = {}
        self._leaving: set[UpstreamClient] = set()

    def read_secrets(self, policy: Policy) -> dict[str, Secrets]:
        """The credentials that the policy names, by origin; nothing is taken over. Raises CredentialError, also for a
        file of CAs that can't be used: found at the first connection, it would be an outage instead of a refusal."""
        secrets = {}
        for name, row in policy.origins.items():
            key = "credential"
            try:
                judge = rule_of(row.credential, self._credentials) if row.credential is not None else None
                key = "ca"
                if row.ca is not None:
                    check_authorities(row.ca.path)
                key = "client_certificate"
                named = row.client_certificate
                certificate = self._credentials.client_certificate(named) if named is not None else None
                key = "via_credential"
                login = row.via_credential if row.via is not None else None
                authorization = self._credentials.basic_authorization(login) if login is not None else None
            except CredentialError as error:
                raise CredentialError(error.kind, f"origins.{name}.{key}: {error.message}") from error
            proxy = ParentProxy(row.via.host, row.via.port, authorization) if row.via is not None else None
            secrets[name] = Secrets(proxy, certificate, judge)
        return secrets

    def apply(
        self, policy: Policy, own_listeners: frozenset[tuple[str, int]], secrets: Mapping[str, Secrets]
    ) -> None:
        """Takes a checked policy over: clients of origins that stay keep their connections where these still fit."""
        classes = list(policy.classes)
        by_id = {}
        for name, row in policy.origins.items():
            origin_id = self._dataplane.origin_id(name)
            settings = _settings(name, row, own_listeners, secrets[name])
            judge = secrets[name].judge
            rules = OriginRules(
                profile=row.profile,
                override_private=row.override_private,
                forward=tuple(field.encode("ascii") for field in row.forward),
                credential_headers=judge.places.headers if judge is not None else (),
                credential_cookies=judge.places.cookies if judge is not None else (),
                forward_tags=row.forward_tags,
                max_offline_s=max_offline_of(row, policy),
            )
            class_index = classes.index(row.class_) + 1 if row.class_ else 0
            known = self.by_id.get(origin_id)
            if known is not None:
                known.client.set_settings(settings)
                known.policy, known.rules, known.class_index = row, rules, class_index
                known.judge = judge
                by_id[origin_id] = known
                continue
            client = UpstreamClient(
                settings,
                self._loop,
                parse_response=parse_response,
                head_error=HeadError,
                note_event=partial(self._note_event, name),
            )
            by_id[origin_id] = Origin(origin_id, name, row, rules, client, class_index, judge)
        for origin_id, gone in self.by_id.items():
            if origin_id not in by_id:
                # What viewers are being sent of it goes on to its end.
                self._loop.create_task(self._finish(gone.client))
        self.by_id = by_id

    async def _finish(self, client: UpstreamClient) -> None:
        self._leaving.add(client)
        await client.finish()
        self._leaving.discard(client)

    def by_name(self, name: str) -> Origin | None:
        return next((origin for origin in self.by_id.values() if origin.name == name), None)

    def health(self) -> dict[str, tuple[UpstreamHealth, ...]]:
        """How the upstreams of each origin do."""
        return {origin.name: origin.client.health() for origin in self.by_id.values()}

    async def close(self) -> None:
        clients = {*self._leaving, *(origin.client for origin in self.by_id.values())}
        await asyncio.gather(*(client.close() for client in clients))


def _settings(
    name: str, row: OriginPolicy, own_listeners: frozenset[tuple[str, int]], secrets: Secrets
) -> OriginSettings:
    return OriginSettings(
        name=name,
        upstreams=tuple(Upstream(url.scheme, url.host, url.port) for url in row.from_),
        resolve=tuple(row.resolve),
        ca_file=row.ca.path if row.ca is not None else None,
        connections=row.connections,
        connect_timeout_s=row.timeouts.connect,
        head_timeout_s=row.head_timeout,
        body_timeout_s=row.timeouts.body,
        stream_timeout_s=row.timeouts.stream,
        streams=row.streams,
        long_poll_s=None if row.profile == "media" else LONG_POLL_S,
        own_listeners=own_listeners,
        via=secrets.proxy,
        client_certificate=secrets.certificate,
        resolve_grace_s=row.resolve_grace,
        failure_statuses=GATEWAY_STATUSES | {500} if row.profile == "media" else GATEWAY_STATUSES,
    )
