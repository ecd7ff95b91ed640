"""Policy keys of one origin: where content comes from, how long to wait, who may see it. No check across keys."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from accelerator.policy.values import (
    CredentialField,
    FieldName,
    FileName,
    HostPattern,
    Method,
    Name,
    Names,
    OriginUrl,
    ParameterName,
    PathPrefix,
    PinnedAddress,
    ProxyUrl,
    Section,
    ShortText,
    Switch,
    empty_means,
    size_between,
    time_between,
    whole_between,
)


class Timeouts(Section):
    connect: Annotated[float, *time_between("10ms", "10m")] = Field(
        default=3.0, description="Until an upstream has accepted the connection, TLS included."
    )
    head: Annotated[float, *time_between("10ms", "1h")] | None = Field(
        default=None,
        description="From the request until the response's head has arrived; left out: 30s, in profile generic 2m "
        "for long polls.",
    )
    body: Annotated[float, *time_between("10ms", "1h")] = Field(
        default=30.0,
        description="Longest time without any byte of a response's body, or without the origin taking any of a "
        "request's.",
    )
    stream: Annotated[float, *time_between("1s", "1d")] = Field(
        default=3600.0, description="Longest silence of an event stream (text/event-stream)."
    )
    tunnel: Annotated[float, *time_between("0s", "30d")] = Field(
        default=0.0, description="Longest time without any byte in a tunnel (WebSocket); 0s: no limit."
    )


class Verify(Section):
    scheme: Literal["jwt", "cat", "cloudfront", "akamai", "secure-link", "hmac"] = Field(
        description="What the credential is: a JSON Web Token, a Common Access Token (CTA-5007), or a signed URL."
    )
    keys: Annotated[tuple[Name, ...], empty_means(tuple)] = Field(
        min_length=1,
        max_length=16,
        description="Keys that verify it, by the names of their credentials: NAME.pem, NAME.jwk or NAME.secret.",
    )
    algorithm: (
        Literal["ES256", "EdDSA", "RS256", "HS256", "RSA-SHA1", "RSA-SHA256", "ECDSA-SHA1", "ECDSA-SHA256"] | None
    ) = Field(
        default=None, description="The one algorithm of its signature (jwt, cat, cloudfront), never the token's word."
    )
    issuer: ShortText | None = Field(default=None, description="The `iss` that it must have (jwt, cat).")
    audience: ShortText | None = Field(default=None, description="An `aud` that it must have (jwt, cat).")
    path_claim: ShortText | None = Field(
        default=None, description="The claim that says which paths it is for (jwt); left out: the whole origin."
    )
    resource: ShortText | None = Field(
        default=None, description="Scheme and host of the URL that was signed, https://HOST (cloudfront)."
    )
    signed: ShortText | None = Field(
        default=None,
        description="What is signed (secure-link, hmac), with {path}, {uri}, {expires} and {secret}.",
    )
    max_lifetime: Annotated[float, *time_between("1s", "3650d")] = Field(
        default=86_400.0, description="A credential that is valid for longer is refused."
    )
    leeway: Annotated[float, *time_between("0s", "5m")] = Field(
        default=5.0, description="How far the issuer's clock and ours may differ."
    )


class Credential(Section):
    parameters: Annotated[tuple[ParameterName, ...], empty_means(tuple)] = Field(
        default=(),
        max_length=8,
        description="Parameters of the query that carry the viewer's credential: out of the key. For secure-link and "
        "hmac in this order: signature, expiry, and for hmac perhaps the directory.",
    )
    headers: Annotated[tuple[CredentialField, ...], empty_means(tuple)] = Field(
        default=(), max_length=4, description="Request fields that carry it."
    )
    cookies: Annotated[tuple[ParameterName, ...], empty_means(tuple)] = Field(
        default=(), max_length=8, description="Cookies that carry it."
    )
    covers: Literal["object", "directory"] = Field(
        default="object",
        description="What a yes is good for: the one object that was asked for, or its whole directory.",
    )
    verify: Verify | None = Field(default=None, description="How the box verifies it; left out: the origin is asked.")
    ask: Literal["origin"] | None = Field(
        default=None, description="The origin decides: it is asked by HEAD, with the viewer's credential."
    )
    authorise_for: Annotated[float, *time_between("1s", "1d")] = Field(
        default=60.0, description="How long a yes is used before the credential is judged again; less where it ends."
    )
    when_unreachable: Literal["refuse", "last-yes"] = Field(
        default="refuse", description="What happens when the origin can't be asked (ask)."
    )
    refusal: Annotated[int, *whole_between(401, 403)] = Field(
        default=403, description="The status of a refusal: 401 or 403."
    )


class Origin(Section):
    from_: tuple[OriginUrl, ...] = Field(
        alias="from",
        min_length=1,
        max_length=64,
        description="Where content comes from, in order: the next one is tried when one fails.",
    )
    hosts: tuple[HostPattern, ...] = Field(
        min_length=1,
        max_length=1000,
        description="Hosts that viewers ask for: exact names, '*.suffix', or '*' for any. Without port.",
    )
    paths: Annotated[tuple[PathPrefix, ...], empty_means(lambda: ("/",))] = Field(
        default=("/",),
        min_length=1,
        max_length=1000,
        description="Path prefixes that belong to this origin; they end at a segment boundary.",
    )
    class_: Name | None = Field(
        default=None,
        alias="class",
        description="The class that its objects are kept in; left out: none, kept in memory.",
    )
    link: Names = Field(
        default=(),
        max_length=16,
        description="The WAN link that it is reached by, or several: the next one while one is down. Left out: the "
        "system's routes, with the budget of the first link.",
    )
    link_for: Literal["fetches", "all"] = Field(
        default="fetches",
        description="all: what viewers send to its servers themselves, and this box forwards, goes by its link too.",
    )
    profile: Literal["media", "generic"] = Field(
        default="media",
        description="media: for video (GET, HEAD, CORS preflights; live playlists and segments recognised). "
        "generic: for portals and APIs, RFC 9111 to the letter.",
    )
    upstream_host: Literal["upstream", "viewer"] = Field(
        default="upstream",
        description="The Host that the origin sees: its own name from `from`, or the one that the viewer asked for.",
    )
    resolve: Annotated[tuple[PinnedAddress, ...], empty_means(tuple)] = Field(
        default=(),
        max_length=64,
        description="IP addresses to use instead of asking DNS for the names in `from`; with `via`: for the proxy's.",
    )
    resolve_grace: Annotated[float, *time_between("0s", "30d")] = Field(
        default=86_400.0, description="How long the last answer of DNS is used when DNS gives none."
    )
    via: ProxyUrl | None = Field(
        default=None,
        description="The company's HTTP proxy, through which this origin is reached: https by CONNECT; left out: none.",
    )
    via_credential: Name | None = Field(
        default=None, description="Log-in for the proxy: NAME.login among the credentials, one line USER:PASSWORD."
    )
    ca: FileName | None = Field(
        default=None,
        description="PEM file of authorities trusted besides the system's, relative to the policy's folder.",
    )
    client_certificate: Name | None = Field(
        default=None, description="What we show an origin that asks for it: NAME.crt, NAME.key among the credentials."
    )
    connections: Annotated[int, *whole_between(1, 65536)] = Field(
        default=64, description="Connections to this origin at once; more requests wait for one."
    )
    streams: Annotated[int, *whole_between(1, 1_000_000)] = Field(
        default=10_000,
        description="Event streams and, in profile generic, requests that have waited for long, at once; they don't "
        "count as connections.",
    )
    methods: Annotated[tuple[Method, ...], empty_means(tuple)] = Field(
        default=(),
        max_length=32,
        description="Methods that viewers may use; empty: GET and HEAD in profile media, any in generic. CORS "
        "preflights are always answered in profile media; CONNECT and TRACE never are.",
    )
    body_max: Annotated[int, *size_between("1kB", "1024GiB")] | None = Field(
        default=None, description="Largest body of a request; left out: no limit."
    )
    upgrade: Switch = Field(
        default=False,
        description="Profile media: pass Upgrade (WebSocket) to this origin too. Profile generic always does.",
    )
    tunnels: Annotated[int, *whole_between(0, 1_000_000)] = Field(
        default=10_000, description="Tunnels (WebSocket) to this origin at once; more are refused. 0: none."
    )
    timeouts: Timeouts = Field(default=Timeouts(), description="How long to wait for this origin.")
    forward: Annotated[tuple[FieldName, ...], empty_means(tuple)] = Field(
        default=(),
        max_length=64,
        description="Request fields that profile media passes to the origin besides the usual ones.",
    )
    credential: Credential | None = Field(
        default=None,
        description="Where viewers' credentials are, what they cover, and who judges them; left out: nobody does.",
    )
    max_offline: Annotated[float, *time_between("1s", "3650d")] | None = Field(
        default=None,
        description="What was not checked with the origin for so long is checked before it is used, however fresh it "
        "is, and not used where that fails; left out: the class's, or no limit.",
    )
    forward_tags: Switch = Field(
        default=False,
        description="Pass Cache-Tag and Surrogate-Key on to viewers, for another cache between them and this box.",
    )
    override_private: Switch = Field(
        default=False,
        description="Store playlists and segments although the origin says no-store or private. "
        "Only for content that every viewer may see.",
    )


    @property
    def head_timeout(self) -> float:
        """`timeouts.head`, in seconds, with the profile's default."""
        if self.timeouts.head is not None:
            return self.timeouts.head
        return 30.0 if self.profile == "media" else 120.0
