"""The pages that the box itself serves on viewers' listeners, made of its policy: PAC, content steering. Pure."""

from __future__ import annotations

from typing import Any

from accelerator.policy.model import Policy
from accelerator.protocols import content_steering, pac

PAC_PATHS = ("/proxy.pac", "/wpad.dat")
DOCUMENT_PATH = "/.well-known/accelerator/steering"
FIRST_DOCUMENT_PATH = "/.well-known/accelerator/steering/first"


def own_pages(policy: Policy) -> list[tuple[str, str, str, bytes]]:
    """(path, Content-Type, Cache-Control, body) of each; none where policy wants none."""
    found = []
    script = pac_of(policy)
    if script is not None:
        found += [(path, pac.CONTENT_TYPE, "max-age=300", script.encode()) for path in PAC_PATHS]
    documents = ((DOCUMENT_PATH, document_of(policy)), (FIRST_DOCUMENT_PATH, first_document_of(policy)))
    for path, document in documents:
        if document is not None:
            # The document says itself when to ask again; a browser's cache must not answer instead.
            found.append((path, content_steering.CONTENT_TYPE, "no-cache", document.encode()))
    return found


def pac_of(policy: Policy) -> str | None:
    proxy = policy.steering.proxy
    if proxy is None:
        return None
    hosts = [host for origin in policy.origins.values() for host in origin.hosts]
    nets = [str(net) for zone in proxy.zones for net in policy.zones[zone].nets]
    tunnels = [str(each) for each in policy.steering.connect]
    own = (*policy.steering.hosts, proxy.address.host)
    return pac.pac_script(policy.site.name, str(proxy.address), hosts, nets, tunnels, own)


def document_of(policy: Policy) -> str | None:
    made = _document(policy)
    return None if made is None else content_steering.steering_text(made)


def first_document_of(policy: Policy, reload: str | None = None) -> str | None:
    """The one for players that begin elsewhere; they ask again at `reload`, at this box if none is named at all."""
    made = _document(policy)
    if made is None:
        return None
    reload = reload or made.get("RELOAD-URI", DOCUMENT_PATH)
    return content_steering.steering_text(content_steering.first_manifest(made, reload))


def _document(policy: Policy) -> dict[str, Any] | None:
    document = policy.steering.document
    if document is None:
        return None
    return content_steering.steering_manifest(
        document.pathways, document.ttl, clone_of=document.clone_of, host=document.host, reload=document.reload
    )
